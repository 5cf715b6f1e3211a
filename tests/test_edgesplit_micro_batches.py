"""EdgeSplit in micro-batches: formula against events, the optimum against a grid, bounds, files and refusals."""

import dataclasses
import itertools

import numpy as np
import pytest

from edgesplit_scenarios import BATCH, STEPS, random_case
from marks import some
from psl.errors import InfeasibleError, ScenarioError
from psl.schedulers import edgesplit
from psl.simulation import lower_bound, simulate


def costly(profile, cluster, rng):
    """Return both with optimizer steps and overheads at times."""
    if rng.random() < 0.5:
        steps = np.concatenate([[0.0], np.sort(rng.random(profile.n_units)) * BATCH * profile.fwd_cost[-1]])
        profile = dataclasses.replace(profile, step_cost=steps)
    if rng.random() < 0.5:
        scale = profile.fwd_cost[-1] * BATCH / cluster.device_speed.max()
        overhead = dict.fromkeys(("round_overhead", "message_overhead", "call_overhead"), scale * rng.random())
        cluster = dataclasses.replace(cluster, **overhead)
    return profile, cluster


def test_formula_and_event_simulation_agree():
    for seed in range(300):
        rng = np.random.default_rng(seed)
        profile, cluster = costly(*random_case(seed, n_devices=(1, 4), memory=False), rng)
        n = cluster.n_devices
        number = int(rng.choice([1, 2, 3, 4, 6, 16]))
        plan = edgesplit.EdgeSplitPlan(
            profile, cluster, BATCH, int(rng.integers(1, 4)), "given", rng.integers(1, profile.n_units + 1, n),
            cluster.bandwidth * rng.dirichlet(np.ones(n)), micro_batches=number,
        )  # fmt: skip
        assert simulate(plan).makespan == pytest.approx(plan.round_time, rel=1e-9), f"seed {seed}: {plan}"
        barriers = dataclasses.replace(plan, micro_batches=None)
        if number == 1:  # the server steps while gradients go down
            assert plan.round_time <= barriers.round_time * (1 + 1e-12)
        name, seconds = plan.bottleneck
        assert seconds <= plan.round_time * (1 + 1e-12) and name in repr(plan)
        found = plan.latency()
        np.testing.assert_allclose(sum(found.terms().values()) - found.overlap, plan.device_times)
        assert found._repr_html_() and "overlap" in found.to_frame().columns


@pytest.mark.parametrize("seed", some(range(40), always=lambda seed: seed < 6))
def test_plans_of_two_devices_beside_a_grid(seed):
    rng = np.random.default_rng(seed)
    blocks = (2, 6) if seed % 2 else None
    case = random_case(seed, n_units=(1, 4), n_devices=(2, 2), memory=seed % 3 == 0, blocks_per_device=blocks)
    profile, cluster = costly(*case, rng)
    for number in (1, 4):
        plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, micro_batches=number)
        best = np.inf
        if cluster.resource_block is None:
            shares = cluster.bandwidth * np.linspace(0.02, 0.98, 49)
        else:
            shares = cluster.resource_block * np.arange(1, cluster.n_blocks)
        total = cluster.bandwidth if cluster.resource_block is None else cluster.n_blocks * cluster.resource_block
        deepest = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, bound=False)
        for cuts in itertools.product(range(1, profile.n_units + 1), repeat=2):
            for share in shares:
                try:
                    given = dataclasses.replace(
                        deepest, cuts=np.array(cuts), bandwidth=np.array([share, total - share]), micro_batches=number
                    )
                except InfeasibleError:
                    break  # it does not fit in memory
                best = min(best, given.round_time)
        assert plan.lower_bound <= min(best, plan.round_time) * (1 + 1e-9)
        assert plan.round_time <= best * (1 + 1e-9)
        assert plan.gap <= 0.35  # of such a small one; what an order costs at most
    today = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS)
    auto = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, micro_batches="auto")
    assert auto.round_time <= today.round_time * (1 + 1e-9)
    assert lower_bound(auto) <= auto.round_time * (1 + 1e-9)


def test_a_plan_in_micro_batches_survives_a_file(tmp_path):
    profile, cluster = random_case(4, n_units=(5, 5), n_devices=(3, 3))
    plan = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS, micro_batches=4, min_cut=2)
    assert plan == edgesplit.EdgeSplitPlan.load(plan.save(tmp_path / "plan.json"))
    assert plan.price >= 1 and plan.training_arguments()["micro_batch"] == 4
    assert np.isnan(dataclasses.replace(plan, micro_batches=2).lower_bound)
    assert plan.framework_round_time("edgesplit", local_steps=1) < plan.round_time
    assert plan.bottleneck[0] in plan._repr_html_()
    plain = edgesplit.solve(profile, cluster, batch_size=BATCH, local_steps=STEPS)
    assert "micro_batches" not in plain.to_dict() and plain.lags is None


def test_other_methods_have_no_micro_batches():
    profile, cluster = random_case(4, n_units=(5, 5), n_devices=(3, 3))
    with pytest.raises(ScenarioError, match="method: expected 'exact' with micro-batches"):
        edgesplit.solve(profile, cluster, micro_batches=4, method="alternating")
    with pytest.raises(ScenarioError, match="take 8"):
        edgesplit.solve(profile, cluster, batch_size=64, micro_batches=9)
