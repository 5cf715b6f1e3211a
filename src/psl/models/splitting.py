"""Cut a model: list its cuts, split it in two, or partition it into stages."""

import dataclasses
import operator
from collections.abc import Sequence

import torch
from torch import fx, nn

from psl.errors import CutError, expected
from psl.models.cut_points import only_batch_size, target_of
from psl.models.shapes import cut_shapes
from psl.models.tracing import TracedModel, trace


@dataclasses.dataclass(frozen=True)
class Cut:
    """A point that every path from the input to the output passes, and at which one tensor is alive.

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
        client: the part before the cut; the names in its `state_dict` are those of the whole model.
        server: the part behind the cut; its names likewise.
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
        model: `nn.Module` with one input and one output that torch.fx can trace; not modified.
        example: shape of one sample, for example ``(3, 224, 224)``. Sizes are found on the meta device, which
            computes nothing and needs no memory.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.

    Source: ours [R]: the cuts are the dominators of the output in the traced graph. A residual or dense block has
    none inside.
    """
    traced = trace(model)
    shapes = cut_shapes(traced, example)
    return [Cut(j, name, shape) for j, (name, shape) in enumerate(zip(traced.cut_names, shapes, strict=True))]


def split(model: nn.Module, cut: int | str) -> SplitModel:
    """Split a model at a cut into a client's and a server's part.

    Args:
        model: as in `cuts`. The parts share its parameters and buffers, so training the parts trains the model. For
            several clients, copy their part with `copy.deepcopy`.
        cut: number or name of a cut. At 0 the server computes everything, at the last cut the client does.

    Raises:
        CutError: there is no such cut. For a place inside a block, the message names the block and the cuts around it.
    """
    traced = trace(model)
    index = traced.find(cut)
    client, server = stages(traced, [index])
    return SplitModel(client, server, index, traced.cut_names[index])


def partition(model: nn.Module, cuts: Sequence[int | str]) -> list[nn.Module]:
    """Partition a model at several cuts into ``len(cuts) + 1`` stages that share its parameters.

    Args:
        model: as in `cuts`.
        cuts: numbers or names, strictly increasing.

    Raises:
        CutError: there is no such cut, or the cuts do not increase.
    """
    traced = trace(model)
    if not isinstance(cuts, list | tuple):
        raise expected("cuts", "a list of cuts", repr(cuts), "pass [cut]", CutError)
    return stages(traced, boundaries(traced, cuts))


def boundaries(traced: TracedModel, cuts: Sequence[int | str]) -> list[int]:
    """Return the numbers of strictly increasing cuts of a traced model; raises as `partition`."""
    indices = [traced.find(cut) for cut in cuts]
    if any(a >= b for a, b in zip(indices, indices[1:], strict=False)):
        raise expected("cuts", "strictly increasing cuts", indices, "sort them and drop repetitions", CutError)
    return indices


def stages(traced: TracedModel, indices: Sequence[int]) -> list[nn.Module]:
    """Return the stages of a traced model between the cuts of these numbers; used by `split` and `partition`."""
    ends = [0, *indices, len(traced.cut_nodes) - 1]
    units = traced.units()
    return [_stage(traced, units, i, j) for i, j in zip(ends, ends[1:], strict=False)]


def _stage(traced: TracedModel, units: dict[fx.Node, int], first: int, last: int) -> nn.Module:
    """Return units first+1..last as a module; with ``first == last`` it returns its input."""
    graph = fx.Graph()
    inlet, outlet = traced.cut_nodes[first], traced.cut_nodes[last]
    value = graph.placeholder("x")
    copied = {inlet: value}
    if first > 0 and _is_overwritten(inlet, traced.model):
        # In the whole model the next operation overwrites a value that nothing else needs. Here the value is the
        # caller's tensor, perhaps a leaf that requires a gradient, and must stay as it is.
        copied[inlet] = graph.call_method("clone", (value,))

    def copy(node: fx.Node) -> fx.Node:
        if node not in copied and only_batch_size(node) and units.get(node, first + 1) <= first:
            copied[node] = graph.call_method("size", (value, 0))
        elif node not in copied:  # constants and parameters come along with their first user
            for source in node.all_input_nodes:
                copy(source)
            copied[node] = graph.node_copy(node, copied.__getitem__)
        return copied[node]

    for node, unit in units.items():
        if first < unit <= last and node.op != "output":
            copy(node)
    graph.output(copied[outlet])
    targets = [target_of(node) for node in graph.nodes if node.op in ("call_module", "get_attr")]
    attributes = {target: traced.attribute(target) for target in targets}
    stage = fx.GraphModule(attributes, graph, class_name=f"{type(traced.model).__name__}Stage")
    # GraphModule makes a persistent buffer of every tensor. Constants are no state: register them anew, in order.
    buffers = list(stage.named_buffers(recurse=False, remove_duplicate=False)) if traced.constants else []
    for name, buffer in buffers:
        delattr(stage, name)
        stage.register_buffer(name, buffer, persistent=name not in traced.constants)
    stage.training = traced.model.training  # not train(), which would change the shared modules' modes
    return stage


def _is_overwritten(inlet: fx.Node, model: nn.Module) -> bool:
    """Return whether an operation works in place on the inlet, or on what may be a view of it."""
    aliases = [inlet]
    for node in aliases:  # grows while it is walked
        for user in node.users:
            if _works_in_place(user, node, model):
                return True
            if not _has_weights(user, model) and user not in aliases:  # what has weights returns a new tensor
                aliases.append(user)
    return False


def _has_weights(node: fx.Node, model: nn.Module) -> bool:
    return node.op == "call_module" and any(True for _ in model.get_submodule(target_of(node)).parameters())


def _works_in_place(node: fx.Node, value: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(target_of(node)), "inplace", False))
    if node.op == "call_method":
        method = target_of(node)
        return method.endswith("_") and not method.startswith("__") and node.args[0] is value
    name = getattr(node.target, "__name__", "")
    in_place_name = (name.endswith("_") and not name.startswith("_")) or node.target in _IN_PLACE_OPERATORS
    return bool(node.kwargs.get("inplace")) or (in_place_name and node.args[0] is value)


_IN_PLACE_OPERATORS = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.setitem}
