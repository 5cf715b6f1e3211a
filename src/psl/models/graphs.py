"""The operations of a model in one mode as one flat graph: what torch.export recorded, in a form that can be cut."""

import operator
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.fx.node import map_arg

from psl.errors import CutError, expected
from psl.models.examples import Example
from psl.models.exporting import Exported
from psl.models.kept_operators import STANDS_FOR

#: A stretch of forward under a context: ("grad", enabled, number) or
#: ("autocast", device type, dtype, enabled, cache, number).
Region = tuple[Any, ...]

Operator = type(torch.ops.aten.relu.default)
_NO_GRAD = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST = torch.ops.higher_order.wrap_with_autocast
_SLICE, _END = torch.ops.aten.slice.Tensor, 2**63 - 1
_ASSERTIONS = ("aten::_assert_tensor_metadata", "aten::_assert_scalar", "aten::sym_constrain_range_for_size")


@dataclass(frozen=True, eq=False)
class ModelGraph:
    """A model's operations in one mode, in the order in which they run.

    A node is the placeholder of an input; `device`, the placeholder of the device that the inputs are on; a
    ``get_attr`` of a parameter, a buffer or a constant, by name; or a call. ``node.meta`` holds ``val`` (an example of
    its value, with symbols for the batch and the length), ``path`` (of the module that it belongs to, with ``@k`` for
    its k-th further call) and ``regions``.

    Args:
        graph: the nodes; the output node's argument is the list of what the model returns.
        constants: tensors that are no state of the model, by name.
        inputs: the placeholders of the inputs, the main one first.
        device: the placeholder of the device.
        example: what the model was exported with.
        unflatten: puts what the output node lists into the form in which the model returns it.
        guard: raises AssertionError for inputs of sizes that the graph does not hold for.
        training: the modes of the modules, by name.
    """

    graph: fx.Graph
    constants: dict[str, torch.Tensor]
    inputs: tuple[fx.Node, ...]
    device: fx.Node
    example: Example
    unflatten: Callable[[list[Any]], Any]
    guard: Callable[..., Any] | None
    training: dict[str, bool]

    @property
    def calls(self) -> list[fx.Node]:
        """The calls, in order."""
        return [node for node in self.graph.nodes if node.op == "call_function"]

    def size(self, size: Any, batch_size: int) -> int:
        """Return a size of the graph as a number, for a batch of this size and the example's lengths."""
        if isinstance(size, int):
            return size
        known = {}
        for node, tensor in zip(self.inputs, self.example.tensors, strict=True):
            for symbol, n in zip(node.meta["val"].shape, tensor.shape, strict=True):
                if not isinstance(symbol, int):
                    known.setdefault(symbol.node.expr, n)
        known[self.inputs[0].meta["val"].shape[0].node.expr] = batch_size
        return int(size.node.expr.subs(known))

    @property
    def outputs(self) -> list[Any]:
        """What the model returns: nodes, and constants such as None."""
        (arguments,) = (node.args for node in self.graph.nodes if node.op == "output")
        returned: Any = arguments[0]
        return list(returned)


def region_context(region: Region, device: torch.device) -> Any:
    """Return the context of a region; autocast is that of the given device's type."""
    if region[0] == "grad":
        return torch.set_grad_enabled(region[1])
    _, _, dtype, enabled, cache, _ = region
    kind = "cpu" if device.type == "meta" else device.type
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache)


def flat_graph(exported: Exported) -> ModelGraph:
    """Bring an exported program into the form of `ModelGraph`.

    Raises:
        CutError: it holds an operator with control flow of its own, or fixes the batch size.
    """
    return _Flattening(exported).result()


class _Flattening:
    """Copies a program's nodes, contexts' and all, into one graph."""

    def __init__(self, exported: Exported):
        self.exported, self.graph = exported, fx.Graph()
        self.inputs: list[fx.Node] = []
        self.n_regions = 0
        self.constants: dict[str, torch.Tensor] = {}
        self.traced_on = exported.example.tensors[0].device
        with self.graph.inserting_before():
            self.device = self.graph.placeholder("device")
        self.device.meta |= {"val": self.traced_on, "regions": (), "path": ""}

    def result(self) -> ModelGraph:
        program = self.exported.program
        nodes: dict[fx.Node, Any] = {}
        signature = iter(program.graph_signature.input_specs)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                nodes[node] = self._input(node, next(signature))
        outputs = self._inline(program.graph_module, nodes, ())
        self.graph.output(list(outputs))
        _use_what_was_overwritten(self.graph)
        _drop_unused(self.graph)
        self._check_batch()
        spec = program.call_spec.out_spec
        assert spec is not None
        return ModelGraph(
            self.graph,
            self.constants,
            tuple(self.inputs),
            self.device,
            self.exported.example,
            lambda leaves: spec.unflatten(leaves),
            _guard_of(program),
            self.exported.training,
        )

    def _input(self, node: fx.Node, spec: Any) -> fx.Node:
        kind = spec.kind.name
        if kind == "USER_INPUT":
            made = self.graph.placeholder(node.name)
            self.inputs.append(made)
        elif kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            made = self.graph.create_node("get_attr", spec.target, name=node.name)
            if kind == "CONSTANT_TENSOR":
                constant = self.exported.program.constants[spec.target]
                assert isinstance(constant, torch.Tensor)
                self.constants[spec.target] = constant
        else:
            want, got = "a model of tensors", f"one that uses {spec.target!r} ({kind})"
            raise expected("model", want, got, "keep only tensors in parameters, buffers and attributes", CutError)
        made.meta |= {"val": node.meta["val"], "regions": (), "path": ""}
        return made

    def _inline(self, module: nn.Module, nodes: dict[fx.Node, Any], regions: tuple[Region, ...]) -> Any:
        """Copy a module's calls; returns what its output node returns."""
        assert isinstance(module, fx.GraphModule)
        for node in module.graph.nodes:
            arguments: Any = node.args
            if node.op == "output":
                return map_arg(arguments[0], lambda n: nodes[n])
            if node.op != "call_function" or _is_assertion(node):
                continue
            if node.target is operator.getitem and isinstance(nodes[arguments[0]], list | tuple):
                nodes[node] = nodes[arguments[0]][arguments[1]]  # of what a context returned
            elif node.target is _SLICE and arguments[2:] in ((), (0, _END)):
                nodes[node] = nodes[arguments[0]]  # x[:] and the like
            elif node.target in (_NO_GRAD, _AUTOCAST):
                nodes[node] = self._context(module, node, nodes, regions)
            else:
                nodes[node] = self._call(node, nodes, regions)
        raise AssertionError("a graph ends with its output")

    def _context(self, module: nn.Module, node: fx.Node, nodes: dict[fx.Node, Any], regions: tuple[Region, ...]) -> Any:
        n = 1 if node.target is _NO_GRAD else 4
        arguments: Any = node.args
        self.n_regions += 1  # two stretches under equal contexts stay two: autocast keeps what it cast for one of them
        region = ("grad" if n == 1 else "autocast", *arguments[:n], self.n_regions)
        inner = module.get_submodule(str(arguments[n].target))
        assert isinstance(inner, fx.GraphModule)
        places = (inside for inside in inner.graph.nodes if inside.op == "placeholder")
        values = (map_arg(arg, lambda source: nodes[source]) for arg in arguments[n + 1 :])
        return list(self._inline(inner, dict(zip(places, values, strict=True)), (*regions, region)))

    def _call(self, node: fx.Node, nodes: dict[fx.Node, Any], regions: tuple[Region, ...]) -> fx.Node:
        if not isinstance(node.target, Operator | types.FunctionType | types.BuiltinFunctionType):
            want, got = "a model without operators of control flow", f"{node.target} in node {node.name!r}"
            raise expected("model", want, got, "write it with torch.where, or as a loop of Python", CutError)
        made = self.graph.node_copy(node, lambda source: nodes[source])
        made.meta = {
            "val": node.meta.get("val"),
            "regions": regions,
            "path": _module_path(node),
            "where": node.meta.get("stack_trace"),
        }
        made.target = STANDS_FOR.get(node.target, node.target)
        if made.target is torch.ops.aten.view.default:
            # torch.export drops a call of contiguous() before it where the strides of the kernels that it knows need
            # none; those of other kernels, for attention, may need it. reshape is a view, too, where it can be one.
            made.target, made.meta["operator"] = torch.ops.aten.reshape.default, "view"
        name = node.target.name() if isinstance(node.target, Operator) else ""
        if (function := self.exported.functions.get(name.split(".")[0])) is not None:
            made.target = function
        made.kwargs = {
            key: self.device if isinstance(value, torch.device) and value == self.traced_on else value
            for key, value in made.kwargs.items()
        }
        return made

    def _check_batch(self) -> None:
        size = self.inputs[0].meta["val"].shape[0]
        if isinstance(size, int):
            want = "a forward pass for batches of any size"
            got = f"one that holds for a batch of {size} only"
            raise expected("model", want, got, "take the batch size from the input, x.size(0)", CutError)


def _is_assertion(node: fx.Node) -> bool:
    return isinstance(node.target, Operator) and node.target.name().split(".")[0] in _ASSERTIONS


def _module_path(node: fx.Node) -> str:
    stack = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return stack[-1] if stack and not stack[-1].startswith("_") else ""


def _guard_of(program: ExportedProgram) -> Callable[..., Any] | None:
    return dict(program.module().named_children()).get("_guards_fn")


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users and not node.is_impure():
            graph.erase_node(node)


# --- what an operator changes ---


def overwritten(node: fx.Node) -> list[fx.Node]:
    """Return the arguments that an operation works on in place; BatchNorm's running statistics are such."""
    if node.op != "call_function" or not isinstance(node.target, Operator):
        return []
    found, arguments = [], node.target._schema.arguments
    values = dict(zip([a.name for a in arguments], node.args, strict=False)) | node.kwargs
    updates = bool(values.get("training", values.get("use_input_stats", False)))
    for argument in arguments:
        writes = argument.alias_info is not None and argument.alias_info.is_write
        if writes or (updates and argument.name in ("running_mean", "running_var")):
            value = values.get(argument.name)
            found += [value] if isinstance(value, fx.Node) else []
    return found


def may_alias(node: fx.Node) -> fx.Node | None:
    """Return the argument whose memory an operation's result may share: of views, and of operations in place."""
    if node.target is operator.getitem:
        source = node.args[0]
        return may_alias(source) if isinstance(source, fx.Node) else None
    if node.op != "call_function" or not isinstance(node.target, Operator):
        return None
    schema = node.target._schema
    values = dict(zip([a.name for a in schema.arguments], node.args, strict=False)) | node.kwargs
    sets = [
        entry for result in schema.returns if result.alias_info is not None for entry in result.alias_info.before_set
    ]
    for argument in schema.arguments:
        shared = argument.alias_info is not None and any(entry in sets for entry in argument.alias_info.before_set)
        # Dropout returns its input itself in eval mode; its schema does not say so.
        idle = "dropout" in schema.name and values.get("train", True) is False and argument.name == "input"
        source = values.get(argument.name)
        if (shared or idle) and isinstance(source, fx.Node):
            return source
    return None


def is_random(node: fx.Node) -> bool:
    """Return whether an operation draws from torch's generator."""
    target = node.target
    return isinstance(target, Operator) and torch.Tag.nondeterministic_seeded in target.tags


def _use_what_was_overwritten(graph: fx.Graph) -> None:
    """Let what reads a tensor after an operation in place read that operation's result: it is the same tensor."""
    position = {node: k for k, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        for source in overwritten(node):
            if source is not may_alias(node) or source.op == "get_attr":
                continue
            later = {user for user in source.users if position[user] > position[node]}
            source.replace_all_uses_with(node, delete_user_cb=lambda user, later=later: user in later)
