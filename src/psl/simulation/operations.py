"""What a micro-batch of a pipelined plan goes through: its stages and hops in order, with their seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psl.errors import PSLError, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.simulation.timeline import Recorder
from psl.simulation.transfers import transfer

FORWARD, BACKWARD = 0, 1  # positions in the pairs of an `Operation`


class PipelinedPath(NamedTuple):
    """What is simulated of a `PipelinePlan`: stages (node, i, j) and hops (cut, u, v) in the order of the path."""

    profile: Profile
    network: EdgeNetwork
    batch_size: int
    micro_batch: int
    stages: Sequence[tuple[int | str, int, int]]
    hops: Sequence[tuple[int, int | str, int | str]]


@dataclass(frozen=True)
class Operation:
    """What every micro-batch goes through at one stage or hop; pairs are (forward, backward)."""

    kinds: tuple[str, str]
    number: int  # of the stage among stages, of the hop among hops
    resources: tuple[int, int]
    overhead: float  # s, whatever the size
    per_sample: tuple[float, float]  # s
    delay: tuple[float, float] = (0.0, 0.0)  # s on the way, after the resource is free again
    step: float = 0.0  # s, the optimizer step of a stage at the end of the mini-batch


def operations_of(plan: PipelinedPath, jobs: Recorder) -> list[Operation]:
    """Return the stages and hops in the order in which a micro-batch meets them."""
    graph = plan.network.graph
    operations, hops, number = [], list(plan.hops), 0
    here, done = plan.network.source, 0
    for position, (node, i, j) in enumerate(plan.stages):
        if node != here or i != done or not i < j <= plan.profile.n_units:
            raise _broken(f"stage {position} to continue at node {here} after unit {done}", (node, i, j))
        operations.append(_stage(plan, jobs, node, i, j))
        done = j
        while hops and hops[0][0] == done:
            cut, u, v = hops.pop(0)
            if u != here or not (graph.has_edge(u, v) and graph.has_edge(v, u)):
                raise _broken(f"hop {number} to leave node {here} over a link with both directions", (cut, u, v))
            operations.append(_hop(plan, jobs, number, cut, u, v))
            here, number = v, number + 1
    if hops or done != plan.profile.n_units or operations[-1].kinds[0] != "forward":
        left = f"units up to {done}, {len(hops)} hops left over"
        raise _broken(f"stages and hops that compute all {plan.profile.n_units} units and end there", left)
    return operations


def _stage(plan: PipelinedPath, jobs: Recorder, node: int | str, i: int, j: int) -> Operation:
    attributes = plan.network.graph.nodes[node]
    resource = jobs.resource(f"node {plan.network.labels[node]}")
    own = attributes.get("profile")
    table, speed = (plan.profile, attributes["speed"]) if own is None else (own, 1.0)
    if not speed > 0:
        raise expected(f"node {node}", "a speed above 0, as it holds a stage", f"{speed:g}", "place it elsewhere")
    forward, backward = table.fwd_cost[j] - table.fwd_cost[i], table.bwd_cost[j] - table.bwd_cost[i]
    per_sample = float(forward / speed), float(backward / speed)
    number = jobs.stage(resource, plan.profile, i, j)
    step = float((table.steps[j] - table.steps[i]) / speed)
    return Operation(
        ("forward", "backward"), number, (resource, resource), attributes["overhead"], per_sample, step=step
    )


def _hop(plan: PipelinedPath, jobs: Recorder, number: int, cut: int, u: int | str, v: int | str) -> Operation:
    network = plan.network
    there, back = network.graph.edges[u, v], network.graph.edges[v, u]
    a, b = network.labels[u], network.labels[v]
    if network.duplex == "half":  # one name for both directions, in the network's own order of nodes
        a, b = (a, b) if network.index[u] < network.index[v] else (b, a)
        link = jobs.resource(f"link {a}–{b}", fifo=True)
        resources = link, link
    else:
        resources = jobs.resource(f"link {a}→{b}", fifo=True), jobs.resource(f"link {b}→{a}", fifo=True)
    forward = transfer(float(plan.profile.act_bits[cut]), there["rate"])
    backward = transfer(float(plan.profile.grad_bits[cut]), back["rate"])
    delay = there["latency"], back["latency"]
    return Operation(("activation", "gradient"), number, resources, 0.0, (forward, backward), delay)


def _broken(want: str, got: Any) -> PSLError:
    return expected("plan", want, repr(got), "take stages and hops, in path order, from one plan of pipeline.solve")
