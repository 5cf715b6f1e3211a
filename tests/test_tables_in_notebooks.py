"""How records show themselves in a notebook: small tables, escaped, with the numbers of their own tables."""

import dataclasses
import math
import time
from html.parser import HTMLParser

import networkx as nx
import numpy as np
import pytest

from psl import html
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers import edgesplit, epsl, pipeline
from psl.simulation import simulate
from psl.training.history import History

EVIL = "<script>alert('&')</script>"


class Reader(HTMLParser):
    """The tables of a page as rows of cells, and whether every element is closed."""

    def __init__(self, page: str):
        super().__init__()
        self.rows: list[list[str]] = []
        self.text, self.open = "", []
        self.tags: set[str] = set()
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def shown(record: Record) -> Reader:
    page = record._repr_html_()
    assert page is not None
    reader = Reader(page)
    assert reader.tags <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "span"}
    return reader


def small_profile(n_units: int = 5, **changes) -> Profile:
    each = np.arange(n_units + 1.0)
    fields = {
        "names": tuple(f"unit{j}" for j in range(n_units + 1)),
        "fwd_cost": 1e9 * each,
        "bwd_cost": 2e9 * each,
        "act_bits": 1e6 * (n_units + 1 - each),
        "grad_bits": 1e6 * (n_units + 1 - each),
        "param_bits": 1e6 * each,
        "act_memory": 1e5 * each,
        "last_bwd_cost": 1e8,
        "step_cost": 1e6 * each,
    }
    return Profile(**(fields | changes))


PROFILE = small_profile()


def epsl_plan(**options):
    return epsl.solve(PROFILE, WirelessCell.sample(3, 6, seed=1), batch_size=8, phi=0.5, **options)


def edgesplit_plan(n_devices: int = 3, profile: Profile = PROFILE, **options):
    return edgesplit.solve(profile, EdgeCluster.sample(n_devices, seed=1), batch_size=8, **options)


def pipeline_plan(**options):
    return pipeline.solve(PROFILE, EdgeNetwork.sample(4, seed=1), batch_size=32, **options)


def history(rounds: int = 30, **changes) -> History:
    accuracy = np.where(np.arange(rounds) % 3 == 2, np.linspace(0.1, 0.9, rounds), np.nan)
    accuracy[-2:] = 0.95, 0.5
    grows = np.arange(1.0, rounds + 1)
    fields = {
        "framework": "psl",
        "settings": {},
        "simulated_time_s": 2.5 * grows,
        "train_loss": 1 / grows,
        "test_accuracy": accuracy,
        "uplink_bits": 1e6 * grows,
        "downlink_bits": 2e6 * grows,
        "client_accuracy": np.array([0.5]),
    }
    return History(**(fields | changes))


RECORDS = {
    "profile": lambda: PROFILE,
    "measured profile": lambda: small_profile(unit="s"),
    "epsl plan": epsl_plan,
    "edgesplit plan": edgesplit_plan,
    "pipeline plan": pipeline_plan,
    "epsl latency": lambda: epsl_plan().latency("sl"),
    "edgesplit latency": lambda: edgesplit_plan().latency(),
    "pipeline latency": lambda: pipeline_plan().latency(),
    "history": history,
    "cell": lambda: WirelessCell.sample(3, 6),
    "cluster": lambda: EdgeCluster.sample(20),
    "network": lambda: EdgeNetwork.sample(4),
    "timeline": lambda: simulate(pipeline_plan()),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_every_kind_of_record_shows_a_table_quickly(kind):
    record = RECORDS[kind]()
    assert len(shown(record).rows) >= 2
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        record._repr_html_()
        taken.append(time.perf_counter() - start)
    assert min(taken) < 0.02


def test_a_record_without_a_table_leaves_it_to_its_repr():
    @dataclasses.dataclass(frozen=True, repr=False, eq=False)
    class Plain(Record):
        value: int

    assert Plain(1)._repr_html_() is None


# --- the numbers are those of the tables ---


def test_a_plan_for_a_cell_shows_its_facts_and_every_term():
    plan = epsl_plan()
    page, frame = shown(plan), plan.latency().to_frame()
    facts = dict(zip(*page.rows[:2], strict=True))
    assert facts["cut"] == f"{plan.cut} of 5: {plan.cut_name}"
    assert float(facts["round"].removesuffix(" s")) == pytest.approx(plan.round_time, rel=1e-3)
    assert float(facts["lower bound of the round"].removesuffix(" s")) == pytest.approx(plan.lower_bound, rel=1e-3)
    assert float(facts["gap"].removesuffix(" %")) == pytest.approx(100 * plan.gap, abs=0.01)
    assert facts["proven optimal"] == ("yes" if plan.exact else "no")
    seconds = {row[0]: float(row[1]) for row in page.rows[3:]}
    used = frame.seconds[frame.seconds > 0]
    assert list(seconds) == list(used.index)
    assert list(seconds.values()) == pytest.approx(used.tolist(), rel=1e-3)
    shares = [float(row[2].removesuffix(" %")) for row in page.rows[3:]]
    assert shares == pytest.approx((100 * frame.share[used.index]).tolist(), abs=0.01)


def test_without_a_bound_there_is_no_gap():
    facts = dict(zip(*shown(edgesplit_plan(method="fedavg", bound=False)).rows[:2], strict=True))
    assert facts["lower bound of the round"] == "not computed"
    assert facts["gap"] == "–"
    assert facts["proven optimal"] == "no"


def test_a_plan_for_devices_shows_the_terms_of_some_of_them():
    plan = edgesplit_plan(20)
    page, frame = shown(plan), plan.latency().to_frame()
    header, rows = page.rows[2], page.rows[3:]
    assert len(rows) == html.ROWS
    assert "12 more devices not shown" in page.text
    numbers = [int(row[0].split(":")[0]) for row in rows]
    assert int(frame.total.argmax()) in numbers
    for term in ("device_compute", "model_exchange", "optimizer", "total"):
        found = [float(row[header.index(f"{term}, s")]) for row in rows]
        assert found == pytest.approx(frame[term][numbers].tolist(), rel=1e-3)


def test_a_pipelined_plan_shows_every_stage_and_hop():
    plan = pipeline_plan()
    page, frame = shown(plan), plan.latency().to_frame()
    facts = dict(zip(*page.rows[:2], strict=True))
    assert (facts["b"], facts["m"], facts["M"]) == ("32", str(plan.micro_batch), str(plan.n_micro_batches))
    assert [row[1] for row in page.rows[3:]] == list(frame.index)
    for place, column in ((2, "forward_s"), (3, "backward_s"), (4, "occupancy_s")):
        assert [float(row[place]) for row in page.rows[3:]] == pytest.approx(frame[column].tolist(), rel=1e-3)
    assert "lower bound of the interval" in shown(pipeline_plan(objective="interval")).text


def test_a_profile_shows_its_ends_and_the_cuts_that_send_least():
    act = np.r_[5.0, np.tile([9.0, 8.0, 7.0], 10)[:28], 6.0, 1.0] * 1e6
    profile = small_profile(30, act_bits=act, grad_bits=act)
    page = shown(profile)
    chosen = [int(row[0]) for row in page.rows[1:]]
    lightest = 1 + np.argsort(act[1:-1], kind="stable")[:10]
    assert chosen == sorted([0, 30, *lightest.tolist()])
    assert "19 cuts are left out" in page.text
    assert [float(row[2]) for row in page.rows[1:]] == pytest.approx(act[chosen] / 1e6)
    shares = [float(row[4].removesuffix(" %")) for row in page.rows[1:]]
    assert shares == pytest.approx([100 * j / 30 for j in chosen], abs=0.01)
    assert "left out" not in shown(PROFILE).text


def test_a_history_shows_the_first_the_best_and_the_last_round():
    run = history()
    rows = {row[0]: row for row in shown(run).rows}
    assert [rows[name][1] for name in ("first", "best", "last")] == ["1", "29", "30"]
    assert rows["first"][2] == "–"  # without evaluation
    assert float(rows["best"][2]) == run.best_accuracy
    assert float(rows["last"][5]) == pytest.approx(run.uplink_bits[-1] / 1e6)
    assert float(rows["last"][7]) == pytest.approx(run.simulated_time_s[-1])
    other = {row[0] for row in shown(history(settings={"metric": "iou"})).rows}
    assert "best" not in other  # nobody says that more is better


@pytest.mark.parametrize("rounds", [0, 1, 2])
def test_a_short_history_without_evaluations_shows_itself(rounds):
    nothing = np.full(rounds, math.nan)
    columns = dict.fromkeys(
        ("simulated_time_s", "train_loss", "test_accuracy", "uplink_bits", "downlink_bits"), nothing
    )
    run = History("psl", {}, client_accuracy=np.array([]), **columns)
    assert len(shown(run).rows) == 1 + min(rounds, 2)


# --- what could go wrong ---


def test_names_are_escaped():
    names = (EVIL, *PROFILE.names[1:-1], EVIL)
    profile = dataclasses.replace(PROFILE, names=names)
    cluster = dataclasses.replace(EdgeCluster.sample(3, seed=1), device_names=(EVIL, "b", "c"))
    graph = nx.DiGraph()
    graph.add_node(EVIL, speed=1e9)
    network = EdgeNetwork(graph, EVIL)
    for record in (
        profile,
        cluster,
        network,
        edgesplit.solve(profile, cluster, batch_size=8),
        pipeline.solve(profile, network, batch_size=8),
        history(framework=EVIL, settings={"metric": EVIL}),
    ):
        assert EVIL in shown(record).text


def test_a_client_that_reaches_nothing_and_a_model_that_costs_nothing_are_shown():
    cell = WirelessCell.sample(3, 6, seed=1)
    silent = epsl.EPSLPlan(PROFILE, cell, 8, 0.5, "given", 1, np.arange(6) % 3, np.zeros(6))
    assert math.isinf(silent.round_time)
    zeros = np.zeros(6)
    free = small_profile(fwd_cost=zeros, bwd_cost=zeros, last_bwd_cost=0.0, step_cost=None)
    none = dataclasses.replace(cell, uplink_gain=np.zeros_like(cell.uplink_gain))
    for record in (silent, free, none):
        with np.errstate(all="raise"):
            assert len(shown(record).rows) >= 2


def test_a_plan_for_very_many_devices_is_shown_in_a_blink():
    plan = edgesplit_plan(10_000)
    start = time.perf_counter()
    assert "9992 more devices" in plan._repr_html_()
    assert time.perf_counter() - start < 0.2


def test_bars_stay_within_their_width():
    page = html.table("t", ["a"], [[html.Bar([0.7, math.nan, 0.7, -1])], [html.Curve([0, math.nan, 2])]])
    assert "width:7.70em" in page
    assert "width:3.30em" in page
    assert "nan" not in page


def test_some_keeps_what_must_be_seen():
    assert html.some(100, [50, 99], 4) == [0, 1, 50, 99]
    assert html.some(3, [2], 8) == [0, 1, 2]
    assert html.some(0) == []
