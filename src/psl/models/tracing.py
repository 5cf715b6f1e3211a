"""Trace a model with torch.fx and find where it can be cut."""

import dataclasses
import difflib
import inspect
import operator
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from psl.errors import CutError, expected
from psl.models.cut_points import find_cut_nodes, name_cuts, reachable, target_of, units_of


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
        return units_of(self.graph, self.cut_nodes)

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
    cut_nodes = find_cut_nodes(graph, model, constants)
    names, aliases = name_cuts(cut_nodes, returned_by, owner)
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
    for node in reversed(reachable(placeholders[n_required:])):  # defaults stand last in a signature
        if node.op != "output":
            graph.erase_node(node)


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
