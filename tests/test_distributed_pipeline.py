"""A pipeline in real processes: what one process finds, links and relays emulated, and nothing left behind."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch

import psl
from distributed_models import momentum, pixel_loss, small_data, small_model
from psl.distributed import EdgeEmulation, run_pipeline
from psl.distributed import pipeline as launcher
from psl.distributed.compare import TERMS, compare, experiment, make_plan
from psl.distributed.measure import measured_profile
from psl.distributed.namespaces import unavailable
from psl.distributed.pipeline_torchrun import interface_of
from psl.distributed.scenarios import sample_network
from psl.distributed.stages import EdgeStage
from psl.errors import PSLError, ScenarioError
from psl.networks import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl, pipeline

kernel = pytest.mark.skipif(unavailable() is not None, reason=f"no shaped namespaces: {unavailable()}")

NAMES = {
    "model": "distributed_models:small_model", "dataset": "distributed_models:small_data",
    "optimizer": "distributed_models:momentum", "loss": "distributed_models:pixel_loss",
}  # fmt: skip
OPTIONS = {"rounds": 3, "n_clients": 2, "batch_size": 11, "cut": [2, "block2"], "micro_batch": 6, "seed": 5}


def in_processes(nursery, **options):
    usual = NAMES | OPTIONS | {"timeout": 20.0, "progress": False, "model_seed": 2}
    return run_pipeline(**usual | options, nursery=nursery)


def in_one_process(**options):
    torch.manual_seed(2)
    given = {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    return psl.train("pipeline", small_model(), small_data(), **given | OPTIONS | options)


def assert_same(found, want, tolerance=1e-5):
    np.testing.assert_allclose(found.train_loss, want.train_loss, rtol=tolerance)
    np.testing.assert_allclose(found.test_accuracy, want.test_accuracy, atol=0.034)  # one test sample
    for name in ("uplink_bits", "downlink_bits"):
        assert np.array_equal(getattr(found, name), getattr(want, name)), name
    assert found.settings == want.settings
    for (name, x), y in zip(found.models[0].state_dict().items(), want.models[0].state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


def left_behind(nursery):
    """Workers that run, and namespaces of this process."""
    spaces = Path("/run/netns")
    names = [path.name for path in spaces.iterdir()] if spaces.is_dir() else []
    return list(nursery._workers), [name for name in names if name.startswith(f"psl-{os.getpid()}-")]


@pytest.mark.parametrize("schedule", ["eager", "gpipe", "1f1b"])
def test_three_stages_find_what_one_process_finds(nursery, schedule):
    found = in_processes(nursery, schedule=schedule)
    assert_same(found.history, in_one_process())  # with BatchNorm, momentum, and a last micro-batch of 4 samples
    assert found.emulation == "none" and found.overrun == 0
    assert len(found.round_times) == len(found.step_times) == 3 and (found.round_times > 0).all()
    computed = found.events[found.events["kind"].isin(["forward", "backward"])]
    assert (computed.groupby(["round", "resource", "kind"])["micro_batch"].apply(list).map(sorted).map(len) == 4).all()
    assert left_behind(nursery) == ([], [])


def test_one_stage_and_shares_of_the_data_too(nursery):
    shares = [np.arange(40), np.arange(40, 100)]
    options = {"cut": [], "micro_batch": None, "partition": shares, "rounds": 2}
    assert_same(in_processes(nursery, **options).history, in_one_process(**options))


def relayed_plan(rate=4e6, latency=5e-3):
    """Two stages of `psl.models.cnn` with a relay between them, on a profile of invented seconds."""
    counted = psl.profile(psl.models.cnn(), (1, 8, 8))
    profile = Profile.measured(
        counted.names, counted.fwd_flops * 1e-10, counted.bwd_flops * 1e-10, counted.act_bits, counted.grad_bits,
        counted.param_bits, counted.act_memory,
    )  # fmt: skip
    graph = nx.DiGraph()
    graph.add_nodes_from([(0, {"flops": 0.1}), (1, {}), (2, {"flops": 0.1})])
    for u, v in ((0, 1), (1, 0), (1, 2), (2, 1)):
        graph.add_edge(u, v, rate=rate, latency=latency)
    return pipeline.PipelinePlan(profile, EdgeNetwork(graph, 0), 32, 8, [(0, 0, 3), (2, 3, 10)], [(3, 0, 1), (3, 1, 2)])


@pytest.mark.parametrize("links", ["pacing", pytest.param("kernel", marks=kernel)])
def test_relays_and_links_are_emulated_and_the_result_stays(nursery, links):
    plan = relayed_plan()
    found = run_pipeline(
        "psl.models:cnn", plan=plan, rounds=3, emulate=links, timeout=20.0, progress=False, nursery=nursery, lr=0.05
    )
    torch.manual_seed(0)
    want = psl.train("pipeline", psl.models.cnn(), "digits", plan=plan, rounds=3, lr=0.05, progress=False)
    assert_same(found.history, want)
    np.testing.assert_array_equal(found.history.simulated_time_s, want.simulated_time_s)
    assert found.emulation == links
    one = 8 * plan.profile.act_bits[3] / 4e6 + 5e-3  # s of a micro-batch on a hop
    carried = found.events[found.events["kind"].isin(["activation", "gradient"])]
    assert set(carried["resource"]) == {"link 0→1", "link 1→2", "link 2→1", "link 1→0"}
    alone = carried[(carried["kind"] == "activation") & (carried["micro_batch"] == 0) & (carried["round"] > 0)]
    assert (alone["end_s"] - alone["start_s"]).median() == pytest.approx(one, rel=0.25)
    # Four micro-batches over the first hop, the last one over the second hop too, and all the way back.
    least = 4 * (one - 5e-3) + one + 5e-3 + 2 * one
    assert (found.round_times > least).all()
    assert left_behind(nursery) == ([], [])


def test_torchrun_starts_stages_too(tmp_path):
    plan = relayed_plan(rate=50e6)
    plan.save(tmp_path / "plan.json")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "psl.distributed", "pipeline",
            "--rounds", "2", "--lr", "0.05", "--timeout", "20", "--plan", str(tmp_path / "plan.json"),
            "--emulate", "auto", "--out", str(tmp_path),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 stages, 1 relays, links emulated by: pacing" in done.stdout
    torch.manual_seed(0)
    want = psl.train("pipeline", psl.models.cnn(), "digits", plan=plan, rounds=2, lr=0.05, progress=False)
    found = psl.History.load(tmp_path / "history.json")
    np.testing.assert_allclose(found.train_loss, want.train_loss, rtol=1e-5)
    np.testing.assert_allclose(found.test_accuracy, want.test_accuracy, atol=0.003)
    np.testing.assert_array_equal(found.uplink_bits, want.uplink_bits)


def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == interface_of("lo") == "lo"
    with pytest.raises(ScenarioError, match="--bind.*lo.*'192.0.2.7'"):
        interface_of("192.0.2.7")


@pytest.mark.parametrize("links", ["pacing", pytest.param("kernel", marks=kernel)])
def test_a_process_that_dies_ends_the_others(nursery, monkeypatch, links):
    def kill_one(folder):
        pid = sorted(nursery._workers)[-1]
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return []

    monkeypatch.setattr(launcher, "_losses", kill_one)
    with pytest.raises(PSLError, match=r"the pipeline stopped\. process \d"):
        options = {"rounds": 50, "emulate": links, "timeout": 10.0, "progress": False, "nursery": nursery}
        run_pipeline("psl.models:cnn", plan=relayed_plan(), **options)
    assert left_behind(nursery) == ([], [])


def test_an_interrupt_ends_all(nursery, monkeypatch):
    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(launcher, "_losses", interrupt)
    with pytest.raises(KeyboardInterrupt):
        in_processes(nursery, rounds=1000)
    assert left_behind(nursery) == ([], [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 0.5}, "arguments of a pipeline.*got phi"),
        ({"schedule": "zigzag"}, "schedule.*'eager', 'gpipe', '1f1b'"),
        ({"schedule": "1f1b", "micro_batch": 20}, "micro_batch.*3 micro-batches or more.*eager"),
        ({"model": "psl.models:no_such"}, "model.*module:function.*no_such"),
        ({"emulate": "pacing"}, "emulate.*plan"),
        ({"cut": ["block1", "relu"]}, "strictly increasing"),
        ({"cut": [0]}, "raw data"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(options, message):
    with pytest.raises(PSLError, match=message):
        run_pipeline(**NAMES | OPTIONS | {"progress": False} | options)


def test_an_emulation_of_something_else_is_refused():
    ones, none = np.ones(2), np.zeros(1)
    chain = EdgeEmulation("chain", ones, [1e6], [1e6], none, none, np.zeros(2))
    with pytest.raises(ScenarioError, match="3 processes.*got 2"):
        run_pipeline(**NAMES | OPTIONS | {"progress": False, "emulate": chain})


def test_a_stage_unpickles_nothing():
    with pytest.raises(PSLError, match="unpickle"):
        EdgeStage._recv_meta(SimpleNamespace(stage_index=1), 0)


def test_a_profile_is_measured_in_a_worker(nursery):
    found = measured_profile("psl.models:cnn", batch_size=8, repeats=3, nursery=nursery)
    counted = psl.profile(psl.models.cnn(), (1, 8, 8))
    assert found.unit == "s" and found.names == counted.names
    np.testing.assert_array_equal(found.act_bits, counted.act_bits)
    assert 0 < found.fwd_flops[-1] < 0.1
    with pytest.raises(PSLError, match=r"measurement.*no_such"):
        measured_profile("psl.models:no_such", batch_size=8, nursery=nursery)


@pytest.mark.parametrize("scheduler", [epsl, edgesplit, pipeline], ids=list(TERMS))
def test_measured_seconds_stand_beside_predicted_and_simulated_ones(nursery, scheduler):
    table = experiment(scheduler, [0], rounds=1, progress=False, nursery=nursery)
    name = table["scheduler"][0]
    assert list(table["term"]) == list(TERMS[name])
    assert set(table["emulation"]) == {"pacing" if unavailable() else "kernel"}
    np.testing.assert_allclose(table["error"], table["measured_s"] / table["predicted_s"] - 1)
    whole = table.set_index("term").loc["round"]
    # Other work on this machine slows processes down; nothing makes them faster than they computed and links allow.
    assert whole["measured_s"] > 0.6 * whole["predicted_s"], table.to_string()
    parts = table[table["term"] != "round"]["simulated_s"].sum()
    assert name == "pipeline" or parts == pytest.approx(whole["simulated_s"])
    assert left_behind(nursery) == ([], [])


def test_scenarios_follow_from_their_seed():
    profile = relayed_plan().profile
    for scheduler in TERMS:
        assert sample_network(scheduler, 4) == sample_network(scheduler, 4) != sample_network(scheduler, 5)
    plan = make_plan(pipeline, profile, sample_network("pipeline", 4))
    assert plan.n_micro_batches == 8
    with pytest.raises(ScenarioError, match=r"plan\.scheduler.*'edgesplit'"):
        compare(pd.DataFrame())
