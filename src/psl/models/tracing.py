"""Trace a model with torch.fx and find where it can be cut."""

import dataclasses
import difflib
import inspect
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from psl.errors import CutError, expected


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A model as a graph, with the nodes at which it can be cut in topological order.

    Args:
        model: the model itself, not a copy.
        graph: its operations; refers to modules and parameters of `model` by name.
        cut_nodes: the first is the input's placeholder, the last the node that the output returns.
        cut_names: one name per cut.
        aliases: every name under which a cut may be asked for, with the cut's number.
        owner: names of the modules around a node, outermost first.
        constants: tensors that forward() makes from nothing, by the target of their node.
    """

    model: nn.Module
    graph: fx.Graph
    cut_nodes: tuple[fx.Node, ...]
    cut_names: tuple[str, ...]
    aliases: dict[str, int]
    owner: dict[fx.Node, tuple[str, ...]]
    constants: dict[str, torch.Tensor]

    def units(self) -> dict[fx.Node, int]:
        """Return the unit (1..L) that computes each node that depends on the input; 0 is the input."""
        return _units(self.graph, self.cut_nodes)

    def units_with_constants(self) -> dict[fx.Node, int]:
        """As `units`, for every node; what does not depend on the input belongs to its first user's unit."""
        unit = self.units()
        for node in reversed(list(self.graph.nodes)):
            if node not in unit:
                unit[node] = min((unit[user] for user in node.users), default=0)
        return unit

    def attribute(self, target: str) -> Any:
        """Return the module, parameter or tensor that a node's target names."""
        return self.constants[target] if target in self.constants else operator.attrgetter(target)(self.model)

    def find(self, cut: int | str) -> int:
        """Return the number of a cut given by number or name.

        Raises:
            CutError: there is no such cut; for a place inside a block the message names the block
                and the nearest cuts around it.
        """
        last = len(self.cut_nodes) - 1
        if not isinstance(cut, str):
            if isinstance(cut, bool) or cut not in range(last + 1):
                raise CutError(f"cut: expected a number 0..{last}, got {cut!r}. Fix: psl.cuts lists the cuts")
            return int(cut)
        if cut in self.aliases:
            return self.aliases[cut]
        inside = [n for n in self.units() if n.name == cut or n.target == cut or cut in self.owner[n]]
        if not inside:
            close = difflib.get_close_matches(cut, self.aliases, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise CutError(f"cut: expected the name of a cut, got {cut!r}. Fix: {hint}psl.cuts lists the cuts")
        unit = self.units()[inside[-1]]
        ends = [name for name in reversed(self.owner[inside[-1]]) if name in self.aliases]
        block = ends[0] if ends else self.cut_names[unit]
        raise CutError(
            f"cut: expected a point that every path passes, got {cut!r}, which lies inside block {block!r}: more than "
            f"one tensor is alive there. Fix: cut before it, at {self.cut_names[unit - 1]!r} ({unit - 1}), or after "
            f"it, at {self.cut_names[unit]!r} ({unit})"
        )


def target_of(node: fx.Node) -> str:
    """Return the name that a node refers to: of a module, an attribute or a method."""
    return str(node.target)


class _Tracer(fx.Tracer):
    """Keeps modules without children whole, and notes which node each module returns."""

    def __init__(self) -> None:
        super().__init__()
        self.returned_by: dict[str, list[fx.Node]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        # A module without children may read self.training when it runs, as torchvision's StochasticDepth does. If
        # the tracer went inside, the graph would keep the mode of the moment.
        return super().is_leaf_module(m, module_qualified_name) or not any(True for _ in m.children())

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        path = self.path_of_module(m)
        value = super().call_module(m, forward, args, kwargs)
        if isinstance(value, fx.Proxy):
            self.returned_by.setdefault(path, []).append(value.node)
        return value


def trace(model: nn.Module) -> TracedModel:
    """Trace a model with one input and one output and find its cuts; the model is left as it was.

    The model is traced in train and in eval mode. The two graphs may differ in flags that follow ``model.training``,
    as in ``F.dropout(x, training=self.training)``. In the result such a flag follows the mode of the model as a
    whole. Any other difference is refused.

    Raises:
        CutError: torch.fx cannot trace the model, it has several inputs or outputs, or its graph depends on the mode.
            The message names the node or the cause.
    """
    if not isinstance(model, nn.Module):
        raise expected("model", "a torch.nn.Module", type(model).__name__, "pass the model itself", CutError)
    with torch.random.fork_rng(devices=[]):  # forward() may draw while it is traced
        (graph, returned_by, constants), (eval_graph, _, eval_constants) = (_trace(model, m) for m in (True, False))
    _single(graph, eval_graph, model)
    _keep_training_flag_live(graph, eval_graph, model)
    _refuse_random(constants, eval_constants)
    owner = {node: tuple(name for name, _ in node.meta.get("nn_module_stack", {}).values()) for node in graph.nodes}
    cut_nodes = _find_cuts(graph, model, constants)
    names, aliases = _name_cuts(cut_nodes, returned_by, owner)
    return TracedModel(model, graph, tuple(cut_nodes), names, aliases, owner, constants)


def _trace(model: nn.Module, training: bool) -> tuple[fx.Graph, dict[str, list[fx.Node]], dict[str, torch.Tensor]]:
    """Return the graph in one mode, the nodes that each module returns, and the constants that forward() makes."""
    tracer = _Tracer()
    signature = inspect.signature(model.forward).parameters.items()
    defaults = {name: p.default for name, p in signature if p.default is not inspect.Parameter.empty}
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        graph = tracer.trace(model.train(training), concrete_args=defaults or None)
        # The tracer keeps a constant in a new attribute of the model, which a node of the graph then fetches.
        added = {name: value for name, value in vars(model).items() if name not in before[model]}
        fetched = [target_of(node) for node in graph.nodes if node.op == "get_attr"]
        constants = {name: added[name] for name in fetched if isinstance(added.get(name), torch.Tensor)}
    except Exception as cause:  # fx lets the model's own exceptions through: all of them mean "not traceable"
        done = list(tracer.graph.nodes)[-1:] if hasattr(tracer, "graph") else []
        where = f" after node {done[0].name!r}" if done else ""
        reason = (str(cause).splitlines() or [""])[0]
        raise CutError(
            f"cuts: expected a model that torch.fx can trace, got {type(model).__name__}, which stops the tracer"
            f"{where}: {type(cause).__name__}: {reason}. Fix: move value-dependent Python (if, for, int(), *args) "
            "into a child module without children of its own, which is kept whole, or mark the function with "
            "torch.fx.wrap"
        ) from cause
    finally:
        for module, attributes in before.items():
            _restore(module, attributes)
    _drop_default_arguments(graph, len(signature) - len(defaults))
    return graph, tracer.returned_by, constants


def _restore(module: nn.Module, attributes: dict[str, Any]) -> None:
    """Undo what tracing changed: the mode, constants that the tracer keeps on the model, what forward() remembers."""
    now = vars(module)
    for name in now.keys() - attributes.keys():
        del now[name]
    for name, value in attributes.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _refuse_random(constants: dict[str, torch.Tensor], eval_constants: dict[str, torch.Tensor]) -> None:
    """Refuse tensors that forward() draws from nothing: the graph would hold one draw of them for ever."""
    for name, value in constants.items():
        other = eval_constants.get(name)
        if value.device.type != "meta" and other is not None and not torch.equal(value, other):
            want = "a forward pass that makes the same constants whenever it runs"
            fix = "draw random tensors like the input (torch.randn_like), in a child module without children"
            raise expected("cuts", want, "one that differs", fix, CutError)


def _drop_default_arguments(graph: fx.Graph, n_required: int) -> None:
    """Remove the placeholders that fx makes for arguments left at their defaults, and its checks of them."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in reversed(_reachable(placeholders[n_required:])):  # defaults stand last in a signature
        if node.op != "output":
            graph.erase_node(node)


def _reachable(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes that depend on any of `nodes`, and these themselves, in the order of the graph."""
    found = set(nodes)
    ordered: Iterable[fx.Node] = nodes[0].graph.nodes if nodes else []
    for node in ordered:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return [node for node in ordered if node in found]


def _single(graph: fx.Graph, eval_graph: fx.Graph, model: nn.Module) -> None:
    """Refuse a model with several inputs or outputs."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and not node.args]
    if len(inputs) != 1:
        raise CutError(
            f"cuts: expected one input without default, got {len(inputs)} in {type(model).__name__}. "
            "Fix: wrap the model in a module with one tensor argument"
        )
    for mode, traced in (("train", graph), ("eval", eval_graph)):
        (output,) = (node for node in traced.nodes if node.op == "output")
        value = output.args[0]
        made_by = value.target if isinstance(value, fx.Node) else type(value)
        if not isinstance(value, fx.Node) or (isinstance(made_by, type) and issubclass(made_by, tuple | dict)):
            raise CutError(
                f"cuts: expected one output tensor, got a {getattr(made_by, '__name__', made_by)} in {mode} mode from "
                f"{type(model).__name__}. Fix: return one tensor; build GoogLeNet and Inception with "
                "aux_logits=False"
            )


def _keep_training_flag_live(graph: fx.Graph, eval_graph: fx.Graph, model: nn.Module) -> None:
    """Replace arguments that are True in train mode and False in eval mode by ``self.training``."""
    problem = CutError(
        f"cuts: expected the same graph in train and eval mode, got two different ones from {type(model).__name__}. "
        "Fix: move the part that differs into a child module without children of its own, which is kept whole"
    )
    pairs: list[tuple[fx.Node, fx.Node]] = list(zip(graph.nodes, eval_graph.nodes, strict=False))
    if len(graph.nodes) != len(eval_graph.nodes):
        raise problem
    flag, twin = None, dict(pairs)
    for node, other in pairs:
        if node.op != other.op or node.target != other.target:
            raise problem
        values, structure = _flat((node.args, node.kwargs))
        others, other_structure = _flat((other.args, other.kwargs))
        if structure != other_structure:
            raise problem
        for k, (value, in_eval) in enumerate(zip(values, others, strict=True)):
            if isinstance(value, fx.Node):
                if twin[value] is not in_eval:
                    raise problem
            elif value is True and in_eval is False:
                if flag is None:
                    with graph.inserting_before(next(iter(graph.nodes))):
                        flag = graph.create_node("get_attr", "training", name="training_mode")
                values[k] = flag
            elif type(value) is not type(in_eval) or value != in_eval:
                raise problem
        node.args, node.kwargs = _nested(values, structure)


def _flat(arguments: Any) -> tuple[list[Any], Any]:
    """Return the values in nested tuples, lists, dicts and slices, and the structure: None in place of each value."""
    values: list[Any] = []
    return values, map_aggregate(arguments, values.append)


def _nested(values: list[Any], structure: Any) -> Any:
    """Put values back into a structure, both as `_flat` returns them."""
    remaining = iter(values)
    return map_aggregate(structure, lambda _: next(remaining))


def _units(graph: fx.Graph, cut_nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    position = {node: j for j, node in enumerate(cut_nodes)}
    unit: dict[fx.Node, int] = {}
    for node in graph.nodes:
        sources = [n for n in node.all_input_nodes if n in unit]
        if node in position:
            unit[node] = position[node]
        elif sources:
            # What reads a cut is computed after it; so is everything that reads such a value.
            after = max(unit[n] + 1 if n in position else unit[n] for n in sources)
            unit[node] = min(after, len(cut_nodes) - 1)
    return unit


def _find_cuts(graph: fx.Graph, model: nn.Module, constants: dict[str, torch.Tensor]) -> list[fx.Node]:
    (inlet,) = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    after_input = set(_reachable([inlet]))
    before_output = {output}
    for node in reversed(list(graph.nodes)):
        if any(user in before_output for user in node.users):
            before_output.add(node)
    on_path = [node for node in graph.nodes if node in after_input and node in before_output]
    # The batch size is the same at every cut: a part can ask its own input for it (x.view(n, -1)).
    on_path = [node for node in on_path if not only_batch_size(node)]
    position = {node: k for k, node in enumerate(on_path)}
    # Every path passes a node if no edge leads from a node before it to one behind it.
    furthest = 0  # position that edges from the nodes so far reach
    dominators = []
    for k, node in enumerate(on_path[:-1]):
        if furthest <= k and not _returns_tuple(node):
            dominators.append(node)
        furthest = max([furthest, *(position[user] for user in node.users if user in position)])
    return _keep_state_together(graph, dominators, model, constants)


def only_batch_size(node: fx.Node) -> bool:
    """Return whether the value is the batch size, ``x.size(0)`` or ``x.shape[0]``, or a shape read for nothing else."""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return bool(node.args[1] == 0)
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_shape(node.args[0]):
        return bool(node.args[1] == 0)
    return _is_shape(node) and all(only_batch_size(user) for user in node.users)


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1
    return node.op == "call_function" and node.target is getattr and bool(node.args[1] == "shape")


def _returns_tuple(node: fx.Node) -> bool:
    def picks(user: fx.Node) -> bool:
        by_number = user.target is operator.getitem and isinstance(user.args[1], int)
        return by_number or (user.target is getattr and user.args[1] in ("values", "indices"))

    return bool(node.users) and all(picks(user) for user in node.users)


def _keep_state_together(
    graph: fx.Graph, cut_nodes: list[fx.Node], model: nn.Module, constants: dict[str, torch.Tensor]
) -> list[fx.Node]:
    """Drop cuts that would put one parameter, or one module with state, on both sides."""
    first: dict[int, int] = {}  # unit that uses a tensor first
    last: dict[int, int] = {}
    units = _units(graph, cut_nodes)
    for node, unit in units.items():
        state: list[torch.Tensor] = []
        if node.op == "call_module":
            module = model.get_submodule(target_of(node))
            state = [*module.parameters(), *module.buffers()]
        # Parameters that forward() fetches, perhaps through operations that do not see the input (w.t()).
        fetched = [source for source in node.all_input_nodes if source not in units]
        while fetched:
            source = fetched.pop()
            fetched += source.all_input_nodes
            if source.op == "get_attr" and source.target != "training" and source.target not in constants:
                value = operator.attrgetter(target_of(source))(model)
                state += [value] if isinstance(value, nn.Parameter) else []
        for tensor in state:
            first[id(tensor)] = min(unit, first.get(id(tensor), unit))
            last[id(tensor)] = max(unit, last.get(id(tensor), unit))
    torn = {j for key in first for j in range(first[key], last[key])}
    return [node for j, node in enumerate(cut_nodes) if j not in torn]


def _name_cuts(
    cut_nodes: list[fx.Node], returned_by: dict[str, list[fx.Node]], owner: dict[fx.Node, tuple[str, ...]]
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Return a name for each cut, and every name's cut: the innermost module that returns it alone, else its node."""
    aliases: dict[str, int] = {}
    names = []
    position = {node: j for j, node in enumerate(cut_nodes)}
    for path, nodes in returned_by.items():
        if len(nodes) == 1 and nodes[0] in position:
            aliases[path] = position[nodes[0]]
    for j, node in enumerate(cut_nodes):
        paths = [path for path, index in aliases.items() if index == j]
        if node.op == "placeholder":
            name = "input"
        elif paths:
            name = max(paths, key=lambda path: path.count("."))
        else:
            name = ".".join([*owner[node][-1:], node.name]) if node.op != "call_module" else node.name
        aliases[name] = j
        names.append(name)
    return tuple(names), aliases
