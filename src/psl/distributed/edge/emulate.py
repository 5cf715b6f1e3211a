"""The edge of a plan, imposed on processes of one machine: slower devices, and links with a rate and a latency."""

import contextlib
import ctypes
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import conv2d

from psl.distributed.edge.namespaces import Namespaces, chain, not_permitted, star, unavailable
from psl.distributed.edge.pacing import DelayLine, sleep_until
from psl.errors import check_array, check_choice, expected
from psl.records import Record

try:
    import fcntl
except ImportError:  # not a POSIX system: computations do not take turns there
    fcntl = None

#: Who keeps the rates of links: the kernel, the sending process, or nobody.
LINKS = ("kernel", "pacing", "none")

_NICENESS = -10
_own: set[int] = set()  # cores of computations, and of everything else: set by `settle`
_others: set[int] = set()
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@dataclass(frozen=True, repr=False, eq=False)
class EdgeEmulation(Record):
    """How much slower than this machine every process computes, and how fast the links between them are.

    The processes of a *star* are the server, 0, and its N clients, 1..N; link i joins client i + 1 and the server.
    Those of a *chain* are the stages of a pipeline, and the relays between them, in the order of the path; link h
    joins process h and h + 1.

    Args:
        layout: "star" or "chain".
        slowdown: (P,) factor of each process's computing time; 0 for a relay, which does not compute. The server of a
            star that serves each client with a slice of its own (EdgeSplit) has the factor of a slice.
        forward, backward: (H,) bit/s of the links: up and down in a star, from and to the source in a chain.
        forward_latency, backward_latency: (H,) s.
        overhead: (P,) s added to every computation.
        broadcast: bit/s at which all clients of a star receive what the server sends to all; None: as anything else.
        links: "kernel": network namespaces joined by links that the kernel shapes; "pacing": messages wait in the
            sending process (`DelayLine`); "none": links as fast as they are.

    Source: ours [B].
    """

    layout: str
    slowdown: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    forward_latency: np.ndarray
    backward_latency: np.ndarray
    overhead: np.ndarray
    broadcast: float | None = None
    links: str = "pacing"

    def __post_init__(self):
        check_choice("layout", self.layout, ("star", "chain"))
        check_choice("links", self.links, LINKS)
        factor = check_array("EdgeEmulation.slowdown", self.slowdown, shape=(None,), minimum=0)
        n_links = len(factor) - 1
        object.__setattr__(self, "slowdown", factor)
        overhead = check_array("EdgeEmulation.overhead", self.overhead, shape=factor.shape, minimum=0)
        object.__setattr__(self, "overhead", overhead)
        for name in ("forward", "backward"):
            rates = check_array(
                f"EdgeEmulation.{name}", getattr(self, name), shape=(n_links,), minimum=0, strict=True, allow_inf=True
            )
            object.__setattr__(self, name, rates)
            late = check_array(
                f"EdgeEmulation.{name}_latency", getattr(self, f"{name}_latency"), shape=(n_links,), minimum=0
            )
            object.__setattr__(self, f"{name}_latency", late)

    @property
    def n_processes(self) -> int:
        """P, the number of processes."""
        return len(self.slowdown)

    def namespaces(self) -> Namespaces | contextlib.nullcontext:
        """Return the context of the processes' network: namespaces with links="kernel", else one that is empty."""
        if self.links != "kernel":
            return contextlib.nullcontext()
        make = {"star": self._star, "chain": lambda: chain(self.forward.tolist(), self.backward.tolist())}
        return make[self.layout]()

    def _star(self) -> Namespaces:
        return star(self.forward.tolist(), self.backward.tolist(), self.broadcast)

    def line(self, link: int, way: str) -> DelayLine | None:
        """Return what delays messages in the process at the sending end of a link, None if nothing does.

        The whole link with links="pacing"; with links="kernel" its latency, which not every kernel has a queue for.

        Args:
            link: number of the link.
            way: "forward" or "backward".
        """
        latency = float(getattr(self, f"{way}_latency")[link])
        if self.links == "none" or (self.links == "kernel" and latency == 0):
            return None
        rate = float(getattr(self, way)[link]) if self.links == "pacing" else float("inf")
        return DelayLine([(rate, latency)])

    def compute(self, process: int, record: Callable | None = None, turn=None) -> "Compute":
        """Return what slows the computations of a process down; `record` and `turn` as in `Compute`."""
        return Compute(float(self.slowdown[process]), float(self.overhead[process]), record, turn)

    def __repr__(self):
        factors = "×, ".join(f"{factor:.3g}" for factor in self.slowdown)
        return f"EdgeEmulation({self.layout} of {self.n_processes} processes, slowed {factors}×, links: {self.links})"


class Compute:
    """Makes computations of this thread take as long as on a slower device: ``with compute("forward", 3): …``.

    What took t seconds of the thread's CPU time ends when ``overhead + factor · t`` seconds have passed since it began.
    It follows what was really computed, never what a formula predicts. Waiting for a core costs nothing as long as it
    ends before that; what it takes beyond adds up in `overrun`. Computations that share a file `turn` run one at a
    time, on a core that `settle` keeps free for them: two at once on cores that share caches, or that are two threads
    of one core, would slow each other down, and so does a core's work for the network, which Linux books as computing
    of whoever it interrupts. The devices they stand for do not share.

    Args:
        factor: of the computing time; 1 or less changes nothing.
        overhead: s added to each computation.
        turn: path of the file to lock while computing; None: do not take turns.
        record: called with kind, number, start, end (s, `time.monotonic`) and the CPU seconds; optional.
    """

    def __init__(self, factor: float = 1.0, overhead: float = 0.0, record: Callable | None = None, turn=None):
        self.factor, self.overhead, self.record = factor, overhead, record
        self.overrun = 0.0
        self._turn = turn if fcntl else None

    @contextlib.contextmanager
    def __call__(self, kind: str, number: int = 0):
        start = time.monotonic()
        with self._alone():
            if self.factor > 1:
                warm_up()
            cpu = time.thread_time()
            yield
            cpu = time.thread_time() - cpu
        if self.factor > 1 or self.overhead > 0:
            due = start + self.overhead + max(self.factor, 1.0) * cpu
            self.overrun += max(time.monotonic() - due, 0.0)
            sleep_until(due)
        if self.record is not None:
            self.record(kind, number, start, time.monotonic(), cpu)

    @contextlib.contextmanager
    def _alone(self):
        if self._turn is None:
            yield
            return
        with open(self._turn, "ab") as file:  # closing it lets go of it
            assert fcntl is not None
            fcntl.flock(file, fcntl.LOCK_EX)
            with on_own_core():
                yield


def warm_up() -> None:
    """Compute something small and forget it, as after idling a processor is slow for the first millisecond.

    A device that is emulated idles most of the time, one that is k times slower computes through all of it. Without
    this, what is stretched k times is that first millisecond rather than the computation.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x, w = torch.ones(8, 16, 8, 8, requires_grad=True), torch.ones(32, 16, 3, 3, requires_grad=True)
        torch.autograd.grad(conv2d(x, w, padding=1).relu().sum(), (x, w))


@contextlib.contextmanager
def on_own_core():
    """Run this thread on the core that `settle` keeps free for computations; anywhere if there is but one core."""
    if not _others:
        yield
        return
    os.sched_setaffinity(0, _own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, _others)


def settle() -> None:
    """Let this process be disturbed as little as the device that it stands for.

    Its threads, those for the network too, leave one core to computations (Linux; see `on_own_core`). It keeps the
    memory that it frees. And it goes before other work of this machine where it may (root), so that it wakes up in
    time.
    """
    keep_memory()
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0) | _own | _others)
        _own.update(cores[-1:])
        _others.update(cores[:-1])
        os.sched_setaffinity(0, _others or _own)
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def keep_memory() -> None:
    """Let this process keep the memory that it frees (glibc).

    Otherwise what is given back after one mini-batch is fetched anew, page by page, in the next. That takes a sixth of
    a step with activations of 10 MB. With many micro-batches under way it happens more often than in a measured
    profile, which has one at a time.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def emulation_for(plan, links: str = "auto") -> EdgeEmulation:
    """Return the emulation of a plan's scenario on this machine.

    The plan's profile must be measured here (`psl.measure`): a device of speed s, relative to this machine, is slowed
    down 1 / s times. A relayed hop of a pipeline becomes a chain of links with relays between them.

    Args:
        plan: of `epsl.solve`, `edgesplit.solve` or `pipeline.solve`.
        links: "kernel", "pacing" or "none"; "auto" takes the kernel where it may, else pacing.

    Raises:
        ScenarioError: the profile is not measured, or a device has a profile of its own, which no factor imitates.
        PSLError: links="kernel" is not possible here.
    """
    links = choose_links(links)
    if plan.profile.unit != "s":
        fix = "plan with psl.measure(model, example, batch_size=...) and speeds relative to this machine"
        raise expected("plan.profile", "a profile measured on this machine", f"one in {plan.profile.unit}", fix)
    return replace(_MAKERS[check_choice("plan.scheduler", plan.scheduler, _MAKERS)](plan), links=links)


def choose_links(links: str) -> str:
    """Return who keeps the rates: resolves "auto", and raises `PSLError` if the kernel is asked for and may not."""
    check_choice("links", links, ("auto", *LINKS))
    if links == "auto":
        return "pacing" if unavailable() else "kernel"
    if links == "kernel" and (why := unavailable()):
        raise not_permitted(why)
    return links


def _epsl(plan) -> EdgeEmulation:
    cell, radio = plan.cell, getattr(plan, "plan", plan)  # a U-shaped plan has another's subchannels and power
    _refuse_what_cannot_be(cell)
    slowdown = np.array([1 / cell.server_speed, *(1 / cell.client_speed)])
    up, down = cell.uplink_rate(radio.assignment, radio.power), cell.downlink_rate(radio.assignment)
    return _star_of(slowdown, up, down, cell.message_overhead, broadcast=cell.broadcast_rate())


def _edgesplit(plan) -> EdgeEmulation:
    cluster = plan.cluster
    _refuse_what_cannot_be(cluster)
    rate = cluster.spectral_efficiency * plan.bandwidth
    slowdown = np.array([cluster.n_devices / cluster.server_speed, *(1 / cluster.device_speed)])
    return _star_of(slowdown, rate, rate, cluster.message_overhead)


def _star_of(slowdown, up, down, per_message: float, broadcast=None) -> EdgeEmulation:
    latency = np.full(len(up), per_message)
    return EdgeEmulation("star", slowdown, up, down, latency, latency, np.zeros(len(slowdown)), broadcast)


def _refuse_what_cannot_be(scenario) -> None:
    _refuse_own_profiles(scenario.profiles)
    if scenario.round_overhead > 0:
        fix = "plan without round_overhead: a round of real processes takes the time that it takes"
        raise expected("plan", "no time per round beside what is emulated", scenario.round_overhead, fix)


def _pipeline(plan) -> EdgeEmulation:
    graph = plan.network.graph
    _refuse_own_profiles([graph.nodes[node].get("profile") for node, _, _ in plan.stages])
    slowdown, overhead, links = [], [], []  # of processes, of processes, of hops
    hops = list(plan.hops)
    for node, _, j in plan.stages:
        slowdown.append(1 / graph.nodes[node]["speed"])
        overhead.append(graph.nodes[node].get("overhead", 0.0))
        first = True
        while hops and hops[0][0] == j:
            _, u, v = hops.pop(0)
            if not first:  # arrived at a node that only relays
                slowdown.append(0.0)
                overhead.append(0.0)
            first = False
            links.append((graph.edges[u, v], graph.edges[v, u]))
    take = lambda way, name: np.array([float(pair[way].get(name, 0.0)) for pair in links])  # noqa: E731
    forward, backward, late, late_back = (take(way, name) for name in ("rate", "latency") for way in (0, 1))
    return EdgeEmulation("chain", np.array(slowdown), forward, backward, late, late_back, np.array(overhead))


def _refuse_own_profiles(profiles) -> None:
    if any(own is not None for own in profiles or ()):
        fix = "give it a speed relative to this machine"
        raise expected("plan", "devices known by their speed", "one with a profile of its own", fix)


_MAKERS = {"epsl": _epsl, "edgesplit": _edgesplit, "pipeline": _pipeline}
