"""Signs of life between processes that wait for each other: who is frozen is told from who has long to compute."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from torch.distributed import Store

from psl.distributed.wire.messages import ChannelError
from psl.distributed.wire.transport import START
from psl.errors import expected

_BEATS = 5  # in a timeout
_LEFT = b"left"
_FAILED = b"failed"


class Pulse:
    """Shows the other processes of a run that this one lives, and gives up when one of them does not; a context.

    Signs of life go through the store, beside the links of the run: whatever a slow link holds up, it is not these. So
    a message may take any time, while a process that was stopped, or whose machine is gone, is noticed within the
    timeout. An error that leaves the context is told to the others too. So is noticed who serves the store: a second
    thread gives up where the first one hangs in it.

    Args:
        store: where all processes leave their signs, a connection of its own whose timeout this sets.
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
        self._over, self._lock, self._beats = threading.Event(), threading.Lock(), 0
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)
        self._watch = threading.Thread(target=self._look, name="pulse watch", daemon=True)

    def __enter__(self):
        self._store.set_timeout(timedelta(seconds=self._timeout))
        self._set(b"0")
        self._thread.start()
        self._watch.start()
        return self

    def __exit__(self, kind, *_):
        self._over.set()
        self._watch.join()
        self._thread.join(self._timeout)
        if not self._thread.is_alive():  # else it hangs in the store
            with contextlib.suppress(RuntimeError):  # the store is gone, with who serves it
                self._set(_LEFT if kind is None else _FAILED)

    def _beat(self) -> None:
        others = {k: (None, time.monotonic()) for k in range(len(self._names)) if k != self._rank}
        try:
            while not self._over.wait(self._timeout / _BEATS):
                self._set(str(self._beats + 1).encode())
                for other, (sign, since) in others.items():
                    others[other] = self._hear(other, sign, since)
                self._beats += 1
        except ChannelError as failure:
            self._fail(failure)
        except RuntimeError as cause:
            self._fail(self._no_store("nothing" if "imeout" in str(cause) or "imed out" in str(cause) else "its end"))

    def _hear(self, other: int, sign: bytes | None, since: float) -> tuple[bytes | None, float]:
        """Return the newest sign of another process, and since when it is known, in s."""
        key = f"pulse {other}"
        # What is not there yet is not asked for: that would wait, and hold up our own signs.
        now = self._store.get(key) if sign is not None or self._store.check([key]) else None
        if now == _FAILED:
            raise self._gone(other, "its end", "see its own output")
        if now != sign:
            return now, time.monotonic()
        patience = self._timeout if now is not None else max(self._timeout, START)  # to begin
        if now != _LEFT and time.monotonic() - since > patience:
            raise self._gone(other, "none", "see its own output, and whether it was stopped")
        return sign, since

    def _look(self) -> None:
        """Give up if no beat was completed for a timeout; looks are counted, as time passes for the stopped too."""
        beats = idle = 0
        while not self._over.wait(self._timeout / _BEATS):
            idle = idle + 1 if self._beats == beats else 0
            beats = self._beats
            if idle >= _BEATS and self._thread.is_alive():
                self._fail(self._no_store("none"))

    def _fail(self, failure: ChannelError) -> None:
        with self._lock:
            if self._over.is_set():
                return
            self._over.set()
        self._give_up(failure)

    def _no_store(self, got: str) -> ChannelError:
        fix = f"see whether {self._names[0]}, or who else serves it, was stopped or has ended"
        return expected("store", f"an answer within {self._timeout:g} s", got, fix, ChannelError)

    def _gone(self, other: int, got: str, fix: str) -> ChannelError:
        return expected(self._names[other], f"a sign of life within {self._timeout:g} s", got, fix, ChannelError)

    def _set(self, sign: bytes) -> None:
        self._store.set(f"pulse {self._rank}", sign)


def _end(failure: Exception) -> None:
    print(f"{type(failure).__name__}: {failure}", file=sys.stderr, flush=True)
    os._exit(1)
