"""Many independent runs, on all cores or on a cluster, with what is finished kept: a thin layer over joblib."""

import functools
import hashlib
import inspect
import os
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import joblib
from threadpoolctl import threadpool_limits
from tqdm.auto import tqdm

from psl.errors import check_count, expected


def run_study(
    run: Callable[..., Any],
    settings: Iterable[Mapping[str, Any]],
    *,
    n_jobs: int = -1,
    cache: str | os.PathLike[str] | None = None,
    progress: bool = True,
    description: str = "runs",
) -> list[Any]:
    """Call ``run(**setting)`` for every setting, side by side, and return the results in the order of the settings.

    Runs are independent, and each computes with one thread: the results are the same for any number of workers. A run
    that draws random numbers takes its seed from its setting.

    joblib executes the runs. By default they use all cores of this machine. Inside
    ``joblib.parallel_config(backend="dask")`` or ``"ray"`` they use all workers of that cluster; docs/clusters.md shows
    the two lines that it takes.

    Args:
        run: takes a setting's entries as keyword arguments and returns an object that can be pickled.
        settings: one mapping of keyword arguments per run.
        n_jobs: runs at a time; -1 for all cores of the machine, or all workers of the cluster.
        cache: folder that keeps every finished result, so that a study that was interrupted computes only what is
            missing when it is called again. A result is kept for the source code of `run` and of psl, and for its
            setting. Use another folder when something else changes that `run` uses. Results are pickled: read only
            your own.
        progress: show a progress bar.
        description: what the bar calls the runs.

    Raises:
        ScenarioError: `run` is no function, a setting is no mapping, or `n_jobs` is neither -1 nor at least 1.
        Exception: the first error that a run raises; finished results are in `cache`.
    """
    if not callable(run):
        raise expected("run", "a function", repr(run)[:80], "pass a function that takes a setting's entries")
    jobs = list(settings)
    for number, setting in enumerate(jobs):
        if not isinstance(setting, Mapping):
            got, fix = repr(setting)[:80], "give keyword arguments, such as {'seed': 0}"
            raise expected(f"settings[{number}]", "a mapping", got, fix)
    if n_jobs != -1:
        n_jobs = check_count("n_jobs", n_jobs, fix="give the number of runs at a time, or -1 for all cores")
    kept = None if cache is None else _Kept(Path(cache), run)
    results: dict[int, Any] = {} if kept is None else dict(kept.find(jobs))
    missing = [number for number in range(len(jobs)) if number not in results]
    with tqdm(total=len(jobs), initial=len(results), desc=description, disable=not progress) as bar:
        # No memory maps: a run may write to its arrays, as it could without workers.
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", max_nbytes=None)
        found = parallel(joblib.delayed(_numbered)(run, n, dict(jobs[n])) for n in missing)
        for number, result in cast(Iterable[tuple[int, Any]], found):
            results[number] = result
            if kept is not None:
                kept.keep(jobs[number], result)
            bar.update()
    return [results[number] for number in range(len(jobs))]


def _numbered(run: Callable[..., Any], number: int, setting: dict[str, Any]) -> tuple[int, Any]:
    with one_thread():
        return number, run(**setting)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let NumPy, SciPy and torch compute with one thread: sums then have one order, whatever the machine."""
    with threadpool_limits(1):
        if find_spec("torch") is None:  # planning and simulation do without it
            yield
            return
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)


class _Kept:
    """The finished results of one function, a file for each setting."""

    def __init__(self, folder: Path, run: Callable[..., Any]):
        self.folder, self.name = folder, getattr(run, "__qualname__", type(run).__qualname__)
        self.source = self.name
        with suppress(OSError, TypeError):  # no source: known by its name
            self.source = inspect.getsource(run)
        folder.mkdir(parents=True, exist_ok=True)

    def file(self, setting: Mapping[str, Any]) -> Path:
        """Return the file of a setting's result."""
        return self.folder / f"{joblib.hash((self.name, self.source, _library(), dict(setting)))}.pickle"

    def find(self, settings: list[Mapping[str, Any]]) -> Iterator[tuple[int, Any]]:
        """Yield the results that are there, with the numbers of their settings."""
        for number, setting in enumerate(settings):
            # A file that is missing, or damaged in whatever way: the run is made again.
            with suppress(Exception):
                yield number, pickle.loads(self.file(setting).read_bytes())

    def keep(self, setting: Mapping[str, Any], result: Any) -> None:
        """Write a result, so that its file is there as a whole or not at all."""
        file = self.file(setting)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(pickle.dumps(result))
        temporary.replace(file)


@functools.cache
def _library() -> str:
    """Return a hash of psl's sources: what another version computed is not a result of this one."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
