"""Checkpoints of the processes of a run: one file per process and round, the newest two are kept."""

from pathlib import Path

from psl.distributed.job import Job
from psl.errors import CheckpointError, expected
from psl.training.checkpoint import Checkpoint

_KEPT = 2  # the server's newest may be one behind a client's


def save_state(folder: Path, who: str, index: int, job: Job, state: dict, data: str | None = None) -> None:
    """Write the state of a process after a round and delete those before the last but one.

    Args:
        folder: of the checkpoints.
        who: "server" or "client-2".
        index: of the round.
        job: the run.
        state: tensors and plain values.
        data: digest of the data of the process, None if it has none or keeps it in the state.
    """
    _checkpoint(folder, who, index, job, data).save(state)
    for old in _rounds(folder, who)[:-_KEPT]:
        _path(folder, who, old).unlink(missing_ok=True)


def load_state(folder: Path, who: str, index: int, job: Job, data: str | None = None) -> dict:
    """Return the state that a process saved after a round.

    Raises:
        CheckpointError: there is none, it is broken, or it is of another run or other data.
    """
    state = _checkpoint(folder, who, index, job, data).load()
    if state is None:
        fix = "bring the files of all processes, or delete the folder to start anew"
        raise expected(str(_path(folder, who, index)), "a checkpoint", "none", fix, CheckpointError)
    return state


def newest_round(folder: Path | None, who: str) -> int | None:
    """Return the newest round that a process saved, None without any."""
    rounds = [] if folder is None else _rounds(folder, who)
    return rounds[-1] if rounds else None


def _checkpoint(folder, who, index, job, data):
    identity = job.identity() | ({} if data is None else {"hash of the data": data})
    return Checkpoint(_path(folder, who, index), identity)


def _path(folder, who, index):
    return Path(folder) / f"{who}-round-{index + 1}.pt"


def _rounds(folder, who):
    numbers = (path.stem.rpartition("-")[2] for path in Path(folder).glob(f"{who}-round-*.pt"))
    return sorted(int(number) - 1 for number in numbers if number.isdigit())
