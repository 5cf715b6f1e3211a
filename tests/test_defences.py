"""Defences in training: what crosses, what is counted, what time it takes, and that runs stay reproducible."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import psl
from psl.errors import PSLError, ScenarioError
from psl.privacy import Noise, NoPeek, Quantise
from psl.schedulers import epsl
from psl.training.defences import biased_distance_correlation


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return psl.models.cnn(width=4)


def train(framework="psl", rounds=2, **options):
    options = {"cut": "pool1", "n_clients": 2, "batch_size": 16, "lr": 0.1} | options
    return psl.train(framework, model(), "digits", rounds=rounds, progress=False, **options)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_quantised_numbers_have_few_levels_between_the_extremes(bits):
    x = torch.randn(50, 7, generator=torch.Generator().manual_seed(1))
    y = Quantise(bits).sent(x)
    levels = y.unique()
    assert len(levels) <= 2**bits
    assert torch.allclose(levels[[0, -1]], torch.stack([x.min(), x.max()]))
    assert float((y - x).abs().max()) <= float(x.max() - x.min()) / (2**bits - 1) / 2 * (1 + 1e-5)
    zeros = torch.zeros(3, 2)
    assert torch.equal(Quantise(bits).sent(zeros), zeros)
    assert torch.equal(Quantise(bits).sent(torch.arange(5)), torch.arange(5)), "whole numbers cross as they are"


def test_noise_is_relative_to_the_spread_and_drawn_anew():
    torch.manual_seed(0)
    x = 100 * torch.randn(4000)
    first, second = (Noise(0.5).sent(x) for _ in range(2))
    assert not torch.equal(first, second)
    assert float((first - x).std() / x.std()) == pytest.approx(0.5, rel=0.05)
    assert torch.equal(Noise(0).sent(x), x)


@pytest.mark.parametrize("framework", ["sl", "sfl", "psl", "epsl"])
def test_quantisation_counts_its_bits_up_and_nothing_else_changes_size(framework):
    plain, few = train(framework), train(framework, defence=Quantise(8))
    numbers = 2 * 2 * 16 * 4 * 4 * 4  # rounds, clients, samples, channels, pixels
    assert plain.uplink_bits[-1] - few.uplink_bits[-1] == numbers * (32 - 8)
    assert plain.downlink_bits[-1] == few.downlink_bits[-1]
    assert few.settings["defence"] == "Quantise(bits=8)"
    assert "defence" not in plain.settings


@pytest.mark.parametrize("defence", [Noise(0.5), Quantise(2), NoPeek(1.0)])
def test_a_defence_changes_training_and_the_same_seed_gives_the_same_bits(defence):
    plain, first, second = train(), train(defence=defence), train(defence=defence)
    assert first == second
    assert not np.array_equal(first.train_loss[1:], plain.train_loss[1:])


def test_defences_that_do_nothing_change_nothing():
    plain = train().train_loss
    np.testing.assert_array_equal(train(defence=Noise(0.0)).train_loss, plain)
    np.testing.assert_allclose(train(defence=NoPeek(0.0)).train_loss, plain, rtol=1e-6)
    np.testing.assert_allclose(train(defence=Quantise(16)).train_loss, plain, rtol=1e-3)


def test_a_checkpoint_continues_a_run_with_noise(tmp_path):
    options = {"defence": Noise(0.3), "checkpoint": tmp_path / "run.pt"}
    whole = train(rounds=3, defence=Noise(0.3))
    train(rounds=1, **options)
    np.testing.assert_array_equal(train(rounds=3, **options).train_loss, whole.train_loss)
    with pytest.raises(PSLError, match="defence"):
        train(rounds=3, checkpoint=tmp_path / "run.pt")


def test_nopeek_adds_the_gradient_of_the_distance_correlation():
    generator = torch.Generator().manual_seed(2)
    x, s = torch.randn(12, 5, generator=generator), torch.randn(12, 3, generator=generator)
    found = NoPeek(0.7).penalty_gradient(x, s)
    step = 1e-3
    for place in ((0, 0), (5, 2), (11, 1)):
        moved = [s.double().clone() for _ in range(2)]
        moved[0][place] += step
        moved[1][place] -= step
        high, low = (float(biased_distance_correlation(x.double(), m)) for m in moved)
        assert float(found[place]) == pytest.approx(0.7 * (high - low) / (2 * step), rel=2e-2, abs=1e-5)


def test_nopeek_lowers_the_correlation_that_it_penalises():
    (images, _), _ = (part.tensors for part in psl.data.load("digits"))
    images = images[:200]

    def correlation(history):
        client = psl.split(history.models[0], "relu3", (1, 8, 8)).client
        with torch.no_grad():
            return float(biased_distance_correlation(images.flatten(1), client(images).flatten(1)))

    options = {"rounds": 25, "cut": "relu3", "batch_size": 32, "eval_every": 25}
    assert correlation(train("sfl", defence=NoPeek(2.0), **options)) < correlation(train("sfl", **options)) - 0.02


def test_the_profile_and_the_plan_are_those_of_few_bits():
    profile = psl.profile(model(), (1, 8, 8))
    few = Quantise(8).profile(profile)
    np.testing.assert_allclose(few.act_bits, profile.act_bits / 4)
    np.testing.assert_array_equal(few.grad_bits, profile.grad_bits)
    assert Noise(1.0).profile(profile) is profile
    cell = psl.WirelessCell.sample(n_clients=2, n_subchannels=4, channel="log-distance")
    options = {"batch_size": 16, "phi": 0.0, "cut": "pool1", "bound": False}
    plans = {bits: epsl.solve(p, cell, **options) for bits, p in ((32, profile), (8, few))}
    assert plans[8].round_time < plans[32].round_time

    def run(bits, **more):
        return psl.train("psl", model(), "digits", rounds=1, plan=plans[bits], progress=False, **more)

    assert run(8, defence=Quantise(8)).simulated_time_s[-1] == plans[8].round_time
    with pytest.raises(
        ScenarioError, match=r"plan: expected one for a profile with 8 bits.*defence.profile\(profile\)"
    ):
        run(32, defence=Quantise(8))


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_quantised_data_cross_in_their_bits_and_come_out_as_they_were(bits):
    defence = Quantise(bits)
    sent = defence.sent((torch.randn(5, 3, 4, 4), torch.arange(5)))
    (codes, *_), other = packed = defence.packed(sent)
    assert codes.shape == (5, -(-bits * 48 // 8)) and torch.equal(other, sent[1])
    found = defence.unpacked(packed, (torch.zeros(2, 3, 4, 4), torch.arange(2)))
    torch.testing.assert_close(found, sent)
    same = defence.sent(torch.ones(2, 3))
    assert torch.equal(defence.unpacked(defence.packed(same), same), same)


def test_what_does_not_go_together_is_refused():
    for framework in ("fedavg", "centralised"):
        with pytest.raises(ScenarioError, match="defence: expected none for this framework"):
            train(framework, cut=None, defence=Noise(0.1))
    with pytest.raises(ScenarioError, match="defence: expected a defence or None, got 0.1"):
        train(defence=0.1)


# --- U-shaped splits ---


def small(bias_in_float64=True):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = [nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 10)]
        return nn.Sequential(*layers).double()


def doubles():
    parts = psl.data.load("digits")
    return tuple(torch.utils.data.TensorDataset(part.tensors[0].double(), part.tensors[1]) for part in parts)


def run(framework, **options):
    options = {"rounds": 4, "batch_size": 16, "lr": 0.2, "progress": False, "n_clients": 1} | options
    return psl.train(framework, small(), doubles(), **options)


def weights(history):
    return torch.cat([p.flatten() for p in history.models[0].parameters()])


@pytest.mark.parametrize("framework", ["sl", "sfl", "psl"])
@pytest.mark.parametrize("cuts", [(2, 4), ("1", "4"), (1, 5)])
def test_one_client_with_a_u_shape_trains_as_the_whole_model_does(framework, cuts):
    whole = run("centralised")
    found = run(framework, cut=cuts)
    torch.testing.assert_close(weights(found), weights(whole), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.train_loss, whole.train_loss, rtol=1e-12)
    np.testing.assert_allclose(found.test_accuracy, whole.test_accuracy)
    assert len(found.settings["cut"]) == 2


def test_sfl_with_a_u_shape_is_the_whole_model_on_all_mini_batches_at_once():
    # One step of SGD: the average of the clients' steps is the step on the average loss.
    found, same = run("sfl", cut=(2, 4), n_clients=3), run("sfl", cut=2, n_clients=3)
    torch.testing.assert_close(weights(found), weights(same), rtol=1e-11, atol=1e-13)
    averaged = run("fedavg", n_clients=3)
    torch.testing.assert_close(weights(found), weights(averaged), rtol=1e-11, atol=1e-13)
    sequential, plain = run("sl", cut=(2, 4), n_clients=3), run("sl", cut=2, n_clients=3)
    torch.testing.assert_close(weights(sequential), weights(plain), rtol=1e-11, atol=1e-13)


def test_a_u_shape_sends_four_messages_and_no_label():
    found = run("psl", cut=(2, 4), n_clients=2, rounds=1)
    b, wide = 2 * 16, 64
    assert found.uplink_bits[-1] == b * wide * (12 + 9), "smashed data of cut 2, gradients of cut 4"
    assert found.downlink_bits[-1] == b * wide * (9 + 12)
    assert len(found.models) == 2, "every client keeps its head and tail"
    tails = [model[5].weight for model in found.models]
    assert not torch.equal(*tails)
    assert found.models[0][3].weight is found.models[1][3].weight, "one server-side part"


def test_a_u_shape_continues_from_a_checkpoint_and_takes_a_defence(tmp_path):
    options = {"cut": (2, 4), "n_clients": 2, "defence": Noise(0.2)}
    run("sfl", rounds=2, checkpoint=tmp_path / "u.pt", **options)
    again = run("sfl", rounds=4, checkpoint=tmp_path / "u.pt", **options)
    np.testing.assert_array_equal(again.train_loss, run("sfl", **options).train_loss)
    assert psl.privacy.label_leakage(again, data=doubles(), seeds=1, rounds=8).accuracy[0] > 0.3


def test_u_shapes_that_make_no_sense_are_refused():
    for cut, message in (
        ((2, 6), "expected a layer behind the second cut"),
        ((4, 2), "strictly increasing"),
        ((0, 4), "a cut after the first layer or later"),
        ((1, 2, 3), "two cuts for a U-shaped split"),
    ):
        with pytest.raises(PSLError, match=message):
            run("psl", cut=cut)
    with pytest.raises(PSLError, match="number or name of a cut"):
        run("epsl", cut=(2, 4))
    with pytest.raises(PSLError, match="server_steps: expected 0 with a U-shaped split, got 2"):
        run("psl", cut=(2, 4), server_steps=2)


def test_the_round_of_a_u_shape_term_by_term():
    rng = np.random.default_rng(0)
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance", seed=1)
    plan = epsl.solve_u_shaped(profile, cell, tail_cut="relu3", batch_size=8)
    j, k = plan.cuts
    f, w, up_bits, down_bits = profile.fwd_cost, profile.bwd_cost, profile.act_bits, profile.grad_bits
    r, r_down, b, n = plan.plan.cell.uplink_rate(plan.plan.assignment, plan.plan.power), None, 8, 3
    r_down = cell.downlink_rate(plan.plan.assignment)
    s, server = cell.client_speed, cell.server_speed
    expected = [
        max(b * f[j] / s + b * up_bits[j] / r),
        n * b * (f[k] - f[j]) / server,
        max(b * up_bits[k] / r_down + b * (f[-1] - f[k] + w[-1] - w[k]) / s + b * down_bits[k] / r),
        n * b * (w[k] - w[j]) / server,
        max(b * down_bits[j] / r_down + b * w[j] / s),
    ]
    terms = plan.latency()
    got = [terms.uplink, terms.server_forward, terms.tail, terms.server_backward, terms.downlink]
    np.testing.assert_allclose(got, expected)
    assert plan.round_time == pytest.approx(sum(expected) + terms.optimizer)
    assert 0 < plan.lower_bound <= plan.round_time
    assert epsl.UShapedPlan.from_dict(plan.to_dict()) == plan
    assert "UShapedPlan" in plan._repr_html_()
    for framework in ("sfl", "sl"):
        other = plan.latency(framework)
        assert other.total > 0 and other.model_exchange > 0
    # no plan drawn at random is below the bound
    for _ in range(200):
        assignment = rng.permutation([0, 1, 2, *rng.integers(0, 3, 3)])
        held = np.bincount(assignment, minlength=3)
        power = np.minimum(cell.client_power, cell.total_power / 3)[assignment] / held[assignment] / cell.bandwidth
        first = int(rng.integers(1, k))
        drawn = epsl.u_shaped_latency(
            profile, cell, cuts=(first, "relu3"), assignment=assignment, power=power, batch_size=8
        )
        assert drawn.total >= plan.lower_bound * (1 - 1e-9)
    one = dataclasses.replace(plan.latency(), tail=0.0)
    assert one.total < plan.round_time


def test_the_round_of_a_u_shape_takes_the_cells_overheads():
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    free = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance", seed=1)
    cell = dataclasses.replace(free, round_overhead=1.0, message_overhead=0.1, call_overhead=0.01)
    plan = epsl.solve_u_shaped(profile, free, tail_cut="relu3", batch_size=8)
    dear = epsl.UShapedPlan(profile, cell, dataclasses.replace(plan.plan, cell=cell), plan.tail_cut)
    more = {"psl": (4, 2), "sfl": (2 * 4 + 2, 4), "sl": (3 * (4 + 2), 6)}  # messages and calls; sfl in 2 local steps
    for framework, (messages, calls) in more.items():
        steps = 2 if framework == "sfl" else 1
        extra = dear.latency(framework, steps).total - plan.latency(framework, steps).total
        assert extra == pytest.approx(1.0 + 0.1 * messages + 0.01 * calls)
    assert "overhead" in dear.latency().to_frame().index and "overhead" not in plan.latency().to_frame().index
    assert np.isnan(dear.lower_bound)
    planned = epsl.solve_u_shaped(profile, cell, tail_cut="relu3", batch_size=8)
    assert 1.4 < planned.lower_bound <= planned.round_time <= dear.round_time * (1 + 1e-9)


def test_a_u_shaped_plan_is_simulated_and_trained():
    model = psl.models.cnn()
    profile = psl.profile(model, (1, 8, 8))
    for seed, more in ((0, {}), (1, {"round_overhead": 0.1, "message_overhead": 0.01, "call_overhead": 0.005})):
        cell = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance", seed=seed)
        plan = epsl.solve_u_shaped(profile, dataclasses.replace(cell, **more), tail_cut="relu3", batch_size=8)
        assert psl.simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-12)
    stepping = dataclasses.replace(profile, step_cost=np.linspace(0, 1e9, len(profile.names)))
    plan = epsl.solve_u_shaped(stepping, cell, tail_cut="relu3", batch_size=8)
    assert plan.latency().optimizer > 0
    assert psl.simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-12)
    how = {"rounds": 1, "seed": 3, "progress": False}
    for framework in ("psl", "sfl", "sl"):
        planned = psl.train(framework, copy.deepcopy(model), "digits", plan=plan, **how)
        named = [plan.profile.names[cut] for cut in plan.cuts]
        alone = psl.train(framework, copy.deepcopy(model), "digits", cut=named, n_clients=3, batch_size=8, **how)
        assert planned.train_loss == pytest.approx(alone.train_loss)
        assert planned.simulated_time_s[-1] == pytest.approx(plan.framework_round_time(framework))
        again = psl.train(framework, copy.deepcopy(model), "digits", plan=plan, cut=named, **how)
        assert again.train_loss == pytest.approx(alone.train_loss)
    with pytest.raises(PSLError, match="the plan's"):
        psl.train(
            "psl",
            copy.deepcopy(model),
            "digits",
            plan=plan,
            cut=("conv1", "relu3" if plan.cuts[0] != 1 else "pool1"),
            **how,
        )
    for framework, message in (("epsl", "one of 'psl', 'sfl', 'sl'"), ("pipeline", "pipeline")):
        with pytest.raises(PSLError, match=message):
            psl.distributed.Job.of(framework, "psl.models:cnn", plan=plan, rounds=1)
    with pytest.raises(PSLError, match="quantises"):
        psl.train("psl", copy.deepcopy(model), "digits", plan=plan, defence=Quantise(8), **how)
    with pytest.raises(PSLError):
        psl.train("epsl", copy.deepcopy(model), "digits", plan=plan, **how)
