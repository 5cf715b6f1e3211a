"""What the pipeline scheduler refuses: scenarios that do not go together, sizes out of range, stages without a path."""

import operator
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from psl.errors import check_count, expected
from psl.networks.edge_network import EdgeNetwork
from psl.networks.validation import own_name
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds
from psl.schedulers.pipeline.path import Path

#: How often a plan may use a link, see `solve`.
LINKS = ("once", "shared", "separate")

#: What a plan minimises: T, or T_i alone.
OBJECTIVES = ("time", "interval")

ROUNDING = 1e-12  # relative: two sums of the same numbers in different orders differ by less

_PATH = "give stages [(node, i, j), ...] and hops [(cut, u, v), ...] in the order of the path"


def check_profile(profile: Profile, network: EdgeNetwork) -> None:
    """Raise `ScenarioError` unless both are of their class, and the nodes' speeds and own profiles fit the profile."""
    check_scenario(profile, "network", network, EdgeNetwork, "wrap a networkx.DiGraph: EdgeNetwork(graph, source)")
    check_own_profiles(profile, network.profiles, lambda n: f"node {network.nodes[n]!r}: profile")
    by_speed = [speed for speed, own in zip(network.speed, network.profiles, strict=True) if own is None]
    check_speeds(profile, "network", by_speed, "give nodes speed relative to that device")


def check_batch_size(batch_size: int) -> int:
    """Return the checked mini-batch size b."""
    return check_count("batch_size", batch_size, fix="give the samples of a mini-batch, at least 1")


def check_micro_batch(micro_batch: int, batch_size: int) -> int:
    """Return the checked micro-batch size m, 1..b."""
    m = check_count("micro_batch", micro_batch, fix="give the samples of a micro-batch, at least 1")
    if m > batch_size:
        raise expected("micro_batch", f"at most batch_size = {batch_size}", m, "split the mini-batch, do not pad it")
    return m


def check_path(
    profile: Profile, network: EdgeNetwork, stages: Iterable[Any], hops: Iterable[Any], batch_size: int, links: str
) -> Path:
    """Return the path of stages (node, i, j) and hops (cut, u, v).

    Raises:
        ScenarioError: they do not lead from the source through the whole model, a node hosts two stages or one beyond
            its memory, or a link is used twice although `links` is "once".
    """
    given_stages, given_hops = _triples(stages, hops)
    for node in [node for _, u, v in given_hops for node in (u, v)]:
        if _place(network, node) is None:
            raise expected("hops", "nodes of the network", repr(node), "see network.nodes")
    spans = []
    for node, i, j in given_stages:
        n = _place(network, node)
        if n is None or not network.computes[n]:
            raise expected("stages", "nodes that compute", repr(node), "see network.to_frame()")
        spans.append((n, i, j))
    _check_stages(profile, network, spans)
    edges = _check_hops(network, spans, [(cut, own_name(u), own_name(v)) for cut, u, v in given_hops])
    if links == "once":
        _check_links_once(network, edges)
    whole = profile.training_memory(batch_size)
    for n, i, j in spans:
        need, room = whole[j] - whole[i], network.memory[n]
        if need > room * (1 + ROUNDING):
            what, want = f"stage {i}-{j} on node {network.nodes[n]!r}", f"at most {room:.4g} bytes of memory"
            raise expected(what, want, f"{need:.4g}", "move units to another node")
    return Path(tuple(spans), tuple(edges))


def _triples(stages: Iterable[Any], hops: Iterable[Any]) -> tuple[list[tuple[Any, int, int]], list[tuple]]:
    try:
        return (
            [(node, _cut(i), _cut(j)) for node, i, j in stages],
            [(_cut(cut), u, v) for cut, u, v in hops],
        )
    except (TypeError, ValueError) as cause:
        raise expected("stages, hops", "triples with whole numbers for cuts", str(cause), _PATH) from cause


def _cut(value: Any) -> int:
    """Return the number of a cut; no fraction is rounded, and True is not 1."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{value!r} for a cut")
    return operator.index(value)


def _place(network: EdgeNetwork, node: Any) -> int | None:
    """Return the place of a node in `EdgeNetwork.nodes`, or None if there is no such node."""
    name = own_name(node)
    return None if name is None else network.index.get(name)


def _check_stages(profile: Profile, network: EdgeNetwork, stages: list[tuple[int, int, int]]) -> None:
    for n, i, j in stages:
        if not 0 <= i < j <= profile.n_units:
            got = f"({network.nodes[n]!r}, {i}, {j})"
            raise expected("stages", f"0 <= i < j <= {profile.n_units}", got, _PATH)
    ends = [0, *(j for _, _, j in stages)]
    if ends[-1] != profile.n_units or any(i != end for (_, i, _), end in zip(stages, ends, strict=False)):
        spans = ", ".join(f"{i}-{j}" for _, i, j in stages) or "none"
        raise expected("stages", f"consecutive parts of units 0-{profile.n_units}", spans, _PATH)
    first = network.nodes[stages[0][0]]
    if first != network.source:
        raise expected("stages", f"the first on the source {network.source!r}", repr(first), _PATH)
    twice = [n for n, count in Counter(n for n, _, _ in stages).items() if count > 1]
    if twice:
        got = f"several on {network.nodes[twice[0]]!r}"
        raise expected("stages", "at most one stage per node", got, "merge or move them")


def _check_hops(
    network: EdgeNetwork, stages: list[tuple[int, int, int]], hops: list[tuple[int, Any, Any]]
) -> list[tuple[int, int]]:
    """Return the hops as (cut, edge) after following them from each stage to the next."""
    edges = []
    for (n, _, cut), (next_n, _, _) in pairwise(stages):
        here, goal = network.nodes[n], network.nodes[next_n]
        for hop_cut, u, v in hops[len(edges) :]:
            if (hop_cut, u) != (cut, here) or (u, v) not in network.edge_index:
                break
            edges.append((cut, network.edge_index[u, v]))
            here = v
        if here != goal:
            want = f"links from {network.nodes[n]!r} to {goal!r} at cut {cut}"
            raise expected("hops", want, f"a path that ends at {here!r}", _PATH)
    if len(edges) < len(hops):
        raise expected("hops", "no hop beside the path of the stages", repr(hops[len(edges)]), _PATH)
    return edges


def _check_links_once(network: EdgeNetwork, hops: list[tuple[int, int]]) -> None:
    used = Counter(frozenset(network.edges[e]) for _, e in hops)
    twice = [link for link, count in used.items() if count > 1]
    if twice:
        ends = " - ".join(map(repr, sorted(twice[0], key=str)))
        fix = "take another path, or say links='shared' or links='separate'"
        raise expected("hops", "every link at most once", f"several hops over {ends}", fix)
