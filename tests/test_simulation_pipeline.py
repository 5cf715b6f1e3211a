"""The pipeline's simulation against hand-made schedules, a second simulator, exact special cases and bounds."""

import dataclasses
import json
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest

from psl.errors import ScenarioError
from psl.profiles import Profile
from psl.simulation import Timeline, lower_bound, simulate, simulate_path
from psl.simulation.timeline import KINDS
from simulation_scenarios import chain, make_plan, random_chain, random_walk_plan, second_by_second, walk_of


def half_duplex(plan):
    return dataclasses.replace(plan, network=dataclasses.replace(plan.network, duplex="half"))


def with_graph(plan, change):
    """The plan on a changed network."""
    graph = nx.DiGraph(plan.network.graph)
    change(graph)
    return dataclasses.replace(plan, network=dataclasses.replace(plan.network, graph=graph))


def spans(timeline, resource, kind):
    frame = timeline.to_frame()
    mine = frame[(frame["resource"] == resource) & (frame["kind"] == kind)].sort_values("micro_batch")
    return list(zip(mine["start_s"], mine["end_s"], strict=True))


def costs(plan, n):
    """Seconds of every part of n samples' way: (forward, backward, latency), from the plan alone."""
    way, turn = walk_of(plan, n)
    seconds = np.array([step[2] for step in way])
    return seconds[:turn], seconds[turn:][::-1], sum(step[3] for step in way)


def test_two_stages_by_hand():
    plan = chain([4, 1], [3, 2], [1], [1], batch_size=4)
    timeline = simulate(plan)
    # At 12 node 0 has the choice between forward 3 and backward 0: backward first, and again at 15 and 18.
    assert spans(timeline, "node 0", "forward") == [(0, 4), (4, 8), (8, 12), (21, 25)]
    assert spans(timeline, "node 0", "backward") == [(12, 15), (15, 18), (18, 21), (30, 33)]
    assert spans(timeline, "node 1", "forward") == [(5, 6), (9, 10), (13, 14), (26, 27)]
    assert spans(timeline, "node 1", "backward") == [(6, 8), (10, 12), (14, 16), (27, 29)]
    assert spans(timeline, "link 0→1", "activation") == [(4, 5), (8, 9), (12, 13), (25, 26)]
    assert spans(timeline, "link 1→0", "gradient") == [(8, 9), (12, 13), (16, 17), (29, 30)]
    assert timeline.makespan == 33
    use = timeline.utilisation().loc["node 0"]
    assert use[["events", "busy_s", "idle_s", "first_s", "last_s"]].tolist() == [8, 28, 5, 0, 33]
    assert use["share"] == pytest.approx(28 / 33)
    counts = timeline.in_flight()
    assert counts[0].to_dict() == {
        0: 1, 4: 2, 5: 2, 8: 3, 9: 3, 12: 3, 13: 3, 15: 2, 16: 2, 18: 1, 21: 1, 26: 1, 29: 1, 33: 0
    }  # fmt: skip
    assert counts[1].max() == 1


def test_latency_and_half_duplex_by_hand():
    # Two micro-batches, 2 s per message, 10 s on the way: the second leaves at 4 although the first is still under way.
    plan = chain([1, 1], [1, 1], [2], [2], latency=10, batch_size=2)
    timeline = simulate(plan)
    assert spans(timeline, "link 0→1", "activation") == [(1, 3), (3, 5)]
    assert spans(timeline, "node 1", "forward") == [(13, 14), (15, 16)]
    assert spans(timeline, "node 1", "backward") == [(14, 15), (16, 17)]
    assert timeline.makespan == 17 + 2 + 10 + 1
    # Half duplex: the first gradient, ready at 5, waits for the third activation, which came first.
    plan = chain([1, 1], [1, 1], [2], [2], batch_size=3, duplex="half")
    timeline = simulate(plan)
    assert spans(timeline, "link 0–1", "activation") == [(1, 3), (3, 5), (5, 7)]
    assert spans(timeline, "link 0–1", "gradient") == [(7, 9), (9, 11), (11, 13)]
    assert timeline.makespan == 14


def test_a_node_with_two_stages_is_one_processor():
    plan = chain([1, 1], [1, 1], [1], [1], batch_size=2)
    profile = dataclasses.replace(
        plan.profile, names=["a", "b", "c", "d"], fwd_cost=[0, 1, 2, 3], bwd_cost=[0, 1, 2, 3], act_bits=[0, 1, 1, 0],
        grad_bits=[0, 1, 1, 0], param_bits=[0, 0, 0, 0], act_memory=[0, 1, 2, 3],
    )  # fmt: skip
    stages, hops = [(0, 0, 1), (1, 1, 2), (0, 2, 3)], [(1, 0, 1), (2, 1, 0)]
    timeline = simulate(make_plan(profile, plan.network.graph, stages, hops, 2, 1))
    use = timeline.utilisation()
    assert use.loc["node 0", ["events", "busy_s"]].tolist() == [8, 8]
    # Both directions carry one hop's activations and the other hop's gradients.
    assert use.loc["link 0→1", "events"] == use.loc["link 1→0", "events"] == 4
    assert set(timeline.memory().columns) == {"node 0", "node 1"}


@pytest.mark.parametrize("order", ["1f1b", "flush"])
def test_equal_to_the_second_simulator(order):
    for seed in range(150):
        rng = np.random.default_rng(seed)
        plan = random_walk_plan(rng)
        window = int(rng.integers(1, 5)) if order == "1f1b" and rng.random() < 0.5 else None
        want = second_by_second(plan, order, window)
        timeline = simulate(plan, order=order, max_in_flight=window)
        assert timeline.makespan == max(end for _, end in want.values()), f"seed {seed}"
        got = sorted(zip(timeline.micro_batch.tolist(), timeline.start.tolist(), timeline.end.tolist(), strict=True))
        assert got == sorted((m, start, end) for (m, _), (start, end) in want.items()), f"seed {seed}"


def test_one_micro_batch_is_the_sum_of_all_costs():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        b = int(rng.integers(1, 9))
        plan = random_chain(rng, max_micro_batches=1, micro_batch=b)
        forward, backward, latency = costs(plan, b)
        for order in ("1f1b", "flush"):
            total = forward.sum() + backward.sum() + latency
            assert simulate(plan, order=order).makespan == pytest.approx(total, rel=1e-9), f"seed {seed}"


def test_flush_has_an_exact_closed_form():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        b, duplex = int(rng.integers(1, 4)), ["full", "half"][seed % 2]
        plan = random_chain(rng, micro_batch=b, even=seed % 3 == 0, duplex=duplex)
        count = -(-plan.batch_size // b)
        forward, backward, latency = costs(plan, b)
        want = forward.sum() + backward.sum() + latency + (count - 1) * (forward.max() + backward.max())
        got = simulate(plan, order="flush", equal_micro_batches=True).makespan
        assert got == pytest.approx(want, rel=1e-9), f"seed {seed}"


def test_one_stage_is_never_idle():
    for order in ("1f1b", "flush"):
        timeline = simulate(chain([2], [3], overhead=0.5, batch_size=10, micro_batch=4), order=order)
        assert timeline.makespan == pytest.approx(10 * 5 + 3 * 2 * 0.5)
        assert timeline.utilisation()["idle_s"].tolist() == [0]


def test_resources_serve_one_and_everything_follows_its_way():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plan = random_chain(rng, micro_batch=3, even=False, duplex=["full", "half"][seed % 2])
        count, window = -(-plan.batch_size // 3), int(rng.integers(1, 9)) if seed % 3 else None
        order = "flush" if seed % 5 == 0 and window is None else "1f1b"
        timeline = simulate(plan, order=order, max_in_flight=window)
        for resource in range(len(timeline.resources)):
            mine = timeline.resource == resource
            assert (timeline.start[mine][1:] >= timeline.end[mine][:-1]).all(), f"seed {seed}: two at once"
        work = 0.0
        for m in range(count):
            n = plan.batch_size - 3 * (count - 1) if m == count - 1 else 3
            way, _ = walk_of(plan, n)
            mine = timeline.micro_batch == m
            start, end = timeline.start[mine], timeline.end[mine]  # events are in order of start
            assert len(start) == len(way)
            seconds = np.array([step[2] for step in way])
            delay = np.array([step[3] for step in way])
            assert end - start == pytest.approx(seconds, rel=1e-9), f"seed {seed}"
            assert (start[1:] >= end[:-1] + delay[:-1] - 1e-9).all(), f"seed {seed}: too early"
            assert (timeline.samples[mine] == n).all()
            work += seconds.sum()
        assert timeline.utilisation()["busy_s"].sum() == pytest.approx(work), f"seed {seed}"
        if order == "flush":
            last = timeline.stage == len(plan.stages) - 1
            forward = timeline.end[last & (timeline.kind == KINDS.index("forward"))].max()
            assert (timeline.start[timeline.kind == KINDS.index("backward")] >= forward).all()
        if window is not None:
            assert timeline.in_flight()[0].max() <= window


def test_nothing_beats_load_with_head_and_tail():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plan = random_chain(rng, duplex=["full", "half"][seed % 2])
        count = plan.batch_size
        way, _ = walk_of(plan, 1)
        reach = np.cumsum([0.0, *(step[2] + step[3] for step in way)])
        want = reach[-1]
        for resource in {step[1] for step in way}:
            mine = [k for k, step in enumerate(way) if step[1] == resource]
            load = count * sum(way[k][2] for k in mine)
            after = [reach[-1] - reach[k] - way[k][2] for k in mine]
            want = max(want, reach[min(mine)] + load + min(after))
        bound = lower_bound(plan)
        assert bound == pytest.approx(want, rel=1e-9), f"seed {seed}"
        for options in ({}, {"order": "flush"}, {"max_in_flight": 2}):
            assert simulate(plan, **options).makespan >= bound * (1 - 1e-9), f"seed {seed} {options}"


def test_limits_agree():
    for seed in range(60):
        rng = np.random.default_rng(seed)
        plan = random_chain(rng)
        free = simulate(plan)
        assert simulate(plan, max_in_flight=plan.batch_size) == free, f"seed {seed}"
        assert simulate(plan, max_in_flight=10**9) == free, f"seed {seed}"
        # One at a time: no pipeline at all, every micro-batch pays for the whole way.
        forward, backward, latency = costs(plan, 1)
        alone = forward.sum() + backward.sum() + latency
        one = simulate(plan, max_in_flight=1).makespan
        assert one == pytest.approx(plan.batch_size * alone, rel=1e-9)
        assert one >= free.makespan * (1 - 1e-9)


def test_more_links_or_more_work_in_flight_help_on_average():
    # Greedy schedules have anomalies, so single instances may go the other way; averages and large margins may not.
    half, windows = [], []
    for seed in range(60):
        plan = random_chain(np.random.default_rng(seed), max_micro_batches=20)
        free = simulate(plan).makespan
        windows.append([simulate(plan, max_in_flight=w).makespan / free for w in (1, 2, 4, 8, 16)])
        half.append(simulate(half_duplex(plan)).makespan / free)
    assert np.mean(half) > 1.01
    assert min(half) > 0.8
    assert (np.diff(np.mean(windows, axis=0)) <= 0).all()


def test_the_last_micro_batch_has_what_is_left():
    plan = chain([2, 1], [2, 2], [1], [1], batch_size=7, micro_batch=3)
    real, equal = simulate(plan), simulate(plan, equal_micro_batches=True)
    assert [int(real.samples[real.micro_batch == m].max()) for m in range(3)] == [3, 3, 1]
    assert set(equal.samples.tolist()) == {3}
    assert real.makespan < equal.makespan
    assert simulate(dataclasses.replace(plan, batch_size=9)) == equal


def test_memory_by_hand_and_within_the_plan_bound():
    plan = chain([4, 1], [3, 2], [1], [1], batch_size=4)
    profile = dataclasses.replace(plan.profile, param_bits=[0, 80, 240], act_memory=[0, 7, 12])
    plan = dataclasses.replace(plan, profile=profile)
    memory = simulate(plan).memory()
    assert memory.loc[0.0].to_dict() == {"node 0": 3 * 10 + 7, "node 1": 3 * 20}
    assert memory.max().to_dict() == {"node 0": 30 + 3 * 7, "node 1": 60 + 5}
    assert memory.iloc[-1].to_dict() == {"node 0": 30, "node 1": 60}
    # Flush keeps the whole mini-batch at the source; no order keeps more than the plan allows for.
    assert simulate(plan, order="flush").memory().max().to_dict() == {"node 0": 30 + 4 * 7, "node 1": 60 + 4 * 5}
    for seed in range(40):
        plan = random_walk_plan(np.random.default_rng(seed))
        allowed = dict.fromkeys((f"node {node}" for node, _, _ in plan.stages), 0.0)
        for node, i, j in plan.stages:
            held = plan.batch_size * (plan.profile.act_memory[j] - plan.profile.act_memory[i])
            allowed[f"node {node}"] += 3 * (plan.profile.param_bits[j] - plan.profile.param_bits[i]) / 8 + held
        free, flush = (simulate(plan, order=order).memory().max() for order in ("1f1b", "flush"))
        assert (free <= flush).all(), f"seed {seed}"
        assert flush.to_dict() == allowed, f"seed {seed}"


def test_a_measured_profile_replaces_the_speed():
    plan = chain([4, 1], [3, 2], [1], [1], batch_size=4)
    own = Profile.measured(plan.profile.names, [0, 8, 10], [0, 6, 11], plan.profile.act_bits)
    timeline = simulate(with_graph(plan, lambda graph: graph.nodes[1].update(profile=own, speed=1e9, overhead=0.5)))
    first = {kind: spans(timeline, "node 1", kind)[0] for kind in ("forward", "backward")}
    assert first == {"forward": (5, 7.5), "backward": (7.5, 13)}


def test_the_same_plan_gives_the_same_timeline_and_survives_json(tmp_path):
    plan = random_chain(np.random.default_rng(5))
    timeline = simulate(plan)
    assert simulate(plan) == timeline
    again = Timeline.from_dict(json.loads(json.dumps(timeline.to_dict())))
    assert again == timeline
    assert Timeline.load(timeline.save(tmp_path / "timeline.json")) == timeline
    assert again.makespan == timeline.makespan
    assert not timeline.start.flags.writeable
    assert timeline != simulate(plan, order="flush")
    assert len(repr(timeline)) < 120
    assert "pipeline, 1f1b" in repr(timeline)


def test_nodes_may_have_confusing_names():
    plan = chain([1, 1], [1, 1], [1], [1], batch_size=2)
    graph = nx.relabel_nodes(plan.network.graph, {0: "1"})
    timeline = simulate(make_plan(plan.profile, graph, [("1", 0, 1), (1, 1, 2)], [(1, "1", 1)], 2, 1))
    assert timeline.resources == ("node '1'", "link '1'→1", "link 1→'1'", "node 1")
    assert timeline.makespan == simulate(plan).makespan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "gpipe"}, "order: expected one of '1f1b', 'flush', got 'gpipe'"),
        ({"max_in_flight": 0}, "max_in_flight: expected at least 1, got 0"),
        ({"max_in_flight": 1.5}, "max_in_flight: expected a whole number, got 1.5"),
        (
            {"max_in_flight": 2, "order": "flush"},
            "max_in_flight: expected None or at least the 4 micro-batches with order='flush', got 2",
        ),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ScenarioError, match=message):
        simulate(chain([1, 1], [1, 1], [1], [1], batch_size=4), **options)


def test_broken_plans():
    def broken(message, **changes):
        plan = dataclasses.replace(chain([1, 1, 1], [1, 1, 1], [1, 1], [1, 1], batch_size=4), **changes)
        with pytest.raises(ScenarioError, match=message):
            simulate(plan)

    broken("expected hop 1 to leave node 1", hops=((1, 0, 1), (2, 0, 1)))
    broken("expected hop 0 to leave node 0 over a link with both directions", hops=((1, 0, 2),))
    broken("expected stage 1 to continue at node 0", hops=((2, 0, 1),))
    broken("compute all 3 units and end there", stages=((0, 0, 1), (1, 1, 2)))
    broken("expected stage 1 to continue at node 1 after unit 1", stages=((0, 0, 1), (1, 0, 2)))
    broken("plan.micro_batch: expected at most the mini-batch of 4, got 5", micro_batch=5)
    plan = chain([1, 1], [1, 1], [1], [1])
    relay = with_graph(plan, lambda graph: graph.nodes[1].update(speed=0))
    with pytest.raises(ScenarioError, match="node 1: expected a speed above 0, as it holds a stage, got 0"):
        simulate(relay)
    slow = with_graph(plan, lambda graph: graph.edges[0, 1].update(rate=5e-324))
    with pytest.raises(
        ScenarioError, match="duration of a job on link 0→1: expected a finite number of seconds, got inf"
    ):
        simulate(slow)


def test_a_path_is_simulated_without_a_plan():
    for seed in range(20):
        plan = random_walk_plan(np.random.default_rng(seed))
        options = {"order": ("1f1b", "flush")[seed % 2], "equal_micro_batches": seed % 3 == 0}
        found = simulate_path(
            plan.profile,
            plan.network,
            stages=list(plan.stages),
            hops=list(plan.hops),
            micro_batch=plan.micro_batch,
            batch_size=plan.batch_size,
            **options,
        )
        assert found == simulate(plan, **options), f"seed {seed}"
    with pytest.raises(ScenarioError, match="expected stage 0 to continue at node a after unit 0"):
        simulate_path(plan.profile, plan.network, stages=[("b", 0, 1)], hops=[], micro_batch=1, batch_size=1)


def test_what_is_no_plan():
    plan = chain([1, 1], [1, 1], [1], [1])
    partly = SimpleNamespace(scheduler="pipeline", profile=plan.profile, network=plan.network)
    for thing, name in ((3, "int"), (None, "NoneType"), (Timeline, "Timeline"), (partly, "SimpleNamespace")):
        with pytest.raises(ScenarioError, match=f"plan: expected a plan of epsl.solve, .*, got {name}"):
            simulate(thing)
