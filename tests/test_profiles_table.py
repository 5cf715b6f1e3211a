"""Profiles read from other people's tables: units, batches, defaults, PipeDream's graphs, and what is refused."""

import numpy as np
import pandas as pd
import pytest

from psl.errors import ScenarioError
from psl.profiles import Profile

GRAPH = """\
node3 -- ReLU(inplace) -- forward_compute_time=1.000, backward_compute_time=2.000, activation_size=4096.000, parameter_size=0.000
node1 -- Input0 -- forward_compute_time=17.000, backward_compute_time=0.000, activation_size=1024.000, parameter_size=0.000
node2 -- Conv2d(3, 8, kernel_size=(3, 3)) -- forward_compute_time=3.000, backward_compute_time=5.000, activation_size=4096.000, parameter_size=896.000
node5 -- Add() -- forward_compute_time=0.500, backward_compute_time=0.500, activation_size=2048.000, parameter_size=0.000
node4 -- Conv2d(8, 8, kernel_size=(1, 1)) -- forward_compute_time=2.000, backward_compute_time=4.000, activation_size=2048.000, parameter_size=288.000
node6 -- Linear(in_features=64, out_features=10) -- forward_compute_time=1.500, backward_compute_time=2.500, activation_size=80.000, parameter_size=2600.000
\tnode1 -- node2
\tnode2 -- node3
\tnode3 -- node4
\tnode3 -- node5
\tnode4 -- node5
\tnode5 -- node6
"""  # noqa: E501

LAYERS = pd.DataFrame(
    {
        "name": ["conv", "relu", "fc"],
        "fwd_ms": [3.0, 1.0, 2.0],
        "bwd_ms": [5.0, 2.0, 4.0],
        "act_bytes": [4096, 4096, 40],
        "param_bytes": [896, 0, 2600],
        "device": ["GPU"] * 3,  # other columns do not matter
    }
)


def test_a_csv_file_of_one_batch_becomes_a_profile_per_sample(tmp_path):
    path = tmp_path / "layers.csv"
    LAYERS.to_csv(path, index=False)
    profile = Profile.from_table(path, batch_size=4, input_bits=6144)
    assert profile.unit == "s" and profile.names == ("input", "conv", "relu", "fc")
    np.testing.assert_allclose(profile.fwd_cost, np.array([0, 3, 4, 6]) * 1e-3 / 4, rtol=1e-15)
    np.testing.assert_allclose(profile.bwd_cost, np.array([0, 5, 7, 11]) * 1e-3 / 4, rtol=1e-15)
    np.testing.assert_array_equal(profile.act_bits, [6144, 8192, 8192, 80])
    np.testing.assert_array_equal(profile.grad_bits, profile.act_bits)
    np.testing.assert_array_equal(profile.param_bits, np.array([0, 896, 896, 3496]) * 8)  # not per sample
    np.testing.assert_array_equal(profile.act_memory, [0, 1024, 2048, 2058])
    assert profile.last_bwd_cost == pytest.approx(1e-3, rel=1e-15)
    assert Profile.from_dict(profile.to_dict()) == profile


def test_units_separators_and_frames_agree(tmp_path):
    base = Profile.from_table(LAYERS)
    micro = LAYERS.assign(fwd_us=LAYERS.fwd_ms * 1e3, bwd_s=LAYERS.bwd_ms / 1e3, act_bits=LAYERS.act_bytes * 8)
    micro = micro.drop(columns=["fwd_ms", "bwd_ms", "act_bytes"])
    path = tmp_path / "layers.tsv"
    micro.to_csv(path, index=False, sep="\t")
    for other in (Profile.from_table(micro), Profile.from_table(path), Profile.from_table(str(path))):
        for field in ("fwd_cost", "bwd_cost", "act_bits", "grad_bits", "param_bits", "act_memory"):
            np.testing.assert_allclose(getattr(other, field), getattr(base, field), rtol=1e-12, err_msg=field)
    full = Profile.from_table(LAYERS.assign(grad_bits=[1, 2, 3], memory_bytes=[10, 20, 30]))
    np.testing.assert_array_equal(full.grad_bits, [0, 1, 2, 3])
    np.testing.assert_array_equal(full.act_memory, [0, 10, 30, 60])


def test_the_memory_of_parameters_is_a_column_of_its_own():
    assert Profile.from_table(LAYERS).param_memory is None
    np.testing.assert_array_equal(Profile.from_table(LAYERS, batch_size=4).training_memory(0), [0, 2688, 2688, 10488])
    layers = LAYERS.assign(param_memory_bytes=[896, 0, 7800])  # the first layer is frozen
    profile = Profile.from_table(layers, batch_size=4)
    np.testing.assert_array_equal(profile.param_memory, [0, 896, 896, 8696])  # not per sample
    np.testing.assert_array_equal(profile.param_bits, Profile.from_table(LAYERS).param_bits)
    row = {"name": "input", "fwd_ms": 0, "bwd_ms": 0, "act_bytes": 768, "param_bytes": 0, "param_memory_bytes": 9}
    with_input = Profile.from_table(pd.concat([pd.DataFrame([row]), layers]))
    np.testing.assert_array_equal(with_input.param_memory, [0, 896, 896, 8696])
    message = "column 'param_memory_bytes': expected values of at least 0, got -1 at index .1,"
    with pytest.raises(ScenarioError, match=message):
        Profile.from_table(LAYERS.assign(param_memory_bytes=[1, -1, 1]))


def test_a_row_for_the_input_gives_cut_0_and_no_time():
    with_input = pd.DataFrame([{"name": "Input0", "fwd_ms": 99, "bwd_ms": 9, "act_bytes": 768, "param_bytes": 7}])
    profile = Profile.from_table(pd.concat([with_input, LAYERS]))
    assert profile.names == ("Input0", "conv", "relu", "fc")
    other = Profile.from_table(LAYERS, input_bits=768 * 8)
    assert Profile.from_dict({**profile.to_dict(), "names": other.names}) == other


def test_a_row_for_the_input_and_input_bits_contradict_each_other():
    with_input = pd.DataFrame([{"name": "input", "fwd_ms": 0, "bwd_ms": 0, "act_bytes": 768, "param_bytes": 0}])
    with pytest.raises(ScenarioError, match="input_bits: expected none, as the table has a row 'input', got 6144. Fix"):
        Profile.from_table(pd.concat([with_input, LAYERS]), input_bits=6144)


def test_semicolons_separate_too(tmp_path):
    path = tmp_path / "layers.csv"
    LAYERS.assign(name=["conv, 3×3", "relu", "fc"]).to_csv(path, index=False, sep=";")
    profile = Profile.from_table(path)
    assert profile.names == ("input", "conv, 3×3", "relu", "fc")
    np.testing.assert_array_equal(profile.fwd_cost, Profile.from_table(LAYERS).fwd_cost)
    LAYERS.to_csv(path, index=False, sep=";", decimal=",")
    with pytest.raises(ScenarioError, match="column 'fwd_ms': expected numbers(.|\n)* with a decimal point"):
        Profile.from_table(path)


def test_a_pipedream_graph_keeps_its_residual_block_whole(tmp_path):
    path = tmp_path / "graph.txt"
    path.write_text(GRAPH)
    profile = Profile.from_table(path, batch_size=2)
    assert profile.names == ("Input0", "node2 Conv2d", "node3 ReLU", "node5 Add", "node6 Linear")
    np.testing.assert_allclose(profile.fwd_cost, np.array([0, 3, 4, 6.5, 8]) * 1e-3 / 2, rtol=1e-15)
    np.testing.assert_allclose(profile.bwd_cost, np.array([0, 5, 7, 11.5, 14]) * 1e-3 / 2, rtol=1e-15)
    np.testing.assert_array_equal(profile.act_bits, np.array([1024, 4096, 4096, 2048, 80]) * 4)
    np.testing.assert_array_equal(profile.param_bits, np.array([0, 896, 896, 1184, 3784]) * 8)
    np.testing.assert_array_equal(profile.act_memory, np.array([0, 4096, 8192, 12288, 12368]) / 2)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (LAYERS.drop(columns="name"), "table: expected a column 'name'.*got columns fwd_ms, bwd_ms"),
        (LAYERS.iloc[:0], "a row per layer, got .* 0 rows"),
        (LAYERS.drop(columns="bwd_ms"), "backward time of the table: expected one column out of bwd_s, bwd_ms, bwd_us"),
        (LAYERS.assign(fwd_s=1.0), "forward time of the table: .*got fwd_s, fwd_ms. Fix: keep one"),
        (LAYERS.assign(act_bytes=[1, np.nan, 2]), "column 'act_bytes': expected finite numbers, got nan at index .1,"),
        (LAYERS.assign(fwd_ms=[1, 2, -3]), "column 'fwd_ms': expected values of at least 0, got -3 at index .2,"),
        (LAYERS.assign(fwd_ms=["fast", 1, 2]), "column 'fwd_ms': expected numbers"),
    ],
)
def test_bad_tables_are_refused(frame, message):
    with pytest.raises(ScenarioError, match=message):
        Profile.from_table(frame)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "table .*expected columns with a heading"),
        (GRAPH + "\tnode6 -- node2\n", "graph: expected no cycle, got .*node2"),
        (GRAPH + "\tnode6 -- node7\n", "graph: expected a line for every node, got none for node7"),
        (GRAPH.replace("\tnode5 -- node6\n", ""), "one input and one output, got inputs node1, node6"),
        (GRAPH.replace("=17.000", "=soon"), "fwd_ms of node1: expected a number, got 'soon'"),
        (GRAPH + "and so on and on\n", "line 13 of the graph: expected a node or an edge, got 'and so on and on'"),
    ],
)
def test_bad_files_are_refused(tmp_path, text, message):
    path = tmp_path / "table.txt"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=message):
        Profile.from_table(path)


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ScenarioError, match="table: expected a readable text file or a DataFrame"):
        Profile.from_table(tmp_path / "nothing.csv")
    with pytest.raises(ScenarioError, match="table: expected a readable text file or a DataFrame"):
        Profile.from_table(3)
    with pytest.raises(ScenarioError, match="batch_size: expected at least 1, got 0.*samples per batch"):
        Profile.from_table(LAYERS, batch_size=0)
    with pytest.raises(ScenarioError, match="input_bits: expected values of at least 0"):
        Profile.from_table(LAYERS, input_bits=-1)
