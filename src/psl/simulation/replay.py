"""Pipelines replayed without an event queue for every job, where every resource serves its micro-batches in order.

If every node holds one stage and every direction of a link carries one hop, each resource meets the micro-batches of a
pass in their order. Hops and the passes of "flush" are then queues with one server, which arrays replay. With "1f1b"
only one thing is open: whether a node that is free computes backward or forward. A queue of nodes decides that.
"""

from heapq import heappop, heappush, heapreplace

import numpy as np

from psl.simulation.engine import whole_ticks
from psl.simulation.operations import BACKWARD, FORWARD, Operation
from psl.simulation.timeline import KINDS, Recorder, Timeline

_LARGEST = 2**62  # ticks; sums beyond it would not fit into NumPy's integers


def replay(jobs: Recorder, operations: list[Operation], sizes: list[int], order: str, window: int) -> Timeline | None:
    """Return the timeline that `Recorder.timeline` would return, or None where the order is not known.

    It is known unless a node holds several stages, several hops use one direction of a link, hops of both directions
    share a half-duplex link with "1f1b", or a stage or hop takes no time (all at one moment would have an order).

    Args:
        jobs: without jobs; its resources and stages are those of the operations.
        operations: stages and hops in the order in which a micro-batch meets them.
        sizes: (M,) samples of the micro-batches; all but the last are equal.
        order: "1f1b" or "flush".
        window: micro-batches in flight at the source.

    Source: ours [B].
    """
    count = len(sizes)
    used = [operation.resources for operation in operations]
    if order == "1f1b":
        links = [pair for operation, pair in zip(operations, used, strict=True) if operation.kinds[0] != "forward"]
        if any(there == back for there, back in links):
            return None
    for direction in (FORWARD, BACKWARD):
        if len({pair[direction] for pair in used}) < len(used):
            return None
    if {there for there, _ in used} & {back for there, back in used if there != back}:
        return None  # a link goes there with one hop and back with another
    counted = _in_ticks(operations, sizes)
    if counted is None:
        return None
    ticks, delays, steps, digits = counted
    served = np.array([ticks[..., 0]] * (count - 1) + [ticks[..., 1]]).transpose(2, 1, 0)  # (2, operations, M)
    if order == "flush":
        start = _flush(served, delays)
    else:
        start = _one_forward_one_backward(operations, served, delays, window)
    return _timeline(jobs, operations, sizes, order, start, served, steps, digits)


def _in_ticks(operations: list[Operation], sizes: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int] | None:
    """Return (operations, 2, 2) ticks of the first and of the last micro-batch, delays, steps, digits of a tick.

    None where something takes no time, or more than integers hold, or a duration is none.
    """
    seconds = [
        [[o.overhead + samples * o.per_sample[way] for samples in (sizes[0], sizes[-1])] for way in (FORWARD, BACKWARD)]
        for o in operations
    ]
    delays, steps = [o.delay for o in operations], [o.step for o in operations]
    flat = np.concatenate([np.ravel(seconds), np.ravel(delays), steps])
    if not (np.isfinite(flat).all() and flat.min() >= 0 and np.min(seconds) > 0):
        return None
    whole, digits = whole_ticks(flat.tolist())
    n = len(operations)
    if min(whole[: 4 * n]) < 1 or len(sizes) * sum(whole) >= _LARGEST:
        return None
    ticks = np.array(whole, dtype=np.int64)
    return ticks[: 4 * n].reshape(n, 2, 2), ticks[4 * n : 6 * n].reshape(n, 2), ticks[6 * n :], digits


def first_in_first_out(arrival: np.ndarray, served: np.ndarray) -> np.ndarray:
    """Return (M,) starts at one server that takes jobs in their order, from (M,) rising arrivals and durations."""
    before = np.cumsum(served) - served
    return before + np.maximum.accumulate(arrival - before)


def _flush(served: np.ndarray, delays: np.ndarray) -> np.ndarray:
    start = np.empty_like(served)
    at = np.zeros(served.shape[2], dtype=np.int64)
    for k in range(served.shape[1]):
        start[FORWARD, k] = first_in_first_out(at, served[FORWARD, k])
        at = start[FORWARD, k] + served[FORWARD, k] + delays[k, FORWARD]
    at = np.full_like(at, at[-1])  # no backward before the last forward of the last stage
    for k in reversed(range(served.shape[1])):
        start[BACKWARD, k] = first_in_first_out(at, served[BACKWARD, k])
        at = start[BACKWARD, k] + served[BACKWARD, k] + delays[k, BACKWARD]
    return start


def _one_forward_one_backward(
    operations: list[Operation], served: np.ndarray, delays: np.ndarray, window: int
) -> np.ndarray:
    """Return (2, operations, M) starts: the nodes' from `_decide`, those of the hops between them by arrays."""
    place = [k for k, operation in enumerate(operations) if operation.kinds[0] == "forward"]  # of the stages
    hops = [
        [(served[way, k].tolist(), int(delays[k, way])) for k in range(served.shape[1])] for way in (FORWARD, BACKWARD)
    ]
    there = [hops[FORWARD][a + 1 : b] for a, b in zip(place, place[1:], strict=False)]
    back = [hops[BACKWARD][a + 1 : b][::-1] for a, b in zip(place, place[1:], strict=False)]
    computing = served[:, place].tolist()
    decided = _decide(computing[FORWARD], computing[BACKWARD], [*there, []], [[], *back], window)
    start = np.empty_like(served)
    start[:, place] = decided
    for way, walk in ((FORWARD, range(served.shape[1])), (BACKWARD, range(served.shape[1] - 1, -1, -1))):
        at = np.empty(0, dtype=np.int64)
        for k in walk:
            if k not in place:
                start[way, k] = first_in_first_out(at, served[way, k])
            at = start[way, k] + served[way, k] + delays[k, way]
    return start


def _decide(
    forward: list[list[int]],
    backward: list[list[int]],
    there: list[list[tuple[list[int], int]]],
    back: list[list[tuple[list[int], int]]],
    window: int,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the starts of (forward, backward) of every stage and micro-batch, in ticks.

    A node decides when it becomes free and, while it waits, when something arrives. What arrives at a moment was sent
    on its way earlier, for nothing takes no time; so taking decisions in the order of time knows all arrivals. The
    last stage goes backward right after each forward.

    Args:
        forward, backward: (S, M) lists of ticks on the nodes.
        there, back: per stage, the hops behind it to the next stage and to the one before: ((M,) ticks, latency).
        window: micro-batches in flight at the source.
    """
    n_stages, count = len(forward), len(forward[0])
    last, never = n_stages - 1, _LARGEST
    first, second = ([[0] * count for _ in range(n_stages)] for _ in (FORWARD, BACKWARD))  # starts
    arrived, returned = ([[never] * (count + 1) for _ in range(n_stages)] for _ in (FORWARD, BACKWARD))
    arrived[0][: min(window, count)] = [0] * min(window, count)
    moves = [
        [(s + step, ticks, [0] * len(ticks), waiting[s + step] if 0 <= s + step <= last else []) for s, ticks in hops]
        for step, hops, waiting in ((1, enumerate(there), arrived), (-1, enumerate(back), returned))
    ]
    nodes = list(zip(forward, backward, first, second, arrived, returned, *moves, strict=True))
    n_first, n_second = [0] * n_stages, [0] * n_stages
    wake = [0] + [never] * last  # when each node decides next
    busy = [False] * n_stages  # until `wake`
    queue = [(0, 0)]
    while queue:
        now, s = queue[0]
        if wake[s] != now:
            heappop(queue)  # something else came earlier
            continue
        ahead, behind, begun, begun_back, arrivals, returns, onward, homeward = nodes[s]
        f, b = n_first[s], n_second[s]
        if returns[b] <= now:
            m, move = b, homeward
            begun_back[b] = now
            free = now + behind[b]
            n_second[s] = b + 1
        elif arrivals[f] <= now:
            m, move = f, onward
            begun[f] = now
            free = now + ahead[f]
            n_first[s] = f + 1
            if s == last:
                begun_back[f], move = free, homeward
                free += behind[f]
        else:
            early = returns[b] if returns[b] < arrivals[f] else arrivals[f]
            busy[s], wake[s] = False, early
            if early < never:
                heapreplace(queue, (early, s))
            else:
                heappop(queue)
            continue
        busy[s], wake[s] = True, free
        heapreplace(queue, (free, s))
        to, hops, clear, waiting = move
        if to < 0:  # the source may begin another one
            if m + window < count:
                arrivals[m + window] = free
            continue
        end = free
        for k, (ticks, latency) in enumerate(hops):
            before = clear[k]
            end = (end if end > before else before) + ticks[m]
            clear[k] = end
            end += latency
        waiting[m] = end
        if not busy[to] and end < wake[to]:
            wake[to] = end
            heappush(queue, (end, to))
    return first, second


def _timeline(
    jobs: Recorder,
    operations: list[Operation],
    sizes: list[int],
    order: str,
    start: np.ndarray,
    served: np.ndarray,
    steps: np.ndarray,
    digits: int,
) -> Timeline:
    """Return the timeline; events that start and end together stand in the order in which `pipeline_jobs` adds them."""
    n, count = len(operations), len(sizes)
    columns = [[], [], [], []]  # resource, kind, number, and whether it is a step
    for way, chain in ((FORWARD, operations), (BACKWARD, operations[::-1])):
        columns[0].append(np.tile([o.resources[way] for o in chain], count))
        columns[1].append(np.tile([KINDS.index(o.kinds[way]) for o in chain], count))
        columns[2].append(np.tile([o.number for o in chain], count))
    stepping = [k for k, o in enumerate(operations) if o.step]
    columns[0].append([operations[k].resources[0] for k in stepping])
    columns[1].append([KINDS.index("step")] * len(stepping))
    columns[2].append([operations[k].number for k in stepping])
    resource, kind, number = (np.concatenate(column).astype(np.int64) for column in columns[:3])
    passed = start[BACKWARD, stepping, -1] + served[BACKWARD, stepping, -1]
    begin = np.concatenate([start[FORWARD].T.ravel(), start[BACKWARD, ::-1].T.ravel(), passed])
    taking = np.concatenate([served[FORWARD].T.ravel(), served[BACKWARD, ::-1].T.ravel(), steps[stepping]])
    micro_batch = np.concatenate([np.tile(np.repeat(np.arange(count), n), 2), np.full(len(stepping), -1)])
    samples = np.concatenate([np.tile(np.repeat(sizes, n), 2), np.zeros(len(stepping), dtype=np.int64)])
    unit = 10.0**digits
    return jobs.arranged(
        "pipeline",
        order,
        resource,
        np.stack([kind, micro_batch, number, samples]),
        begin / unit,
        (begin + taking) / unit,
    )
