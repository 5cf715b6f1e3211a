"""The engine: ticks, ties, queues, and what it refuses."""

import numpy as np
import pytest

from psl.errors import ScenarioError
from psl.simulation.engine import Jobs


def test_ties_are_exact_and_go_by_priority():
    jobs = Jobs()
    shared = jobs.resource("shared")
    long = jobs.add(None, 0.3)
    short = jobs.add(None, 0.2, (jobs.add(None, 0.1),))  # 0.1 + 0.2 > 0.3 in floating point
    late = jobs.add(shared, 1.0, (long,), (1,))
    first = jobs.add(shared, 1.0, (short,), (0,))
    start, end = jobs.run()
    assert start[first] == 0.3 == end[long] == end[short]
    assert start[late] == 1.3


def test_first_in_first_out_against_priority():
    for fifo, order in ((True, [0, 1, 2]), (False, [0, 2, 1])):
        jobs = Jobs()
        resource = jobs.resource("r", fifo=fifo)
        work = [
            jobs.add(resource, 5.0, (jobs.add(None, arrival),), (priority,))
            for arrival, priority in ((0, 9), (1, 8), (2, 7))
        ]
        start, _ = jobs.run()
        assert np.argsort(start[work]).tolist() == order


def test_equal_priorities_go_by_the_order_of_adding():
    jobs = Jobs()
    resource = jobs.resource("r")
    for _ in range(4):
        jobs.add(resource, 1.0)
    assert jobs.run()[0].tolist() == [0, 1, 2, 3]


def test_work_of_no_time():
    jobs = Jobs()
    resource = jobs.resource("r")
    last = jobs.add(resource, 0.0, (jobs.add(None, 0.0, (jobs.add(resource, 0.0),)),))
    assert jobs.run()[1][last] == 0
    assert jobs.lower_bound() == 0


def test_tiny_and_huge_times():
    for scale in (1e-200, 1e-9, 1.0, 1e12, 1e200):
        jobs = Jobs()
        resource = jobs.resource("r")
        for seconds in (1.0, 2.0, 3.5):
            jobs.add(resource, seconds * scale)
        assert jobs.run()[1].max() == pytest.approx(6.5 * scale, rel=1e-12)


def test_a_circle_and_impossible_times_are_refused():
    jobs = Jobs()
    resource = jobs.resource("node 3")
    first = jobs.add(resource, 1.0)
    jobs.require(first, jobs.add(resource, 1.0, (first,)))
    with pytest.raises(ScenarioError, match="jobs: expected dependencies without a circle, got 2 that never start"):
        jobs.run()
    for seconds in (-1.0, float("inf"), float("nan")):
        with pytest.raises(
            ScenarioError, match=f"a job on node 3: expected a finite number of seconds, got {seconds:g}"
        ):
            jobs.add(resource, seconds)


def test_lower_bound_by_hand():
    jobs = Jobs()
    resource = jobs.resource("r")
    for head, tail in ((1.0, 4.0), (2.0, 3.0)):
        jobs.add(None, tail, (jobs.add(resource, 5.0, (jobs.add(None, head),)),))
    assert jobs.lower_bound() == 1 + 10 + 3  # least head, load, least tail
    jobs.add(None, 20.0)
    assert jobs.lower_bound() == 20
