"""The command line of distributed runs, under torchrun and alone."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from distributed_models import assert_same_run
from psl.distributed import __main__ as cli
from psl.distributed import run
from psl.distributed.job import Job
from psl.errors import PSLError
from psl.models import cnn, profile
from psl.networks import WirelessCell
from psl.schedulers import epsl
from psl.training import History, train

ARGUMENTS = ["--dataset", "digits", "--model", "psl.models:cnn", "--model-option", "width=4", "--batch-size", "16"]


@pytest.fixture
def launcher(nursery, monkeypatch):
    """`main` without torchrun, with processes that start at once."""
    monkeypatch.setattr(cli, "run", functools.partial(run, nursery=nursery, progress=False))


@pytest.fixture
def torchrun(monkeypatch):
    """The variables that torchrun sets."""
    values = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_torchrun_starts_a_server_and_clients(tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = ["-m", "psl.distributed", "edgesplit", *ARGUMENTS, "--cut", "pool1", "linear1", "10", "--rounds", "2"]
    done = subprocess.run(
        [*start, *command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=240,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # torchrun leaves a folder
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "edgesplit: server and 3 clients, links emulated by: none" in done.stdout
    assert "round 2/2: loss" in done.stdout and "History(edgesplit: 2 rounds" in done.stdout
    found = History.load(tmp_path / "history.json")
    options = {"rounds": 2, "n_clients": 3, "batch_size": 16, "cut": ["pool1", "linear1", 10]}
    model = Job.of("edgesplit", "psl.models:cnn", model_options={"width": 4}, **options).build_model()
    want = train("edgesplit", model, "digits", progress=False, **options)
    want.models.clear()
    want.settings["cut"] = tuple(want.settings["cut"])
    assert_same_run(found, want)
    assert sorted(path.name for path in tmp_path.glob("client-*.pt")) == [f"client-{i}.pt" for i in range(3)]


def test_processes_started_by_hand_need_no_torchrun_and_a_killed_client_comes_back(nursery, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        where = f"127.0.0.1:{listener.getsockname()[1]}"
    options = ["--cut", "pool1", "--rounds", "100", "--eval-every", "100", "--timeout", "5", "--lr", "0.05"]

    def start(rank):
        place = ["--rank", rank, "--world-size", 4, "--server", where, "--out", tmp_path]
        return nursery.start(
            "psl.distributed.__main__", ["sfl", *ARGUMENTS, *options, *place], tmp_path / f"log-{rank}"
        )

    def news():
        file = tmp_path / "progress.json"
        return json.loads(file.read_text()) if file.exists() else {"rounds": 0, "faults": []}

    def wait(until):
        end = time.monotonic() + 60
        while not until():
            assert time.monotonic() < end, [worker.last_words() for worker in workers]
            time.sleep(0.02)

    workers = [start(rank) for rank in (2, 0, 3, 1)]  # in any order
    try:
        wait(lambda: news()["rounds"] >= 3)
        workers[0].signal(signal.SIGKILL)
        wait(lambda: news()["faults"])
        workers.append(start(2))
        wait(lambda: news().get("finished") and not any(worker.running for worker in workers))
    finally:
        for worker in workers:
            worker.signal(signal.SIGKILL)
            worker.wait(5)
    history, found = History.load(tmp_path / "history.json"), news()
    assert [worker.code for worker in workers] == [-signal.SIGKILL, 0, 0, 0, 0]
    assert history.participants.min() == 2 and history.participants[[0, -1]].tolist() == [3, 3]
    assert "left out client 1" in found["faults"][0] and "client 1 came back in round" in found["faults"][1]
    assert len(found["faults"]) == 2 and np.mean(history.train_loss[-20:]) < history.train_loss[0]
    assert "round 100/100: loss" in workers[1].last_words() and workers[2].last_words() == ""


def test_flags_and_variables_mean_the_same(torchrun, monkeypatch):
    names = "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"
    assert cli._is_one(None, None, None) and [os.environ[name] for name in names] == ["0", "4", "127.0.0.1", "1"]
    assert cli._is_one(2, 5, "localhost:29500") and [os.environ[name] for name in names] == [
        "2",
        "5",
        "localhost",
        "29500",
    ]
    for name in names:
        monkeypatch.delenv(name)
    assert not cli._is_one(None, None, None)


def test_a_process_started_by_hand_listens_on_loopback_unless_the_server_is_elsewhere(torchrun, monkeypatch):
    assert cli._address(None) == "127.0.0.1" and cli._ranks_here(2, 4) == [0, 1, 2, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert cli._address("lo") == "lo" and cli._ranks_here(3, 4) == [2, 3]
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert cli._address(None) == "127.0.0.1" and cli._ranks_here(2, 4) == [0, 1, 2, 3]
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.7")
    assert cli._ranks_here(2, 4) == [2]
    with pytest.raises(PSLError, match="--bind: expected this machine's address on the network of the run, got none"):
        cli._address(None)
    with pytest.raises(
        PSLError, match="--bind: expected an address of this machine, or an interface: .*lo.*, got 'eth77'"
    ):
        cli._address("eth77")


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_said(torchrun, monkeypatch, capsys):
    start = ["psl", *ARGUMENTS, "--cut", "pool1", "--rounds", "1"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main([*start, "--server", f"127.0.0.1:{port}"]) == 1
    message = f"ChannelError: server: expected a port to listen on at 127.0.0.1:{port}, got Address already in use"
    assert message in capsys.readouterr().err
    assert cli.main([*start, "--server", "192.0.2.7:1", "--bind", "lo"]) == 1
    assert "at 192.0.2.7:1, got Cannot assign requested address" in capsys.readouterr().err
    monkeypatch.setattr(cli, "START", 0.2)
    assert cli.main([*start, "--rank", "1", "--server", f"127.0.0.1:{port}"]) == 1
    message = f"server: expected a store at 127.0.0.1:{port} within 0.2 s, got nothing. Fix: start the server first"
    assert message in capsys.readouterr().err


def test_alone_it_starts_the_processes_itself(launcher, tmp_path, capsys):
    options = ["--clients", "2", "--cut", "pool1", "--rounds", "2", "--out", str(tmp_path), "--partition", "0.9"]
    assert cli.main(["psl", *ARGUMENTS, *options]) == 0
    assert "Run(History(psl: 2 rounds" in capsys.readouterr().out
    assert History.load(tmp_path / "history.json").settings["partition"] == 0.9
    assert "uplink of client 1" in (tmp_path / "events.csv").read_text()


def test_a_plan_from_a_file_supplies_cut_and_time(launcher, tmp_path, capsys):
    cell = WirelessCell.sample(n_clients=3, n_subchannels=6, seed=1, channel="log-distance")
    plan = epsl.solve(profile(cnn(width=4), (1, 8, 8)), cell, batch_size=16, phi=0.25)
    plan.save(tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--rounds", "1", "--out", str(tmp_path)]
    assert cli.main(["epsl", *ARGUMENTS, *options]) == 0, capsys.readouterr().err
    history = History.load(tmp_path / "history.json")
    assert history.simulated_time_s[0] == pytest.approx(plan.round_time)
    assert (history.settings["phi"], history.settings["cut"], history.settings["n_clients"]) == (0.25, plan.cut, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["psl", "--rounds", "1"], "CutError: cut: expected number or name of a cut, got none"),
        (["psl", "--rounds", "1", "--rank", "4"], "--rank: expected less than 4, the number of processes, got 4"),
        (["psl", "--rounds", "1", "--rank", "-1"], "RANK: expected a whole number, got '-1'"),
        (["psl", "--rounds", "1", "--server", "here"], "--server: expected ADDRESS:PORT, got 'here'"),
        (["psl", "--rounds", "1", "--server", "here:x"], "--server: expected ADDRESS:PORT, got 'here:x'"),
        (["psl", "--rounds", "1", "--server", "127.0.0.1:99999"], "--server: expected ADDRESS:PORT, got '127.0.0.1:9"),
        (["psl", "--rounds", "1", "--clients", "5"], "processes: expected 6, got 4"),
        (["psl", "--rounds", "1", "--plan", "nofile"], "--plan: expected a file written by plan.save(), got 'nofile'"),
        (["psl", "--rounds", "1", "--out", __file__], "--out: expected a folder, or a place for one, got"),
        (["psl", "--rounds", "1", "--checkpoint", f"{__file__}/x"], "--checkpoint: expected a folder, or a place for"),
        (
            ["psl", "--rounds", "1", "--micro-batch", "4"],
            "micro_batch: expected none for 'psl', as it is for",
        ),
        (["psl", "--rounds", "1", "--emulate", "kernel"], "--emulate: expected 'pacing' or 'none' for torchrun"),
        (["psl", "--rounds", "1", "--emulate", "auto"], "a plan to emulate, got none. Fix: pass --plan FILE"),
        (["psl", "--rounds", "1", "--cut", "1", "--model", "x"], "got 'x' (No module named 'x'). Fix"),
    ],
)
def test_what_torchrun_cannot_do_is_said(torchrun, capsys, options, message):
    assert cli.main(options) == 1
    assert message in capsys.readouterr().err


def test_processes_started_by_hand_are_not_told_of_torchrun(torchrun, monkeypatch, capsys):
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    start = ["psl", "--rounds", "1", "--cut", "1"]
    for more in (
        ["--restarts", "1"],
        ["--clients", "5"],
        ["--emulate", "kernel"],
        ["--server", "here"],
        ["--rank", "11"],
    ):
        assert cli.main([*start, *more]) == 1
        assert "torchrun" not in capsys.readouterr().err
    monkeypatch.setenv("MASTER_PORT", "65536")
    assert cli.main(start) == 1
    assert "MASTER_PORT: expected a port, 1 to 65535, got 65536" in capsys.readouterr().err


def test_over_several_machines_the_address_must_be_given(torchrun, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cli.main(["psl", "--rounds", "1", "--cut", "1"]) == 1
    assert "--bind: expected this machine's address on the network of the run, got none" in capsys.readouterr().err


def test_options_that_are_none(capsys):
    for arguments in (["psl"], ["sgd", "--rounds", "1"], ["psl", "--rounds", "1", "--model-option", "width"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "expected NAME=VALUE, got 'width'" in capsys.readouterr().err


def test_options_without_effect_are_refused(torchrun, monkeypatch, capsys):
    assert cli.main(["psl", "--cut", "pool1", "--restarts", "1", "--rounds", "1"]) == 1
    assert "--restarts: expected nothing for torchrun" in capsys.readouterr().err
    monkeypatch.delenv("RANK")
    assert cli.main(["psl", "--cut", "pool1", "--bind", "eth0", "--rounds", "1"]) == 1
    assert "--bind: expected nothing for processes of one machine" in capsys.readouterr().err
