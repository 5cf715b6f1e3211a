"""The command line: processes of this machine, one per host with keys, and two hosts as the documentation says."""

import functools
import importlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import psl
from distributed_models import assert_same_run
from marks import some
from psl.distributed import __main__ as cli
from psl.distributed import run
from psl.distributed.edge.namespaces import Namespaces, VirtualLink, unavailable
from psl.distributed.job import Job
from psl.models import cnn, profile
from psl.networks import WirelessCell
from psl.schedulers import epsl
from psl.training import History, train

ARGUMENTS = ["--dataset", "digits", "--model", "psl.models:cnn", "--model-option", "width=4", "--batch-size", "16"]
START = [sys.executable, "-m", "psl.distributed"]


@pytest.fixture
def launcher(processes, monkeypatch):
    """`main`, without a progress bar."""
    monkeypatch.setattr(cli, "run", functools.partial(run, progress=False))


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Hosts:
    """Processes that somebody starts by hand; ends them all."""

    def __init__(self, folder):
        self.folder, self.running = folder, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.running.values():
            process.kill()
            process.wait()

    def start(self, name, command, prefix=(), **environment):
        more = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | environment
        arguments = [*map(str, prefix), *map(str, command)]
        if name in self.running:
            self.running[name].wait()
        with open(self.folder / f"log-{name}", "a") as log:
            self.running[name] = subprocess.Popen(arguments, stdout=log, stderr=log, env=more)

    def said(self, name):
        file = self.folder / f"log-{name}"
        return file.read_text() if file.exists() else ""

    def wait(self, until, seconds=150):
        end = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < end, {name: self.said(name)[-800:] for name in self.running}
            time.sleep(0.1)

    def ended(self, *names):
        return all(self.running[name].poll() is not None for name in names)


@pytest.fixture(autouse=True)
def handlers_of_signals():
    """The command line ends its process; here that goes on, and takes its own handlers back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
@pytest.mark.full  # the documented commands start hosts by hand too; a killed client comes back in the table of faults
def test_hosts_are_started_by_hand_a_killed_client_comes_back_and_strangers_are_told(processes, tmp_path):
    assert cli.main(["keys", str(tmp_path / "keys"), "--ranks", "4"]) == 0
    port, options = free_port(), ["--cut", "pool1", "--timeout", 5, "--lr", 0.05, "--clients", 3]
    options += ["--rounds", 100_000, "--eval-every", 100_000]

    def start(hosts, rank, name=None, more=(), keys=None):
        place = ["--rank", rank, "--out", tmp_path / "out", "--keys", tmp_path / "keys" / f"rank-{keys or rank}"]
        where = ["--listen", f"127.0.0.1:{port}"] if rank == 0 else ["--server", f"127.0.0.1:{port}"]
        hosts.start(name or rank, [*START, "sfl", *ARGUMENTS, *options, *place, *where, *more])

    with Hosts(tmp_path) as hosts:
        for rank in (2, 0, 3, 1):  # in any order
            start(hosts, rank)
        hosts.wait(lambda: "round 3/100000: loss" in hosts.said(0))
        hosts.running[2].send_signal(signal.SIGKILL)
        hosts.wait(lambda: "left out client 1" in hosts.said(0))
        start(hosts, 2, "other seed", ["--seed", 7])
        start(hosts, 2, "other keys", keys=3)
        hosts.wait(lambda: hosts.ended("other seed", "other keys"))
        said = "ProtocolError: server refuses: rank 2: seed: expected 0, got 7. Fix: start all processes with the same"
        assert said in hosts.said("other seed")
        assert "rank 2: expected a certificate for rank-2, got rank-3" in hosts.said("other keys")
        start(hosts, 2)
        hosts.wait(lambda: "client 1 came back in round" in hosts.said(0))
        hosts.running[0].send_signal(signal.SIGTERM)
        hosts.wait(lambda: hosts.ended(0, 1, 2, 3))
        codes = [hosts.running[rank].returncode for rank in range(4)]
    history = History.load(tmp_path / "out" / "history.json")
    assert codes == [0] * 4, {rank: hosts.said(rank)[-500:] for rank in range(4)}
    assert history.participants.min() == 2 and history.participants[[0, -1]].tolist() == [3, 3]
    assert np.mean(history.train_loss[-20:]) < history.train_loss[0]
    assert re.search(r"not let in: ipv4:127.0.0.1:\d+: rank 2: seed: expected 0, got 7", hosts.said(0))


@pytest.mark.slow
def test_a_server_without_data_and_stages_by_hand_and_sigterm_saves(processes, tmp_path):
    cli.main(["keys", str(tmp_path / "keys"), "--ranks", "3"])
    ports, stages = [free_port(), free_port()], ["--cut", "pool1", "linear1", "--clients", 2, "--micro-batch", 8]
    stages += ["--rounds", 100_000, "--eval-every", 100_000, "--timeout", 10]

    def place(rank):
        return ["--rank", rank, "--keys", tmp_path / "keys" / f"rank-{rank}", "--checkpoint", tmp_path / "run"]

    with Hosts(tmp_path) as hosts:
        for rank in range(3):
            more = [] if rank == 2 else ["--listen", f"127.0.0.1:{ports[rank]}"]
            more += [] if rank == 0 else ["--server", f"127.0.0.1:{ports[rank - 1]}"]
            hosts.start(rank, [*START, "pipeline", *ARGUMENTS, *stages, *place(rank), *more])
        hosts.wait(lambda: "round 3/100000" in hosts.said(0))
        hosts.running[0].send_signal(signal.SIGTERM)
        hosts.wait(lambda: hosts.ended(0, 1, 2))
    assert "asked to end: after this round" in hosts.said(0) and "History(pipeline" in hosts.said(0)
    saved = {re.sub(r"stage-\d-", "", path.name) for path in (tmp_path / "run").glob("stage-*.pt")}
    assert len(saved) == 1, "all saved the round after which it was asked to end"


HOSTS = pytest.mark.skipif(unavailable() is not None, reason=f"no network namespaces: {unavailable()}")
DOCUMENTED = Path(__file__).parent.parent / "docs" / "real-processes.md"


def documented(marker):
    """Return the commands of the documentation's block that follows a marker, one list of words per line."""
    text = DOCUMENTED.read_text().partition(f"<!-- {marker} -->")[2]
    block = re.search(r"```bash\n(.*?)```", text, re.S)[1].replace("\\\n", " ")
    return [shlex.split(line.partition("  #")[0]) for line in block.splitlines() if line.strip()]


@HOSTS
@pytest.mark.slow
@pytest.mark.parametrize("marker", some(["two hosts", "a pipeline on two hosts"], lambda name: name == "two hosts"))
def test_two_hosts_by_the_documented_commands(processes, tmp_path, marker):
    make_keys, *commands = documented(marker)
    with Namespaces(2, [VirtualLink(0, 1, 100e6, 100e6)]) as network, Hosts(tmp_path) as hosts:
        addresses = {"10.0.0.1": network.address(0), "10.0.0.2": network.address(1)}

        def here(words):
            words = [functools.reduce(lambda w, pair: w.replace(*pair), addresses.items(), word) for word in words]
            assert words[:3] == ["python", "-m", "psl.distributed"]
            return [sys.executable, *words[1:]]

        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(here(make_keys), cwd=tmp_path, check=True, env=environment)
        where = {rank: 0 if rank == 0 else 1 for rank in range(len(commands))}
        for rank, command in enumerate(commands):
            words = here(command)
            words[words.index("--keys") + 1] = str(tmp_path / words[words.index("--keys") + 1])
            hosts.start(rank, words, network.command(where[rank], []))
        hosts.wait(lambda: hosts.ended(*range(len(commands))))
        codes = [hosts.running[rank].returncode for rank in range(len(commands))]
        assert codes == [0] * len(commands), {rank: hosts.said(rank)[-600:] for rank in range(len(commands))}
    framework = commands[0][3]
    options = {"rounds": 5, "n_clients": 2}
    options |= {"cut": ["relu1", "pool1"], "micro_batch": 8} if framework == "pipeline" else {"cut": "pool1"}
    torch.manual_seed(0)
    want = train(framework, cnn(), "digits", progress=False, **options)
    assert f"History({framework}: 5 rounds, train loss {want.train_loss[-1]:.4g}" in hosts.said(0)


def test_alone_it_starts_the_processes_itself(launcher, tmp_path, capsys):
    options = ["--clients", "2", "--cut", "pool1", "--rounds", "2", "--out", str(tmp_path), "--partition", "0.9"]
    assert cli.main(["psl", *ARGUMENTS, *options]) == 0
    assert "Run(History(psl: 2 rounds" in capsys.readouterr().out
    history = History.load(tmp_path / "history.json")
    assert history.settings["partition"] == 0.9 and "uplink of client 1" in (tmp_path / "events.csv").read_text()
    job = Job.of("psl", "psl.models:cnn", model_options={"width": 4}, rounds=2, n_clients=2, cut="pool1")
    want = train(
        "psl", job.build_model(), "digits", rounds=2, n_clients=2, cut="pool1", batch_size=16, partition=0.9,
        progress=False,
    )  # fmt: skip
    want.models.clear()
    assert_same_run(history, want)


def test_a_plan_from_a_file_supplies_cut_and_time(launcher, tmp_path, capsys):
    cell = WirelessCell.sample(n_clients=3, n_subchannels=6, seed=1, channel="log-distance")
    plan = epsl.solve(profile(cnn(width=4), (1, 8, 8)), cell, batch_size=16, phi=0.25)
    plan.save(tmp_path / "plan.json")
    options = ["--plan", str(tmp_path / "plan.json"), "--rounds", "1", "--out", str(tmp_path)]
    assert cli.main(["epsl", *ARGUMENTS, *options]) == 0, capsys.readouterr().err
    history = History.load(tmp_path / "history.json")
    assert history.simulated_time_s[0] == pytest.approx(plan.round_time)
    assert (history.settings["phi"], history.settings["cut"], history.settings["n_clients"]) == (0.25, plan.cut, 3)


ONE = ["psl", "--rounds", "1", "--cut", "pool1", "--clients", "3", "--rank"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["psl", "--rounds", "1"], "CutError: cut: expected number or name of a cut, got none"),
        ([*ONE, "4", "--server", "a:1"], "--rank: expected 0..3, as the run has ['server', 'client 0', 'client 1'"),
        ([*ONE, "-1"], "--rank: expected 0..3"),
        ([*ONE, "1", "--server", "here"], "--server: expected ADDRESS:PORT, got 'here'"),
        ([*ONE, "1", "--server", "127.0.0.1:99999"], "--server: expected ADDRESS:PORT, got '127.0.0.1:9"),
        ([*ONE, "1"], "--server: expected ADDRESS:PORT, got None"),
        ([*ONE, "0"], "--listen: expected ADDRESS:PORT, got None. Fix: as in --listen 10.0.0.1:29500"),
        ([*ONE, "0", "--listen", "a:1", "--server", "a:1"], "--server: expected nothing for server, got 'a:1'"),
        ([*ONE, "1", "--server", "a:1"], "--keys: expected a folder with this rank's keys, or --insecure, got neither"),
        ([*ONE, "1", "--server", "a:1", "--keys", "x", "--insecure"], "or --insecure, got both"),
        ([*ONE, "1", "--server", "a:1", "--keys", "nowhere"], "--keys: expected a folder with authority.pem, got now"),
        ([*ONE, "1", "--server", "a:1", "--restarts", "1"], "--restarts: expected nothing with --rank"),
        ([*ONE, "1", "--emulate", "kernel"], "--emulate: expected 'pacing' or 'none' with --rank"),
        ([*ONE, "1", "--emulate", "auto"], "a plan to emulate, got none. Fix: pass --plan FILE"),
        (["psl", "--rounds", "1", "--cut", "1", "--insecure"], "--insecure: expected nothing without --rank"),
        (["psl", "--rounds", "1", "--cut", "1", "--listen", "a:1"], "--listen: expected nothing without --rank"),
        (["psl", "--rounds", "1", "--plan", "nofile"], "--plan: expected a file written by plan.save(), got 'nofile'"),
        (["psl", "--rounds", "1", "--out", __file__], "--out: expected a folder, or a place for one, got"),
        (["psl", "--rounds", "1", "--checkpoint", f"{__file__}/x"], "--checkpoint: expected a folder, or a place for"),
        (
            ["psl", "--rounds", "1", "--schedule", "gpipe"],
            "schedule, which is for pipelines: expected none for ",
        ),
        (["psl", "--rounds", "1", "--cut", "1", "--model", "x"], "got 'x' (No module named 'x'). Fix"),
        (["keys", __file__, "--ranks", "2"], "keys: expected a folder to write into, got "),
        (["keys", "x", "--ranks", "0"], "n_ranks: expected at least 1, got 0"),
    ],
)
def test_what_cannot_be_done_is_said(capsys, options, message):
    assert cli.main(options) == 1
    assert message in capsys.readouterr().err


def test_plain_text_is_warned_of_and_a_port_that_is_taken_is_said(capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        start = ["psl", *ARGUMENTS, "--cut", "pool1", "--rounds", "1", "--rank", "0", "--insecure", "--listen"]
        assert cli.main([*start, f"127.0.0.1:{port}"]) == 1
    said = capsys.readouterr().err
    assert "--insecure: nothing is encrypted. Whoever reaches the port" in said
    assert f"ChannelError: --listen: expected a free port at 127.0.0.1:{port}, got none" in said


def test_one_cut_stands_for_itself_with_micro_batches_too():
    asked = {"cut": ["pool1"], "micro_batch": 16, "phi": None}
    assert cli._given(asked) == {"cut": "pool1", "micro_batch": 16}
    assert cli._given({"cut": [1, 3]}) == {"cut": [1, 3]}


def test_options_that_are_none(capsys):
    for arguments in (["psl"], ["sgd", "--rounds", "1"], ["psl", "--rounds", "1", "--model-option", "width"]):
        with pytest.raises(SystemExit):
            cli.main(arguments)
    assert "expected NAME=VALUE, got 'width'" in capsys.readouterr().err


def test_the_version_is_part_of_what_a_process_says(monkeypatch):
    from psl.distributed.place import Place

    job = Job.of("psl", "psl.models:cnn", rounds=1, n_clients=2, cut="pool1")
    place = Place(job, 1, None, Path("/tmp"))
    hello = place.hello()
    place.check_hello(hello)
    with pytest.raises(psl.distributed.ProtocolError, match=f"rank 1: expected psl {psl.__version__}, got 0.1"):
        place.check_hello(hello | {"version": "0.1"})
    with pytest.raises(psl.distributed.ProtocolError, match='rank 1: framework: expected "psl", got None'):
        place.check_hello(hello | {"job": None})


ON_EACH_HOST = """
import torch
from torch import nn

class Numbered(nn.Linear):
    def extra_repr(self):
        return str(id(self))

def model():
    return nn.Sequential(Numbered(4, 3), {activation})

def optimizer(parameters):
    return torch.optim.SGD([dict(params=list(parameters), rule=lambda k: k, lr={rate})])
"""


def test_hosts_whose_files_differ_are_refused(tmp_path, monkeypatch):
    from psl.distributed.place import Place, Terminal

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(signal, "signal", lambda *_: None)

    def host(activation, rate):
        text = ON_EACH_HOST.format(activation=activation, rate=rate)
        (tmp_path / "on_each_host.py").write_text(text)
        sys.modules.pop("on_each_host", None)
        importlib.invalidate_caches()
        job = Job("psl", "on_each_host:model", "digits", 1, 2, 8, cut=1, optimizer="on_each_host:optimizer")
        place = Place(job, 1, Terminal([]), tmp_path)
        return place, place.hello()

    first, hello = host("nn.ReLU()", 0.1)
    first.check_hello(hello)
    first.check_hello(host("nn.ReLU()", 0.1)[1])  # the same files: numbers of objects are no difference
    for different, what in (
        (("nn.Tanh() ", 0.1), "model's layers: expected .* 15 parameters"),
        (("nn.ReLU()", 0.125), r"optimizer's settings: expected .*lr=0.1, .*, got SGD\(lr=0.125"),
    ):
        with pytest.raises(psl.distributed.ProtocolError, match=f"rank 1: {what}.* the same files"):
            first.check_hello(host(*different)[1])
