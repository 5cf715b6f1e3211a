"""Names that tell who made a thing, so that what a killed process left behind is found and removed by the next one."""

import contextlib
import hashlib
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from psl.distributed.names import machine

_FOLDER = "psl-run"


def owner() -> str:
    """Return what names this process for good: its number, when it started, and where such numbers mean the same."""
    return f"{os.getpid()}-{_born(os.getpid())}-{_place()}"


def orphans(folder: Path, prefix: str) -> list[str]:
    """Return the names ``PREFIX-PID-START-PLACE-…`` in a folder whose process was of this place and is gone.

    Other machines and containers may share the folder: whether their processes live cannot be told from here.
    """
    name = re.compile(rf"{prefix}-(?P<pid>\d+)-(?P<born>\d+)-{_place()}-.+")
    found = []
    for entry in sorted(path.name for path in folder.iterdir()) if folder.is_dir() else ():
        made_by = name.fullmatch(entry)
        if made_by and _born(int(made_by["pid"])) != made_by["born"]:
            found.append(entry)
    return found


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """Make a temporary folder for a run, once those are removed that this user's killed processes left."""
    place = Path(tempfile.gettempdir())
    for name in orphans(place, _FOLDER):
        with contextlib.suppress(OSError):
            if (place / name).lstat().st_uid == os.geteuid():
                shutil.rmtree(place / name, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER}-{owner()}-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _place() -> str:
    """Return what names a machine since its start, and on it the namespace of process numbers (of a container)."""
    try:
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        numbers = ""
    return hashlib.sha256(f"{machine()} {numbers}".encode()).hexdigest()[:12]


def _born(pid: int) -> str | None:
    """When a process started, in ticks since boot; None if there is none, or no Linux to say so."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Clean up before SIGTERM or SIGHUP, where nobody handles them, end the program as they do."""
    ours, received = [], []

    def leave(number, frame):
        received.append(number)
        for each in ours:
            signal.signal(each, signal.SIG_IGN)  # a second one must not stop the cleaning
        raise SystemExit(128 + number)

    if threading.current_thread() is threading.main_thread():
        ours += [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in ours:
        signal.signal(each, leave)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)
        for number in received:  # now for good; a notebook would go on after an exception
            os.kill(os.getpid(), number)
