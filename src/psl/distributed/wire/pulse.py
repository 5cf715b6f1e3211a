"""Signs of life between processes that wait for each other: who is frozen is told from who has long to compute."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence

from torch.distributed import Store

from psl.distributed.wire.messages import ChannelError
from psl.errors import expected

_BEATS = 5  # in a timeout
_LEFT = b"left"
_FAILED = b"failed"


class Pulse:
    """Shows the other processes of a run that this one lives, and gives up when one of them does not; a context.

    Signs of life go through the store, beside the links of the run: whatever a slow link holds up, it is not these. So
    a message may take any time, while a process that was stopped, or whose machine is gone, is noticed within the
    timeout. An error that leaves the context is told to the others too.

    Args:
        store: where all processes leave their signs; used by a thread.
        rank: of this process.
        names: of all processes, for messages.
        timeout: s without a sign after which a process counts as gone.
        give_up: called with the error, in the thread; default ends this process with its message, as the thread that
            waits for the other process may wait for good.

    Source: ours [B].
    """

    def __init__(self, store: Store, rank: int, names: Sequence[str], timeout: float, give_up: Callable | None = None):
        self._store, self._rank, self._names, self._timeout = store, rank, names, timeout
        self._give_up = give_up or _end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self):
        self._set(b"0")
        self._thread.start()
        return self

    def __exit__(self, kind, *_):
        self._over.set()
        self._thread.join(self._timeout)
        with contextlib.suppress(RuntimeError):  # the store is gone, with who serves it
            self._set(_LEFT if kind is None else _FAILED)

    def _beat(self) -> None:
        others = {k: (b"", time.monotonic()) for k in range(len(self._names)) if k != self._rank}
        number = 0
        while not self._over.wait(self._timeout / _BEATS):
            number += 1
            try:
                self._set(str(number).encode())
                for other, (sign, since) in others.items():
                    now = self._store.get(f"pulse {other}")
                    if now != sign:
                        others[other] = now, time.monotonic()
                    elif now != _LEFT and time.monotonic() - since > self._timeout:
                        raise self._gone(other, "none", "see its own output, and whether it was stopped")
                    if now == _FAILED:
                        raise self._gone(other, "its end", "see its own output")
            except (ChannelError, RuntimeError) as failure:
                if not self._over.is_set():
                    self._give_up(failure)
                return

    def _gone(self, other: int, got: str, fix: str) -> ChannelError:
        return expected(self._names[other], f"a sign of life within {self._timeout:g} s", got, fix, ChannelError)

    def _set(self, sign: bytes) -> None:
        self._store.set(f"pulse {self._rank}", sign)


def _end(failure: Exception) -> None:
    print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
    os._exit(1)
