"""EdgeCluster and the boards it is drawn from: their numbers, limits, round trip, and the errors of bad input."""

import dataclasses
import json

import numpy as np
import pytest

from edgesplit_scenarios import measured, random_case
from psl.errors import PSLError, ScenarioError
from psl.networks import BOARDS, EFFICIENCY, Board, EdgeCluster, boards_frame


def test_boards_by_hand():
    peak = {board.name: board.peak_flops / 1e9 for board in BOARDS}
    # Cores × clock in GHz × FLOP per cycle, worked out here once more.
    assert peak == pytest.approx({
        "raspberry-pi-4": 57.6, "raspberry-pi-5": 153.6, "jetson-nano": 235.776, "jetson-tx2": 665.6,
        "jetson-xavier-nx": 844.8, "jetson-agx-xavier": 1410.048, "jetson-orin-nano": 1280.0, "laptop": 358.4,
    })  # fmt: skip
    for board in BOARDS:
        assert board.url.startswith("https://") and board.source and board.cycle_source
        assert 4 <= board.memory / 2**30 <= 32
        assert Board.from_dict(json.loads(json.dumps(board.to_dict()))) == board
    frame = boards_frame(0.5)
    assert list(frame.index) == list(peak) and frame["assumed_gflops"]["laptop"] == pytest.approx(179.2)
    with pytest.raises(ScenarioError, match=r"Board\.cores: expected at least 1, got 0"):
        dataclasses.replace(BOARDS[0], cores=0)


def test_sample_draws_boards():
    cluster = EdgeCluster.sample(400, seed=3)
    assert cluster == EdgeCluster.sample(400, seed=3) and cluster != EdgeCluster.sample(400, seed=4)
    assert set(cluster.device_names) == {board.name for board in BOARDS}
    by_name = {board.name: board for board in BOARDS}
    np.testing.assert_allclose(
        cluster.device_speed, [EFFICIENCY * by_name[name].peak_flops for name in cluster.device_names]
    )
    np.testing.assert_array_equal(cluster.device_memory, [by_name[name].memory for name in cluster.device_names])
    assert 1 <= cluster.spectral_efficiency.min() < 1.1 and 5.4 < cluster.spectral_efficiency.max() <= 5.5
    assert (cluster.bandwidth, cluster.server_speed, cluster.resource_block) == (100e6, 10e12, None)


def test_sample_options():
    few = EdgeCluster.sample(50, boards=["jetson-nano", "laptop"], resource_block=180e3, memory_limits=False)
    assert set(few.device_names) == {"jetson-nano", "laptop"} and few.resource_block == 180e3
    assert few.n_blocks == 555 and EdgeCluster.sample(2).n_blocks == 0
    assert np.isinf(few.device_memory).all()
    speeds = [EdgeCluster.sample(30, heterogeneity=h).device_speed for h in (0.0, 1.0, 2.0)]
    assert np.ptp(np.log(speeds[0])) == pytest.approx(0, abs=1e-12)
    assert np.ptp(np.log(speeds[2])) == pytest.approx(2 * np.ptp(np.log(speeds[1])))
    np.testing.assert_allclose([np.log(s).mean() for s in speeds], np.log(speeds[1]).mean())
    double = EdgeCluster.sample(5, efficiency=0.6, spectral_efficiency_range=(2, 2), bandwidth=1e6, server_speed=1e12)
    np.testing.assert_allclose(double.device_speed, 2 * EdgeCluster.sample(5, efficiency=0.3).device_speed)
    assert (double.spectral_efficiency == 2).all() and (double.bandwidth, double.server_speed) == (1e6, 1e12)


def test_scalars_serve_all_and_tables():
    cluster = EdgeCluster([1e9, 2e9], np.inf, 3.0, 1e6, 1e12, device_names=["a", "b"])
    assert cluster.n_devices == 2 and cluster.device_names == ("a", "b") and cluster.describe(1) == "1 ('b')"
    assert list(cluster.to_frame().columns) == ["name", "speed", "memory_bytes", "spectral_efficiency", "measured"]
    assert not cluster.to_frame()["measured"].any()
    assert "2 devices, 1 MHz, server 1 TFLOP/s" in repr(cluster)
    assert "1 MHz in blocks of 180 kHz" in repr(dataclasses.replace(cluster, resource_block=180e3))
    assert dataclasses.replace(cluster, device_names=None).describe(1) == "1"


def test_round_trip(tmp_path):
    profile, cluster = random_case(0, n_devices=(2, 2))
    own = measured(profile, profile.fwd_cost / 1e9, profile.bwd_cost / 1e9)
    full = dataclasses.replace(cluster, resource_block=1e3, device_names=("a", "b"), profiles=(None, own))
    assert list(full.to_frame()["measured"]) == [False, True]
    for one in (cluster, full, EdgeCluster.sample(3, memory_limits=False)):
        assert EdgeCluster.from_dict(json.loads(json.dumps(one.to_dict()))) == one
        assert EdgeCluster.load(one.save(tmp_path / "cluster.json")) == one
    with pytest.raises(PSLError, match=r"none named 'bandwidth'"):
        EdgeCluster.from_dict({k: v for k, v in cluster.to_dict().items() if k != "bandwidth"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device_speed": []}, r"device_speed: expected at least one device"),
        ({"device_speed": [1.0, -1.0]}, r"device_speed: expected values above 0, got -1 at index \(1,\)"),
        ({"device_memory": [1.0]}, r"device_memory: expected shape \(2\), got shape \(1,\).*infinity for no limit"),
        ({"device_memory": [1.0, np.nan]}, r"device_memory: expected finite numbers, got nan"),
        ({"device_memory": 0}, r"device_memory: expected values above 0"),
        ({"spectral_efficiency": [1, 2, 3]}, r"spectral_efficiency: expected shape \(2\).*Fix: give bit/s/Hz"),
        ({"spectral_efficiency": [1, np.inf]}, r"spectral_efficiency: expected finite numbers"),
        ({"bandwidth": 0}, r"EdgeCluster\.bandwidth: expected values above 0"),
        ({"server_speed": "fast"}, r"EdgeCluster\.server_speed: expected numbers, got 'fast'"),
        ({"resource_block": -1}, r"resource_block: expected values above 0.*width of a block in Hz, or None"),
        ({"device_names": ["a"]}, r"device_names: expected 2 names, got 1 names"),
        ({"device_names": "ab"}, r"device_names: expected 2 names, got 'ab'"),
        ({"profiles": (None,)}, r"profiles: expected a tuple of 2 entries, got 1 entries"),
        ({"profiles": (None, "fast")}, r"profiles\[1\]: expected a profile measured in seconds, or None, got str"),
    ],
)
def test_bad_clusters(change, message):
    good = {"device_speed": [1.0, 2.0], "device_memory": 1.0, "spectral_efficiency": 1.0, "bandwidth": 1.0}
    with pytest.raises(ScenarioError, match=message):
        EdgeCluster(**{**good, "server_speed": 1.0, **change})


def test_a_profile_in_flop_is_not_measured():
    profile, cluster = random_case(1, n_devices=(1, 1))
    with pytest.raises(ScenarioError, match=r"profiles\[0\].*got a profile in FLOP"):
        dataclasses.replace(cluster, profiles=(profile,))


@pytest.mark.parametrize(
    ("efficiency", "message"),
    [
        ("x", r"efficiency: expected numbers, got 'x'"),
        (5, r"efficiency: expected a value of at most 1, got 5"),
        (0, r"efficiency: expected values above 0"),
    ],
)
def test_bad_shares_of_the_peak(efficiency, message):
    for call in (boards_frame, lambda efficiency: EdgeCluster.sample(2, efficiency=efficiency)):
        with pytest.raises(ScenarioError, match=message):
            call(efficiency)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_devices": 0}, r"n_devices: expected at least 1"),
        ({"seed": -1}, r"seed: expected at least 0"),
        ({"boards": ["abacus"]}, r"board: expected one of 'raspberry-pi-4'.*got 'abacus'.*boards_frame"),
        ({"boards": "laptop"}, r"boards: expected a list of names, got 'laptop'"),
        ({"boards": []}, r"boards: expected a list of names"),
        ({"efficiency": 1.5}, r"efficiency: expected a value of at most 1, got 1\.5"),
        ({"heterogeneity": -1}, r"heterogeneity: expected values of at least 0"),
        (
            {"spectral_efficiency_range": (5, 1)},
            r"efficiency_range: expected the lowest value first, got \(5, 1\)",
        ),
    ],
)
def test_bad_samples(options, message):
    with pytest.raises(ScenarioError, match=message):
        EdgeCluster.sample(**options)
