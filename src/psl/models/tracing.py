"""Trace a model with torch.fx and find where it can be cut."""

import dataclasses
import difflib
import inspect
import operator

import torch
from torch import fx, nn

from psl.errors import CutError, expected


@dataclasses.dataclass(frozen=True)
class TracedModel:
    """A model as a graph, with the nodes at which it can be cut in topological order.

    `graph` refers to the modules of `model` by name; nothing is copied. `cut_nodes[0]` is the
    input's placeholder, the last one the node that the output returns.
    """

    model: nn.Module
    graph: fx.Graph
    cut_nodes: tuple[fx.Node, ...]
    cut_names: tuple[str, ...]
    aliases: dict[str, int]  # every name under which a cut may be asked for
    owner: dict[fx.Node, tuple[str, ...]]  # modules around a node, outermost first
    constants: dict[str, torch.Tensor]  # tensors that forward() makes from nothing, by node target

    def units(self) -> dict[fx.Node, int]:
        """Return the unit (1..L) that computes each node that depends on the input; 0 is the input."""
        return _units(self.graph, self.cut_nodes)

    def units_with_constants(self) -> dict[fx.Node, int]:
        """As `units`, for every node; what does not depend on the input goes with its first user."""
        unit = self.units()
        for node in reversed(self.graph.nodes):
            if node not in unit:
                unit[node] = min((unit[user] for user in node.users), default=0)
        return unit

    def attribute(self, target: str):
        """Return what a node that calls a module or fetches an attribute refers to."""
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

    def __init__(self):
        super().__init__()
        self.returned_by: dict[str, list[fx.Node]] = {}

    def is_leaf_module(self, module, qualified_name):
        # A childless module (torchvision's StochasticDepth, say) may read self.training when it
        # runs; traced through, its train or eval behaviour would be frozen into the graph.
        return super().is_leaf_module(module, qualified_name) or not any(True for _ in module.children())

    def call_module(self, module, forward, args, kwargs):
        path = self.path_of_module(module)
        value = super().call_module(module, forward, args, kwargs)
        if isinstance(value, fx.Proxy):
            self.returned_by.setdefault(path, []).append(value.node)
        return value


def trace(model: nn.Module) -> TracedModel:
    """Trace a single-input, single-output model and find its cuts; the model is left as it was.

    The model is traced in train and in eval mode. Where the two graphs differ only in flags that
    follow ``model.training`` (``F.dropout(x, training=self.training)``), the flag stays live in
    the result, as the mode of the model as a whole; any other difference is refused.

    Raises:
        CutError: torch.fx cannot trace the model, it has several inputs or outputs, or its
            structure depends on the mode. The message names the node or the cause.
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


def _trace(model, training):
    tracer = _Tracer()
    signature = inspect.signature(model.forward).parameters.items()
    defaults = {name: p.default for name, p in signature if p.default is not inspect.Parameter.empty}
    before = {module: dict(vars(module)) for module in model.modules()}
    try:
        graph = tracer.trace(model.train(training), concrete_args=defaults or None)
        constants = {k: v for k, v in vars(model).items() if k.startswith("_tensor_constant")}
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
        # Modes; the constants that the tracer hangs onto the model; what forward() keeps in attributes.
        for module, attributes in before.items():
            vars(module).clear()
            vars(module).update(attributes)
    _drop_default_arguments(graph, len(signature) - len(defaults))
    return graph, tracer.returned_by, constants


def _refuse_random(constants, eval_constants):
    """Refuse tensors that forward() draws from nothing: the graph would freeze one draw of them."""
    for name, value in constants.items():
        other = eval_constants.get(name)
        if value.device.type != "meta" and other is not None and not torch.equal(value, other):
            raise expected(
                "cuts", "a forward pass that makes the same constants whenever it runs", "one that differs",
                "draw random tensors like the input (torch.randn_like), in a child module without children", CutError,
            )  # fmt: skip


def _drop_default_arguments(graph, n_required):
    """Remove the placeholders that fx makes for arguments left at their default, and its checks of them."""
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node in reversed(_reachable(placeholders[n_required:])):  # defaults stand last in a signature
        if node.op != "output":
            graph.erase_node(node)


def _reachable(nodes):
    found = dict.fromkeys(nodes)
    for node in found and next(iter(found)).graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found[node] = None
    order = {n: k for k, n in enumerate(nodes[0].graph.nodes)} if nodes else {}
    return sorted(found, key=order.get)


def _single(graph, eval_graph, model):
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
                f"cuts: expected one output tensor, got a {made_by.__name__} in {mode} mode from "
                f"{type(model).__name__}. Fix: return one tensor; build GoogLeNet and Inception with "
                "aux_logits=False"
            )


def _keep_training_flag_live(graph, eval_graph, model):
    """Replace arguments that are True in train mode and False in eval mode by ``self.training``."""
    problem = CutError(
        f"cuts: expected the same graph in train and eval mode, got two different ones from {type(model).__name__}. "
        "Fix: move the part that differs into a child module without children of its own, which is kept whole"
    )
    pairs = list(zip(graph.nodes, eval_graph.nodes, strict=False))
    if len(graph.nodes) != len(eval_graph.nodes):
        raise problem
    flag, twin = None, dict(pairs)
    for node, other in pairs:
        if node.op != other.op or node.target != other.target:
            raise problem
        values, spec = torch.utils._pytree.tree_flatten((node.args, node.kwargs))
        others, other_spec = torch.utils._pytree.tree_flatten((other.args, other.kwargs))
        if spec != other_spec:
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
        node.args, node.kwargs = torch.utils._pytree.tree_unflatten(values, spec)


def _units(graph, cut_nodes):
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


def _find_cuts(graph, model, constants):
    (inlet,) = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    after_input = set(_reachable([inlet]))
    before_output = {output}
    for node in reversed(graph.nodes):
        if any(user in before_output for user in node.users):
            before_output.add(node)
    on_path = [node for node in graph.nodes if node in after_input and node in before_output]
    # The batch size is the same at every cut: a part can ask its own input for it (x.view(n, -1)).
    on_path = [node for node in on_path if not only_batch_size(node)]
    position = {node: k for k, node in enumerate(on_path)}
    # A node is passed by every path if no edge leaps over it.
    leap = 0
    dominators = []
    for k, node in enumerate(on_path[:-1]):
        if leap <= k and not _returns_tuple(node):
            dominators.append(node)
        leap = max([leap, *(position[user] for user in node.users if user in position)])
    return _keep_state_together(graph, dominators, model, constants)


def only_batch_size(node: fx.Node) -> bool:
    """Is the value the batch size, ``x.size(0)`` or ``x.shape[0]``, or a shape read for nothing else?"""
    if node.op == "call_method" and node.target == "size" and len(node.args) == 2:
        return node.args[1] == 0
    if node.target is operator.getitem and isinstance(node.args[0], fx.Node) and _is_shape(node.args[0]):
        return node.args[1] == 0
    return _is_shape(node) and all(only_batch_size(user) for user in node.users)


def _is_shape(node):
    by_method = node.op == "call_method" and node.target == "size" and len(node.args) == 1
    return by_method or (node.op == "call_function" and node.target is getattr and node.args[1] == "shape")


def _returns_tuple(node):
    def picks(user):
        by_number = user.target is operator.getitem and isinstance(user.args[1], int)
        return by_number or (user.target is getattr and user.args[1] in ("values", "indices"))

    return bool(node.users) and all(picks(user) for user in node.users)


def _keep_state_together(graph, cut_nodes, model, constants):
    """Drop cuts that would put one parameter, or one module with state, on both sides."""
    first, last = {}, {}
    units = _units(graph, cut_nodes)
    for node, unit in units.items():
        state = []
        if node.op == "call_module":
            module = model.get_submodule(node.target)
            state = [*module.parameters(), *module.buffers()]
        # Parameters that forward() fetches, perhaps through operations that do not see the input (w.t()).
        fetched = [source for source in node.all_input_nodes if source not in units]
        while fetched:
            source = fetched.pop()
            fetched += source.all_input_nodes
            if source.op == "get_attr" and source.target != "training" and source.target not in constants:
                value = operator.attrgetter(source.target)(model)
                state += [value] if isinstance(value, nn.Parameter) else []
        for tensor in state:
            first[id(tensor)] = min(unit, first.get(id(tensor), unit))
            last[id(tensor)] = max(unit, last.get(id(tensor), unit))
    torn = {j for key in first for j in range(first[key], last[key])}
    return [node for j, node in enumerate(cut_nodes) if j not in torn]


def _name_cuts(cut_nodes, returned_by, owner):
    """Name each cut after the innermost module that returns it alone, else after its node."""
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
