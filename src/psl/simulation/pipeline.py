"""The micro-batches of a pipelined plan, one by one through its stages and hops."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from psl.errors import PSLError, check_choice, check_count, expected
from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile
from psl.simulation.epsl import transfer
from psl.simulation.timeline import Recorder

#: order= of a pipeline: what a node does first, and whether backward waits for all of forward.
ORDERS = ("1f1b", "flush")

_FORWARD, _BACKWARD = 0, 1  # positions in the pairs of an `Operation`


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


def pipeline_jobs(plan: Any, *, order: str = "1f1b", max_in_flight: int | None = None, equal: bool = False) -> Recorder:
    """Return the jobs of one mini-batch of a pipelined plan: M micro-batches forward, then backward, then done.

    * A node is one processor, whichever and however many of the plan's stages it holds. Forward and backward of a
      micro-batch are two jobs: m samples through units i+1..j take o_v + m (ρ_j − ρ_i)/s_v and
      o_v + m (ϖ_j − ϖ_i)/s_v, or a measured table's seconds in place of ρ/s and ϖ/s.
    * Backward goes before forward when both wait, the lower micro-batch first. So the last stage computes a
      micro-batch backward right after its forward. What has been started is finished.
    * Each direction of a link (half duplex: the link) carries one message at a time, first-in first-out, of equal
      arrivals the lower micro-batch. A message takes m ψ_j/r_e or m χ_j/r_e′ seconds; then the link is free again
      while the message is on its way for the latency ℓ_e. Messages are stored and forwarded: the next hop starts
      when the whole message has arrived.
    * "flush": no backward starts before the last forward of the last stage has ended, as in GPipe.
    * A stage takes its optimizer step, (σ_j − σ_i)/s_v, after its last backward.
    * With `max_in_flight` the source starts micro-batch number u + `max_in_flight` only after its backward of number u.

    Args:
        plan: a `PipelinePlan` or a `PipelinedPath`; a node may host several stages, and a link may serve several hops.
        order: "1f1b" or "flush".
        max_in_flight: micro-batches; None for no limit.
        equal: let the last micro-batch have m samples too, instead of what is left.

    Raises:
        ScenarioError: an option is out of range, stages and hops form no path, or a stage is on a node without speed.

    Source: pipelined split learning (arXiv 2505.04368): the pipeline [P], its costs [R], its simulation [B].
    """
    check_choice("order", order, ORDERS)
    m, b = check_count("plan.micro_batch", plan.micro_batch), check_count("plan.batch_size", plan.batch_size)
    if m > b:
        fix = "choose a micro-batch of at most the mini-batch"
        raise expected("plan.micro_batch", f"at most the mini-batch of {b}", m, fix)
    sizes = micro_batches(b, m, equal)
    window = len(sizes)
    if max_in_flight is not None:
        window = check_count("max_in_flight", max_in_flight, fix="give a whole number of micro-batches, or None")
        if order == "flush" and window < len(sizes):
            want = f"None or at least the {len(sizes)} micro-batches with order='flush'"
            fix = "flush keeps every micro-batch until the last forward: use order='1f1b' to hold fewer"
            raise expected("max_in_flight", want, window, fix)

    jobs = Recorder()
    operations = _operations(plan, jobs)
    first_forward, last_forward = [], []  # jobs of the first and the last stage
    for number, samples in enumerate(sizes):
        chain = _pass(jobs, operations, _FORWARD, number, samples, ())
        first_forward.append(chain[0])
        last_forward.append(chain[-1])
    for number, samples in enumerate(sizes):
        after = (last_forward[number],)
        if order == "flush" and number < len(sizes) - 1:
            after = (last_forward[number], last_forward[-1])
        chain = _pass(jobs, operations[::-1], _BACKWARD, number, samples, after)
        if number + window < len(sizes):
            jobs.require(first_forward[number + window], chain[-1])
        last_backward = chain[::-1]
    for operation, passed in zip(operations, last_backward, strict=True):
        if operation.step:
            label = {"micro_batch": -1, "stage": operation.number}
            jobs.event("step", operation.resources[0], operation.step, (passed,), (len(sizes), 0), **label)
    return jobs


def micro_batches(batch_size: int, micro_batch: int, equal: bool = False) -> list[int]:
    """Return the sizes of the M = ⌈b/m⌉ micro-batches: the last one takes what is left, or m too if `equal`."""
    count = -(-batch_size // micro_batch)
    return [micro_batch] * (count - 1) + [micro_batch if equal else batch_size - (count - 1) * micro_batch]


def _pass(
    jobs: Recorder, operations: list[Operation], direction: int, number: int, samples: int, after: tuple[int, ...]
) -> list[int]:
    """Add the jobs of micro-batch `number` with `samples` samples, forward or backward, and return their numbers."""
    chain = []
    for operation in operations:
        seconds = operation.overhead + samples * operation.per_sample[direction]
        priority = (1 - direction, number) if operation.kinds[0] == "forward" else (number, 1 - direction)
        label = {"micro_batch": number, "stage": operation.number, "samples": samples}
        job = jobs.event(operation.kinds[direction], operation.resources[direction], seconds, after, priority, **label)
        chain.append(job)
        after = (jobs.add(None, operation.delay[direction], (job,)) if operation.delay[direction] > 0 else job,)
    return chain


def _operations(plan: PipelinedPath, jobs: Recorder) -> list[Operation]:
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
