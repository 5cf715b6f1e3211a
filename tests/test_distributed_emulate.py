"""The emulated edge: rates that the kernel or the sender keeps, slower computing, and nothing left behind."""

import dataclasses
import os
import subprocess
import sys
import threading
import time

import networkx as nx
import numpy as np
import pytest

from psl.distributed.edge import emulate, namespaces
from psl.distributed.edge.emulate import Compute, EdgeEmulation, choose_links, emulation_for
from psl.distributed.edge.namespaces import Namespaces, VirtualLink, chain, star, sweep, unavailable
from psl.distributed.edge.pacing import DelayLine
from psl.distributed.leftovers import owner
from psl.errors import PSLError, ScenarioError
from psl.networks import EdgeCluster, EdgeNetwork, WirelessCell
from psl.profiles import Profile
from psl.schedulers import edgesplit, epsl, pipeline

kernel = pytest.mark.skipif(unavailable() is not None, reason=f"no shaped namespaces: {unavailable()}")

# Sends messages that carry the time, or receives them and prints how long each was on its way.
TALK = """
import socket, struct, sys, time
role, address, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role == "receive":
    with socket.create_server((address, 5000)) as server:
        print("ready", flush=True)
        peer, _ = server.accept()
        with peer:
            for _ in range(4):
                message = peer.recv(size + 8, socket.MSG_WAITALL)
                print(time.monotonic() - struct.unpack("d", message[:8])[0], flush=True)
                peer.send(b"x")
else:
    with socket.create_connection((address, 5000)) as peer:
        for _ in range(4):
            peer.sendall(struct.pack("d", time.monotonic()) + bytes(size))
            peer.recv(1)
"""


def seconds_on_the_way(network, sender, receiver, size, plane=0):
    """Median of the seconds that messages of `size` bytes take between two members."""
    address = network.address(receiver, plane)
    arguments = [sys.executable, "-c", TALK]
    options = {"stdout": subprocess.PIPE, "text": True}
    receive = network.command(receiver, [*arguments, "receive", address, str(size)])
    with subprocess.Popen(receive, **options) as listener:
        assert listener.stdout.readline() == "ready\n"
        subprocess.run(network.command(sender, [*arguments, "send", address, str(size)]), check=True, timeout=30)
        return np.median([float(line) for line in listener.stdout])


def about(seconds, expected):
    """Whether a message took as long as expected, or somewhat longer; other rates are farther off."""
    return 0.85 * expected <= seconds <= 1.6 * expected


def ours():
    """Names of the namespaces that this process made."""
    found = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
    return [name for name in found if name.startswith(f"psl-{os.getpid()}-")]


@pytest.mark.slow
@kernel
def test_the_kernel_keeps_the_rates_of_a_star_in_both_directions():
    up, down, everybody = [8e6, 40e6], [16e6, 80e6], 4e6
    size = 100_000
    with star(up, down, broadcast=everybody) as network:
        for i in range(2):
            assert about(seconds_on_the_way(network, i + 1, 0, size), 8 * size / up[i])
            assert about(seconds_on_the_way(network, 0, i + 1, size), 8 * size / down[i])
        assert about(seconds_on_the_way(network, 0, 2, size // 2, plane=1), 4 * size / everybody)
    assert not ours()


@pytest.mark.slow
@kernel
def test_members_of_a_chain_reach_each_other_over_the_slowest_link():
    with chain([float("inf"), 8e6], [8e6, float("inf")]) as network:
        assert about(seconds_on_the_way(network, 0, 2, 50_000), 0.05)
        assert about(seconds_on_the_way(network, 2, 0, 50_000), 0.05)


@pytest.mark.slow
@kernel
def test_namespaces_and_what_runs_in_them_go_with_an_exception():
    with pytest.raises(RuntimeError, match="on purpose"), chain([1e6], [1e6]) as network:
        sleeper = subprocess.Popen(network.command(1, ["sleep", "600"]))
        while not subprocess.run(["ip", "netns", "pids", network.names[1]], capture_output=True, check=True).stdout:
            time.sleep(0.01)
        assert len(ours()) == 2
        raise RuntimeError("on purpose")
    assert not ours()
    assert sleeper.wait(timeout=5) == -9


@pytest.mark.slow
@kernel
def test_a_network_that_cannot_be_made_leaves_nothing():
    broken = Namespaces(2, [VirtualLink(0, 1, 1e6, 1e6), VirtualLink(0, 1, 1e6, 1e6)])
    broken.names[1] = broken.names[1] + "/"  # no name for a namespace
    with pytest.raises(PSLError, match="ip netns add"), broken:
        pass
    assert not ours()


@pytest.mark.slow
@kernel
def test_leftovers_of_processes_that_are_gone_are_swept():
    gone = subprocess.Popen(["true"])
    gone.wait()
    place = owner().split("-")[-1]
    dead = f"psl-{gone.pid}-1-{place}-0-0"
    reused = f"psl-{os.getpid()}-1-{place}-0-0"  # this process did not start one tick after boot
    foreign = f"other-{gone.pid}"
    for name in (dead, reused, foreign):
        subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        with chain([1e6], [1e6]) as network:
            assert sweep() == []
            there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
            assert dead not in there and reused not in there
            assert foreign in there and network.names[0] in there, "others', and those in use, stay"
    finally:
        subprocess.run(["ip", "netns", "del", foreign], check=True)


def test_where_the_kernel_may_not_it_is_said_and_paced(monkeypatch):
    monkeypatch.setattr(namespaces.os, "geteuid", lambda: 1000)
    unavailable.cache_clear()
    try:
        with pytest.raises(PSLError, match="needs? root.*pacing"):
            choose_links("kernel")
        with pytest.raises(PSLError, match="needs? root.*pacing"), chain([1e6], [1e6]):
            pass
        assert choose_links("auto") == "pacing"
    finally:
        unavailable.cache_clear()


def test_wrong_links_are_refused():
    with pytest.raises(ScenarioError, match="rate of a link.*above 0"):
        chain([0.0], [1e6])
    with pytest.raises(ScenarioError, match="links.*members 0..1"):
        Namespaces(2, [VirtualLink(0, 2, 1e6, 1e6)])


def test_a_delay_line_stores_and_forwards_first_in_first_out():
    line = DelayLine([(1e3, 0.5), (2e3, 0.25)])
    assert line.arrival(1000, now=10.0) == pytest.approx(10 + 1 + 0.5 + 0.5 + 0.25)
    # The first hop is free again at 11, its latency occupies nothing; the second is at 12, before the message comes.
    assert line.arrival(1000, now=10.0) == pytest.approx(11 + 1 + 0.5 + 0.5 + 0.25)
    # At a broadcast's rate the third is through the first hop at once, and waits for the second until 13.
    assert line.arrival(1000, now=10.0, rate=1e9) == pytest.approx(13 + 0.5 + 0.25)
    assert line.arrival(0, now=100.0) == pytest.approx(100.75)


def test_messages_leave_a_delay_line_late_and_in_order():
    line, got = DelayLine([(1e5, 0.2)]), []
    start = time.monotonic()
    for name in ("a", "b", "c"):
        line.put(20_000, lambda name=name: got.append((name, time.monotonic() - start)))
    assert not got, "the sender goes on"
    line.flush(timeout=10)
    assert [name for name, _ in got] == ["a", "b", "c"]
    late = [when - due for (_, when), due in zip(got, (0.4, 0.6, 0.8), strict=True)]
    assert min(late) >= 0
    line.close()


def test_a_delay_line_raises_what_sending_raised_and_ends():
    line = DelayLine([(float("inf"), 0.0)])

    def fail():
        raise OSError("the other end is gone")

    line.put(8, fail)
    with pytest.raises(OSError, match="is gone"):
        line.flush(timeout=5)
    with pytest.raises(OSError, match="is gone"):
        line.put(8, fail)
    line.close()
    slow = DelayLine([(1.0, 0.0)])
    slow.put(3600, lambda: None)
    with pytest.raises(TimeoutError, match="1 messages"):
        slow.flush(timeout=0.02)
    slow.close()


def burn(seconds):
    """Compute for so many seconds of this thread's CPU time."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.slow
def test_computing_is_stretched_by_its_cpu_time_not_by_its_waiting():
    noted = []
    compute = Compute(factor=100.0, overhead=0.02, record=lambda *row: noted.append(row))
    with compute("forward", 3):
        burn(0.01)
        time.sleep(0.1)  # waits, computes nothing
    (kind, number, start, end, cpu) = noted[0]
    assert (kind, number) == ("forward", 3)
    assert 0.01 <= cpu < 0.1
    assert end - start > 0.999 * (0.02 + 100 * cpu)
    assert compute.overrun == 0


def test_what_takes_longer_than_emulated_is_counted():
    compute = Compute(factor=2.0)
    with compute("forward"):
        time.sleep(0.05)
    assert compute.overrun > 0.04
    compute = Compute()
    with compute("forward"):
        time.sleep(0.01)
    assert compute.overrun == 0, "nothing is emulated"


@pytest.mark.slow
def test_computations_that_share_a_turn_do_not_overlap(tmp_path):
    busy, overlaps = [], []

    def work():
        compute = Compute(4.0, turn=tmp_path / "turn")
        for _ in range(5):
            with compute("forward"):
                overlaps.append(len(busy))
                busy.append(1)
                burn(0.002)
                busy.pop()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [0] * 15


SECONDS = Profile.measured(
    ["in", "a", "b", "out"], [0, 1e-3, 2e-3, 3e-3], [0, 2e-3, 4e-3, 6e-3], [8e3, 4e3, 2e3, 1e3],
    param_bits=[0, 1e3, 2e3, 3e3],
)  # fmt: skip


def test_emulation_of_an_epsl_plan_has_its_rates_and_speeds():
    cell = WirelessCell.sample(3, 6, 0, "log-distance", client_speed_range=(0.05, 0.1), server_speed=0.5)
    plan = epsl.solve(SECONDS, cell, batch_size=4)
    found, rates = emulation_for(plan, "none"), plan.to_frame()
    np.testing.assert_allclose(found.slowdown, [2.0, *(1 / cell.client_speed)])
    np.testing.assert_allclose(found.forward, rates["uplink_bit_s"])
    np.testing.assert_allclose(found.backward, rates["downlink_bit_s"])
    shared = plan.latency().broadcast  # n_A χ / R_bc
    assert 2 * SECONDS.grad_bits[plan.cut] / found.broadcast == pytest.approx(shared)
    assert EdgeEmulation.from_dict(found.to_dict()) == found
    assert "star of 4 processes" in repr(found)


def test_emulation_of_an_edgesplit_plan_slows_a_slice_of_the_server():
    cluster = EdgeCluster([0.1, 0.2], np.inf, [2.0, 4.0], 1e6, server_speed=1.0)
    plan = edgesplit.solve(SECONDS, cluster, batch_size=4)
    found = emulation_for(plan, "pacing")
    np.testing.assert_allclose(found.slowdown, [2.0, 10.0, 5.0])
    np.testing.assert_allclose(found.forward, cluster.spectral_efficiency * plan.bandwidth)
    assert found.broadcast is None and found.links == "pacing" and (found.forward_latency == 0).all()
    plan = edgesplit.solve(SECONDS, dataclasses.replace(cluster, message_overhead=0.002), batch_size=4)
    found = emulation_for(plan, "pacing")
    np.testing.assert_array_equal([found.forward_latency, found.backward_latency], np.full((2, 2), 0.002))
    plan = edgesplit.solve(SECONDS, dataclasses.replace(cluster, round_overhead=0.002), batch_size=4)
    with pytest.raises(ScenarioError, match="no time per round beside what is emulated, got 0.002"):
        emulation_for(plan)


def relayed_plan():
    """A pipeline over a node that only relays."""
    graph = nx.DiGraph()
    graph.add_nodes_from([(0, {"speed": 0.1, "overhead": 1e-3}), (1, {}), (2, {"speed": 0.2})])
    for u, v, rate in ((0, 1, 1e6), (1, 0, 2e6), (1, 2, 3e6), (2, 1, 4e6)):
        graph.add_edge(u, v, rate=rate, latency=1e-3 * (u + 1))
    network = EdgeNetwork(graph, 0)
    return pipeline.PipelinePlan(SECONDS, network, 8, 2, [(0, 0, 1), (2, 1, 3)], [(1, 0, 1), (1, 1, 2)])


def test_emulation_of_a_pipeline_has_a_process_per_relay():
    found = emulation_for(relayed_plan(), "none")
    np.testing.assert_allclose(found.slowdown, [10.0, 0.0, 5.0])
    np.testing.assert_allclose(found.overhead, [1e-3, 0, 0])
    np.testing.assert_allclose(found.forward, [1e6, 3e6])
    np.testing.assert_allclose(found.backward, [2e6, 4e6])
    np.testing.assert_allclose(found.forward_latency, [1e-3, 2e-3])
    np.testing.assert_allclose(found.backward_latency, [2e-3, 3e-3])


def test_lines_carry_what_the_kernel_does_not():
    found = emulation_for(relayed_plan(), "pacing")
    assert found.line(1, "forward").hops == [(3e6, 2e-3)]
    assert found.line(0, "backward").hops == [(2e6, 2e-3)]
    by_kernel = emulate.replace(found, links="kernel")
    assert by_kernel.line(1, "forward").hops == [(float("inf"), 2e-3)], "latency alone"
    at_once = emulate.replace(by_kernel, forward_latency=np.zeros(2))
    assert at_once.line(1, "forward") is None
    assert emulate.replace(found, links="none").line(0, "forward") is None


def test_what_no_factor_imitates_is_refused():
    speed = Profile(["in", "out"], [0, 1e6], [0, 2e6], [8, 8], [8, 8], [0, 0], [0, 0])
    cluster = EdgeCluster([1e9], np.inf, [2.0], 1e6, server_speed=1e9)
    with pytest.raises(ScenarioError, match=r"plan\.profile.*measured.*FLOP.*psl\.measure"):
        emulation_for(edgesplit.solve(speed, cluster, batch_size=2))
    cluster = EdgeCluster([1.0], np.inf, [2.0], 1e6, server_speed=1.0, profiles=(SECONDS,))
    with pytest.raises(ScenarioError, match="a profile of its own"):
        emulation_for(edgesplit.solve(SECONDS, cluster, batch_size=2))
    with pytest.raises(ScenarioError, match="links.*'kernel'"):
        emulation_for(relayed_plan(), "radio")
    none = np.zeros(1)
    with pytest.raises(ScenarioError, match=r"EdgeEmulation\.forward.*shape \(1\)"):
        EdgeEmulation("chain", [1.0, 1.0], [1e6, 1e6], [1e6], none, none, np.zeros(2))
