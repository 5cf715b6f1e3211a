"""Predicted, simulated and measured rounds side by side: profile, scenarios, and what disturbs a measurement."""

import os
import time

import numpy as np
import pandas as pd
import pytest
import torch

import psl
from marks import some
from notebook_helper import BATCHES, experiment, make_plan, sample_network
from psl.distributed.comparison import TERMS, compare
from psl.distributed.edge import emulate
from psl.distributed.edge.emulate import Compute, on_own_core, warm_up
from psl.distributed.edge.namespaces import unavailable
from psl.distributed.measure import measured_profile
from psl.errors import PSLError, ScenarioError
from psl.models.timing import UnitTimer
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl, pipeline


def test_a_profile_is_measured_in_a_process_of_its_own(processes):
    found = measured_profile("psl.models:cnn", batch_size=8, repeats=3)
    counted = psl.profile(psl.models.cnn(), (1, 8, 8))
    assert found.unit == "s" and found.names == counted.names
    np.testing.assert_array_equal(found.act_bits, counted.act_bits)
    assert 0 < found.fwd_cost[-1] < 0.1
    with pytest.raises(PSLError, match=r"measurement.*no_such"):
        measured_profile("psl.models:no_such", batch_size=8)


def test_a_profile_by_stages_adds_up_to_what_the_stages_take(processes):
    whole = measured_profile("psl.models:cnn", batch_size=8, repeats=3)
    found = measured_profile("psl.models:cnn", batch_size=8, repeats=3, cuts=(3, 6))
    assert found.names == whole.names and found.unit == "s"
    np.testing.assert_array_equal(found.act_bits, whole.act_bits)
    for cost in (found.fwd_cost, found.bwd_cost):
        stages = np.diff(cost[[0, 3, 6, -1]])
        assert (np.diff(cost) >= 0).all() and (stages > 1e-6).all(), "no stage is free, however little it computes"
    assert 0 < found.last_bwd_cost <= found.bwd_cost[-1] - found.bwd_cost[6]
    with pytest.raises(PSLError, match=r"measurement.*cut"):
        measured_profile("psl.models:cnn", batch_size=8, cuts=(6, 3))


@pytest.mark.full  # notebook 07 does this in every run
@pytest.mark.parametrize("scheduler", [epsl, edgesplit, pipeline], ids=list(TERMS))
def test_measured_seconds_stand_beside_predicted_and_simulated_ones(processes, scheduler):
    table = experiment(scheduler, [0], rounds=1, progress=False)
    name = table["scheduler"][0]
    assert list(table["term"]) == list(TERMS[name])
    assert set(table["emulation"]) == {"pacing" if unavailable() else "kernel"}
    predicted = table["predicted_s"].where(table["predicted_s"] > 0)
    np.testing.assert_allclose(table["error"], table["measured_s"] / predicted - 1)
    whole = table.set_index("term").loc["round"]
    # Other work on this machine slows processes down; nothing makes them faster than they computed and links allow.
    assert whole["measured_s"] > 0.6 * whole["predicted_s"], table.to_string()
    for column in ("simulated_s", "measured_s"):
        parts = table[table["term"] != "round"][column].sum()
        assert name == "pipeline" or parts == pytest.approx(whole[column], rel=0.05), column  # medians do not add up


@pytest.mark.parametrize("scheduler", some([epsl, edgesplit], lambda scheduler: scheduler is epsl))
def test_a_plan_in_micro_batches_is_run_and_its_round_compared(processes, scheduler):
    table = experiment(scheduler, [0], rounds=1, micro_batches=4, progress=False)
    assert list(table["term"]) == ["round"]
    assert 0.6 * table["predicted_s"][0] < table["measured_s"][0], table.to_string()
    np.testing.assert_allclose(table["simulated_s"], table["predicted_s"], rtol=1e-9)


def test_scenarios_follow_from_their_seed():
    names = ["input", *"abcdefgh"]
    steps = np.arange(9.0)
    profile = Profile.measured(names, 1e-4 * steps, 2e-4 * steps, 8192 - 1000 * steps, last_bwd_seconds=1e-4)
    for scheduler in TERMS:
        assert sample_network(scheduler, 4) == sample_network(scheduler, 4) != sample_network(scheduler, 5)
    plan = make_plan(pipeline, profile, sample_network("pipeline", 4))
    assert plan.n_micro_batches * plan.micro_batch == plan.batch_size > plan.micro_batch == BATCHES["pipeline"]
    with pytest.raises(ScenarioError, match=r"plan\.scheduler.*'edgesplit'"):
        compare(pd.DataFrame(), "psl.models:cnn")
    with pytest.raises(ScenarioError, match=r"scheduler.*pass the module"):
        experiment("epsl", [0])


def test_something_may_happen_before_every_pass_that_is_measured():
    calls = []
    timer = UnitTimer(before=lambda: calls.append(0))
    timer.measure(psl.models.cnn(), (1, 8, 8), batch_size=2, repeats=2, warmup=1)
    assert len(calls) == 3 * 2 * 2  # passes, with clocks and without, forward and backward


def test_warming_up_leaves_no_trace_and_is_not_counted():
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    with torch.inference_mode():
        warm_up()
    np.testing.assert_array_equal(torch.rand(3), want)
    seen = []
    with Compute(2.0, record=lambda kind, number, start, end, cpu: seen.append((end - start, cpu)))("forward"):
        pass
    ((seconds, cpu),) = seen
    assert cpu < 1e-3 < seconds + 1e-3  # an empty computation costs next to nothing, whatever precedes it


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be bound to cores here")
def test_computations_have_a_core_to_themselves(monkeypatch):
    at_first = os.sched_getaffinity(0)
    monkeypatch.setattr(emulate, "_own", set())
    monkeypatch.setattr(emulate, "_others", set())
    monkeypatch.setattr(os, "setpriority", lambda *arguments: None)
    with on_own_core():
        assert os.sched_getaffinity(0) == at_first, "before settle() nothing is bound"
    try:
        emulate.settle()
        others = os.sched_getaffinity(0)
        with on_own_core():
            own = os.sched_getaffinity(0)
            time.sleep(0.001)
        assert os.sched_getaffinity(0) == others
        emulate.settle()  # a second time changes nothing
        assert os.sched_getaffinity(0) == others
    finally:
        os.sched_setaffinity(0, at_first)
    assert own | others == at_first
    assert len(own) == 1 and (own.isdisjoint(others) or len(at_first) == 1)
