"""Placements against an independent mixed-integer programme on instances too large for brute force."""

import numpy as np
import pytest

from marks import some
from pipeline_oracles import evaluate, mixed_integer
from pipeline_scenarios import random_network, random_profile
from psl.errors import InfeasibleError
from psl.schedulers import pipeline


def instance(seed):
    rng = np.random.default_rng(seed)
    profile = random_profile(rng, int(rng.integers(6, 11)))
    network = random_network(rng, int(rng.integers(6, 9)), profile, batch_size=64, relays=int(rng.integers(3)))
    return profile, network, int(rng.choice([1, 4, 16]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "links", "first", "count"),
    some(
        [
            ("time", "once", 0, 25),
            ("time", "once", 0, 50),
            ("time", "separate", 50, 12),
            ("time", "shared", 62, 12),
            ("interval", "once", 74, 12),
        ],
        lambda case: case[3] != 50,
    ),
)
def test_larger_instances_match_highs(objective, links, first, count):
    met = 0
    for seed in range(first, first + 3 * count):
        profile, network, b = instance(seed)
        value, stages, _ = mixed_integer(profile, network, 64, b, links, objective)
        options = {"batch_size": 64, "micro_batch": b, "links": links, "objective": objective}
        if stages is None:
            with pytest.raises(InfeasibleError):
                pipeline.solve(profile, network, **options)
            continue
        plan = pipeline.solve(profile, network, **options)
        assert plan.exact and plan.gap == 0, f"seed {seed}"
        assert plan.value == pytest.approx(value, rel=1e-9), f"seed {seed}"
        terms = evaluate(profile, network, plan.stages, plan.hops, 64, b, links)
        assert terms == pytest.approx((plan.fill_time, plan.interval, plan.round_time), rel=1e-12), f"seed {seed}"
        met += 1
        if met == count:
            return
    pytest.fail(f"only {met} instances had a plan")
