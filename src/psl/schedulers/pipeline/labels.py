"""Labels of the placement search: paths from the source to a vertex, and what they remember of hosts and links."""

from dataclasses import dataclass, field
from typing import NamedTuple

from psl.schedulers.pipeline.path import Path


class Critical(NamedTuple):
    """The hosts and links that labels remember."""

    hosts: tuple[int, ...]  # bit k of `Label.hosts` stands for the k-th of them
    edges: frozenset[int]  # numbers of undirected links, as in `PipelineProblem.link`


@dataclass(slots=True)
class Label:
    """One path to a vertex. With links="once" it remembers links, with "shared" their loads, else neither."""

    fill: float  # S, s
    interval: float  # θ, s
    cut: int
    node: int
    arrived: int  # 1: by a hop, 0: computed on the node
    hosts: int  # bit mask of the critical hosts that have a stage
    crossed: int = 0  # bit mask of the critical links that have a hop
    loads: dict[int, float] = field(default_factory=dict)  # s on each direction of the critical links
    paid: float = 0.0  # s, prices of the critical hosts and links it has used
    parent: "Label | None" = None
    edge: int = -1  # of the last hop; -1 after a stage

    def dominates(self, other: "Label") -> bool:
        """Whether the other label, at the same vertex, is no better in anything."""
        if self.fill > other.fill or self.interval > other.interval or self.hosts & ~other.hosts:
            return False
        if self.crossed & ~other.crossed:
            return False
        return not self.loads or all(load <= other.loads.get(r, 0.0) for r, load in self.loads.items())

    def path(self) -> Path:
        """Return the stages and hops from the source to here."""
        stages, hops, label = [], [], self
        while label.parent is not None:
            if label.edge < 0:
                stages.append((label.node, label.parent.cut, label.cut))
            else:
                hops.append((label.cut, label.edge))
            label = label.parent
        return Path(tuple(stages[::-1]), tuple(hops[::-1]))
