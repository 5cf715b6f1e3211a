"""The command line of distributed runs, under torchrun and alone."""

import functools
import subprocess
import sys

import pytest

from distributed_models import assert_same_run
from psl.distributed import __main__ as cli
from psl.distributed import run
from psl.distributed.job import Job
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


def test_torchrun_starts_a_server_and_clients(tmp_path):
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command = ["-m", "psl.distributed", "edgesplit", *ARGUMENTS, "--cut", "pool1", "linear1", "10", "--rounds", "2"]
    done = subprocess.run([*start, *command, "--out", str(tmp_path)], capture_output=True, text=True, timeout=240)
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
        (["psl", "--rounds", "1", "--clients", "5"], "torchrun: expected 6 processes, got 4"),
        (["psl", "--rounds", "1", "--emulate", "kernel"], "--emulate: expected 'pacing' or 'none' under torchrun"),
        (["psl", "--rounds", "1", "--emulate", "auto"], "--emulate: expected a plan to emulate, got none"),
        (["psl", "--rounds", "1", "--cut", "1", "--model", "x"], "model: expected 'module:function', got 'x'"),
    ],
)
def test_what_torchrun_cannot_do_is_said(torchrun, capsys, options, message):
    assert cli.main(options) == 1
    assert message in capsys.readouterr().err


def test_over_several_machines_the_address_must_be_given(torchrun, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cli.main(["psl", "--rounds", "1", "--cut", "1"]) == 1
    assert "--bind: expected this machine's address on the network of the run, got none" in capsys.readouterr().err


def test_options_that_are_none(capsys):
    for arguments in (["psl"], ["sgd", "--rounds", "1"], ["psl", "--rounds", "1", "--model-option", "width"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "expected NAME=VALUE, got 'width'" in capsys.readouterr().err


def test_options_without_effect_are_refused(torchrun, capsys):
    for arguments, message in (
        (["psl", "--cut", "pool1", "--restarts", "1"], "--restarts: expected nothing for torchrun"),
        (["pipeline", "--cut", "pool1", "--checkpoint", "here"], "--checkpoint: expected nothing for pipeline"),
    ):
        assert cli.main([*arguments, "--rounds", "1"]) == 1
        assert message in capsys.readouterr().err
