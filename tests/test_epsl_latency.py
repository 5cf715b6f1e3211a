"""Round latency of every framework against numbers worked out by hand, and the errors of bad input."""

import json

import numpy as np
import pytest

from epsl_scenarios import random_cell, random_profile
from psl.errors import ScenarioError
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers import epsl

# Noise and powers are chosen so that every SNR is 2^n − 1: rates are whole numbers.
PROFILE = Profile(
    names=["input", "conv", "block", "output"],
    fwd_cost=[0, 10, 30, 36],
    bwd_cost=[0, 16, 56, 68],
    act_bits=[40, 24, 12, 4],
    grad_bits=[40, 24, 12, 4],
    param_bits=[0, 30, 90, 120],
    act_memory=[0, 1, 2, 3],
    last_bwd_cost=12,
)
CELL = WirelessCell(
    client_speed=[10, 20], server_speed=100, uplink_gain=[[1, 1, 3], [3, 1, 1]], bandwidth=[1, 2, 4], noise_psd=1,
    client_power=[20, 20], total_power=30, downlink_psd=1,
)  # fmt: skip
# Client 0 holds subchannels 0 and 2 at SNR 3 and 1: R_0 = 1·2 + 4·1 = 6; client 1 subchannel 1 at 3: R_1 = 2·2 = 4.
PLAN = {"assignment": [0, 1, 0], "power": [3, 3, 1 / 3], "batch_size": 4}
# Downlink: client 0: 1·log2(2) + 4·log2(4) = 9; client 1: 2·log2(2) = 2.
# Broadcast: client 0: 1 + 2 + 8 = 11, client 1: 1·2 + 2·1 + 4·1 = 8: R_bc = 8.


def terms(framework, phi=0.5, cut=1, **options):
    return epsl.latency(PROFILE, CELL, cut=cut, phi=phi, framework=framework, **PLAN, **options)


def test_epsl_by_hand():
    result = terms("epsl")
    assert result.uplink_of == pytest.approx([4 * 10 / 10 + 4 * 24 / 6, 4 * 10 / 20 + 4 * 24 / 4])  # 20, 26
    assert result.uplink == pytest.approx(26)
    assert result.server_forward == pytest.approx(2 * 4 * 26 / 100)
    # n_A = 2; (2 + 2·2) rows of 68 − 16 − 12 = 40 FLOP, and all 8 rows of the last layer's 12.
    assert result.server_backward == pytest.approx((6 * 40 + 8 * 12) / 100)
    assert result.broadcast == pytest.approx(2 * 24 / 8)
    assert result.downlink_of == pytest.approx([2 * 24 / 9 + 4 * 16 / 10, 2 * 24 / 2 + 4 * 16 / 20])
    assert result.downlink == pytest.approx(24 + 3.2)
    assert result.local_training == result.model_exchange == 0
    assert result.total == pytest.approx(26 + 2.08 + 3.36 + 6 + 27.2)


def test_whole_aggregation_by_hand():
    result = terms("epsl", phi=1.0, cut="block")
    # Only the last layer is left on the server: the first product of its backward is nothing, never negative.
    assert result.server_backward == pytest.approx(8 * 12 / 100)
    assert result.broadcast == pytest.approx(4 * 12 / 8)
    assert result.downlink == pytest.approx(4 * 56 / 10)


def test_psl_is_phi_zero():
    psl, zero = terms("psl"), terms("epsl", phi=0.0)
    assert psl.total == zero.total
    assert psl.broadcast == 0
    assert psl.downlink == pytest.approx(4 * 24 / 2 + 3.2)


def test_sfl_by_hand():
    psl, sfl = terms("psl"), terms("sfl")
    # Client 1 is last with its backward, 51.2 s, and uploads 30 bits at 4 bit/s; the average goes out at 8 bit/s.
    assert sfl.model_exchange == pytest.approx(30 / 4 + 30 / 8)
    assert sfl.total == pytest.approx(psl.total + 30 / 4 + 30 / 8)
    assert terms("sfl", local_steps=3).total == pytest.approx(3 * psl.total + 30 / 4 + 30 / 8)


def test_sequential_by_hand():
    result = terms("sl")
    # Each client with all subchannels and 20 W. Client 0: level ν = (20 + 1 + 2 + 4/3)/7; all are used.
    rates = []
    for gain in ([1, 1, 3], [3, 1, 1]):
        level = (20 + sum(b / g for b, g in zip((1, 2, 4), gain, strict=True))) / 7
        rates.append(sum(b * np.log2(level * g) for b, g in zip((1, 2, 4), gain, strict=True)))
    down = [11, 8]
    up = sum(4 * 10 / s + 4 * 24 / r for s, r in zip((10, 20), rates, strict=True))
    back = sum(4 * 24 / r + 4 * 16 / s for s, r in zip((10, 20), down, strict=True))
    model = sum(30 / r for r in rates) + sum(30 / r for r in down)
    server = 2 * 4 * (26 + 52) / 100
    assert result.total == pytest.approx(up + back + model + server)
    assert result.model_exchange == pytest.approx(model)


def test_fedavg_by_hand():
    # Client 0: 3·4·104/10 = 124.8 s and 120/6; client 1: 62.4 s and 120/4. The broadcast goes out at 8 bit/s.
    result = terms("fedavg", local_steps=3)
    assert result.local_training == pytest.approx(124.8)
    assert result.total == pytest.approx(124.8 + 20 + 120 / 8)


def test_centralised_by_hand():
    assert terms("centralised").total == pytest.approx(2 * 4 * 104 / 100)


def test_local_steps_matter_only_where_models_are_averaged():
    for framework in ("epsl", "psl", "sl", "centralised"):
        assert terms(framework, local_steps=5).total == terms(framework).total


def test_measured_profile_with_reference_devices():
    measured = Profile.measured(
        PROFILE.names, PROFILE.fwd_cost, PROFILE.bwd_cost, PROFILE.act_bits, last_bwd_seconds=12
    )
    assert epsl.latency(measured, CELL, cut=1, phi=0.5, **PLAN).total == pytest.approx(terms("epsl").total)


def test_nothing_to_send_takes_no_time():
    rng = np.random.default_rng(0)
    profile, cell = random_profile(rng, bits=0.0), random_cell(rng, 2, 3)
    result = epsl.latency(profile, cell, cut=1, assignment=[0, 1, 1], power=np.zeros(3), batch_size=4, phi=0.5)
    assert np.isfinite(result.total)


def test_one_client_is_the_same_in_psl_and_sl():
    rng = np.random.default_rng(3)
    profile, cell = random_profile(rng), random_cell(rng, 1, 4)
    plan = epsl.solve(profile, cell, batch_size=8, phi=0.0)
    assert plan.framework_round_time("sl") == pytest.approx(plan.round_time, rel=1e-9)


def test_table_and_round_trip():
    result = terms("sfl")
    frame = result.to_frame()
    assert frame["seconds"].sum() == pytest.approx(result.total)
    assert frame["share"].sum() == pytest.approx(1)
    assert epsl.RoundLatency.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    assert "sfl" in repr(result) and "model_exchange" in repr(result)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cut": 0}, r"cut: expected 1\.\.2.*raw data.*got 0 \('input'\)"),
        ({"cut": 3}, r"cut: expected 1\.\.2.*got 3 \('output'\)"),
        ({"cut": 7}, r"cut: expected a number 0\.\.3.*got 7"),
        ({"cut": "layer9"}, r"cut: expected.*got 'layer9'.*profile\.names"),
        *(({"cut": cut}, r"cut: expected a number 0\.\.3 or") for cut in (None, [1], float("nan"), float("inf"), 1.5)),
        ({"phi": 1.5}, r"phi: expected a value of at most 1, got 1\.5"),
        ({"phi": -0.1}, r"phi: expected values of at least 0"),
        ({"phi": float("nan")}, r"phi: expected finite numbers"),
        ({"batch_size": 0}, r"batch_size: expected at least 1, got 0"),
        ({"assignment": [0, 1]}, r"assignment: expected shape \(3\), got shape \(2,\)"),
        ({"assignment": [0, 1, 2]}, r"assignment: expected whole client numbers 0\.\.1, got 2 for subchannel 2"),
        ({"assignment": [0, 1, -1]}, r"got -1 for subchannel 2"),
        ({"assignment": [0, 0.5, 1]}, r"got 0\.5 for subchannel 1"),
        ({"assignment": [0, 0, 0]}, r"at least one subchannel for every client, got none for client 1"),
        ({"power": [1, 1]}, r"power: expected shape \(3\), got shape \(2,\)"),
        ({"power": [1, -1, 1]}, r"power: expected values of at least 0, got -1 at index \(1,\)"),
        ({"power": [1, float("nan"), 1]}, r"power: expected finite numbers, got nan"),
        ({"power": [9, 1, 9]}, r"power: expected at most 20 W of client 0, got 45 W"),
        ({"power": [3.9, 10, 4]}, r"power: expected at most 30 W in total, got 39\.9 W"),
        ({"framework": "gossip"}, r"framework: expected one of 'epsl'.*got 'gossip'"),
        ({"framework": "sfl", "local_steps": 0}, r"local_steps: expected at least 1"),
    ],
)
def test_bad_input(change, message):
    arguments = {"cut": 1, "phi": 0.5, **PLAN, **change}
    with pytest.raises(ScenarioError, match=message):
        epsl.latency(PROFILE, CELL, **arguments)
