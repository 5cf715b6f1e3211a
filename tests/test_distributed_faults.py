"""Clients and servers that are killed, freeze, come back, or have slow links; and that nothing is left behind."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from distributed_models import LIE_AT, OPTIONS, assert_same_run, in_one_process, in_processes, noted
from marks import some
from psl.distributed import EdgeEmulation, Job, Launch, Nursery
from psl.errors import CheckpointError, PSLError

MANY = {"rounds": 20, "eval_every": 20, "partition": "iid", "timeout": 10.0}
SILENT = MANY | {"timeout": 3.0}  # where silence itself is waited for


def star(overhead=0.0, up=(np.inf,) * 3):
    """An emulation in which every computation of the server takes longer, or uplinks have rates in bit/s."""
    fast, none = np.full(3, np.inf), np.zeros(3)
    return EdgeEmulation("star", np.ones(4), np.array(up), fast, none, none, [overhead, 0, 0, 0], links="pacing")


class At:
    """Does something once, when so many rounds are done; for `run`'s argument `watch`."""

    def __init__(self, rounds, action):
        self.rounds, self.action, self.when = rounds, action, None

    def __call__(self, launch):
        if self.when is None and launch.news["rounds"] >= self.rounds:
            self.when = time.monotonic()
            self.action(launch)


def kill(rank, number=signal.SIGKILL):
    return lambda launch: launch.workers[rank].signal(number)


def test_a_frozen_server_ends_the_run_with_a_message(nursery):
    job = Job.of("psl", **OPTIONS | MANY | {"rounds": 100_000, "timeout": 1.0})
    with Launch(job, nursery=nursery) as launch:
        while launch.news["rounds"] < 3:
            launch.look()
            time.sleep(0.02)
        launch.workers[0].signal(signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(PSLError, match="the server: expected an end, got none for 5 s"):
            while time.monotonic() - begun < 60:
                launch.look()
                time.sleep(0.05)


def test_a_worker_starts_no_workers_of_its_own(monkeypatch):
    monkeypatch.setenv("PSL_WORKER", "1")
    with pytest.raises(PSLError, match='under: if __name__ == "__main__":'):
        Nursery()


@pytest.mark.parametrize(
    ("framework", "options"),
    [("sl", {}), ("sfl", {"local_steps": 2}), ("psl", {}), ("epsl", {}), ("edgesplit", {"cut": (1, 6, 3)})],
)
def test_a_killed_client_is_left_out_and_the_others_work_is_kept(nursery, framework, options):
    found = in_processes(framework, nursery, watch=At(5, kill(2)), **MANY | options)
    taken = found.history.participants
    assert len(taken) == 20 and set(taken[:5]) == {3} and taken[-1] == 2
    assert (np.diff(taken) <= 0).all() and taken.min() == 2  # it stays away, nobody else does
    assert len(found.faults) == 1 and "left out client 1: expected an answer within" in found.faults[0]
    assert np.isfinite(found.history.train_loss).all()
    assert found.history.train_loss[-5:].mean() < found.history.train_loss[:5].mean()  # the others go on learning
    assert len(found.history.models) == (2 if framework in ("psl", "epsl") else 1)


@pytest.mark.parametrize(
    ("framework", "options"),
    some(
        [("sl", {"rounds": 15}), ("sfl", {}), ("psl", {}), ("edgesplit", {"cut": (1, 6, 12)})],
        lambda case: case[0] in ("sl", "psl"),
    ),
)
def test_a_killed_client_comes_back_in_a_later_round(nursery, framework, options):
    options = MANY | {"rounds": 30, "emulate": star(overhead=0.03)} | options  # rounds of 0.1 s or more
    found = in_processes(framework, nursery, watch=At(3, kill(3)), restarts=1, **options)
    taken = found.history.participants
    assert taken is not None and taken.min() == 2 and taken[-1] == 3
    back = int(np.flatnonzero(taken == 2)[-1]) + 2
    assert [fault.split(":")[0] for fault in found.faults] == [
        "left out client 2", f"client 2 came back in round {back}"
    ]  # fmt: skip
    assert len(found.history.models) == (3 if framework == "psl" else 1)


@pytest.fixture
def lied(nursery):
    """Forget afterwards who lied."""
    yield
    noted(nursery.pid).unlink(missing_ok=True)


def test_a_client_that_comes_back_with_other_data_is_not_let_in(nursery, lied):
    data = "distributed_models:other_data_for_whoever_comes_back"
    options = MANY | {"emulate": star(overhead=0.03), "restarts": 1, "dataset": data}
    found = in_processes("psl", nursery, watch=At(3, kill(3)), **options)
    assert found.history.participants[-1] == 2 and len(found.faults) == 2  # and none says that it came back
    assert re.search("left out client 2: expected the data it had, .*n_tests=30.* got .*n_tests=29", found.faults[1])


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        (
            "data_with_a_wrong_header",
            rf"activation of step {LIE_AT}: expected shape \(8, 4, 8, 8\), got shape \(7, 4, 8, 8\)",
        ),
        ("data_with_impossible_labels", "expected labels that the loss takes, got Target .* is out of bounds"),
        (
            "data_sent_too_short",
            f"activation of step {LIE_AT}: expected the payload that its header announces, got a shorter",
        ),
    ],
)
def test_a_client_that_lies_is_refused_and_the_others_go_on(nursery, lied, lie, reason):
    found = in_processes("psl", nursery, dataset=f"distributed_models:{lie}", **MANY)
    assert found.history.participants.tolist() == [3] * LIE_AT + [2] * (20 - LIE_AT)
    (fault,) = found.faults
    assert re.search(rf"left out client \d: {reason}", fault)
    assert len(found.history.models) == 2 and np.isfinite(found.history.train_loss).all()


def test_a_client_that_sends_more_than_it_says_is_named_as_the_reason(nursery, lied):
    with pytest.raises(
        PSLError, match="the server failed: .*aborted inside gloo: a peer sent more than its header says"
    ):
        in_processes("psl", nursery, dataset="distributed_models:data_sent_too_long", **MANY)


def test_a_frozen_client_is_noticed_within_the_timeout(nursery):
    found = in_processes("psl", nursery, watch=At(5, kill(1, signal.SIGSTOP)), **SILENT)
    assert 3.0 <= found.round_times.max() < 30
    assert "expected an answer within 3 s, got nothing" in found.faults[0] and found.history.participants[-1] == 2


def test_with_a_killed_server_every_client_ends_with_its_reason(nursery):
    job = Job.of("psl", **OPTIONS | MANY | {"rounds": 100_000})
    with Launch(job, nursery=nursery) as launch:
        begun = time.monotonic()
        while launch.news["rounds"] < 3:
            launch.look()
            assert time.monotonic() - begun < 60
            time.sleep(0.02)
        server, *clients = launch.workers
        server.signal()
        for client in clients:
            assert client.wait(job.timeout) == 1
            assert "ChannelError: server: expected an answer within" in client.last_words()
            assert "got a closed connection" in client.last_words()
        with pytest.raises(PSLError, match=r"the server failed: killed by signal 9 \(SIGKILL\)"):
            launch.look()


@pytest.mark.parametrize(
    ("framework", "options"),
    some(
        [("sl", {}), ("sfl", {"local_steps": 2}), ("psl", {}), ("edgesplit", {"cut": (1, 6, 12), "local_steps": 2})],
        lambda case: case[0] == "edgesplit",
    ),
)
def test_a_killed_run_continues_from_its_checkpoint_with_the_same_result(nursery, lied, tmp_path, framework, options):
    options = {"rounds": 12, "eval_every": 12, "save_every": 0, "checkpoint": tmp_path / "run"} | options
    options["dataset"] = "distributed_models:data_that_may_change"
    with pytest.raises(PSLError, match="the server failed"):
        in_processes(framework, nursery, watch=At(4, kill(0)), **options)
    saved = len(list((tmp_path / "run").iterdir()))
    assert 4 <= saved <= 9  # up to two rounds of each process, or one that was being written
    found = in_processes(framework, nursery, **options)
    assert_same_run(found.history, in_one_process(framework, **options | {"checkpoint": None}), tolerance=1e-4)
    again = in_processes(framework, nursery, **options)  # nothing left to do
    assert again.history == found.history
    with pytest.raises(PSLError, match="seed: expected '6', got '5' in the checkpoint") as failure:
        in_processes(framework, nursery, **options | {"seed": 6})
    assert CheckpointError.__name__ in str(failure.value)
    if framework == "psl":
        noted(nursery.pid).touch()  # labels of equal number and shape, but others
        message = "the server failed: CheckpointError: client .*hash of the data: expected .* got .* in the checkpoint"
        with pytest.raises(PSLError, match=message):
            in_processes(framework, nursery, **options | {"rounds": 13})


def test_a_slow_link_delays_but_does_not_break(nursery):
    options = {"rounds": 1, "timeout": 2.4, "cut": 1, "batch_size": 20, "partition": "iid"}
    slow = star(up=(np.inf, 3e6, np.inf))
    found = in_processes("psl", nursery, emulate=slow, model="distributed_models:wide_model", **options)
    seconds = (32 * 20 * 192 * 64 + 64 * 20) / 3e6  # of activations and labels: longer than the timeout
    assert seconds > 2.5 and (found.round_times > seconds).all()
    assert found.faults == () and found.emulation == "pacing"


def test_a_client_with_other_arguments_is_refused(nursery):
    job = Job.of("psl", **OPTIONS)
    refused = pytest.raises(PSLError, match="expected a client of this run, got one with other arguments")
    with refused, Launch(job, nursery=nursery) as launch:
        Job.of("psl", **OPTIONS | {"seed": 77}).save(launch.folder / "job.json")
        launch.workers[2].signal()
        launch.restart(2)  # reads the changed job
        while not launch.look():
            time.sleep(0.02)


def interrupt(launch):
    raise KeyboardInterrupt


def test_an_interrupted_run_is_saved_and_leaves_no_process(nursery, tmp_path):
    workers, options = [], {"rounds": 200, "eval_every": 200, "checkpoint": tmp_path / "run"}

    def watch(launch):
        workers[:] = launch.workers
        At(3, interrupt)(launch)

    with pytest.raises(KeyboardInterrupt):
        in_processes("psl", nursery, watch=watch, **options)
    assert len(workers) == 4 and not any(worker.running or alive(worker.pid) for worker in workers)
    assert len(list((tmp_path / "run").glob("*.pt"))) == 4
    with pytest.raises(KeyboardInterrupt):
        in_processes("psl", nursery, watch=At(1, interrupt), **options | {"checkpoint": None})


def test_a_worker_tells_why_it_ended(nursery, tmp_path):
    broken = nursery.start("psl.distributed.star.worker", [tmp_path / "nothing", "0"], tmp_path / "log")
    assert broken.wait(20) == 1 and "No such file" in broken.last_words()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid):
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, path.read_text().split()):
            found += [child, *descendants(child)]
    return found
