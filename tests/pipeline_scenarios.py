"""Random profiles and networks for the pipeline's tests: relays, both duplex modes, tight memory, uneven links."""

import networkx as nx
import numpy as np

from psl.networks.edge_network import EdgeNetwork
from psl.profiles import Profile


def random_profile(rng, n_units=4) -> Profile:
    """Return a profile of heavy-tailed units: seconds of compute and of sending are of the same order."""
    forward = np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, n_units))]) * 1e9
    bits = rng.lognormal(0, 1, n_units + 1) * 1e6
    return Profile(
        names=["input", *(f"unit{j}" for j in range(1, n_units)), "output"],
        fwd_cost=forward,
        bwd_cost=np.concatenate([[0.0], np.cumsum(np.diff(forward) * rng.uniform(1, 2.5, n_units))]),
        act_bits=bits,
        grad_bits=bits * rng.choice([0.25, 1.0, 2.0]),
        param_bits=np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, n_units))]) * 8e6,
        act_memory=np.concatenate([[0.0], np.cumsum(rng.lognormal(0, 1, n_units))]) * 1e5,
    )


def random_network(rng, n_nodes=4, profile=None, batch_size=8, relays=None, duplex=None, tight=None) -> EdgeNetwork:
    """Return a random connected network; node names are a mixture of numbers and strings.

    Args:
        rng, n_nodes: generator and number of nodes.
        profile, batch_size: needed for tight memory, which is drawn as a share of what the whole model takes.
        relays: number of nodes without compute; None draws none or one (the source always computes).
        duplex: "full" or "half"; None draws.
        tight: whether memory is scarce; None draws. The model may then fit nowhere.
    """
    relays = int(rng.integers(2)) * (n_nodes > 2) if relays is None else relays
    tight = profile is not None and rng.random() < 0.3 if tight is None else tight
    names = [n if n % 2 else f"n{n}" for n in range(n_nodes)]
    idle = set(rng.permutation(np.arange(1, n_nodes))[:relays].tolist())
    whole = 3 * profile.param_bits[-1] / 8 + batch_size * profile.act_memory[-1] if tight else np.inf
    graph = nx.DiGraph()
    for n in rng.permutation(n_nodes).tolist():  # the order of the nodes is not that of the path
        if n in idle:
            graph.add_node(names[n])
        else:
            memory = {"memory": whole * rng.uniform(0.2, 0.9)} if tight else {}
            overhead = rng.choice([0.0, 0.01, 0.1])
            graph.add_node(names[n], speed=rng.lognormal(0, 1) * 1e9, overhead=overhead, **memory)
    rate = rng.choice([1e6, 1e7, 1e8])
    pairs = {(int(rng.integers(n)), n) for n in range(1, n_nodes)}
    pairs |= {(u, v) for v in range(n_nodes) for u in range(v) if rng.random() < 0.4}
    for u, v in sorted(pairs):
        there = rate * rng.lognormal(0, 1)
        back = there if rng.random() < 0.5 else rate * rng.lognormal(0, 1)
        delay = rng.choice([0.0, 0.02]) * rng.random()
        graph.add_edge(names[u], names[v], rate=there, latency=delay)
        graph.add_edge(names[v], names[u], rate=back, latency=delay)
    return EdgeNetwork(graph, names[0], rng.choice(["full", "half"]).item() if duplex is None else duplex)
