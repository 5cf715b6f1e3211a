"""The micro-batches of a pipelined plan, one by one through its stages and hops."""

from typing import Any

from psl.errors import check_choice, check_count, expected
from psl.simulation.operations import BACKWARD, FORWARD, Operation, operations_of
from psl.simulation.replay import replay
from psl.simulation.timeline import Recorder, Timeline

#: order= of a pipeline: what a node does first, and whether backward waits for all of forward.
ORDERS = ("1f1b", "flush")


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
    sizes, window = _micro_batches_in_flight(plan, order, max_in_flight, equal)
    jobs = Recorder()
    operations = operations_of(plan, jobs)
    return _jobs(jobs, operations, sizes, order, window)


def pipeline_timeline(
    plan: Any, *, order: str = "1f1b", max_in_flight: int | None = None, equal: bool = False
) -> Timeline:
    """Return what happens to the jobs of `pipeline_jobs`; where every order is known, without making them one by one.

    Args:
        plan, order, max_in_flight, equal: as for `pipeline_jobs`.

    Raises:
        ScenarioError: as `pipeline_jobs`.
    """
    sizes, window = _micro_batches_in_flight(plan, order, max_in_flight, equal)
    jobs = Recorder()
    operations = operations_of(plan, jobs)
    found = replay(jobs, operations, sizes, order, window)
    return _jobs(jobs, operations, sizes, order, window).timeline("pipeline", order) if found is None else found


def _micro_batches_in_flight(plan: Any, order: str, max_in_flight: int | None, equal: bool) -> tuple[list[int], int]:
    """Return the sizes of the micro-batches and how many may be in flight, checked."""
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
    return sizes, window


def _jobs(jobs: Recorder, operations: list[Operation], sizes: list[int], order: str, window: int) -> Recorder:
    """Add the jobs of one mini-batch, and return the recorder."""
    first_forward, last_forward = [], []  # jobs of the first and the last stage
    for number, samples in enumerate(sizes):
        chain = _pass(jobs, operations, FORWARD, number, samples, ())
        first_forward.append(chain[0])
        last_forward.append(chain[-1])
    for number, samples in enumerate(sizes):
        after = (last_forward[number],)
        if order == "flush" and number < len(sizes) - 1:
            after = (last_forward[number], last_forward[-1])
        chain = _pass(jobs, operations[::-1], BACKWARD, number, samples, after)
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
