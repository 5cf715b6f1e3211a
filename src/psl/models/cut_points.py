"""Where a model can be cut: the positions between two operations, and the tensors that cross there."""

import operator
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from psl.models.graphs import ModelGraph, Operator, is_random, may_alias, overwritten

aten = torch.ops.aten

#: Identifies an operation in every mode: module path, name of the operator, and which of these in the module it is.
Key = tuple[str, str, int]

# Operators that look at nothing but the sizes of a tensor.
_SIZES = {
    getattr(packet, overload)
    for packet in (aten.sym_size, aten.sym_numel, aten.sym_stride, aten.sym_storage_offset)
    for overload in packet.overloads()
}


@dataclass(eq=False)
class Crossing:
    """A position in the order of execution, with what crosses there.

    Args:
        position: operations up to this number, in `ModelGraph.calls`, run before; -1 is before the first.
        tensors: the nodes of the tensors that are computed before and read after, or are returned at the end.
        torn: names of parameters and buffers used on both sides that cannot be on both.
    """

    position: int
    tensors: tuple[fx.Node, ...]
    torn: tuple[str, ...] = ()


@dataclass(eq=False)
class Analysis:
    """What can be computed where in a model's graph.

    Args:
        graph: the model's operations.
        trainable: names of parameters that train, tied ones by their first name, and by name the name of what it is.
        state_of: for every ``get_attr`` target the name under which a shared tensor is known.

    Attributes:
        carried: operations that run once, where they stand: those that depend on values of the data, on parameters
            that train, on buffers that forward changes, or on a random draw.
        position: number of each call in the order of execution; inputs and attributes have -1.
        root: the node whose memory a node's value lies in, as far as views and operations in place tell.
        overwriting: calls that work in place, by the root of the memory that they change.
        interfaces: what crosses at a position, filled by `psl.models.programs.interface_at`.
        side: inputs whose values may be handed on beside a cut, masks for example.
        keys: what identifies each call in every mode.
    """

    graph: ModelGraph
    trainable: frozenset[str]
    state_of: dict[str, str]
    carried: set[fx.Node] = field(default_factory=set)
    position: dict[fx.Node, int] = field(default_factory=dict)
    root: dict[fx.Node, fx.Node] = field(default_factory=dict)
    overwriting: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    side: tuple[fx.Node, ...] = ()
    keys: dict[fx.Node, Key] = field(default_factory=dict)
    interfaces: dict[int, Any] = field(default_factory=dict)
    mutated: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        calls = self.graph.calls
        self.position = dict.fromkeys(self.graph.graph.nodes, -1) | {node: k for k, node in enumerate(calls)}
        self.side = tuple(node for node in self.graph.inputs[1:] if _is_side_input(node))
        for node in self.graph.graph.nodes:
            source = may_alias(node)
            self.root[node] = node if source is None else self.root[source]
        for node in calls:
            for root in dict.fromkeys(self.root[target] for target in overwritten(node)):
                self.overwriting.setdefault(root, []).append(node)
        written = [str(root.target) for root in self.overwriting if root.op == "get_attr"]
        self.mutated = frozenset(self.state_of[name] for name in written if name in self.state_of)
        self.carried = self._find_carried(calls)
        self.keys = _keys(calls)

    def _find_carried(self, calls: list[fx.Node]) -> set[fx.Node]:
        main = {node for node in self.graph.inputs if node not in self.side}
        carried, shared_memory = set(main), set[fx.Node]()
        while True:
            beside = set(self.side)  # what depends on side inputs
            for node in calls:
                sources = _read(node)
                beside |= {node} if any(source in beside for source in sources) else set()
                names = [self.state_of.get(str(s.target)) for s in sources if s.op == "get_attr"]
                state = [name for name in names if name is not None]
                once = any(name in self.trainable or name in self.mutated for name in state)
                weights = node in beside and any(
                    s.op == "get_attr" and s.meta["val"].ndim > 1 for s in sources if state
                )
                if (
                    once
                    or weights
                    or is_random(node)
                    or self.root[node] in shared_memory
                    or any(source in carried for source in sources)
                ):
                    carried.add(node)
            # What is overwritten with values of the data cannot be made anew on the other side.
            more = {root for root, nodes in self.overwriting.items() if not carried.isdisjoint(nodes)} - shared_memory
            more = {node for node in more if node.op != "get_attr"}
            if not more:
                return carried
            shared_memory |= more

    def crossings(self) -> list[Crossing]:
        """Return the positions at which other tensors cross than at the one before; first the input, last the output.

        Left out are positions at which something other than tensors crosses; at which nothing crosses but views of
        token ids, which are the data; and between two tensors that share memory if either is overwritten later.
        """
        calls = self.graph.calls
        end = len(calls)
        last_use: dict[fx.Node, int] = {}
        for node in calls:
            for source in _read(node):
                last_use[source] = self.position[node]
        outputs = [node for node in self.graph.outputs if isinstance(node, fx.Node)]
        last_use |= dict.fromkeys(outputs, end)
        first = tuple(node for node in self.graph.inputs if node not in self.side)
        found = [Crossing(-1, first)]
        alive = [node for node in first if last_use.get(node, -1) > -1]
        overwritten_at = {root: self.position[nodes[-1]] for root, nodes in self.overwriting.items()}
        inputs = set(self.graph.inputs)
        torn = self._torn(outputs, end)
        for node in calls[:-1]:
            if node not in self.carried:
                continue
            p = self.position[node]
            alive = [n for n in [*alive, node] if last_use.get(n, -1) > p]
            if not all(isinstance(n.meta["val"], torch.Tensor) for n in alive) or set(alive) == set(found[-1].tensors):
                continue
            roots = Counter(self.root[n] for n in alive)
            if roots.keys() <= inputs and not any(n.meta["val"].is_floating_point() for n in alive):
                continue
            if any(count > 1 and overwritten_at.get(root, 0) > p for root, count in roots.items()):
                continue
            found.append(Crossing(p, tuple(alive), tuple(n for n, (a, b) in torn.items() if a <= p < b)))
        final = tuple(dict.fromkeys(outputs))
        if len(found) > 1 and set(found[-1].tensors) == set(final):
            found.pop()
        return [*found, Crossing(end - 1, final)]

    def _torn(self, outputs: list[fx.Node], end: int) -> dict[str, tuple[int, int]]:
        """Return the first and the last position that use each parameter or buffer that only one side may have."""
        used: dict[str, list[int]] = defaultdict(list)
        for node in self.graph.graph.nodes:
            name = self.state_of.get(str(node.target)) if node.op == "get_attr" else None
            if name is not None and (name in self.trainable or name in self.mutated):
                used[name] += [self.position[user] for user in node.users if user.op == "call_function"]
                used[name] += [end] if node in outputs else []
        return {name: (min(places), max(places)) for name, places in used.items() if places}


def _read(node: fx.Node) -> list[fx.Node]:
    """Return the nodes whose values an operation reads; sizes are none."""
    return [] if only_sizes(node) else list(node.all_input_nodes)


def only_sizes(node: fx.Node) -> bool:
    """Return whether an operation returns a size of its argument."""
    return node.target in _SIZES


def _is_side_input(node: fx.Node) -> bool:
    value = node.meta["val"]
    return not value.is_floating_point() or "mask" in node.name


def _keys(calls: Iterable[fx.Node]) -> dict[fx.Node, Key]:
    counts: Counter[tuple[str, str]] = Counter()
    keys = {}
    for node in calls:
        place = (node.meta["path"], operator_name(node))
        keys[node] = (*place, counts[place])
        counts[place] += 1
    return keys


def operator_name(node: fx.Node) -> str:
    """Return the plain name of an operation, such as ``relu``; for a part of a result, that of what it is a part of."""
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node):
        return operator_name(node.args[0])
    if "operator" in node.meta:
        return node.meta["operator"]
    if isinstance(node.target, Operator):
        return node.target.name().split("::")[1].split(".")[0].strip("_")
    return str(getattr(node.target, "__name__", node.target))


# --- names ---


def names_of(analysis: Analysis, crossings: list[Crossing]) -> tuple[list[str], dict[str, int]]:
    """Return a unique name for each crossing, and every name that stands for one, with its number.

    A position is named after the innermost module that has just ended, where that was called once; else after the
    operation before it.
    """
    calls = analysis.graph.calls
    ended: dict[int, list[str]] = defaultdict(list)  # position -> modules whose last operation stands there
    last: dict[str, int] = {}
    repeated = _called_twice([node for node in calls if node in analysis.carried])
    for node in calls:
        if node in analysis.carried:
            for path in _paths(node):
                last[path] = analysis.position[node]
    for path, position in last.items():
        if path and path not in repeated and "@" not in path:
            ended[position].append(path)
    names, aliases = [], {}
    taken: set[str] = {"input"}
    for j, crossing in enumerate(crossings):
        if j == 0:
            names.append("input")
            aliases["input"] = 0
            continue
        # Modules that end at this position, or at one behind it with the same tensors.
        is_last = j + 1 == len(crossings)
        node = _last_call(analysis, crossing) if is_last else calls[crossing.position]
        start = analysis.position.get(node, len(calls)) if is_last else crossing.position
        until = len(calls) if is_last else crossings[j + 1].position
        paths = [path for p in range(start, max(until, start + 1)) for path in ended[p]]
        if paths:
            name = max(paths, key=lambda path: path.count("."))
        else:
            path, plain, _ = analysis.keys.get(node, ("", "output", 0))
            name = ".".join(part for part in (path.replace("@", "_"), plain) if part)
        unique, k = name, 1
        while unique in taken:
            unique, k = f"{name}_{k}", k + 1
        taken.add(unique)
        names.append(unique)
        aliases |= dict.fromkeys([unique, *(path for path in paths if path not in aliases)], j)
    return names, aliases


def _called_twice(calls: list[fx.Node]) -> set[str]:
    """Return the paths of modules that are left and entered again."""
    left: set[str] = set()
    twice: set[str] = set()
    inside: set[str] = set()
    for node in calls:
        here = {path.split("@")[0] for path in _paths(node)}
        left |= inside - here
        twice |= here & left
        inside = here
    return twice


def _last_call(analysis: Analysis, crossing: Crossing) -> Any:
    calls = [node for node in crossing.tensors if node.op == "call_function"]
    return max(calls, key=lambda node: analysis.position[node], default=None)


def _paths(node: fx.Node) -> list[str]:
    """Return the paths of the modules around an operation."""
    path = node.meta["path"]
    parts = path.split(".") if path else []
    return [".".join(parts[: k + 1]) for k in range(len(parts))]
