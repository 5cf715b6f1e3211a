"""Checkpoints of one process of a run: a folder with its newest two states, each whole or not there."""

import os
from pathlib import Path
from typing import Any

from psl.errors import CheckpointError, expected
from psl.training.checkpoint import Checkpoint, DamagedCheckpointError

try:
    import fcntl
except ImportError:  # not a POSIX system: nobody is kept out there
    fcntl = None

_KEPT = 2  # a process may have saved a round that another has not


class Checkpoints:
    """The states that a process saved after rounds; while it lives, no other process may use them.

    Args:
        folder: of the checkpoints of a run, or of those of its processes that are on this machine.
        who: "server", "client-2" or "stage-0".
        identity: what a state must agree on with this run.

    Attributes:
        notes: what was found damaged or missing, one line each.

    Raises:
        CheckpointError: another process uses them, or nothing can be written there.
    """

    def __init__(self, folder: str | Path, who: str, identity: dict[str, str]):
        self.folder, self.who, self._identity = Path(folder), who, identity
        self.notes: list[str] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.folder / f"{who}.lock", "a+")  # noqa: SIM115  # closed with this object
        except OSError as cause:
            fix = "name a folder that you may write to"
            raise expected(f"checkpoint {folder}", "a folder", cause.strerror or cause, fix, CheckpointError) from cause
        try:
            if fcntl is not None:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as cause:
            self._lock.seek(0)
            want, got = f"a folder that no other run uses as {who}", f"one that process {self._lock.read() or '?'} uses"
            fix = "wait for it to end, or name another folder"
            raise expected(f"checkpoint {folder}", want, got, fix, CheckpointError) from cause
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def save(self, index: int, state: dict[str, Any]) -> None:
        """Write the state after round `index` and delete those before the last but one.

        Raises:
            CheckpointError: it cannot be written; what was saved before stays.
        """
        self._file(index).save(state)
        for old in self._rounds()[:-_KEPT]:
            self._path(old).unlink(missing_ok=True)

    def load(self, newest: int | None = None) -> tuple[int, dict[str, Any]] | None:
        """Return the newest whole state with its round, none newer than `newest`; None if there is none.

        What is damaged is left out, and said in `notes`.

        Raises:
            CheckpointError: a state is of another run or other data.
        """
        for index in reversed(self._rounds()):
            if newest is not None and index > newest:
                continue
            try:
                state = self._file(index).load()
            except DamagedCheckpointError as failure:
                self.notes.append(f"left a checkpoint out: {failure}")
                continue
            if state is not None:
                return index, state
        return None

    def rounds(self) -> list[int]:
        """Return the rounds of all whole states."""
        found, newest = [], None
        while (loaded := self.load(newest)) is not None:
            found.append(loaded[0])
            newest = loaded[0] - 1
        return found

    def close(self) -> None:
        """Let others use them."""
        self._lock.close()

    def _file(self, index: int) -> Checkpoint:
        return Checkpoint(self._path(index), self._identity)

    def _path(self, index: int) -> Path:
        return self.folder / f"{self.who}-round-{index + 1}.pt"

    def _rounds(self) -> list[int]:
        numbers = (path.stem.rpartition("-")[2] for path in self.folder.glob(f"{self.who}-round-*.pt"))
        return sorted(int(number) - 1 for number in numbers if number.isdigit())
