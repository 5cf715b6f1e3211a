"""How far the monotonic clocks of two machines are apart, so that their events fit on one axis."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

import torch

from psl.distributed.wire.messages import Kind

_TURNS = 8


def machine() -> str:
    """Return what names this machine since it was started: processes with the same name share their clock."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no Linux
        return f"{uuid.getnode():x}"


def compare_clocks(channel, member: int, now: Callable[[], int] = time.monotonic_ns) -> float:
    """Return the s to add to this end's clock for the server's, 0 at the server; both ends call it.

    The client asks a few times. Of the quickest answer it takes the middle between asking and hearing as the moment
    of the server's clock, as NTP does: wrong by no more than half of what that took. Clocks that drift apart later
    are not followed.

    Args:
        channel: `psl.distributed.wire.transport.Channel`.
        member: 0 for the server, 1 for the client.
        now: this end's clock, ns.
    """
    if member == 0:
        for turn in range(_TURNS):
            channel.recv(Kind.CLOCK, turn, (1,), torch.int64)
            heard = now()
            channel.send(Kind.CLOCK, turn, torch.tensor([heard, now()]))
        return 0.0
    found = []
    for turn in range(_TURNS):
        asked = now()
        channel.send(Kind.CLOCK, turn, torch.tensor([asked]))
        heard, answered = channel.recv(Kind.CLOCK, turn, (2,), torch.int64).tolist()
        back = now()
        found.append((back - asked - (answered - heard), (heard - asked + answered - back) / 2))
    return min(found)[1] / 1e9
