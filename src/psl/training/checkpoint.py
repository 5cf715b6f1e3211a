"""Save a run so that it continues bit for bit, and refuse what does not belong to it."""

import hashlib
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from psl.errors import CheckpointError, expected, first_line

_SAVE_EVERY_S = 10.0
_FORMAT = 1
_MAGIC = b"psl checkpoint, sha256 of what follows: "


class DamagedCheckpointError(CheckpointError):
    """A file is not what was written: damaged, cut short, or no checkpoint."""


class Checkpoint:
    """One file that holds the newest state of a run.

    The file is written beside its final name and moved there in one step, so a crash leaves the
    previous one whole. Before its content stands the content's hash, so that a damaged file is noticed; it is read
    with ``torch.load(weights_only=True)``: nothing is unpickled. Files of psl 0.8 and before have no hash.

    Args:
        path: the file.
        fingerprint: what the run is, as a dict of plain values; a file with another one is refused.

    Raises:
        CheckpointError: nothing can be written there.
    """

    def __init__(self, path: str | Path, fingerprint: dict[str, Any]):
        self.path = Path(path)
        self._fingerprint = fingerprint
        self._saved_at = time.monotonic()
        self._temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}.tmp")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._temporary.touch()
            self._temporary.unlink()
            if self.path.is_dir():
                raise IsADirectoryError("a folder")
        except OSError as cause:  # now, not after the first rounds
            fix = "give a path in a folder that you may write to"
            what = f"checkpoint {path}"
            raise expected(what, "a file that can be written", str(cause), fix, CheckpointError) from cause

    def load(self) -> dict[str, Any] | None:
        """Return the saved state, None if there is no file.

        Raises:
            CheckpointError: the file is truncated or no checkpoint, or belongs to another run; the
                message says what differs.
        """
        if not self.path.exists():
            return None
        fix = "delete the file to start anew, or give another checkpoint="
        try:
            payload = torch.load(io.BytesIO(_whole_content(self.path)), map_location="cpu", weights_only=True)
        except Exception as cause:  # torch raises a different type for each way a file can be broken
            reason = first_line(cause, 120)
            want = "a checkpoint written by psl.train"
            raise expected(
                str(self.path), want, f"an unreadable file ({reason})", fix, DamagedCheckpointError
            ) from cause
        if not isinstance(payload, dict) or not _is_ours(payload):
            want = f"a checkpoint written by psl.train (format {_FORMAT})"
            raise expected(str(self.path), want, "another file", fix, DamagedCheckpointError)
        saved = payload["fingerprint"]
        for key in self._fingerprint | saved:
            value = self._fingerprint.get(key)
            if saved.get(key) != value:
                want, got = _first_difference(value, saved.get(key))
                raise expected(f"{self.path}: {key}", want, f"{got} in the checkpoint", fix, CheckpointError)
        return payload["state"]

    def save(self, state: dict[str, Any]) -> None:
        """Write the state.

        Raises:
            CheckpointError: it cannot be written, as when the disk is full; the file before stays whole.
        """
        payload = {"psl_checkpoint": _FORMAT, "fingerprint": self._fingerprint, "state": state}
        content = io.BytesIO()
        torch.save(payload, content)
        try:
            with open(self._temporary, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(content.getbuffer()).hexdigest().encode() + b"\n")
                file.write(content.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(self._temporary, self.path)
        except OSError as cause:
            want, got = "a file that can be written", cause.strerror or str(cause)
            fix = "make room, or give a path that you may write to; the checkpoint before is whole"
            raise expected(f"checkpoint {self.path}", want, got, fix, CheckpointError) from cause
        finally:
            self._temporary.unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self._saved_at >= _SAVE_EVERY_S


def _whole_content(path: Path) -> bytes:
    """Return what a file holds behind its hash; raises `ValueError` if the hash is that of something else."""
    with open(path, "rb") as file:  # read in two parts: a slice of the whole would be a second copy
        start = file.read(len(_MAGIC))
        if start != _MAGIC:
            return start + file.read()
        digest, content = file.readline().rstrip(b"\n"), file.read()
    if hashlib.sha256(content).hexdigest().encode() != digest:
        raise ValueError("its content is not what was written: damaged, or cut short")
    return content


def _is_ours(payload: dict[Any, Any]) -> bool:
    parts = (payload.get("fingerprint"), payload.get("state"))
    return payload.get("psl_checkpoint") == _FORMAT and all(isinstance(part, dict) for part in parts)


def _first_difference(want: Any, got: Any) -> tuple[Any, Any]:
    """Two values to show; of two lists only the first entries that differ."""
    if isinstance(want, list) and isinstance(got, list):
        for a, b in zip(want, got, strict=False):
            if a != b:
                return a, b
        return f"{len(want)} entries", f"{len(got)}"
    return repr(want), repr(got)


@contextmanager
def deferred_interrupt(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Hold back Ctrl-C within the context: yields a function that tells whether it was pressed.

    The caller ends its round, saves, and raises KeyboardInterrupt. A second Ctrl-C interrupts at
    once. Outside the main thread, where Python allows no signal handlers, nothing is held back.
    """
    pressed: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if not enabled or threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield lambda: False
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)
