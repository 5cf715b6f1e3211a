"""Network namespaces joined by shaped virtual links: every process gets its own network, the kernel keeps the rates."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from psl.distributed.leftovers import orphans, owner
from psl.errors import PSLError, check_count, check_number, expected

#: Bytes of an Ethernet frame full of TCP data, and how many of them are data: the kernel's shaper counts the former.
FRAME, PAYLOAD = 1514, 1448
_BURST_SECONDS = 5e-4  # tokens saved up on an idle link: time enough for a late timer, and little beside a message
_QUEUE = 1 << 28  # bytes; a queue that never drops keeps TCP from slowing down
_PREFIX = "psl"
_SERIAL = itertools.count()
_SETTINGS = {
    "net.ipv4.ip_forward": 1,  # a chain routes through its middle to set up connections
    "net.ipv4.tcp_congestion_control": "reno",  # one that does not probe for a rate which is known
    "net.ipv4.tcp_slow_start_after_idle": 0,
}


@dataclass(frozen=True)
class VirtualLink:
    """A full-duplex link between two members.

    Args:
        a, b: numbers of the members.
        rate, back: bit/s of payload from a to b, and from b to a; infinity is not shaped.
        plane: links of one plane share addresses and routes; a second link between two members needs another plane.
    """

    a: int
    b: int
    rate: float
    back: float
    plane: int = 0


class Namespaces:
    """Members in network namespaces of their own, joined by links with a rate; a context manager.

    Each direction is shaped by a token bucket (``tc … tbf``) at the sending end. Its rate is the payload's times the
    share of headers in a full frame, so that a message of n bits takes n / rate seconds. Members have an address per
    plane; a plane must be a tree, over whose links all of its members reach each other. Nothing leads outside.
    Names hold the number, the start time and the machine of the process that made them (`leftovers.owner`), so that
    leftovers of one that was killed are found and removed by the next.

    Args:
        n_members: members, numbered from 0.
        links: of `VirtualLink`.

    Raises:
        PSLError: this user may not make namespaces, or the kernel lacks what is needed; `unavailable` says why.
        ScenarioError: a rate is not positive, or a link joins members that do not exist.

    Source: ours [B].
    """

    def __init__(self, n_members: int, links: Sequence[VirtualLink]):
        self.links = tuple(links)
        n_members = check_count("n_members", n_members, minimum=2)
        for link in self.links:
            for rate in (link.rate, link.back):
                if rate != float("inf"):
                    check_number("rate of a link", rate, minimum=0, strict=True, fix="give bit/s")
            if not (0 <= link.a < n_members and 0 <= link.b < n_members and link.a != link.b):
                raise expected("links", f"members 0..{n_members - 1}", f"({link.a}, {link.b})", "number them from 0")
        key = f"{_PREFIX}-{owner()}-{next(_SERIAL)}"
        self.names = [f"{key}-{k}" for k in range(n_members)]

    def __enter__(self):
        if why := unavailable():
            raise not_permitted(why)
        sweep()
        try:
            self._make()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_):
        self.remove()

    def command(self, member: int, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs `argv` as a member."""
        return ["ip", "netns", "exec", self.names[member], *argv]

    def address(self, member: int, plane: int = 0) -> str:
        """Return the address of a member in a plane, reachable inside these namespaces only."""
        return f"10.77.{plane}.{member + 1}"

    def interface(self, member: int, plane: int = 0) -> str:
        """Return the name of the member's first interface in a plane."""
        return next(f"l{n}" for n, k in enumerate(self.links) if k.plane == plane and member in (k.a, k.b))

    def remove(self) -> None:
        """End what still runs in the namespaces and delete them, with all their links."""
        for name in self.names:
            _remove(name)

    def _make(self) -> None:
        for name in self.names:
            _run("ip", "netns", "add", name)
        ends: dict[int, list[str]] = {k: ["link set lo up"] for k in range(len(self.names))}
        shapes: dict[int, list[str]] = {k: [] for k in ends}
        made = []
        for n, link in enumerate(self.links):
            made.append(f"link add l{n} netns {self.names[link.a]} type veth peer name l{n} netns {self.names[link.b]}")
            for member, rate in ((link.a, link.rate), (link.b, link.back)):
                ends[member] += [f"addr add {self.address(member, link.plane)}/32 dev l{n}", f"link set l{n} up"]
                if rate != float("inf"):
                    shapes[member].append(_shape(f"l{n}", rate))
        _run("ip", "-batch", "-", given="\n".join(made))
        for member, lines in ends.items():
            name = self.names[member]
            _run("ip", "-n", name, "-batch", "-", given="\n".join(lines))
            if shapes[member]:
                _run("tc", "-n", name, "-batch", "-", given="\n".join(shapes[member]))
            settings = [f"{key}={value}" for key, value in _SETTINGS.items()]
            _run("ip", "netns", "exec", name, "sysctl", "-q", "-w", *settings)
        for member, name in enumerate(self.names):
            if routes := self._routes(member):
                _run("ip", "-n", name, "-batch", "-", given="\n".join(routes))

    def _routes(self, member: int) -> list[str]:
        """Return one route to each other member: straight to neighbours, via a neighbour to those behind it."""
        routes = []
        for plane in {link.plane for link in self.links}:
            own, seen = self.address(member, plane), {member}
            frontier = [(member, "")]  # members reached, and the way that led there
            for here, way in frontier:  # grows while it is walked
                for n, link in enumerate(self.links):
                    if link.plane != plane or here not in (link.a, link.b):
                        continue
                    there = link.b if here == link.a else link.a
                    if there in seen:
                        continue
                    seen.add(there)
                    target = self.address(there, plane)
                    step = way or f"dev l{n}"
                    routes.append(f"route add {target}/32 {step} src {own}")
                    frontier.append((there, way or f"via {target} dev l{n} onlink"))
        return routes


def star(up: Sequence[float], down: Sequence[float], broadcast: float | None = None) -> Namespaces:
    """Return namespaces of a server, member 0, and N clients, members 1..N, each with a link to the server.

    Args:
        up, down: (N,) bit/s of each client to the server and back.
        broadcast: bit/s at which each client receives what the server sends to all, on a link of its own in plane 1,
            where the way back is not shaped; None for no such link.
    """
    links = [VirtualLink(0, i + 1, down[i], up[i]) for i in range(len(up))]
    if broadcast is not None:
        links += [VirtualLink(0, i + 1, broadcast, float("inf"), plane=1) for i in range(len(up))]
    return Namespaces(len(up) + 1, links)


def chain(forward: Sequence[float], backward: Sequence[float]) -> Namespaces:
    """Return namespaces of len(forward) + 1 members in a row; rates in bit/s of each link forward and backward."""
    pairs = zip(forward, backward, strict=True)
    return Namespaces(len(forward) + 1, [VirtualLink(k, k + 1, there, back) for k, (there, back) in enumerate(pairs)])


@cache
def unavailable() -> str | None:
    """Return why namespaces with shaped links cannot be made here, None if they can; tried once."""
    missing = [tool for tool in ("ip", "tc", "sysctl") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not found (Linux: install iproute2 and procps)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    trial = Namespaces(2, [VirtualLink(0, 1, 1e6, 1e6)])
    try:
        trial._make()
    except PSLError as failure:
        return str(failure)
    finally:
        trial.remove()
    return None


def not_permitted(why: str) -> PSLError:
    """Return (not raise) the error of a user who cannot have namespaces."""
    fix = "run as root on Linux, or pace in the transport: links='pacing'"
    return expected("links='kernel'", "network namespaces with shaped links", why, fix, PSLError)


def sweep() -> list[str]:
    """Remove the namespaces, and what runs in them, of processes that are gone; returns their names."""
    stale = orphans(Path("/run/netns"), _PREFIX)
    for name in stale:
        _remove(name)
    return stale


def _remove(name: str) -> None:
    if not Path("/run/netns", name).exists():
        return
    inside = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in inside.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _shape(device: str, rate: float) -> str:
    wire = rate * FRAME / PAYLOAD  # bit/s, headers included
    burst = max(2 * FRAME, round(wire * _BURST_SECONDS / 8))
    return f"qdisc add dev {device} root tbf rate {max(round(wire), 8)}bit burst {burst} limit {_QUEUE}"


def _run(*argv: str, given: str | None = None) -> None:
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PSLError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
