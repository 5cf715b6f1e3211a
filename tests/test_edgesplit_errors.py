"""What EdgeSplit refuses, and what its messages say: arguments, plans, bounds, memory, blocks, numbers out of reach."""

import dataclasses

import numpy as np
import pytest

from edgesplit_scenarios import BATCH, STEPS, measured, random_case
from psl.errors import InfeasibleError, ScenarioError
from psl.networks.edge_cluster import EdgeCluster
from psl.schedulers import edgesplit

METHODS = edgesplit.METHODS


def solve(profile, cluster, method="alternating", **options):
    return edgesplit.solve(profile, cluster, **{"batch_size": BATCH, "local_steps": STEPS, "method": method, **options})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, r"method: expected one of 'exact', 'alternating'.*got 'magic'"),
        ({"batch_size": 0}, r"batch_size: expected at least 1, got 0"),
        ({"local_steps": 1.5}, r"local_steps: expected a whole number, got 1\.5"),
        ({"min_cut": 0}, r"min_cut: expected at least 1, got 0.*1 keeps raw data at home"),
        ({"min_cut": 99}, r"min_cut: expected at most \d+, the output, got 99"),
        ({"seed": -1}, r"seed: expected at least 0, got -1"),
        ({"max_steps": 0}, r"max_steps: expected at least 1, got 0"),
        ({"method": "exact", "max_steps": 2}, r"max_steps: expected None for method='exact', got 2"),
    ],
)
def test_bad_arguments(arguments, message):
    profile, cluster = random_case(0)
    with pytest.raises(ScenarioError, match=message):
        solve(profile, cluster, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cuts": [1, 2]}, r"cuts: expected shape \(3\), got shape \(2,\).*a cut 1\.\.4, by number or name"),
        ({"cuts": [1, 0, 1]}, r"cuts: expected whole numbers 1\.\.4, got 0 for device 1 \('b'\)"),
        ({"cuts": [1, 1, 2.5]}, r"got 2\.5 for device 2 \('c'\)"),
        ({"cuts": "nowhere"}, r"cut: expected a number 0\.\.4 or a name.*got 'nowhere'"),
        ({"cuts": ["unit1", "unit1", "nowhere"]}, r"got 'nowhere'"),
        ({"cuts": np.array(["unit1", "unit1", "nowhere"])}, r"got .*'nowhere'"),
        ({"cuts": ["unit1", "unit2"]}, r"cuts: expected shape \(3\), got shape \(2,\)"),
        (
            {"lower_bound": 1e9},
            r"EdgeSplitPlan\.lower_bound: expected at most the plan's own round time, .* got 1e\+09 s",
        ),
        ({"lower_bound": "low"}, r"EdgeSplitPlan\.lower_bound: expected seconds, or NaN for none, got 'low'"),
        ({"bandwidth": [1, 2]}, r"bandwidth: expected shape \(3\)"),
        ({"bandwidth": [5, 5, 5.1]}, r"bandwidth: expected at most 15 Hz together, got 15\.1 Hz.*share 15 Hz among 3"),
        ({"bandwidth": [1, -1, 1]}, r"bandwidth: expected values of at least 0"),
        ({"bandwidth": [5, 4, 3]}, r"bandwidth: expected whole blocks of 5 Hz, got 4 Hz for device 1 \('b'\)"),
    ],
)
def test_bad_plans(arguments, message):
    profile, _ = random_case(0, n_units=(4, 4))
    cluster = EdgeCluster([1e9] * 3, np.inf, 1.0, 15.0, 1e12, resource_block=5.0, device_names=["a", "b", "c"])
    good = {"cuts": [1, 1, 1], "bandwidth": [5.0, 5.0, 5.0]}
    if "lower_bound" not in arguments:
        with pytest.raises(ScenarioError, match=message):
            edgesplit.latency(profile, cluster, **{**good, **arguments})
    with pytest.raises(ScenarioError, match=message):
        edgesplit.EdgeSplitPlan(profile, cluster, 1, 1, "by hand", **{**good, **arguments})


def test_a_bound_of_another_scenario_is_no_certificate():
    plan = solve(*random_case(1))
    with pytest.raises(ScenarioError, match=r"bound of another scenario\. Fix: solve again, or pass lower_bound=nan"):
        dataclasses.replace(plan, batch_size=1, proven_for="")
    moved = dataclasses.replace(plan, batch_size=1)
    assert moved.round_time < plan.lower_bound and "no lower bound" in repr(moved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_speed": [1e-300, 1e9]}, r"EdgeCluster\.device_speed: expected a round of less than 1e\+100 s, got "),
        ({"server_speed": 1e-300}, r"EdgeCluster\.server_speed: expected a round of less than 1e\+100 s"),
        ({"bandwidth": 1e-305}, r"EdgeCluster\.bandwidth: expected a round of less than 1e\+100 s"),
        ({"bandwidth": 1e-323}, r"EdgeCluster\.bandwidth: expected a round of less than 1e\+100 s, got inf s"),
        ({"spectral_efficiency": [1.0, 1e-300]}, r"EdgeCluster\.bandwidth: expected a round of less than 1e\+100 s"),
        ({"bandwidth": 1e300}, r"EdgeCluster\.bandwidth: expected a rate of less than 1e\+100 bit/s, got 1e\+300"),
    ],
)
def test_times_beyond_floating_point_are_refused(change, message):
    profile, _ = random_case(0, n_units=(4, 4))
    good = {
        "device_speed": [1e9, 1e9], "device_memory": np.inf, "spectral_efficiency": 1.0, "bandwidth": 1e6,
        "server_speed": 1e12,
    }  # fmt: skip
    for method in METHODS:
        with pytest.raises(ScenarioError, match=message):
            solve(profile, EdgeCluster(**{**good, **change}), method)


def test_memory_that_fits_no_cut_names_the_device():
    profile, cluster = random_case(2, n_units=(4, 4), n_devices=(3, 3), memory=False)
    need = 3 * profile.param_bits / 8 + BATCH * profile.act_memory
    memory = [np.inf, need[1], np.inf]
    tight = dataclasses.replace(cluster, device_memory=memory, device_names=["pi", "nano", "laptop"])
    assert solve(profile, tight).cuts[1] == 1  # exactly enough is enough
    small = dataclasses.replace(tight, device_memory=[np.inf, need[1] * 0.999, np.inf])
    message = rf"device 1 \('nano'\): expected memory of at least {need[1]:.6g} bytes for cut 1 \('unit1'\), the least"
    for method in METHODS:
        with pytest.raises(InfeasibleError, match=message.replace("+", r"\+")) as caught:
            solve(profile, small, method)
        assert f"got {need[1] * 0.999:.6g} bytes. Fix: use a smaller batch_size, or leave" in str(caught.value)
    # The advice is what helps: here no batch is small enough, there nothing but a shallower cut is.
    hopeless = dataclasses.replace(tight, device_memory=[np.inf, 1e-3, np.inf])
    with pytest.raises(InfeasibleError, match=r"got 0\.001 bytes\. Fix: leave the device out$"):
        solve(profile, hopeless, min_cut=2)
    with pytest.raises(InfeasibleError, match=r"device 1 \('nano'\).*cut 2.*(use|or) a smaller min_cut, or leave the"):
        solve(profile, tight, min_cut=2)
    with pytest.raises(InfeasibleError, match=r"cut 4 \('output'\), as FedAvg trains the whole.* another method, or"):
        solve(profile, tight, "fedavg")
    with pytest.raises(InfeasibleError, match=r"as FedAvg trains the whole"):
        solve(profile, tight).framework_round_time("fedavg")
    for method in ("sfl", "common-optimal"):
        assert solve(profile, tight, method).cut == 1
    with pytest.raises(
        InfeasibleError, match=r"device 1 \('nano'\).*cut 3 .*the plan's cut of this device.* a shallower cut"
    ):
        dataclasses.replace(solve(profile, tight), cuts=[1, 3, 1])
    edgesplit.latency(profile, tight, cuts=[1, 3, 1], bandwidth=1.0)  # what it would take, memory aside


def test_fewer_blocks_than_devices():
    profile, cluster = random_case(3, n_devices=(5, 5), memory=False)
    wide = dataclasses.replace(cluster, resource_block=cluster.bandwidth / 4.5)
    for method in METHODS:
        with pytest.raises(
            InfeasibleError, match=r"resource_block: expected at least one block for each of 5 devices, "
        ):
            solve(profile, wide, method)
    just = dataclasses.replace(cluster, resource_block=cluster.bandwidth / 5)
    for method in METHODS:
        np.testing.assert_allclose(solve(profile, just, method).bandwidth, cluster.bandwidth / 5, rtol=1e-12)


def test_other_frameworks_and_profiles_are_refused():
    profile, cluster = random_case(4, n_devices=(2, 2), memory=False)
    plan = solve(profile, cluster)
    with pytest.raises(ScenarioError, match=r"framework: expected one of 'edgesplit', 'fedavg', .*got 'epsl'"):
        plan.framework_round_time("epsl")
    seconds = measured(profile, profile.fwd_cost / 1e10, profile.bwd_cost / 1e10)
    other = dataclasses.replace(cluster, profiles=(None, dataclasses.replace(seconds, names=range(len(profile.names)))))
    with pytest.raises(ScenarioError, match=r"profiles\[1\]: expected the \d+ cuts of the profile, .*got .*'0', '1'"):
        solve(profile, other)
    with pytest.raises(ScenarioError, match="cluster: expected speeds relative to the reference device"):
        solve(seconds, cluster)
