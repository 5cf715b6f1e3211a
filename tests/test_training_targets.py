"""The study of seconds to a target: every setting once, medians and quartiles by hand, runs that never arrive."""

import functools

import numpy as np
import pandas as pd
import pytest

import psl
from psl.errors import ScenarioError
from psl.schedulers import epsl
from psl.training.targets import TargetTimes

METHODS = {
    "PSL": {"framework": "psl"},
    "drawn": {"framework": "epsl", "linearise": "sampled"},
    "adaptive": {"framework": "epsl", "linearise": "sampled", "rows": "adaptive", "phi": 0.0, "lr": 0.2},
}


def planner(**overheads):
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(2, 4, seed=1, channel="log-distance", **overheads)
    return functools.partial(epsl.solve, profile, cell, cut="pool1", bound=False)


@pytest.mark.slow
def test_every_setting_is_run_and_its_seconds_are_those_of_its_plan():
    plan = planner(round_overhead=0.02)
    found = psl.seconds_to_target(
        psl.models.cnn, "digits", METHODS, plan=plan, targets=(0.3, 1.0), batch_sizes=(16,), phis=(0.5, 1.0),
        seeds=(0, 1), rounds=lambda b: 160 // b, eval_every=2, n_jobs=1, progress=False, lr=0.3,
    )  # fmt: skip
    runs = found.runs
    counts = runs.groupby("method").size() / 4  # two seeds and two targets
    assert counts.to_dict() == {"PSL": 1, "drawn": 2, "adaptive": 1}
    assert not runs[runs.target == 1.0].reached.any() and runs[runs.target == 0.3].reached.any()
    assert set(runs[runs.method == "adaptive"].lr) == {0.2} and set(runs[runs.method == "PSL"].lr) == {0.3}
    for row in runs[runs.method != "adaptive"].itertuples():
        rule = "sampled" if row.method == "drawn" else "representative"
        made = plan(batch_size=row.batch_size, phi=row.phi, linearise=rule)
        assert row.seconds == pytest.approx(row.rounds * made.round_time)
        assert row.rounds % 2 == 0
    never = runs[~runs.reached]
    assert (never.rounds == 160 // never.batch_size).all(), "censored at the end of the run"
    again = psl.seconds_to_target(
        psl.models.cnn, "digits", {"PSL": METHODS["PSL"]}, plan=plan, targets=(0.3,), batch_sizes=(16,), seeds=(0,),
        rounds=10, eval_every=2, n_jobs=1, progress=False, lr=0.3,
    )  # fmt: skip
    same = runs.query("method == 'PSL' and seed == 0 and target == 0.3")
    assert again.runs.seconds.tolist() == same.seconds.tolist()
    assert "never met" in found._repr_html_() and "24 times" not in repr(again)


def table(seconds, reached):
    return TargetTimes(pd.DataFrame({
        "target": 0.9, "method": "PSL", "batch_size": [8] * len(seconds), "phi": 0.0, "seed": range(len(seconds)),
        "reached": reached, "seconds": seconds, "rounds": 1, "uplink_bits": 1, "downlink_bits": 1, "server_rows": 1,
    }))  # fmt: skip


def test_medians_and_quartiles_are_those_of_runs():
    row = table([5.0, 1, 3, 2, 4], [True] * 5).to_frame().iloc[0]
    assert (row["low"], row["median"], row["high"], row["never"]) == (2, 3, 4, 0)
    assert np.isnan(row["at_least"])


def test_runs_that_never_arrive_are_later_than_all_others():
    row = table([5.0, 1, 3, 2, 4], [True, True, False, True, False]).to_frame().iloc[0]
    assert (row["low"], row["median"], row["high"]) == (2, 5, np.inf)
    assert (row["never"], row["at_least"]) == (2, 3)
    most = table([5.0, 1, 3], [False, False, True])
    assert most.to_frame()["median"].iloc[0] == np.inf
    assert "more than 1" in most._repr_html_() and "2 times never met" in repr(most)


def test_the_best_setting_of_each_method():
    both = pd.concat([table([3.0], [True]).runs, table([2.0], [True]).runs.assign(batch_size=4)])
    assert TargetTimes(both).best()["batch_size"].tolist() == [4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": (90,)}, "targets: expected a value of at most 1, got 90"),
        ({"seeds": ()}, "methods: expected at least one method, mini-batch, φ, seed and target, got nothing to run"),
        ({"methods": {"mine": {}}}, r"methods\['mine'\]: expected a framework, got none"),
        ({"methods": {"mine": {"framework": "gossip"}}}, "framework: expected one of"),
    ],
)
def test_bad_input(change, message):
    arguments = {"methods": {"PSL": METHODS["PSL"]}, "plan": planner(), "progress": False, "n_jobs": 1} | change
    with pytest.raises(ScenarioError, match=message):
        psl.seconds_to_target(psl.models.cnn, "digits", **arguments)
