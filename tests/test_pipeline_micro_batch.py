"""The micro-batch size of a fixed path: the scan against every size, the closed forms against calculus and the scan."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError, ScenarioError
from psl.schedulers import pipeline
from psl.schedulers.pipeline import MicroBatchCurve, useful_micro_batches


def random_curve(rng, batch_size=None) -> MicroBatchCurve:
    """Return the curve of a path of two to nine resources, half of them without fixed costs."""
    count = int(rng.integers(2, 10))
    beta0 = rng.lognormal(-3, 2, count) * (rng.random(count) < 0.5)
    beta = rng.lognormal(-5, 1, count)
    batch_size = batch_size or int(rng.integers(1, 600))
    return MicroBatchCurve(batch_size, float(beta0.sum() + rng.random()), float(beta.sum() * 1.5), beta0, beta)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64, 97, 512, 1000])
def test_useful_sizes_are_the_smallest_of_each_number_of_micro_batches(batch_size):
    smallest = {}
    for b in range(batch_size, 0, -1):
        smallest[-(-batch_size // b)] = b
    sizes = useful_micro_batches(batch_size)
    assert sizes.tolist() == sorted(smallest.values())
    assert len(sizes) <= 2 * math.sqrt(batch_size) + 1


def test_the_curve_is_the_latency_of_its_path():
    met = 0
    for seed in range(120):
        rng = np.random.default_rng(seed)
        profile = random_profile(rng, 5)
        network = random_network(rng, 5, profile, batch_size=30)
        links = ("once", "shared", "separate")[seed % 3]
        try:
            plan = pipeline.solve(profile, network, batch_size=30, micro_batch=7, links=links)
        except InfeasibleError:
            continue
        curve = MicroBatchCurve.of_plan(plan)
        for b in (1, 4, 7, 30):
            options = {"stages": plan.stages, "hops": plan.hops, "micro_batch": b, "batch_size": 30, "links": links}
            terms = pipeline.latency(profile, network, **options)
            got = curve.fill_time(b), curve.interval(b), curve.total(b)
            assert got == pytest.approx((terms.fill_time, terms.interval, terms.total), rel=1e-12), f"seed {seed}"
        frame = curve.to_frame()
        assert frame.index.tolist() == useful_micro_batches(30).tolist()
        np.testing.assert_array_equal(frame["total_s"], curve.total(frame.index.to_numpy()))
        met += 1
    assert met > 60


def test_the_scan_beats_every_size():
    for seed in range(200):
        curve = random_curve(np.random.default_rng(seed))
        everything = curve.total(np.arange(1, curve.batch_size + 1))
        assert curve.total(curve.scan()) == everything.min(), f"seed {seed}"


def test_one_bottleneck_gives_the_published_closed_form():
    curve = MicroBatchCurve(400, 0.5, 0.03, np.array([0.2, 0.0]), np.array([0.02, 1e-6]))
    b = math.sqrt(400 * 0.2 / (0.03 - 0.02))  # 89.4
    assert curve.closed_form(32) == curve.closed_form(1) == curve.bottleneck() in (math.floor(b), math.ceil(b))
    assert curve.envelope() in (80, 100)  # 5 or 4 micro-batches; 89 and 90 need 5 as well, but 80 will do
    # Without M in whole numbers it is the minimum of T.
    found = minimize_scalar(lambda b: 0.5 + 0.03 * b + (400 / b - 1) * (0.2 + 0.02 * b), bounds=(1, 400)).x
    assert found == pytest.approx(b, abs=1e-3)


def test_the_envelope_is_the_minimum_for_continuous_sizes():
    for seed in range(200):
        curve = random_curve(np.random.default_rng(seed))
        b = np.geomspace(1, curve.batch_size, 20001)
        time = curve.fill_time(b) + (curve.batch_size / b - 1) * curve.interval(b)
        near = b[np.argmin(time)]
        few, many = math.floor(curve.batch_size / near * (1 - 1e-3)), math.ceil(curve.batch_size / near * (1 + 1e-3))
        low, high = (-(-curve.batch_size // max(count, 1)) for count in (many, few))
        assert low <= curve.envelope() <= high, f"seed {seed}"
        assert time.min() <= curve.total(curve.scan()) * (1 + 1e-12), f"seed {seed}"


def test_the_envelope_is_close_to_the_scan_and_the_moving_bottleneck_is_not():
    excess = {"envelope": [], "bottleneck": []}
    for seed in range(300):
        curve = random_curve(np.random.default_rng(seed), batch_size=512)
        best = curve.total(curve.best("scan"))
        for rule, values in excess.items():
            values.append(curve.total(curve.best(rule)) / best - 1)
            assert values[-1] >= 0, f"seed {seed}"
    assert np.mean(excess["envelope"]) < 0.005 and np.max(excess["envelope"]) < 0.05
    assert np.mean(excess["bottleneck"]) > 0.03 and np.max(excess["bottleneck"]) > 0.3


def test_the_closed_form_can_go_round_in_circles():
    # A node with fixed costs is the bottleneck of small micro-batches, a link without them that of large ones.
    curve = MicroBatchCurve(512, 0.2, 0.06, np.array([0.1, 0.0]), np.array([0.01, 0.04]))
    large = curve.closed_form(at=1)
    assert large > 1 and curve.closed_form(at=large) == 1
    assert curve.bottleneck(1) == curve.bottleneck(large) == large
    assert curve.total(curve.closed_form(at=large)) > 2 * curve.total(curve.scan())


def test_limits():
    nothing_fixed = MicroBatchCurve(64, 0.0, 3.0, np.zeros(2), np.array([2.0, 1.0]))
    alone = MicroBatchCurve(64, 0.1, 3.0, np.array([0.1]), np.array([3.0]))
    single = MicroBatchCurve(1, 0.1, 3.0, np.array([0.1]), np.array([2.0]))
    for rule in ("scan", "envelope", "bottleneck"):
        assert nothing_fixed.best(rule) == 1  # micro-batches cost nothing: the smallest
        assert alone.best(rule) == 64  # nobody else to work at the same time: one piece
        assert single.best(rule) == 1


def test_bad_arguments_are_refused():
    curve = random_curve(np.random.default_rng(0))
    with pytest.raises(ScenarioError, match="rule: expected one of 'scan', 'envelope', 'bottleneck', got 'guess'"):
        curve.best("guess")
    with pytest.raises(ScenarioError, match="batch_size: expected at least 1, got 0"):
        useful_micro_batches(0)
    with pytest.raises(ScenarioError, match="start: expected at least 1, got 0"):
        curve.bottleneck(0)
