"""Studies: the same results for any number of workers, nothing finished is lost, Dask runs them too."""

import os

import joblib
import numpy as np
import pytest

import psl
from psl import studies
from psl.errors import ScenarioError
from psl.studies import run_study


def train(seed):
    """Train a small network; the last losses tell any difference in the order of sums."""
    import torch

    torch.manual_seed(seed)
    options = {"n_clients": 2, "rounds": 3, "batch_size": 16, "lr": 0.1, "progress": False}
    return psl.train("psl", psl.models.cnn(), "digits", cut="pool1", seed=seed, **options).train_loss.tolist()


def touch(folder, number, fails=()):
    """Leave a mark for every call; some calls fail."""
    (folder / f"{number}-{len(list(folder.iterdir()))}").touch()
    if number in fails:
        raise RuntimeError(f"run {number} fails")
    return number**2


@pytest.mark.slow
def test_results_come_in_order_and_do_not_depend_on_the_workers():
    settings = [{"seed": seed} for seed in range(4)]
    one = run_study(train, settings, n_jobs=1, progress=False)
    assert one == run_study(train, settings, n_jobs=2, progress=False)
    assert len({tuple(losses) for losses in one}) == 4


@pytest.mark.slow
def test_a_study_on_a_local_dask_cluster_of_two_workers():
    distributed = pytest.importorskip("distributed")
    settings = [{"seed": seed} for seed in range(2)]
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        there = run_study(process_and_result, settings, progress=False)
    assert [losses for _, losses in there] == run_study(train, settings, n_jobs=1, progress=False)
    assert os.getpid() not in {pid for pid, _ in there}


def process_and_result(seed):
    return os.getpid(), train(seed)


def test_what_is_finished_is_kept(tmp_path, monkeypatch):
    calls, cache = tmp_path / "calls", tmp_path / "cache"
    calls.mkdir()
    settings = [{"folder": calls, "number": number} for number in range(4)]
    with pytest.raises(RuntimeError, match="run 2 fails"):
        run_study(touch, [*settings[:2], settings[2] | {"fails": (2,)}], n_jobs=1, cache=cache, progress=False)
    assert len(list(calls.iterdir())) == 3
    assert run_study(touch, settings, n_jobs=1, cache=cache, progress=False) == [0, 1, 4, 9]
    assert len(list(calls.iterdir())) == 5, "only the two that were missing have run"
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:3])
    assert run_study(touch, settings, n_jobs=1, cache=cache, progress=False) == [0, 1, 4, 9]
    assert len(list(calls.iterdir())) == 9, "a damaged result is computed again"
    monkeypatch.setattr(studies, "_library", lambda: "another version of psl")
    run_study(touch, settings, n_jobs=1, cache=cache, progress=False)
    assert len(list(calls.iterdir())) == 13, "what another version computed is computed again"


def test_a_run_may_write_to_its_arrays():
    def fill(values):
        values += 1
        return float(values.sum())

    values = np.zeros(300_000)
    assert run_study(fill, [{"values": values}] * 2, n_jobs=2, progress=False) == [300_000.0] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, []), "run: expected a function, got 3. Fix: pass a function"),
        ((touch, [1]), r"settings\[0\]: expected a mapping, got 1. Fix: give keyword arguments"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ScenarioError, match=message):
        run_study(*arguments)
    with pytest.raises(ScenarioError, match="n_jobs: expected at least 1, got 0"):
        run_study(touch, [], n_jobs=0)
