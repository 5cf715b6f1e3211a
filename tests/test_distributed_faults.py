"""A table of faults and attacks on real processes: nothing is lost, and a line says what was wrong."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from distributed_models import LIE_AT, OPTIONS, assert_same_run, fork_server, in_one_process, in_processes, noted
from marks import some
from psl.distributed import EdgeEmulation, Job, Launch
from psl.distributed.leftovers import owner
from psl.distributed.wire.keys import make_bundles
from psl.distributed.wire.links import Link
from psl.distributed.wire.streams import Listener, connect
from psl.errors import CheckpointError, PSLError

pytestmark = pytest.mark.slow
MANY = {"rounds": 10, "eval_every": 10, "partition": "iid", "timeout": 10.0}
LONG = MANY | {"rounds": 100_000, "eval_every": 100_000}
CHAIN = {"cut": (2, "block2"), "micro_batch": 6, "batch_size": 11, "n_clients": 2, "partition": "iid"}
root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def star(overhead=0.0, up=(np.inf,) * 3):
    """An emulation in which every computation of the server takes longer, or uplinks have rates in bit/s."""
    fast, none = np.full(3, np.inf), np.zeros(3)
    return EdgeEmulation("star", np.ones(4), np.array(up), fast, none, none, [overhead, 0, 0, 0], links="pacing")


def chain(forward=np.inf, overhead=0.0):
    """Three processes; the first link has a rate in bit/s, and every computation of the second takes longer."""
    fast, none = np.full(2, np.inf), np.zeros(2)
    return EdgeEmulation("chain", np.ones(3), [forward, np.inf], fast, none, none, [0, overhead, 0], links="pacing")


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


@pytest.fixture(autouse=True)
def forgotten(processes):
    """Forget before and after a test who lied in it."""
    notes = noted(fork_server())
    notes.unlink(missing_ok=True)
    yield notes
    notes.unlink(missing_ok=True)


@contextlib.contextmanager
def launched(framework="psl", rounds=3, checkpoint=None, **options):
    """A run that goes on until it is ended, after so many rounds."""
    with Launch(Job.of(framework, **OPTIONS | LONG | options), checkpoint=checkpoint) as launch:
        wait(launch, lambda: launch.news["rounds"] >= rounds)
        launch.kept = []
        try:
            yield launch
        finally:
            for connection in launch.kept:
                connection.close()


def wait(launch, until, seconds=60.0):
    """Look at a run until something is so."""
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, (launch.news, [worker.last_words() for worker in launch.workers])
        launch.look()
        time.sleep(0.02)


def fails(launch, message, within):
    """A run ends with a message within so many s."""
    begun = time.monotonic()
    with pytest.raises(PSLError, match=message) as failure:
        while time.monotonic() - begun < 10 * within:
            launch.look()
            time.sleep(0.05)
    return str(failure.value)


# --- a client that lies, or whose data or model fails: its lie, and what is said ---

LIES = {
    "fewer rows": ("data_with_fewer_rows", r"activation: expected \['float32', 8, 4, 8, 8\], got \['float32', 7, 4"),
    "another number type": ("data_of_another_type", r"activation: expected \['float32', .* got \['float64', 8"),
    "two tensors for one": ("data_as_a_tuple", r"activation: expected \['float32', .* got {'tuple'"),
    "no tensor": ("data_with_nothing", r"activation: expected \['float32', .* got NoneType"),
    "a label of no class": (
        "data_with_impossible_labels",
        "expected labels that the loss takes, got Target .* out of b",
    ),
    "a negative label": (
        "data_with_negative_labels",
        "expected labels that the loss takes, got Target .* out of bounds",
    ),
    "half a message": ("data_cut_short", "a message: expected one of psl, got damaged bytes"),
    "a message without its beginning": ("data_without_a_header", "a message: expected one of psl, got damaged bytes"),
    "garbage": ("data_of_garbage", "a message: expected one of psl, got damaged bytes"),
    "an impossible length": ("data_of_an_impossible_length", r"expected one of psl, got damaged bytes \(no header\)"),
    "another kind of message": ("data_of_another_kind", f"expected activation of step {LIE_AT}, got labels of step"),
    "a pickle": ("data_pickled", "a message: expected one of psl, got damaged bytes"),
    "a message of 285 MB": ("data_too_long", "expected a process that goes on, got "),
    "no word of what it needs": ("data_that_answers_nothing_of_use", "expected which gradients it needs, got None"),
    "a data set that raises": ("data_that_raises", "got OSError: sample .* cannot be read: the card is gone"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_client_that_lies_or_fails_is_left_out_and_the_others_go_on(lie):
    data, reason = LIES[lie]
    found = in_processes("psl", dataset=f"distributed_models:{data}", **MANY)
    taken, (fault,) = found.history.participants.tolist(), found.faults
    assert set(taken[:LIE_AT]) == {3} and set(taken[-3:]) == {2} and sorted(taken, reverse=True) == taken
    assert re.search(rf"left out client \d: .*{reason}", fault) and "\n" not in fault and len(fault) <= 400
    assert len(found.history.models) == 2 and np.isfinite(found.history.train_loss).all()
    assert not noted("evil").exists(), "nothing is unpickled"


def test_activations_that_are_no_numbers_are_warned_of_as_in_one_process():
    with pytest.warns(RuntimeWarning, match=rf"train loss is nan in round {LIE_AT + 1}: lower lr"):
        in_processes("psl", dataset="distributed_models:data_with_nan", **MANY)


# --- processes that are killed, or stopped ---


@pytest.mark.parametrize(
    ("framework", "options"),
    some(
        [
            ("fedavg", {"cut": None}),
            ("sl", {}),
            ("sfl", {"local_steps": 2}),
            ("epsl", {}),
            ("edgesplit", {"cut": (1, 6, 3)}),
        ],
        lambda case: case[0] in ("fedavg", "edgesplit"),
    ),
)
def test_a_killed_client_is_left_out_and_the_others_work_is_kept(framework, options):
    found = in_processes(framework, watch=At(4, kill(2)), **MANY | {"rounds": 40, "eval_every": 40} | options)
    taken = found.history.participants
    assert len(taken) == 40 and set(taken[:4]) == {3} and taken[-1] == 2
    assert (np.diff(taken) <= 0).all() and taken.min() == 2  # it stays away, nobody else does
    (fault,) = found.faults
    assert "left out client 1: expected a process that goes on, got a closed connection" in fault
    assert np.isfinite(found.history.train_loss).all()
    assert found.history.train_loss[-5:].mean() < found.history.train_loss[:5].mean()  # the others go on learning
    assert len(found.history.models) == (2 if framework in ("psl", "epsl") else 1)


BACK = {
    "sl": "the server's model", "sfl": "the server's model", "psl": "the model's first weights",
    "edgesplit": "the server's model",
}  # fmt: skip


@pytest.mark.full  # notebook 07 does it in every run, with psl
@pytest.mark.parametrize("framework", BACK)
def test_a_killed_client_comes_back_and_it_is_said_with_which_weights(framework):
    options = MANY | {"rounds": 60, "eval_every": 60, "emulate": star(overhead=0.03)}
    options |= {"cut": (1, 6, 12)} if framework == "edgesplit" else {}
    found = in_processes(framework, watch=At(3, kill(3)), restarts=1, **options)
    taken = found.history.participants
    assert taken is not None and taken.min() == 2 and taken[-1] == 3
    back = int(np.flatnonzero(taken == 2)[-1]) + 2
    assert found.faults[0].startswith("left out client 2: ") and len(found.faults) == 2
    assert found.faults[1].startswith(f"client 2 came back in round {back} with {BACK[framework]}")


def test_a_client_that_comes_back_finds_its_weights_in_its_checkpoint(tmp_path):
    options = MANY | {"rounds": 60, "eval_every": 60, "emulate": star(overhead=0.03), "save_every": 0}
    found = in_processes("psl", watch=At(3, kill(3)), restarts=1, checkpoint=tmp_path / "run", **options)
    assert re.search(r"client 2 came back in round \d+ with its weights of round \d+", found.faults[-1])


@pytest.mark.full
def test_a_client_that_comes_back_with_other_data_is_not_let_in():
    data = "distributed_models:other_data_for_whoever_comes_back"
    options = MANY | {"rounds": 60, "eval_every": 60, "emulate": star(overhead=0.03)}
    found = in_processes("psl", watch=At(3, kill(3)), restarts=1, dataset=data, **options)
    assert found.history.participants[-1] == 2
    assert re.search("not let in: .*client 2: expected the data it had, .* 30 test .* got .* 29 test", found.faults[-1])


def test_a_frozen_client_is_noticed_within_the_timeout():
    found = in_processes("psl", watch=At(4, kill(1, signal.SIGSTOP)), **MANY | {"timeout": 3.0})
    assert 1.0 <= found.round_times.max() < 30
    assert "no sign of life within the timeout" in found.faults[0] and found.history.participants[-1] == 2


@pytest.mark.full
def test_a_frozen_server_ends_the_run_with_a_message():
    with launched(timeout=1.0) as launch:
        launch.workers[0].signal(signal.SIGSTOP)
        fails(launch, "the server: expected an end, got none for 5 s after the last client ended", 10)


def test_with_a_killed_server_every_client_ends_with_its_reason():
    with launched() as launch:
        server, *clients = launch.workers
        server.signal()
        for client in clients:
            assert client.wait(20) == 1
            assert "ChannelError: server: expected a process that goes on, got a closed conn" in client.last_words()
        fails(launch, r"the server failed: killed by signal 9 \(SIGKILL\)", 5)


def test_a_client_that_is_killed_before_the_first_round_ends_the_run_at_once():
    begun = time.monotonic()
    with pytest.raises(PSLError, match=r"client 1 failed: killed by signal 9 \(SIGKILL\)"):
        in_processes("psl", watch=At(0, kill(2)), timeout=60.0)
    assert time.monotonic() - begun < 50, "not after the timeout"


@pytest.mark.parametrize(
    ("rank", "number", "message"),
    [
        (1, signal.SIGKILL, r"the pipeline stopped. stage 1 failed: killed by signal 9 \(SIGKILL\)"),
        (0, signal.SIGKILL, r"the pipeline stopped. stage 0 failed: killed by signal 9 \(SIGKILL\)"),
        (1, signal.SIGSTOP, "stage 1: expected a process that goes on, got a closed connection, or no sign of life"),
    ],
)
def test_a_stage_that_is_killed_or_frozen_ends_the_others_and_is_named(rank, number, message):
    with launched("pipeline", **CHAIN, timeout=3.0) as launch:
        workers = list(launch.workers)
        launch.workers[rank].signal(number)
        assert "Traceback" not in fails(launch, message, 6)
    assert not any(alive(worker.pid) for worker in workers)


@pytest.mark.full
def test_slow_links_and_stages_delay_but_do_not_break():
    options = {"rounds": 1, "timeout": 2.0, "cut": 1, "batch_size": 20, "partition": "iid"}
    found = in_processes(
        "psl", emulate=star(up=(np.inf, 3e6, np.inf)), model="distributed_models:wide_model", **options
    )
    seconds = (32 * 20 * 192 * 64 + 64 * 20) / 3e6  # of activations and labels: longer than the timeout
    assert seconds > 2.5 and (found.round_times > seconds).all()
    assert found.faults == () and found.emulation == "pacing"
    options = {"model": "distributed_models:wide_chain", "cut": [1, 2], "batch_size": 16, "micro_batch": 32}
    options |= {"rounds": 1, "n_clients": 2, "partition": "iid", "timeout": 2.0}
    found = in_processes("pipeline", emulate=chain(forward=2e6, overhead=1.2), **options)
    seconds = 32 * 64 * 64 * 32 / 2e6  # one message, much longer than the timeout
    assert seconds > 2 and seconds + 2.4 < found.round_times[0]


# --- strangers ---

STRANGER = """
import os, socket, sys
socket.getaddrinfo("127.0.0.1", 0)
os.setgid(65534); os.setuid(65534)
try:
    os.listdir(sys.argv[1]); print("read the folder")
except PermissionError:
    print("cannot read the folder")
with socket.create_connection(("127.0.0.1", int(sys.argv[2])), 5) as there:
    there.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + os.urandom(100)); there.settimeout(5)
    print("heard", len(there.recv(1000)))
"""


def garbage(launch, port):
    for size in (0, 1, 500, 100_000):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as there:
            there.sendall(os.urandom(size))


def hundreds_idle(launch, port):
    launch.kept = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(300)]


def keys_of_another_run(launch, port):
    with pytest.raises(PSLError):
        connect(Link("server"), f"127.0.0.1:{port}", make_bundles(4)[2], {"rank": 2}, server=0, timeout=1, patience=0)


def plain_text(launch, port):
    with pytest.raises(PSLError):
        connect(Link("server"), f"127.0.0.1:{port}", None, {"rank": 2}, server=0, timeout=1, patience=0)


def another_user(launch, port):
    arguments = [sys.executable, "-c", STRANGER, str(launch.folder), str(port)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30)
    assert done.stdout.startswith("cannot read the folder"), done


STRANGERS = [garbage, hundreds_idle, keys_of_another_run, plain_text, pytest.param(another_user, marks=root)]


@pytest.mark.parametrize("attack", STRANGERS, ids=lambda f: getattr(f, "__name__", None))
def test_strangers_on_the_port_neither_stop_nor_slow_a_run(attack):
    with launched(timeout=5.0) as launch:
        port, before = int(launch._servers[1][0].rpartition(":")[2]), launch.news["rounds"]
        attack(launch, port)
        wait(launch, lambda: launch.news["rounds"] >= before + 10)
        assert not [fault for fault in launch.news["faults"] if "left out" in fault]


def test_what_was_recorded_on_the_way_is_of_no_use_later():
    bundles, recorded = make_bundles(2), []
    make = lambda rank, plane: Link("client 0")  # noqa: E731
    with Listener(
        ["127.0.0.1:0"], bundles[0], make, lambda word: None, range(1, 2), limit=1 << 20, timeout=5
    ) as server:
        with socket.create_server(("127.0.0.1", 0)) as middle:

            def forward():
                here, _ = middle.accept()
                there = socket.create_connection(("127.0.0.1", server.port))
                threading.Thread(target=pump, args=(there, here, None), daemon=True).start()
                pump(here, there, recorded)

            threading.Thread(target=forward, daemon=True).start()
            link, where = Link("server"), f"127.0.0.1:{middle.getsockname()[1]}"
            asking = threading.Thread(
                target=connect, args=(link, where, bundles[1], {"rank": 1, "machine": ""}), daemon=True,
                kwargs={"server": 0, "timeout": 5.0},
            )  # fmt: skip
            asking.start()
            there = server.meet(1, 10.0)
            there.welcome("")
            asking.join(10)
            assert not asking.is_alive()
            link.close()
            there.ended.wait(5)
        with socket.create_connection(("127.0.0.1", server.port), 5) as again:
            with contextlib.suppress(OSError):
                again.sendall(b"".join(recorded))
            assert recorded and server.meet(1, 1.0) is None, "the same bytes again let nobody in"


def pump(source, target, recorded):
    with contextlib.suppress(OSError), source:
        while data := source.recv(1 << 16):
            if recorded is not None:
                recorded.append(data)
            target.sendall(data)


# --- checkpoints: what is done to the folder of a run of six rounds, and what is said when it goes on ---


def newest(folder, who):
    return max(folder.glob(f"{who}-round-*.pt"), key=lambda path: int(path.stem.rpartition("-")[2]))


def truncated(who):
    return lambda folder: newest(folder, who).write_bytes(newest(folder, who).read_bytes()[:-99])


def flipped(who):
    def flip(folder):
        content = bytearray(newest(folder, who).read_bytes())
        content[len(content) // 2] ^= 1
        newest(folder, who).write_bytes(content)

    return flip


def missing(who):
    return lambda folder: newest(folder, who).unlink()


def gone(who):
    return lambda folder: [path.unlink() for path in folder.glob(f"{who}-round-*")]


DAMAGES = {
    "the server's newest is cut short": ("psl", truncated("server"), "left a checkpoint out: .*cut short", 5),
    "a bit of the server's newest is flipped": ("sfl", flipped("server"), "left a checkpoint out: .*unreadable", 5),
    "the server's newest is missing": ("edgesplit", missing("server"), None, 5),
    "a client's newest is cut short": (
        "psl", truncated("client-1"), "client 1 has no whole checkpoint of round 6: .*its weights of round 5", 6
    ),
    "a bit of a client's newest is flipped": ("sfl", flipped("client-1"), "client 1 .*from the server's model", 6),
    "all of a client are gone": ("psl", gone("client-2"), "client 2 .*continues from the model's first weights", 6),
    "all of a client are gone, which exchanges its model": (
        "sfl", gone("client-2"), "client 2 .*continues from the server's model and a new optimizer", 6
    ),
    "all of the client with the model are gone": ("sl", gone("client-0"), "client 0 .*from the server's model", 6),
    "a stage's newest is cut short": ("pipeline", truncated("stage-1"), "stage 1 left a checkpoint out", 5),
    "the first stage's newest is missing": ("pipeline", missing("stage-0"), "all continue from 5", 5),
}  # fmt: skip


USUAL = ("a bit of a client's newest is flipped", "a stage's newest is cut short")


@pytest.mark.parametrize("damage", some(DAMAGES, lambda damage: damage in USUAL))
def test_a_damaged_checkpoint_falls_back_and_says_so(damage, tmp_path):
    framework, act, said, rounds = DAMAGES[damage]
    options = {"rounds": 6, "eval_every": 100, "save_every": 0, "checkpoint": tmp_path / "run"}
    options |= CHAIN if framework == "pipeline" else {}
    options |= {"cut": (1, 6, 12)} if framework == "edgesplit" else {}
    in_processes(framework, **options)
    act(tmp_path / "run")
    found = in_processes(framework, **options | {"rounds": 8})
    assert found.history.rounds == 8 and np.isfinite(found.history.train_loss).all()
    assert len(found.faults) >= (said is not None) and all("\n" not in fault for fault in found.faults)
    assert said is None or any(re.search(said, fault) for fault in found.faults), found.faults
    if rounds == 5:  # all went back to the same round, or the server to one that the clients have too
        want = in_one_process(framework, **{k: v for k, v in options.items() if k != "checkpoint"} | {"rounds": 8})
        np.testing.assert_allclose(found.history.train_loss, want.train_loss, rtol=1e-4)


def test_a_run_continues_whose_client_died_and_was_left_out(tmp_path):
    options = MANY | {"save_every": 0, "checkpoint": tmp_path / "run", "rounds": 40, "eval_every": 40}
    found = in_processes("sfl", watch=At(3, kill(2)), **options)
    assert found.history.participants[-1] == 2
    found = in_processes("sfl", **options | {"rounds": 45})
    assert found.history.participants.tolist()[-5:] == [3] * 5
    assert re.search("client 1 has no whole checkpoint of round 40: it continues from the server's", found.faults[-1])


def test_everything_of_a_stage_is_missing_and_what_there_is_is_told(tmp_path):
    options = CHAIN | {"rounds": 2, "save_every": 0, "checkpoint": tmp_path / "run"}
    in_processes("pipeline", **options)
    gone("stage-1")(tmp_path / "run")
    message = r"expected a round that every stage has saved, got stage 0: \[2, 1\], stage 1: none, stage 2"
    with pytest.raises(PSLError, match=message):
        in_processes("pipeline", **options | {"rounds": 3})


@pytest.mark.parametrize(
    ("framework", "options"),
    some(
        [("sl", {}), ("psl", {}), ("edgesplit", {"cut": (1, 6, 12), "local_steps": 2}), ("pipeline", CHAIN)],
        lambda case: case[0] == "psl",
    ),
)
def test_a_killed_run_continues_from_its_checkpoint_with_the_same_result(forgotten, tmp_path, framework, options):
    options = {"rounds": 12, "eval_every": 12, "save_every": 0, "checkpoint": tmp_path / "run"} | options
    options["dataset"] = "distributed_models:data_that_may_change"
    with pytest.raises(PSLError, match="killed by signal 9"):
        in_processes(framework, watch=At(4, kill(0)), **options)
    found = in_processes(framework, **options)
    assert_same_run(found.history, in_one_process(framework, **options | {"checkpoint": None}), tolerance=1e-4)
    again = in_processes(framework, **options)  # nothing left to do
    assert again.history == found.history
    with pytest.raises(PSLError, match=r"seed: expected '6', got '5' in the checkpoint") as failure:
        in_processes(framework, **options | {"seed": 6})
    assert CheckpointError.__name__ in str(failure.value)
    with pytest.raises(PSLError, match="at most rounds = 3, got 12 rounds in the checkpoint"):
        in_processes(framework, **options | {"rounds": 3})
    forgotten.touch()  # labels of equal number and shape, but others
    with pytest.raises(PSLError, match="data: expected .* got .*"):
        in_processes(framework, **options | {"rounds": 13})


def test_two_runs_do_not_share_a_folder(tmp_path):
    with launched(checkpoint=tmp_path / "run", save_every=0.0) as launch:
        message = "checkpoint .*run: expected a folder that no other run uses as .*, got one that process .* uses"
        with pytest.raises(PSLError, match=message):
            in_processes("psl", checkpoint=tmp_path / "run")
        before = launch.news["rounds"]
        wait(launch, lambda: launch.news["rounds"] > before + 3)


@root
def test_a_full_disk_is_said_and_the_run_goes_on(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=True)
    try:
        found = in_processes("psl", checkpoint=place, save_every=0, **MANY)
        assert found.history.rounds == 10 and found.history.participants is None
        said = [fault for fault in found.faults if "did not save round" in fault]
        assert said and all("No space left on device" in fault for fault in said)
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_folder_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PSLError, match="checkpoint .*file: expected a folder, got"):
        in_processes("psl", checkpoint=tmp_path / "file")


# --- who started the run ends it ---


def interrupt(launch):
    raise KeyboardInterrupt


@pytest.mark.parametrize("framework", ["psl", "pipeline"])
def test_an_interrupted_run_is_saved_within_ten_seconds_and_leaves_no_process(framework, tmp_path, capsys):
    workers, options = [], LONG | {"checkpoint": tmp_path / "run", "save_every": 1000}
    options |= CHAIN if framework == "pipeline" else {}

    def watch(launch):
        workers[:] = launch.workers
        At(3, interrupt)(launch)

    with pytest.raises(KeyboardInterrupt):
        in_processes(framework, watch=watch, **options)
    said = re.search(r"stopped after round (\d+), saved to .*run", capsys.readouterr().out)
    assert said and workers and not any(worker.running or alive(worker.pid) for worker in workers)
    assert all(f"round-{said[1]}.pt" in path.name for path in (tmp_path / "run").glob("*.pt"))
    with pytest.raises(KeyboardInterrupt):
        in_processes(framework, watch=At(1, interrupt), **options | {"checkpoint": None})


def test_what_cannot_be_saved_in_time_is_said_to_be_not(tmp_path, capsys):
    def freeze(launch):
        launch.workers[2].signal(signal.SIGSTOP)
        time.sleep(0.3)
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        in_processes("psl", watch=At(3, freeze), checkpoint=tmp_path / "run", **LONG | {"timeout": 60.0})
    assert "not saved: there is no checkpoint of this run" in capsys.readouterr().out
    assert time.monotonic() - begun < 60


def test_a_fork_server_that_hangs_does_not_hang_the_launcher():
    with launched() as launch:
        os.kill(fork_server(), signal.SIGSTOP)
        try:
            begun = time.monotonic()
            launch.end()
            assert time.monotonic() - begun < 30
            assert not any(alive(worker.pid) for worker in launch.workers)
        finally:
            os.kill(fork_server(), signal.SIGCONT)


PROGRAM = """
import sys, tempfile
sys.path.insert(0, sys.argv[1])
from distributed_models import OPTIONS, run
if __name__ == "__main__":
    tempfile.tempdir = sys.argv[2]
    more = {"rounds": 10**6, "eval_every": 10**6, "partition": "iid", "progress": False}
    watch = lambda launch: launch.news["rounds"] and print("goes", *[w.pid for w in launch.workers], flush=True)
    run("psl", watch=watch, checkpoint=sys.argv[3], **OPTIONS | more)
"""


@pytest.mark.full
def test_a_launcher_that_is_ended_leaves_nothing(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    # A killed one can clean nothing up, but the next run does; and that one cleans up when it is asked to end.
    for number in (signal.SIGKILL, signal.SIGTERM):
        arguments = [sys.executable, tmp_path / "program.py", Path(__file__).parent, temporary, tmp_path / "run"]
        program = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        family = [int(pid) for pid in program.stdout.readline().split()[1:]]
        assert len(family) == 4 and len(list(temporary.glob("psl-run-*"))) == 1, "its own, nobody else's"
        if number == signal.SIGKILL:
            os.kill(family[1], signal.SIGSTOP)  # who is stopped hears nothing
        program.send_signal(number)
        begun = time.monotonic()
        while (line := program.stdout.readline()).startswith("goes"):
            pass
        assert program.wait(20) == -number
        program.stdout.close()
        end = time.monotonic() + 10
        while any(alive(pid) for pid in family) and time.monotonic() < end:
            time.sleep(0.05)
        assert not [pid for pid in family if alive(pid)]
    assert line.startswith("stopped after round ") and ", saved to " in line and time.monotonic() - begun < 30
    assert not list(temporary.glob("psl-*"))


@pytest.mark.full
def test_a_program_without_its_guard_is_told_of_it(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.replace('if __name__ == "__main__":', "if True:"))
    arguments = [sys.executable, tmp_path / "program.py", Path(__file__).parent, tmp_path, tmp_path / "run"]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert done.returncode != 0 and '__name__ == "__main__"' in done.stderr


def test_only_what_a_gone_process_made_is_swept(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = f"psl-run-{ended.pid}-1-{owner().split('-')[-1]}-abc"
    for name in (left, "psl-run-notes"):
        (tmp_path / name).mkdir()
    in_processes("psl", rounds=1)
    assert [path.name for path in tmp_path.iterdir()] == ["psl-run-notes"]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
