"""Replayed pipelines against the event engine, job by job: the same events, the same times, the same order."""

import dataclasses

import numpy as np
import pytest

from psl.simulation.operations import operations_of
from psl.simulation.pipeline import pipeline_jobs, pipeline_timeline
from psl.simulation.replay import replay
from psl.simulation.timeline import Recorder
from simulation_scenarios import chain, random_chain, random_walk_plan


def same(plan, **options):
    """Assert that both ways give one timeline, and return whether the order was known."""
    want = pipeline_jobs(plan, **options).timeline("pipeline", options.get("order", "1f1b"))
    got = pipeline_timeline(plan, **options)
    for field in dataclasses.fields(want):
        a, b = getattr(want, field.name), getattr(got, field.name)
        assert np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b, field.name
    return known(plan, options.get("order", "1f1b"))


def known(plan, order):
    jobs, count = Recorder(), -(-plan.batch_size // plan.micro_batch)
    sizes = [plan.micro_batch] * (count - 1) + [plan.batch_size - (count - 1) * plan.micro_batch]
    return replay(jobs, operations_of(plan, jobs), sizes, order, count) is not None


@pytest.mark.parametrize("order", ["1f1b", "flush"])
def test_random_chains(order):
    for seed in range(150):
        rng = np.random.default_rng(seed)
        duplex = ["full", "half"][seed % 2]
        plan = random_chain(rng, micro_batch=int(rng.integers(1, 4)), even=seed % 3 == 0, duplex=duplex)
        window = int(rng.integers(1, 9)) if order == "1f1b" and seed % 4 else None
        replayed = same(plan, order=order, max_in_flight=window, equal=bool(seed % 5))
        assert replayed == (order == "flush" or duplex == "full" or len(plan.stages) == 1), f"seed {seed}"


@pytest.mark.parametrize("order", ["1f1b", "flush"])
def test_whole_seconds_with_ties_and_walks_that_come_back(order):
    replayed = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        plan = random_walk_plan(rng)
        window = int(rng.integers(1, 5)) if order == "1f1b" and seed % 2 else None
        replayed += same(plan, order=order, max_in_flight=window)
    assert 60 < replayed < 300


def test_chains_of_small_whole_seconds_meet_at_many_moments():
    for seed in range(200):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 6))
        plan = chain(
            rng.integers(1, 4, n), rng.integers(1, 4, n), rng.integers(1, 4, n - 1), rng.integers(1, 4, n - 1),
            latency=float(rng.integers(0, 3)), batch_size=int(rng.integers(1, 40)),
        )  # fmt: skip
        assert same(plan, max_in_flight=int(rng.integers(1, 9)) if seed % 2 else None)


def test_steps_of_optimizers_come_last():
    plan = chain([4, 1], [3, 2], [1], [1], batch_size=4)
    profile = dataclasses.replace(plan.profile, step_cost=[0, 2, 5])
    for order in ("1f1b", "flush"):
        assert same(dataclasses.replace(plan, profile=profile), order=order)


def test_what_takes_no_time_and_what_ticks_cannot_hold_goes_to_the_engine():
    assert not known(chain([1, 1], [1, 1], [0], [1], batch_size=3), "1f1b")
    assert not known(chain([1, 1], [1, 0], [1], [1], batch_size=3), "1f1b")
    assert not known(chain([1, 1e-14], [1, 1], [1], [1], batch_size=3), "1f1b")
    for plan in (chain([1, 1], [1, 1], [0], [1], batch_size=3), chain([1, 1e-14], [1, 1], [1], [1], batch_size=3)):
        assert not same(plan)
