"""PSL, EPSL and EdgeSplit in micro-batches: the gradient of the whole mini-batch, refusals, plans and checkpoints."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from psl.errors import CheckpointError, ScenarioError
from psl.models import split
from psl.networks import EdgeCluster, WirelessCell
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl
from psl.training import train
from psl.training.config import AGGREGATION_RULES, TrainingConfig, cross_entropy
from psl.training.frameworks import build_framework
from test_training_identities import CUT, assert_close, assert_same, run, tiny_data


@pytest.mark.parametrize("size", [1, 3, 8])
def test_psl_in_micro_batches_is_psl(plain, size):
    whole, parts = run("psl", plain), run("psl", plain, micro_batch=size)
    np.testing.assert_allclose(parts.train_loss, whole.train_loss, rtol=1e-12)
    assert np.array_equal(parts.uplink_bits, whole.uplink_bits)
    for a, b in zip(whole.models, parts.models, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_epsl_in_micro_batches_is_epsl(plain, rule):
    whole = run("epsl", plain, phi=1, linearise=rule)
    parts = run("epsl", plain, phi=1, linearise=rule, micro_batch=3)
    np.testing.assert_allclose(parts.train_loss, whole.train_loss, rtol=1e-12)
    for a, b in zip(whole.models, parts.models, strict=True):
        assert_close(a, b)
    assert_same(run("epsl", plain, phi=0, micro_batch=3), run("psl", plain, micro_batch=3))


def test_edgesplit_in_micro_batches_is_edgesplit(plain):
    options = {"cut": [2, CUT, 5], "local_steps": 2}
    whole, parts = run("edgesplit", plain, **options), run("edgesplit", plain, micro_batch=3, **options)
    np.testing.assert_allclose(parts.train_loss, whole.train_loss, rtol=1e-12)
    assert_close(whole.models[0], parts.models[0])


def test_gradients_are_those_of_autograd(plain):
    """Of the server that of Σ_i λ_i ℓ̄_i, of client i that of its own ℓ̄_i, with an uneven last micro-batch."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, 8, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (3, 8), generator=generator)
    weights = np.array([0.5, 0.3, 0.2])
    seen = {}

    def optimizer(parameters):
        made = torch.optim.SGD(parameters, lr=0.0)
        made.register_step_pre_hook(lambda *_: seen.update({id(p): p.grad.clone() for p in parameters}))
        return made

    config = TrainingConfig(
        framework="psl", n_clients=3, batch_size=8, optimizer=optimizer, cut=CUT, micro_batch=3, example=images[0]
    )
    framework = build_framework(copy.deepcopy(plain), config, weights)
    loss = framework.round(lambda i, k: (images[i], labels[i]), np.random.default_rng(0))
    parts = split(copy.deepcopy(plain), CUT, images[0])
    clients = [copy.deepcopy(parts.client) for _ in range(3)]
    means = [cross_entropy(parts.server(clients[i](images[i])), labels[i]).mean() for i in range(3)]
    objective = sum(weight * mean for weight, mean in zip(weights.tolist(), means, strict=True))
    torch.testing.assert_close(loss, objective.detach(), rtol=1e-12, atol=0)
    wanted = torch.autograd.grad(objective, list(parts.server.parameters()), retain_graph=True)
    for p, g in zip(framework.server.parameters(), wanted, strict=True):
        torch.testing.assert_close(seen[id(p)], g, rtol=1e-10, atol=1e-13)
    for i in range(3):
        wanted = torch.autograd.grad(means[i], list(clients[i].parameters()), retain_graph=True)
        for p, g in zip(framework.clients[i].parameters(), wanted, strict=True):
            torch.testing.assert_close(seen[id(p)], g, rtol=1e-10, atol=1e-13)


def test_batchnorm_counts_what_each_part_takes_at_a_time(norm):
    """Three micro-batches of each of three clients: 9 at the server with φ = 0, 3 slots with φ = 1, 3 at a client."""
    for framework, phi, at_server in (("psl", 0, 9), ("epsl", 1, 3)):
        options = {"rule": "each"} if framework == "epsl" else {}
        options = {"phi": phi, "linearise": "each"} if options else {}
        found = run(framework, norm, rounds=1, batch_size=9, micro_batch=3, **options)
        counts = {int(v) for k, v in found.models[0].state_dict().items() if k.endswith("num_batches_tracked")}
        assert counts == {3, at_server}


def profile_of(model):
    from psl.models import profile

    return profile(model, torch.zeros(1, 1, 8, 8, dtype=torch.float64))


def test_a_plan_decides_the_micro_batch_and_the_seconds(plain):
    cell = WirelessCell.sample(3, 6, seed=0, channel="log-distance")
    found: Profile = profile_of(plain)
    for phi, framework in ((0, "psl"), (0, "epsl"), (1, "epsl")):
        plan = epsl.solve(found, cell, batch_size=8, phi=phi, micro_batches=3)
        history = train(framework, plain, tiny_data(), rounds=1, plan=plan, progress=False)
        assert history.settings["micro_batch"] == 3
        assert history.to_frame()["simulated_time_s"].iloc[-1] == pytest.approx(plan.round_time)
    cluster = EdgeCluster.sample(3, seed=0)
    plan = edgesplit.solve(found, cluster, batch_size=8, micro_batches=2)
    history = train("edgesplit", plain, tiny_data(), rounds=1, plan=plan, progress=False)
    assert history.settings["micro_batch"] == 4
    with pytest.raises(ScenarioError, match="micro_batch: expected the plan's 4"):
        train("edgesplit", plain, tiny_data(), rounds=1, plan=plan, micro_batch=2)


def test_frameworks_without_micro_batches_take_the_rest_of_such_a_plan(plain):
    cell = WirelessCell.sample(3, 6, seed=0, channel="log-distance")
    plan = epsl.solve(profile_of(plain), cell, batch_size=8, phi=0, micro_batches=3)
    barriers = dataclasses.replace(plan, micro_batches=None)
    for framework in ("sfl", "sl", "fedavg"):
        one, other = (
            train(framework, plain, tiny_data(), rounds=1, plan=each, progress=False) for each in (plan, barriers)
        )
        assert_same(one, other)
        assert one.settings == other.settings
        assert one.to_frame()["simulated_time_s"].iloc[-1] == other.to_frame()["simulated_time_s"].iloc[-1]


def test_a_checkpoint_of_another_micro_batch_is_refused(plain, tmp_path):
    file = tmp_path / "run.pt"
    whole = run("psl", plain, micro_batch=3, rounds=4)
    run("psl", plain, micro_batch=3, rounds=2, checkpoint=file)
    assert_same(run("psl", plain, micro_batch=3, rounds=4, checkpoint=file), whole)
    with pytest.raises(CheckpointError):
        run("psl", plain, micro_batch=4, rounds=4, checkpoint=file)


@pytest.mark.parametrize(
    ("framework", "options", "message"),
    [
        ("psl", {"micro_batch": 9}, "micro_batch: expected at most the mini-batch of 8"),
        ("psl", {"micro_batch": 0}, "micro_batch: expected"),
        ("epsl", {"micro_batch": 4, "phi": 0.5}, "phi: expected 0 or 1 with micro_batch"),
        ("epsl", {"micro_batch": 4, "phi": 1, "linearise": "sampled"}, "micro_batch: expected None"),
        ("psl", {"micro_batch": 4, "sampling": "global"}, "sampling='global'"),
        ("psl", {"micro_batch": 4, "server_steps": 2}, "server_steps"),
        ("psl", {"micro_batch": 4, "cut": (2, 5)}, "a U-shaped split"),
    ],
)
def test_what_needs_the_whole_mini_batch_is_refused(plain, framework, options, message):
    with pytest.raises(ScenarioError, match=message.replace("(", r"\(")):
        run(framework, plain, **options)


def test_a_defence_of_each_message_goes_in_micro_batches_and_a_penalty_on_all_rows_does_not(plain):
    from psl.privacy import NoPeek, Quantise

    run("psl", plain, rounds=1, micro_batch=4, defence=Quantise(8))
    with pytest.raises(ScenarioError, match="NoPeek"):
        run("psl", plain, rounds=1, micro_batch=4, defence=NoPeek(0.1))


def test_profiles_of_plans_keep_their_fields(plain):
    cell = WirelessCell.sample(3, 6, seed=0, channel="log-distance")
    plan = epsl.solve(profile_of(plain), cell, batch_size=8, phi=0, micro_batches=3)
    assert dataclasses.replace(plan, micro_batches=None).training_arguments().keys() == {
        "n_clients", "batch_size", "phi", "cut",
    }  # fmt: skip
