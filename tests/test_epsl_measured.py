"""Clients with measured profiles of their own, and measured profiles in cells of the wrong unit."""

import dataclasses
import json

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from psl.errors import ScenarioError
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers import epsl
from psl.schedulers.epsl.power import round_time
from psl.schedulers.epsl.problem import RoundProblem


def on(profile, forward, backward):
    """Return the measured profile of a device that takes these seconds; its bits must not matter."""
    return Profile.measured(profile.names, forward, backward, np.ones(len(profile.names)))


def test_seconds_that_say_what_the_speeds_say_give_the_same_plan():
    for seed in range(4):
        rng = np.random.default_rng(seed)
        profile, cell = random_profile(rng), random_cell(rng, 3, 6)
        own = tuple(on(profile, profile.fwd_cost / s, profile.bwd_cost / s) for s in cell.client_speed)
        # The speed of a client with a profile is ignored; one client keeps it.
        fleet = dataclasses.replace(
            cell, client_speed=[1.0, cell.client_speed[1], 1.0], profiles=(own[0], None, own[2])
        )
        for method in ("search", "bcd"):
            plan = epsl.solve(profile, cell, method=method)
            same = epsl.solve(profile, fleet, method=method)
            assert same.lower_bound == plan.lower_bound
            same = dataclasses.replace(same, cell=cell, lower_bound=plan.lower_bound, proven_for="")
            assert same == plan, f"seed {seed}"


def test_a_slow_client_by_hand():
    profile = Profile(
        names=["input", "conv", "block", "output"], fwd_cost=[0, 10, 30, 36], bwd_cost=[0, 16, 56, 68],
        act_bits=[40, 24, 12, 4], grad_bits=[40, 24, 12, 4], param_bits=[0, 30, 90, 120], act_memory=[0, 1, 2, 3],
        last_bwd_cost=12,
    )  # fmt: skip
    slow = on(profile, [0, 5, 9, 10], [0, 7, 12, 20])
    cell = WirelessCell(
        client_speed=[10, 20], server_speed=100, uplink_gain=[[1, 1, 3], [3, 1, 1]], bandwidth=[1, 2, 4], noise_psd=1,
        client_power=[20, 20], total_power=30, downlink_psd=1, profiles=(None, slow),
    )  # fmt: skip
    # As in test_epsl_latency: rates up 6 and 4 bit/s, down 9 and 2, broadcast 8.
    plan = {"cut": 1, "assignment": [0, 1, 0], "power": [3, 3, 1 / 3], "batch_size": 4, "phi": 0.5}
    result = epsl.latency(profile, cell, **plan)
    assert result.uplink_of == pytest.approx([4 * 10 / 10 + 4 * 24 / 6, 4 * 5 + 4 * 24 / 4])
    assert result.downlink_of == pytest.approx([2 * 24 / 9 + 4 * 16 / 10, 2 * 24 / 2 + 4 * 7])
    assert result.total == pytest.approx(44 + 2.08 + 3.36 + 6 + 52)
    fedavg = epsl.latency(profile, cell, **plan, framework="fedavg", local_steps=3)
    assert fedavg.total == pytest.approx(3 * 4 * (10 + 20) + 120 / 4 + 120 / 8)
    again = WirelessCell.from_dict(json.loads(json.dumps(cell.to_dict())))
    assert again == cell and again.profiles[0] is None and again.profiles[1] == slow


def test_no_cut_is_dropped_that_is_best_for_another_client():
    # By the first client cut 1 costs no more than cut 2 anywhere; the second one's table says the opposite.
    for seed in range(10):
        rng = np.random.default_rng(seed)
        profile, cell = random_profile(rng, n_units=6, bits=1.0), random_cell(rng, 3, 4)
        tables = [np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 2, 6))]) for _ in range(3)]
        cell = dataclasses.replace(cell, profiles=tuple(on(profile, t, 2 * t) for t in tables))
        problem = RoundProblem(profile, cell, 16, 0.5)
        times = {j: round_time(problem, j, np.array([0, 1, 2, 0])) for j in problem.cuts}
        assert min(times, key=times.get) in problem.candidates, f"seed {seed}"


def test_bad_profiles_and_units_are_refused():
    rng = np.random.default_rng(0)
    profile, cell = random_profile(rng), random_cell(rng, 2, 3)
    measured = on(profile, profile.fwd_cost / 1e10, profile.bwd_cost / 1e10)
    for profiles, message in (
        ((measured,), r"profiles: expected a tuple of 2 entries, got 1 entries"),
        ((None, profile), r"profiles\[1\]: expected a profile measured in seconds, or None, got a profile in FLOP"),
        (("fast", None), r"profiles\[0\]: .*got str"),
    ):
        with pytest.raises(ScenarioError, match=message):
            dataclasses.replace(cell, profiles=profiles)
    other = dataclasses.replace(cell, profiles=(None, dataclasses.replace(measured, names=list("abcde"))))
    plan = {"cut": 1, "assignment": [0, 1, 0], "power": np.zeros(3), "batch_size": 4, "phi": 0.5}
    for call in (lambda *args: epsl.solve(*args), lambda *args: epsl.latency(*args, **plan)):
        with pytest.raises(ScenarioError, match=r"profiles\[1\]: expected the 5 cuts .*'input'.*got 5 cuts, 'a'"):
            call(profile, other)
        with pytest.raises(ScenarioError, match=r"cell: expected speeds relative to the reference device, e\.g\. 1\.0"):
            call(measured, cell)
    relative = dataclasses.replace(cell, client_speed=[1.0, 0.5], server_speed=20.0)
    assert epsl.solve(measured, relative).gap < 1
