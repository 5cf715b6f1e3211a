"""Cut a model: list its cuts, split it in two, or partition it into stages."""

import dataclasses
import operator

import torch
from torch import fx, nn

from psl.errors import CutError, expected
from psl.models.shapes import cut_shapes
from psl.models.tracing import TracedModel, only_batch_size, trace


@dataclasses.dataclass(frozen=True)
class Cut:
    """A point that every path from input to output passes carrying one tensor.

    Args:
        index: number of the cut; 0 is the raw input, the last one the output.
        name: of the module that returns the tensor, or of the operation.
        shape: of the tensor for one sample, without the batch dimension.
    """

    index: int
    name: str
    shape: tuple[int, ...]


class SplitModel(nn.Module):
    """A model in two parts that share its parameters: ``server(client(x))`` equals ``model(x)``.

    Attributes:
        client, server: the parts; the names in their `state_dict` are those of the whole model.
        cut: number of the cut between them.
        name: name of that cut.
    """

    def __init__(self, client: nn.Module, server: nn.Module, cut: int, name: str):
        super().__init__()
        self.client, self.server, self.cut, self.name = client, server, cut, name
        self.training = client.training

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run both parts, one after the other."""
        return self.server(self.client(x))


def cuts(model: nn.Module, example: tuple[int, ...]) -> list[Cut]:
    """List the cuts of a model in order, from the raw input to the output.

    Args:
        model: single-input, single-output `nn.Module` that torch.fx can trace; not modified.
        example: shape of one sample, for example ``(3, 224, 224)``. The sizes are found on the
            meta device: no arithmetic is done and no memory used.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.

    Source: the definition is exact, see the README's "Cuts"; a residual or dense block has none inside.
    """
    traced = trace(model)
    shapes = cut_shapes(traced, example)
    return [Cut(j, name, shape) for j, (name, shape) in enumerate(zip(traced.cut_names, shapes, strict=True))]


def split(model: nn.Module, cut: int | str) -> SplitModel:
    """Split a model at a cut into a client's and a server's part.

    Args:
        model: as in `cuts`. The parts share its parameters and buffers; nothing is copied, so
            training the parts trains the model. Copy a part (`copy.deepcopy`) for each client.
        cut: number or name of a cut; 0 leaves everything to the server, the last all to the client.

    Raises:
        CutError: no such cut; inside a block, the message names the block and the cuts around it.
    """
    traced = trace(model)
    index = traced.find(cut)
    client, server = stages(traced, [index])
    return SplitModel(client, server, index, traced.cut_names[index])


def partition(model: nn.Module, cuts: list[int | str]) -> list[nn.Module]:
    """Partition a model at several cuts into ``len(cuts) + 1`` stages that share its parameters.

    Args:
        model: as in `cuts`.
        cuts: numbers or names, strictly increasing.

    Raises:
        CutError: no such cut, or the cuts do not increase.
    """
    traced = trace(model)
    if not isinstance(cuts, list | tuple):
        raise expected("cuts", "a list of cuts", repr(cuts), "pass [cut]", CutError)
    return stages(traced, boundaries(traced, cuts))


def boundaries(traced: TracedModel, cuts: list[int | str]) -> list[int]:
    """Return the numbers of strictly increasing cuts of a traced model; raises as `partition`."""
    indices = [traced.find(cut) for cut in cuts]
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise expected("cuts", "strictly increasing cuts", indices, "sort them and drop repetitions", CutError)
    return indices


def stages(traced: TracedModel, indices: list[int]) -> list[nn.Module]:
    """Return the stages of a traced model between cut numbers; the work behind `split` and `partition`."""
    ends = [0, *indices, len(traced.cut_nodes) - 1]
    units = traced.units()
    return [_stage(traced, units, i, j) for i, j in zip(ends, ends[1:], strict=False)]


def _stage(traced: TracedModel, units: dict[fx.Node, int], first: int, last: int) -> nn.Module:
    """Return units first+1..last as a module; with ``first == last`` it hands its input through."""
    graph = fx.Graph()
    inlet, outlet = traced.cut_nodes[first], traced.cut_nodes[last]
    value = graph.placeholder("x")
    copied = {inlet: value}
    if first > 0 and _is_overwritten(inlet, traced.model):
        # In the whole model this operation overwrites a value that nobody else needs. Here the
        # value is the caller's tensor, perhaps a leaf that requires a gradient: leave it alone.
        copied[inlet] = graph.call_method("clone", (value,))

    def copy(node):
        if node not in copied and only_batch_size(node) and units.get(node, first + 1) <= first:
            copied[node] = graph.call_method("size", (value, 0))
        elif node not in copied:  # constants and parameters come along with their first user
            for source in node.all_input_nodes:
                copy(source)
            copied[node] = graph.node_copy(node, copied.get)
        return copied[node]

    for node, unit in units.items():
        if first < unit <= last and node.op != "output":
            copy(node)
    graph.output(copied[outlet])
    attributes = {n.target: traced.attribute(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")}
    stage = fx.GraphModule(attributes, graph, class_name=f"{type(traced.model).__name__}Stage")
    stage._non_persistent_buffers_set |= set(traced.constants)
    stage.training = traced.model.training  # not train(), which would change the shared modules' modes
    return stage


def _is_overwritten(inlet: fx.Node, model: nn.Module) -> bool:
    """Does an operation work in place on the inlet, or on what may be a view of it?"""
    aliases = [inlet]
    for node in aliases:  # grows while it is walked
        for user in node.users:
            if _works_in_place(user, node, model):
                return True
            has_weights = user.op == "call_module" and any(True for _ in model.get_submodule(user.target).parameters())
            if not has_weights and user not in aliases:  # what has weights returns a new tensor
                aliases.append(user)
    return False


def _works_in_place(node: fx.Node, value: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(node.target), "inplace", False))
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.startswith("__") and node.args[0] is value
    name = getattr(node.target, "__name__", "")
    in_place_name = (name.endswith("_") and not name.startswith("_")) or node.target in _IN_PLACE_OPERATORS
    return bool(node.kwargs.get("inplace")) or (in_place_name and node.args[0] is value)


_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}
