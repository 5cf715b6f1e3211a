"""Find the nodes of a traced graph at which the model can be cut, and name them."""

import operator
from collections.abc import Iterable, Sequence

import torch
from torch import fx, nn


def target_of(node: fx.Node) -> str:
    """Return the name that a node refers to: of a module, an attribute or a method."""
    return str(node.target)


def reachable(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes that depend on any of `nodes`, and these themselves, in the order of the graph."""
    found = set(nodes)
    ordered: Iterable[fx.Node] = nodes[0].graph.nodes if nodes else []
    for node in ordered:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return [node for node in ordered if node in found]


def units_of(graph: fx.Graph, cut_nodes: Sequence[fx.Node]) -> dict[fx.Node, int]:
    """Return the unit (1..L) that computes each node that depends on the input; 0 is the input."""
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


def find_cut_nodes(graph: fx.Graph, model: nn.Module, constants: dict[str, torch.Tensor]) -> list[fx.Node]:
    """Return the nodes of the cuts: every path from the input to the output passes them, and each is one tensor.

    Args:
        graph: of the traced model.
        model: whose parameters and modules the graph uses; none of them may be used on both sides of a cut.
        constants: tensors that forward() makes from nothing, by the target of their node.
    """
    (inlet,) = (node for node in graph.nodes if node.op == "placeholder")
    (output,) = (node for node in graph.nodes if node.op == "output")
    after_input = set(reachable([inlet]))
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
    units = units_of(graph, cut_nodes)
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


def name_cuts(
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
