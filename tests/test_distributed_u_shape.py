"""U-shaped splits between processes: the result of one process, and no label leaves a client."""

import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import psl
from distributed_models import assert_same_run, in_one_process, in_processes
from psl.distributed import Job, compare, emulation_for, measured_profile
from psl.networks import WirelessCell
from psl.privacy import Noise
from psl.schedulers import epsl
from psl.training.devices import Devices
from psl.training.frameworks import PSL, build_framework
from psl.training.frameworks.base import Round, no_seed
from psl.training.resolve import resolve

DROPOUT = {"model_options": {"dropout": 0.3}}
PAIRS = {"model": "distributed_models:pairs", "dataset": "distributed_models:dict_data", "cut": ("first", "mul_1")}
FRAMEWORKS = [
    ("psl", DROPOUT | {"record": True}), ("sfl", DROPOUT | {"local_steps": 2}), ("sl", DROPOUT | {"rounds": 2}),
    ("psl", PAIRS),
]  # fmt: skip
BOTH = {"cut": (3, 8)}


@pytest.fixture(scope="module")
def runs(processes):
    """The runs so far, by framework and options."""
    return {}


@pytest.mark.parametrize(("framework", "options"), FRAMEWORKS)
def test_processes_find_what_one_process_finds(runs, framework, options):
    found = in_processes(framework, **BOTH | options)
    runs.setdefault(framework, found)
    here = {name: value for name, value in options.items() if name != "record"}
    assert_same_run(found.history, in_one_process(framework, **BOTH | here))
    assert found.faults == ()


def test_no_label_leaves_a_client(runs):
    messages = runs["psl"].messages
    sent = {kind for rank in (1, 2, 3) for way, kind, _, _ in messages[rank] if way == "out"}
    assert sent == {"activation", "gradient", "loss", "report", "test_activation"}
    for _, kind, _, content in (m for m in messages[0] if m[0] == "in"):
        if kind == "loss":
            assert content.ndim == 0
        elif isinstance(content, torch.Tensor):
            assert content.is_floating_point() and content.ndim > 1
    kinds = runs["psl"].events.query("round == 1").groupby("resource", observed=True)["kind"].agg(list)
    assert kinds["server"] == ["forward", "backward", "step"]
    assert kinds["client 0"] == ["forward", "forward", "backward", "backward", "step"]


def test_a_defence_and_a_checkpoint(processes, tmp_path):
    options = BOTH | {"defence": Noise(0.2), "partition": "iid"}
    in_processes("psl", **options | {"rounds": 1}, checkpoint=tmp_path)
    continued = in_processes("psl", **options, checkpoint=tmp_path)
    assert_same_run(continued.history, in_one_process("psl", **options))


class OneIsLost(Devices):
    """Clients of which the second is lost when it has the features."""

    def __init__(self, devices):
        super().__init__(devices)
        self.calls = 0

    def do(self, clients, action):
        self.calls += 1
        return super().do([i for i in clients if i == 0 or self.calls == 1], action)


def test_a_client_that_is_lost_with_the_features_adds_nothing():
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(3)))
    batches, trained = [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])) for _ in range(2)], []
    for kind, clients in ((OneIsLost, [0, 1]), (Devices, [0])):
        config = resolve(PSL, n_clients=2, batch_size=4, rounds=1, cut=(1, 2))
        run = build_framework(copy.deepcopy(model), dataclasses.replace(config, example=torch.ones(2, 3)))
        devices = kind([run.device(i, i, lambda i, step: batches[i], no_seed) for i in range(2)])
        this = Round(None, None, None, no_seed, devices, lambda *_: contextlib.nullcontext())
        loss = run.train_clients(clients, np.full(len(clients), 1 / len(clients)), 0, this)
        parts = run.server, run.clients[0]
        trained.append([loss, *(tensor for part in parts for tensor in part.state_dict().values())])
    for mine, theirs in zip(*trained, strict=True):
        torch.testing.assert_close(mine, theirs)


def planned(profile):
    cell = WirelessCell.sample(3, 6, 0, subchannel_bandwidth=1e6, client_speed_range=(0.3, 0.5), server_speed=0.8)
    return epsl.solve_u_shaped(profile, cell, tail_cut="linear1", batch_size=8)


@pytest.mark.full
def test_a_plan_is_compared_with_what_is_measured(processes):
    plan = planned(measured_profile("psl.models:cnn", batch_size=8, repeats=5))
    (row,) = compare(plan, "psl.models:cnn", rounds=2, links="pacing").to_dict("records")
    assert row["term"] == "round" and row["simulated_s"] == pytest.approx(row["predicted_s"])
    assert 0.5 * row["predicted_s"] < row["measured_s"] < 3 * row["predicted_s"]


def test_a_plan_gives_cuts_links_and_speeds(processes):
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    seconds = {name: getattr(profile, name) * 1e-9 for name in ("fwd_cost", "bwd_cost", "last_bwd_cost")}
    plan = planned(dataclasses.replace(profile, unit="s", **seconds))
    emulation = emulation_for(plan, "pacing")
    np.testing.assert_allclose(emulation.forward, plan.cell.uplink_rate(plan.plan.assignment, plan.plan.power))
    assert Job.of("psl", "psl.models:cnn", plan=plan, rounds=1).cut == plan.cuts
    options = {"plan": plan, "emulate": emulation, "rounds": 1, "progress": False}
    found = psl.distributed.run("psl", dataset="distributed_models:small_data", **options)
    assert found.emulation == "pacing" and found.history.simulated_time_s[-1] == pytest.approx(plan.round_time)
