"""Python code for a stage: the operations between two positions of a model's graph."""

import linecache
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from psl.models.cut_points import Analysis, Crossing, only_sizes
from psl.models.graphs import overwritten, region_context
from psl.models.normalisation import batch_norm


@dataclass(frozen=True, eq=False)
class Interface:
    """What one stage hands to the next, in this order.

    Args:
        tensors: the tensors that cross at the cut.
        batch_axes: where the batch stands in each; they are handed over with the batch first. 0 also where a tensor
            has none.
        side: inputs of the model that later stages need as well.
        sizes: nodes of sizes that later stages need and cannot read off the tensors.
    """

    tensors: tuple[fx.Node, ...]
    batch_axes: tuple[int, ...]
    side: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class Program:
    """The operations of a stage in one mode.

    Args:
        run: from the device, the list of state tensors and the list of inputs to the list of outputs.
        state: names of parameters, buffers and constants, in the order in which `run` takes them.
        source: the code of `run`.
    """

    run: Callable[[torch.device, list[torch.Tensor], list[Any]], list[Any]] = field(repr=False)
    state: tuple[str, ...]
    source: str

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program":
        return self  # it holds no state


def interface_at(analysis: Analysis, crossing: Crossing) -> Interface:
    """Return what crosses at a position: the tensors, and beside them the inputs and sizes that are needed after."""
    if crossing.position in analysis.interfaces:
        return analysis.interfaces[crossing.position]
    needed = _Need(analysis, after=crossing)
    for node in analysis.graph.calls:
        if node in analysis.carried and analysis.position[node] > crossing.position:
            needed.add(node)
    for node in analysis.graph.outputs:
        if isinstance(node, fx.Node):
            needed.add(node)
    side = tuple(node for node in analysis.graph.inputs if node in needed.side)
    axes = tuple(batch_axis(analysis, node) or 0 for node in crossing.tensors)
    interface = Interface(crossing.tensors, axes, side, tuple(needed.sizes.values()))
    return analysis.interfaces.setdefault(crossing.position, interface)


def batch_axis(analysis: Analysis, node: fx.Node) -> int | None:
    """Return the dimension of a tensor that is as long as the batch, whatever its formula; None if there is none."""
    sizes = node.meta["val"].shape
    return next((d for d, n in enumerate(sizes) if all(analysis.graph.size(n, b) == b for b in (2, 3, 5))), None)


def sizes_of(node: fx.Node) -> tuple[str, ...]:
    """Return the formulas of a tensor's sizes; of a node that is a size, its own."""
    if "sizes" not in node.meta:  # printing one takes long
        value = node.meta["val"]
        node.meta["sizes"] = tuple(map(str, value.shape if isinstance(value, torch.Tensor) else [value]))
    return node.meta["sizes"]


class _Need:
    """Collects the nodes that a stage computes, and what it needs from the stage before.

    Attributes:
        nodes: to be computed, in no order.
        side: inputs beside the cut that they read.
        sizes: one node for each size that cannot be read off the tensors at hand, by the size's formula.
        readable: for size nodes whose tensor is not at hand: the tensor and dimension to read in its place.
    """

    def __init__(self, analysis: Analysis, after: Crossing, until: int | None = None):
        self.analysis, self.inlets, self.after = analysis, set(after.tensors), after.position
        self.until = len(analysis.graph.calls) if until is None else until
        self.nodes: set[fx.Node] = set()
        self.side: set[fx.Node] = set()
        self.sizes: dict[str, fx.Node] = {}
        self.readable: dict[fx.Node, tuple[fx.Node, int, int]] = {}
        self.first = after.position < 0

    def at_hand(self, node: fx.Node) -> bool:
        """Return whether a value comes in or is computed in the stage itself."""
        if node in self.inlets or node in self.nodes or (self.first and node in self.analysis.graph.inputs):
            return True
        return node in self.analysis.carried and self.after < self.analysis.position[node] <= self.until

    def add(self, wanted: fx.Node) -> None:
        """Take in a node with all that it needs."""
        todo = [wanted]
        while todo:
            node = todo.pop()
            if node in self.nodes or node in self.inlets or node.op == "output":
                continue
            if node.op == "placeholder":
                if node is not self.analysis.graph.device and not self.first:
                    self.side.add(node)
                continue
            if only_sizes(node) and not self.at_hand(node.all_input_nodes[0]) and node not in self.analysis.carried:
                source = node.all_input_nodes[0]
                there_anyway = source in self.analysis.side or source.op == "get_attr"  # handed on, or on every side
                if not there_anyway:
                    if not self._read_off(node):
                        self.sizes.setdefault(sizes_of(node)[0], node)
                    continue
            self.nodes.add(node)
            todo += node.all_input_nodes
            if node.op == "call_function" and node not in self.analysis.carried:
                todo += self._overwriting(node)

    def _read_off(self, node: fx.Node) -> bool:
        """Note where a size stands among the sizes of the tensors that come in; returns whether it does."""
        value = node.meta["val"]
        if isinstance(value, int):
            return True
        for inlet in sorted(self.inlets, key=lambda n: self.analysis.position[n]):
            for d, size in enumerate(sizes_of(inlet)):
                factor = _factor(size, sizes_of(node)[0])
                if factor:
                    self.readable[node] = inlet, d, factor
                    return True
        return False

    def _overwriting(self, node: fx.Node) -> Iterable[fx.Node]:
        """Yield what works in place on the memory of a node that is made anew on every side (a mask, for example)."""
        root = self.analysis.root[node]
        if root.op == "call_function":
            for call in self.analysis.overwriting.get(root, ()):
                if self.analysis.position[call] <= self.until and call not in self.analysis.carried:
                    yield call


def _factor(size: str, symbol: str) -> int:
    """Return c if `size` is c times `symbol`, else 0."""
    if size == symbol:
        return 1
    number, _, rest = size.partition("*")
    return int(number) if rest == symbol and number.isdigit() else 0


def stage_program(
    analysis: Analysis, first: Crossing, last: Crossing, *, to_output: bool, name: str = "stage"
) -> Program:
    """Return the code of what is computed between two positions.

    Args:
        analysis: of the model's graph.
        first, last: the positions. The program takes what `interface_at` says of the first, or the model's inputs
            where that is the model's input, and returns what it says of the last.
        to_output: whether the stage is the last one; then it returns what the graph lists as outputs.
        name: for tracebacks.
    """
    graph, is_input = analysis.graph, first.position < 0
    need = _Need(analysis, first, last.position)
    for node in graph.calls:
        if node in analysis.carried and first.position < analysis.position[node] <= last.position:
            need.add(node)
    returned: list[Any] = graph.outputs
    leaving: Interface | None = None
    if not to_output:
        leaving = interface_at(analysis, last)
        returned = [*leaving.tensors, *leaving.side, *leaving.sizes]
    for node in returned:
        if isinstance(node, fx.Node):
            need.add(node)
    code = _Code(analysis)
    if is_input:
        incoming: list[fx.Node] = list(graph.inputs)
        code.unpack("inputs", incoming)
    else:
        entering = interface_at(analysis, first)
        incoming = [*entering.tensors, *entering.side, *entering.sizes]
        code.unpack("inputs", incoming)
        for node, axis in zip(entering.tensors, entering.batch_axes, strict=True):
            if axis:
                code.line(f"{code.variable(node)} = {code.variable(node)}.movedim(0, {axis})")
        changed = {analysis.root[target] for node in need.nodes for target in overwritten(node)}
        for node in entering.tensors:
            if analysis.root[node] in changed:
                # The whole model overwrites a value of its own; here it is the caller's tensor, perhaps a leaf.
                code.line(f"{code.variable(node)} = {code.variable(node)}.clone()")
        known = {sizes_of(node)[0]: node for node in entering.sizes}
        for node in graph.calls:
            if only_sizes(node) and node not in need.nodes and (size := known.get(sizes_of(node)[0])) is not None:
                code.names[node] = code.variable(size)
    for node, (inlet, d, factor) in need.readable.items():
        size = f"{code.variable(inlet)}.shape[{d}]"
        code.line(f"{code.variable(node)} = {size if factor == 1 else f'{size} // {factor}'}")
    for node in graph.calls:  # sizes that never change
        if only_sizes(node) and node not in need.nodes and isinstance(node.meta["val"], int):
            code.names[node] = repr(node.meta["val"])
    outgoing = [node for node in returned if isinstance(node, fx.Node)]
    code.body([node for node in graph.graph.nodes if node in need.nodes], keep={*outgoing})
    results = [code.render(node) for node in returned]
    if leaving is not None:
        for k, axis in enumerate(leaving.batch_axes):
            if axis:
                results[k] += f".movedim({axis}, 0)"
    return code.program(results, name)


class _Code:
    """Writes Python."""

    def __init__(self, analysis: Analysis):
        self.analysis = analysis
        self.names: dict[fx.Node, str] = {analysis.graph.device: "device"}
        self.lines: list[str] = []
        self.indent = "    "
        self.namespace: dict[str, Any] = {"inf": math.inf, "nan": math.nan, "region_context": region_context}
        self.globals: dict[int, str] = {}
        self.state: dict[fx.Node, str] = {}

    def variable(self, node: fx.Node) -> str:
        return self.names.setdefault(node, f"v{len(self.names)}")

    def line(self, text: str) -> None:
        self.lines.append(self.indent + text)

    def unpack(self, source: str, nodes: list[fx.Node]) -> None:
        if nodes:
            self.line(f"{', '.join(map(self.variable, nodes))}, = {source}")

    def body(self, nodes: list[fx.Node], keep: set[fx.Node]) -> None:
        """Write the calls, each under its contexts; a variable is forgotten after its last use."""
        self.state = {node: str(node.target) for node in nodes if node.op == "get_attr"}
        self.unpack("state", list(self.state))
        last_user = {source: node for node in nodes if node.op == "call_function" for source in node.all_input_nodes}
        forget: dict[fx.Node, list[fx.Node]] = {}
        for source, user in last_user.items():
            if source not in keep and source.op == "call_function" and self.names.get(source, "v")[0] == "v":
                forget.setdefault(user, []).append(source)
        open_regions: list[Any] = []
        for node in nodes:
            if node.op != "call_function":
                continue
            regions = list(node.meta["regions"])
            common = 0
            while common < min(len(regions), len(open_regions)) and regions[common] == open_regions[common]:
                common += 1
            del open_regions[common:]
            self.indent = "    " * (1 + common)
            for region in regions[common:]:
                self.line(f"with region_context({self.constant(region)}, device):")
                open_regions.append(region)
                self.indent += "    "
            arguments = [self.render(argument) for argument in node.args]
            arguments += [f"{key}={self.render(value)}" for key, value in node.kwargs.items()]
            target = batch_norm if node.target is torch.ops.aten.batch_norm.default else node.target
            call = f"{self.constant(target)}({', '.join(arguments)})"
            self.line(f"{self.variable(node)} = {call}" if node.users or node in keep else call)
            done = [self.names[source] for source in forget.get(node, []) if source in self.names]
            if done:
                self.line(f"del {', '.join(done)}")
        self.indent = "    "

    def constant(self, value: Any) -> str:
        """Return a global name for a value that has no literal."""
        if id(value) not in self.globals:
            name = self.globals[id(value)] = f"c{len(self.globals)}"
            self.namespace[name] = value
        return self.globals[id(value)]

    def render(self, value: Any) -> str:
        """Return the code of an argument."""
        if isinstance(value, fx.Node):
            return self.variable(value)
        if value is None or isinstance(value, bool | int | float | str):
            return repr(value)
        if isinstance(value, tuple | list):
            inner = "".join(f"{self.render(entry)}, " for entry in value)
            return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key!r}: {self.render(entry)}" for key, entry in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({self.render(value.start)}, {self.render(value.stop)}, {self.render(value.step)})"
        return self.constant(value)

    def program(self, results: list[str], name: str) -> Program:
        self.line(f"return [{', '.join(results)}]")
        source = "\n".join(["def run(device, state, inputs):", *self.lines]) + "\n"
        file = f"<psl {name} {id(self):x}>"
        linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
        exec(compile(source, file, "exec"), self.namespace)
        return Program(self.namespace["run"], tuple(self.state.values()), source)
