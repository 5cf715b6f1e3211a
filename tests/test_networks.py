"""The wireless cell: reproducible, physically plausible, strict about its input."""

import dataclasses
import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import psl
from psl import plotting
from psl.errors import ScenarioError
from psl.units import db_to_linear, dbm_to_watt, linear_to_db, watt_to_dbm

FIELDS = {
    "client_speed": [1e9, 2e9], "server_speed": 1e11, "uplink_gain": np.full((2, 3), 1e-9), "bandwidth": 1e6,
    "noise_psd": 4e-21, "client_power": 1.0, "total_power": 2.0, "downlink_psd": 1e-8,
}  # fmt: skip


def test_the_same_seed_gives_the_same_cell_and_disturbs_nobody():
    state = torch.get_rng_state()
    first, second = (psl.WirelessCell.sample(seed=3) for _ in range(2))
    assert first == second
    assert first != psl.WirelessCell.sample(seed=4)
    assert torch.equal(torch.get_rng_state(), state)


def test_umi_path_loss_follows_the_standard_with_line_of_sight():
    # Far above shadowing's 4 dB (LOS) the mean over many clients must follow 32.4 + 21 log10 d + 20 log10 f.
    cell = psl.WirelessCell.sample(n_clients=300, n_subchannels=300, seed=0, antenna_gain=1.0)
    seen = cell.line_of_sight.astype(bool)
    distance = np.hypot(np.hypot(*cell.positions.T), 8.5)
    loss = 32.4 + 21 * np.log10(distance) + 20 * np.log10(28)
    excess = -linear_to_db(cell.uplink_gain.mean(axis=1)) - loss
    assert abs(excess[seen].mean()) < 1.5
    assert 2.0 < excess[seen].std() < 6.0, "shadow fading of about 4 dB"
    assert excess[~seen].mean() > 10, "without line of sight the loss is much larger"
    # TR 38.901 table 7.4.2-1: probability 18/d + exp(-d/36)(1 - 18/d) beyond 18 m.
    ground = np.hypot(*cell.positions.T)
    probability = np.where(ground <= 18, 1, 18 / ground + np.exp(-ground / 36) * (1 - 18 / ground))
    assert seen.mean() == pytest.approx(probability.mean(), abs=4 * np.sqrt(0.25 / 300))


def test_channels_are_frequency_selective_only_where_they_should_be():
    umi, flat = (psl.WirelessCell.sample(channel=name) for name in ("umi", "log-distance"))
    assert (np.ptp(linear_to_db(umi.uplink_gain), axis=1) > 1).all()
    assert (np.ptp(flat.uplink_gain, axis=1) == 0).all()


def test_default_scenario_is_the_documented_one():
    cell = psl.WirelessCell.sample()
    assert (cell.n_clients, cell.n_subchannels) == (5, 20)
    assert cell.bandwidth.sum() == 200e6
    assert cell.server_speed == 160e9
    assert watt_to_dbm(cell.client_power[0]) == pytest.approx(31.76)
    assert watt_to_dbm(cell.total_power) == pytest.approx(36.99)
    assert watt_to_dbm(cell.noise_psd) == pytest.approx(-174)
    assert ((cell.client_speed >= 16e9) & (cell.client_speed <= 25.6e9)).all()
    assert (np.hypot(*cell.positions.T) <= 200).all()


def test_json_round_trip_and_table():
    cell = psl.WirelessCell.sample(n_clients=2, n_subchannels=4)
    assert psl.WirelessCell.from_dict(json.loads(json.dumps(cell.to_dict()))) == cell
    assert list(cell.to_frame().columns)[:2] == ["distance_m", "line_of_sight"]
    with pytest.raises(ValueError, match="read-only"):
        cell.uplink_gain[0, 0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"uplink_gain": [[1, 2, np.nan], [1, 1, 1]]},
            r"uplink_gain: expected finite numbers, got nan at index \(0, 2\)",
        ),
        ({"uplink_gain": np.full((2, 3), -90.0)}, "uplink_gain: expected values of at least 0.*not dB"),
        ({"bandwidth": -1e6}, "bandwidth: expected values above 0, got -1e.06"),
        ({"bandwidth": [1e6, 1e6]}, r"bandwidth: expected shape \(3\), got shape \(2,\)"),
        ({"uplink_gain": np.ones((2, 1))}, "one subchannel per client.*2 clients and 1 subchannels"),
        ({"client_speed": [1e9, 0]}, "client_speed: expected values above 0"),
        ({"total_power": np.inf}, "total_power: expected finite"),
        ({"client_power": "high"}, "client_power: expected numbers"),
        ({"noise_psd": 1e-320}, r"uplink_gain / noise_psd: expected a positive, finite ratio, got inf for client 0"),
        ({"uplink_gain": np.full((2, 3), 1e291)}, r"uplink_gain / noise_psd: .* got inf for client 0 on subchannel 0"),
        ({"noise_psd": 1e305}, r"uplink_gain / noise_psd: expected a positive"),
    ],
)
def test_bad_cells_are_refused(change, message):
    psl.WirelessCell(**FIELDS)
    with pytest.raises(ScenarioError, match=message):
        psl.WirelessCell(**(FIELDS | change))


# Signal-to-noise ratios of 2^n − 1, so that rates are whole numbers: see test_epsl_latency.
BY_HAND = psl.WirelessCell(
    client_speed=[10, 20], server_speed=100, uplink_gain=[[1, 1, 3], [3, 1, 1]], bandwidth=[1, 2, 4], noise_psd=1,
    client_power=[20, 20], total_power=30, downlink_psd=1,
)  # fmt: skip


def test_rates_by_hand():
    # Client 0 has subchannels 0 and 2 at a ratio of 3 and 1: 1·2 + 4·1; client 1 has subchannel 1 at 3: 2·2.
    assert BY_HAND.uplink_rate([0, 1, 0], [3, 3, 1 / 3]) == pytest.approx([6, 4])
    # Downlink: client 0: 1·log2(2) + 4·log2(4); client 1: 2·log2(2).
    assert BY_HAND.downlink_rate(np.array([0, 1, 0])) == pytest.approx([9, 2])
    np.testing.assert_allclose(BY_HAND.subchannel_downlink_rate(), [[1, 2, 8], [2, 2, 4]])
    assert BY_HAND.whole_band_downlink_rate() == pytest.approx([11, 8])
    assert BY_HAND.broadcast_rate() == pytest.approx(8)
    assert BY_HAND.uplink_rate([0, 0, 0], [1, 1, 1])[1] == 0, "no subchannel, no rate"


def test_rates_of_powers_far_below_the_noise_keep_their_digits():
    # log2(1 + x) is x / ln 2 there, and 1 + x is 1 in floating point.
    assert BY_HAND.uplink_rate([0, 1, 0], [1e-20, 1e-20, 0]) == pytest.approx(np.array([1, 2]) * 1e-20 / np.log(2))


@pytest.mark.parametrize(
    ("assignment", "power", "message"),
    [
        (
            [0, 1],
            [1, 1, 1],
            r"assignment: expected the number 0\.\.1 of a client for each of the 3 subch.*got \[0, 1\]",
        ),
        ([0, 1, 2], [1, 1, 1], r"assignment: expected the number 0\.\.1 .*got \[0, 1, 2\].*Fix: give whole numbers"),
        ([0, -1, 1], [1, 1, 1], r"assignment: expected .*got \[0, -1, 1\]"),
        ([0, 0.5, 1], [1, 1, 1], r"assignment: expected .*got \[0, 0\.5, 1\]"),
        ([0, 1, 0], [1, 1], r"power: expected 3 finite densities of at least 0, got \[1, 1\].*Fix: give the W/Hz"),
        ([0, 1, 0], [1, -1, 1], r"power: expected 3 finite densities"),
        ([0, 1, 0], [1, np.nan, 1], r"power: expected 3 finite densities"),
        ([0, 1, 0], [1, np.inf, 1], r"power: expected 3 finite densities"),
    ],
)
def test_rates_refuse_what_is_no_assignment_or_power(assignment, power, message):
    with pytest.raises(ScenarioError, match=message):
        BY_HAND.uplink_rate(assignment, power)


def test_bad_sampling_arguments_are_refused():
    with pytest.raises(ScenarioError, match="channel: expected one of 'umi', 'log-distance', got 'rayleigh'"):
        psl.WirelessCell.sample(channel="rayleigh")
    with pytest.raises(ScenarioError, match="n_clients: expected at least 1"):
        psl.WirelessCell.sample(n_clients=0)
    with pytest.raises(ScenarioError, match="one subchannel per client"):
        psl.WirelessCell.sample(n_clients=5, n_subchannels=3)
    with pytest.raises(ScenarioError, match="seed: expected at least 0, got -1"):
        psl.WirelessCell.sample(seed=-1)
    with pytest.raises(ScenarioError, match=r"client_speed_range: expected the lowest value first, got \(2, 1\)"):
        psl.WirelessCell.sample(client_speed_range=(2, 1))


def test_a_cell_without_positions_is_drawn_by_its_gains():
    plt.switch_backend("agg")
    for change, n_axes in (({}, 3), ({"line_of_sight": None}, 3), ({"positions": None}, 2)):
        cell = dataclasses.replace(psl.WirelessCell.sample(3, 6, channel="log-distance"), **change)
        figure = plotting.plot_cell(cell, np.array([0, 0, 1, 1, 2, 2]))
        assert len(figure.axes) == n_axes, "map, gains and colour bar"
        plt.close(figure)


def test_decibels():
    assert db_to_linear(3) == pytest.approx(1.9952623)
    assert dbm_to_watt(30) == pytest.approx(1.0)
    assert watt_to_dbm(dbm_to_watt(-174)) == pytest.approx(-174)
