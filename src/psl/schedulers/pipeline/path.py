"""The path of a micro-batch through the network: stages and hops, by the nodes' names or by their places."""

from typing import NamedTuple, Self

from psl.networks.edge_network import EdgeNetwork

Stages = tuple[tuple[int | str, int, int], ...]  # (node, i, j): the node runs units i+1..j
Hops = tuple[tuple[int, int | str, int | str], ...]  # (cut, u, v): the activation of the cut goes from u to v


class Path(NamedTuple):
    """Stages and hops by their places in the network, in the order of the path: what the searches work with."""

    stages: tuple[tuple[int, int, int], ...]  # (n, i, j): node n of `EdgeNetwork.nodes` runs units i+1..j
    hops: tuple[tuple[int, int], ...]  # (cut, e): edge e of `EdgeNetwork.edges`

    @classmethod
    def of(cls, network: EdgeNetwork, stages: Stages, hops: Hops) -> Self:
        """Return the path of stages and hops that are given by the names of their nodes."""
        return cls(
            tuple((network.index[node], i, j) for node, i, j in stages),
            tuple((cut, network.edge_index[u, v]) for cut, u, v in hops),
        )

    def named(self, network: EdgeNetwork) -> tuple[Stages, Hops]:
        """Return stages (node, i, j) and hops (cut, u, v) by the names of their nodes."""
        return (
            tuple((network.nodes[n], i, j) for n, i, j in self.stages),
            tuple((cut, *network.edges[e]) for cut, e in self.hops),
        )


def describe(network: EdgeNetwork, stages: Stages) -> str:
    """Return the stages as people read them: node:i-j → node:j-k."""
    return " → ".join(f"{network.labels[node]}:{i}-{j}" for node, i, j in stages)
