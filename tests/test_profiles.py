"""Profiles by hand: what memory holds against what is sent, names of cuts, files, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest

from psl.errors import ScenarioError
from psl.networks import EdgeCluster, WirelessCell
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl

FIELDS = {
    "names": ("input", "relu", "conv", "relu", "output"),
    "fwd_cost": [0, 1e9, 2e9, 3e9, 4e9],
    "bwd_cost": [0, 0, 2e9, 4e9, 6e9],
    "act_bits": [8e6, 4e6, 4e6, 2e6, 320],
    "grad_bits": [0, 0, 4e6, 2e6, 320],
    "param_bits": [0, 0, 8e6, 16e6, 24e6],
    "act_memory": [0, 0, 5e5, 7e5, 9e5],
}
PROFILE = Profile(**FIELDS)


def test_without_a_memory_of_parameters_all_of_them_train():
    assert PROFILE.param_memory is None
    np.testing.assert_array_equal(PROFILE.training_memory(0), [0, 0, 3e6, 6e6, 9e6])
    np.testing.assert_array_equal(PROFILE.training_memory(2), [0, 0, 4e6, 7.4e6, 10.8e6])
    # A derived memory follows the bits into a replaced copy; one that was given stays.
    np.testing.assert_array_equal(
        dataclasses.replace(PROFILE, param_bits=[0, 8, 8, 8, 8]).training_memory(0), [0, 3, 3, 3, 3]
    )
    given = dataclasses.replace(PROFILE, param_memory=[0, 5, 6, 7, 8])
    np.testing.assert_array_equal(
        dataclasses.replace(given, param_bits=[0, 8, 8, 8, 8]).training_memory(10), [0, 5, 5e6 + 6, 7e6 + 7, 9e6 + 8]
    )


@pytest.mark.parametrize("memory", [None, [0, 4e6, 7e6, 10e6, 13e6]])
def test_files_with_and_without_the_memory_of_parameters(tmp_path, memory):
    profile = Profile(**FIELDS, param_memory=memory)
    again = Profile.from_dict(json.loads(json.dumps(profile.to_dict())))
    assert again == profile and (again.param_memory is None) == (memory is None)
    np.testing.assert_array_equal(again.training_memory(0), [0, 0, 3e6, 6e6, 9e6] if memory is None else memory)
    assert Profile.load(profile.save(tmp_path / "profile.json")) == profile
    assert (profile == PROFILE) == (memory is None)
    old = {key: value for key, value in profile.to_dict().items() if key != "param_memory"}  # as version 0.4 wrote it
    assert Profile.from_dict(old) == PROFILE


def test_a_measured_profile_and_the_table_of_cuts_have_it_too():
    seconds, memory = [0, 1, 2], [0, 3, 40]
    measured = Profile.measured(["a", "b", "c"], seconds, seconds, [8, 8, 8], param_bits=[0, 8, 16])
    np.testing.assert_array_equal(measured.to_frame()["param_memory_bytes"], [0, 3, 6])
    given = Profile.measured(["a", "b", "c"], seconds, seconds, [8, 8, 8], param_memory=memory)
    np.testing.assert_array_equal(given.to_frame()["param_memory_bytes"], memory)
    np.testing.assert_array_equal(given.param_bits, [0, 0, 0])


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        ([0, 1, 2], r"Profile.param_memory: expected shape \(5\), got shape \(3,\)"),
        ([1, 1, 2, 3, 4], "Profile.param_memory: expected 0 at entry 0, got 1"),
        ([0, 1, 3, 2, 4], "Profile.param_memory: expected a cumulative array that never falls, got a fall at entry 3"),
        ([0, -1, 3, 4, 5], "Profile.param_memory: expected values of at least 0"),
        ([0, 1, np.nan, 4, 5], "Profile.param_memory: expected finite numbers"),
    ],
)
def test_a_wrong_memory_of_parameters_is_refused(memory, message):
    with pytest.raises(ScenarioError, match=message):
        Profile(**FIELDS, param_memory=memory)


def test_cuts_by_number_and_by_name():
    assert [PROFILE.cut_index(cut) for cut in ("input", "conv", "output", 0, 3, 2.0, np.int64(4))] == [
        0,
        2,
        4,
        0,
        3,
        2,
        4,
    ]
    for wrong in ("pool", 5, -1, 1.5, True, None, float("nan"), ("conv",), np.array(["conv", "relu"])):
        with pytest.raises(ScenarioError, match=r"cut: expected a number 0..4 or a name such as 'relu', got"):
            PROFILE.cut_index(wrong)


def test_a_name_of_several_cuts_is_refused_wherever_it_is_given():
    message = "cut: expected a name that only one cut has, got 'relu', the name of cuts 1, 3. Fix: pass the number"
    cluster, cell = EdgeCluster([1e10, 1e10], np.inf, 2.0, 1e7, 1e12), WirelessCell.sample(2, 4)
    radio = {"assignment": [0, 1, 0, 1], "power": 0 * cell.bandwidth, "batch_size": 4, "phi": 0.5}
    calls = (
        lambda: PROFILE.cut_index("relu"),
        lambda: edgesplit.latency(PROFILE, cluster, cuts="relu", bandwidth=[5e6, 5e6]),
        lambda: edgesplit.latency(PROFILE, cluster, cuts=["conv", "relu"], bandwidth=[5e6, 5e6]),
        lambda: edgesplit.latency(PROFILE, cluster, cuts=np.array(["relu", "conv"]), bandwidth=[5e6, 5e6]),
        lambda: epsl.latency(PROFILE, cell, cut="relu", **radio),
        lambda: epsl.solve(PROFILE, cell, cut="relu"),
    )
    for call in calls:
        with pytest.raises(ScenarioError, match=message):
            call()
    by_number = edgesplit.latency(PROFILE, cluster, cuts=[3, "conv"], bandwidth=[5e6, 5e6])
    assert by_number.cuts.tolist() == [3, 2]
