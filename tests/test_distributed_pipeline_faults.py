"""Stages that are killed or freeze, slow links, and pipelines that continue from their checkpoint."""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.distributed import HashStore

from distributed_models import OPTIONS, assert_same_run
from marks import some
from psl.distributed import EdgeEmulation, PipelineJob, run
from psl.distributed.edge.namespaces import unavailable
from psl.distributed.leftovers import orphans, owner, run_folder
from psl.distributed.pipeline.books import Books
from psl.distributed.pipeline.job import Source
from psl.distributed.wire.messages import ChannelError
from psl.distributed.wire.pulse import Pulse
from psl.errors import CheckpointError, PSLError
from test_distributed_faults import At, alive, descendants, kill
from test_distributed_pipeline import NAMES, in_one_process, in_processes, left_behind, relayed_plan
from test_distributed_pipeline import OPTIONS as CHAIN

MANY = {"rounds": 1000, "eval_every": 1000, "timeout": 20.0}


def chain(forward=np.inf, overhead=0.0, links="pacing"):
    """Three processes; the first link has a rate in bit/s, and every computation of the second takes longer."""
    fast, none = np.full(2, np.inf), np.zeros(2)
    return EdgeEmulation("chain", np.ones(3), [forward, np.inf], fast, none, none, [0, overhead, 0], links=links)


@pytest.mark.parametrize("links", ["pacing", "none"])
def test_a_killed_stage_ends_the_others_and_is_named(nursery, links):
    workers = []

    def watch(launch):
        workers[:] = launch.workers
        killer(launch)

    killer = At(3, kill(1))
    message = r"the pipeline stopped\. stage 1 failed: killed by signal 9 \(SIGKILL\)"
    with pytest.raises(PSLError, match=message) as failure:
        in_processes(nursery, watch=watch, emulate=chain(overhead=0.05, links=links), **MANY)
    assert time.monotonic() - killer.when < 15, "at once, not after the timeout"
    assert "Traceback" not in str(failure.value)
    assert not any(worker.running or alive(worker.pid) for worker in workers)
    assert left_behind(nursery) == ([], [])


def test_a_client_that_is_killed_before_the_first_round_ends_the_run_at_once(nursery):
    begun, options = time.monotonic(), OPTIONS | {"progress": False, "nursery": nursery, "timeout": 60.0}
    with pytest.raises(PSLError, match=r"client 1 failed: killed by signal 9 \(SIGKILL\)"):
        run("psl", watch=At(0, kill(2)), **options)
    assert time.monotonic() - begun < 50, "not after the timeout"


def test_a_frozen_stage_is_noticed_within_the_timeout(nursery):
    freezer = At(3, kill(1, signal.SIGSTOP))
    with pytest.raises(PSLError, match="ChannelError: stage 1: expected a sign of life within 3 s, got none"):
        in_processes(nursery, watch=freezer, **MANY | {"timeout": 3.0})
    assert 2.0 < time.monotonic() - freezer.when < 30  # its last sign may be older than its freezing
    assert left_behind(nursery) == ([], [])


def test_a_slow_link_and_a_slow_stage_delay_but_do_not_break(nursery):
    options = {"model": "pipeline_models:wide_chain", "cut": [1, 2], "batch_size": 16, "micro_batch": 32, "rounds": 1}
    slow = chain(forward=2e6, overhead=1.2)
    found = in_processes(nursery, emulate=slow, timeout=2.0, **options)
    seconds = 32 * 64 * 64 * 32 / 2e6  # one message, much longer than the timeout
    assert seconds > 2 and seconds + 2.4 < found.round_times[0]
    assert found.emulation == "pacing"


@pytest.mark.parametrize("schedule", some(["eager", "gpipe"], lambda schedule: schedule == "eager"))
def test_a_killed_pipeline_continues_from_its_checkpoint_with_the_same_result(nursery, tmp_path, schedule):
    folder = tmp_path / "run"
    options = {"rounds": 12, "eval_every": 12, "save_every": 0, "checkpoint": folder, "schedule": schedule}
    with pytest.raises(PSLError, match="stage 2 failed: killed"):
        in_processes(nursery, watch=At(4, kill(2)), emulate=chain(overhead=0.01), **options)
    assert 4 <= len(list(folder.iterdir())) <= 9  # up to two rounds of each stage, or one that was being written
    found = in_processes(nursery, **options)
    want = in_one_process(rounds=12, eval_every=12)
    assert_same_run(found.history, want, tolerance=1e-4)
    if schedule == "eager":
        return
    again = in_processes(nursery, **options)  # nothing left to do
    assert again.history == found.history and np.array_equal(again.round_times, found.round_times)
    whole = in_processes(nursery, **options | {"checkpoint": None})
    assert whole.history == found.history, "the same numbers, bit for bit"
    assert_same_run(again.history, whole.history, tolerance=0)
    with pytest.raises(PSLError, match="seed: expected '6', got '5' in the checkpoint"):
        in_processes(nursery, **options | {"seed": 6})
    with pytest.raises(PSLError, match="at most rounds = 3, got 12 rounds in the checkpoint"):
        in_processes(nursery, **options | {"rounds": 3})
    for file in folder.glob("stage-1-*"):
        file.unlink()
    with pytest.raises(PSLError, match="expected a file of every stage, got none of stage 1"):
        in_processes(nursery, **options)


def test_other_data_is_not_continued_with(tmp_path):
    job = PipelineJob.of("pipeline", **NAMES | CHAIN)
    source = Source(job, torch.device("cpu"))
    books = Books(job, job.prepare(), source, tmp_path, saves=True)
    books.restore(books.state())
    with pytest.raises(CheckpointError, match="checkpoint: data: expected .* training, .* test, got something else"):
        books.restore(books.state() | {"data": "something else"})


def interrupt(launch):
    raise KeyboardInterrupt


def test_an_interrupted_pipeline_is_saved_and_leaves_no_process(nursery, tmp_path):
    workers, options = [], {**MANY, "checkpoint": tmp_path / "run"}

    def watch(launch):
        workers[:] = launch.workers
        At(3, interrupt)(launch)

    with pytest.raises(KeyboardInterrupt):
        in_processes(nursery, watch=watch, **options)
    assert len(workers) == 3 and not any(worker.running or alive(worker.pid) for worker in workers)
    assert len(list((tmp_path / "run").glob("*.pt"))) == 3
    with pytest.raises(KeyboardInterrupt):
        in_processes(nursery, watch=At(1, interrupt), **MANY)
    assert left_behind(nursery) == ([], [])


def has_rounds(folder):
    news = folder / "progress.json"
    return news.exists() and '"rounds": 0' not in news.read_text()


def test_a_launcher_that_is_ended_leaves_nothing_that_stays(nursery, tmp_path):
    links = "pacing" if unavailable() else "kernel"
    plan = relayed_plan().save(tmp_path / "plan.json")
    left = lambda: list(tmp_path.glob("psl-*"))  # noqa: E731
    spaces = lambda pid: list(Path("/run/netns").glob(f"psl-{pid}-*"))  # noqa: E731
    pids = []
    # A killed one can clean nothing up, but the next run does; and that one cleans up when it is asked to end.
    for number in (signal.SIGKILL, signal.SIGTERM):
        program = nursery.start("pipeline_models", [tmp_path, plan, links], tmp_path / "log")
        pids.append(program.pid)
        end = time.monotonic() + 90
        while not any(has_rounds(folder) for folder in tmp_path.glob(f"psl-run-{program.pid}-*")):
            assert program.running and time.monotonic() < end, program.last_words()
            time.sleep(0.1)
        family = descendants(program.pid)
        assert len(family) == 4  # the nursery, two stages and a relay
        assert len(left()) == 1 and len(spaces(program.pid)) == 3 * (links == "kernel"), "its own, nobody else's"
        program.signal(number)
        assert program.wait(20) == -number
        end = time.monotonic() + 10
        while any(alive(pid) for pid in family) and time.monotonic() < end:
            time.sleep(0.05)
        assert not [pid for pid in family if alive(pid)]
    assert not left() and not spaces(pids[0]) and not spaces(pids[1])


def test_only_what_a_gone_process_made_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = f"psl-run-{gone.pid}-1-{owner().split('-')[-1]}-abc"
    for name in (left, f"psl-run-{owner()}-abc", "psl-run-notes", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    assert orphans(tmp_path, "psl-run") == [left]
    with run_folder() as folder:
        assert orphans(tmp_path, "psl-run") == [] and folder.parent == tmp_path
        assert folder.name.startswith(f"psl-run-{owner()}-")
        assert len(list(tmp_path.iterdir())) == 4
    assert not folder.exists()


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)


@pytest.mark.slow
def test_a_pulse_tells_the_silent_from_the_slow_and_the_failed():
    names, store = ["stage 0", "stage 1"], HashStore()
    failures = []
    with Pulse(store, 0, names, 10.0, failures.append), Pulse(store, 1, names, 10.0, failures.append):
        signs = store.get("pulse 0"), store.get("pulse 1")
        time.sleep(3.0)  # a beat takes 2 s
        assert all(a != b for a, b in zip(signs, (store.get("pulse 0"), store.get("pulse 1")), strict=True))
    with Pulse(store, 0, names, 0.3, failures.append):
        time.sleep(0.8)
    assert failures == [], "whoever has left need not tell that it lives"
    with Pulse(store, 0, names, 0.3, failures.append):
        store.set("pulse 1", "7")
        wait_for(lambda: failures)
    (failure,) = failures
    assert isinstance(failure, ChannelError)
    assert str(failure).startswith("stage 1: expected a sign of life within 0.3 s, got none")
    failures.clear()
    with Pulse(store, 0, names, 10.0, failures.append):
        with pytest.raises(OSError, match="on purpose"), Pulse(store, 1, names, 10.0, failures.append):
            raise OSError("on purpose")
        wait_for(lambda: failures)
    assert len(failures) == 1 and "stage 1: expected a sign of life within 10 s, got its end" in str(failures[0])
