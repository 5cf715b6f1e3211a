"""Checks of what scenarios are made of: attributes of nodes and edges, and measured profiles of devices."""

import difflib
from typing import Any

import networkx as nx
import numpy as np

from psl.errors import check_array, check_number, expected
from psl.profiles import Profile

NODE_ATTRIBUTES = ("speed", "overhead", "memory", "profile", "pos")
EDGE_ATTRIBUTES = ("rate", "latency")

#: Names that other tools use for these attributes: a message then says which of ours is meant.
_MEANT = {
    "flops": "speed",
    "compute": "speed",
    "capacity": "rate",
    "bandwidth": "rate",
    "weight": "rate",
    "bitrate": "rate",
    "delay": "latency",
    "ram": "memory",
    "mem": "memory",
    "position": "pos",
}


def check_range(name: str, value: Any, unit: str, *, strict: bool = True) -> tuple[float, float]:
    """Return (lowest, highest) of a range to draw from.

    Args:
        name: of the argument, for the message.
        value: a pair of numbers of at least 0, the lowest first.
        unit: of both, for the message.
        strict: refuse 0.

    Raises:
        ScenarioError: no pair of finite numbers, one is too small, or the highest comes first.
    """
    fix = f"give (lowest, highest) in {unit}"
    low, high = check_array(name, value, shape=(2,), minimum=0, strict=strict, fix=fix).tolist()
    if low > high:
        raise expected(name, "the lowest value first", repr(tuple(value)), fix)
    return low, high


def own_name(node: Any) -> int | str | None:
    """Return a node's name as records keep it, a Python int or str; None for other types (True is not 1)."""
    if isinstance(node, int | np.integer) and not isinstance(node, bool):
        return int(node)
    return str(node) if isinstance(node, str) else None


def _check_attributes(what: str, values: dict, known: tuple[str, ...]) -> None:
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1, 0.7)
            meant = _MEANT.get(str(name).lower()) or (near[0] if near else None)
            fix = f"did you mean {meant!r}?" if meant in known else "remove it"
            raise expected(what, f"attributes among {', '.join(known)}", repr(name), fix)
        if isinstance(value, str | bytes):
            raise expected(f"{what}: {name}", "no text", repr(value), "give the number without quotes")


def check_node(node: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return the checked attributes of a node, with defaults; a profile or position only where it has one."""
    what = f"node {node!r}"
    _check_attributes(what, values, NODE_ATTRIBUTES)
    checked: dict[str, Any] = {
        "speed": check_number(f"{what}: speed", values.get("speed", 0.0), minimum=0, fix="0 makes it a relay"),
        "overhead": check_number(f"{what}: overhead", values.get("overhead", 0.0), minimum=0),
    }
    memory, fix = values.get("memory", np.inf), "give bytes, or leave it out for no limit"
    checked["memory"] = float(check_array(f"{what}: memory", memory, shape=(), minimum=0, allow_inf=True, fix=fix))
    own = check_measured(f"{what}: profile", values.get("profile"), "use Profile.measured(...)")
    if own is not None:
        checked["profile"] = own
    if values.get("pos") is not None:
        checked["pos"] = tuple(check_array(f"{what}: pos", values["pos"], shape=(2,), fix="give (x, y)").tolist())
    return checked


def check_edge(graph: nx.DiGraph, u: Any, v: Any, values: dict[str, Any]) -> dict[str, float]:
    """Return both attributes of a directed edge, checked."""
    what = f"edge {u!r} -> {v!r}"
    if u == v:
        raise expected(what, "two different nodes", "a self-loop", "remove it: a node reaches itself at once")
    if not graph.has_edge(v, u):
        want, fix = f"its reverse {v!r} -> {u!r}, as gradients travel back", "add it, or use undirected.to_directed()"
        raise expected(what, want, "none", fix)
    _check_attributes(what, values, EDGE_ATTRIBUTES)
    if "rate" not in values:
        raise expected(what, "a rate", "none", "give rate= in bit/s")
    fix = "give bit/s above 0, or remove both directions of the link"
    rate = check_array(f"{what}: rate", values["rate"], shape=(), minimum=0, strict=True, allow_inf=True, fix=fix)
    latency = check_number(f"{what}: latency", values.get("latency", 0.0), minimum=0, fix="give seconds")
    return {"rate": float(rate), "latency": latency}


def check_profiles(field: str, profiles: Any, n_devices: int, device: str) -> tuple[Profile | None, ...]:
    """Return one measured profile or None per device.

    Args:
        field: what is checked, for the message, for example ``"EdgeCluster.profiles"``.
        profiles: list or tuple.
        n_devices: its length.
        device: what the devices are called.

    Raises:
        ScenarioError: the length is another, or an entry is no measured profile.
    """
    fix = f"give one Profile.measured(...) per {device}, or None for a {device} known by its speed"
    if not isinstance(profiles, list | tuple) or len(profiles) != n_devices:
        got = f"{len(profiles)} entries" if isinstance(profiles, list | tuple) else type(profiles).__name__
        raise expected(field, f"a tuple of {n_devices} entries", got, fix)
    for i, own in enumerate(profiles):
        check_measured(f"{field}[{i}]", own, fix)
    return tuple(profiles)


def check_measured(what: str, own: Any, fix: str) -> Profile | None:
    """Return a profile measured in seconds, or None; raises `ScenarioError` for anything else."""
    if own is not None and not (isinstance(own, Profile) and own.unit == "s"):
        got = f"a profile in {own.unit}" if isinstance(own, Profile) else type(own).__name__
        raise expected(what, "a profile measured in seconds, or None", got, fix)
    return own
