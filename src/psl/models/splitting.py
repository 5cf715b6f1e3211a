"""Cut a model: list its cuts, split it in two, or partition it into stages."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from psl.errors import CutError, check_count, expected
from psl.models.stages import stages
from psl.models.structure import Place
from psl.models.tracing import TracedModel, trace


@dataclasses.dataclass(frozen=True)
class Cut:
    """A point of a model at which it can be cut, and what crosses there.

    Args:
        index: number of the cut in the list that `cuts` returned; 0 is the raw input, the last one the output.
        name: of the module that ends there, or of the operation.
        shape: of the tensor that crosses, for one sample, without the batch dimension; for several tensors a tuple
            of their shapes.
        n_tensors: how many tensors cross, not counting inputs that are handed on beside them, such as a mask.
    """

    index: int
    name: str
    shape: tuple[Any, ...]
    n_tensors: int = 1


class SplitModel(nn.Module):
    """A model in two parts that share its parameters: ``server(client(x))`` equals ``model(x)``.

    Attributes:
        client: the part before the cut; the names in its `state_dict` are those of the whole model.
        server: the part behind the cut; its names likewise.
        cut: number of the cut between them; its name if it is not among the cuts with one tensor.
        name: name of that cut.
    """

    def __init__(self, client: nn.Module, server: nn.Module, cut: int | str, name: str):
        super().__init__()
        self.client, self.server, self.cut, self.name = client, server, cut, name
        self.training = client.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run both parts, one after the other, on what the model takes."""
        return self.server(self.client(*args, **kwargs))


def cuts(model: nn.Module, example: Any, *, tensors: int = 1) -> list[Cut]:
    """List the cuts of a model in order, from the raw input to the output.

    A cut is a position in the order of execution; what crosses there are the tensors that are computed before it and
    read after it. What depends on the input only through its sizes (a causal mask, positions) is computed again on
    the other side. Inputs beside the main one that are whole numbers or masks are handed on.

    Args:
        model: any `nn.Module` that torch.export can record; not modified.
        example: shape of one sample, for example ``(3, 224, 224)``, or ``(128,)`` token ids for a model that begins
            with an embedding; or tensors with a batch dimension: a tensor, a tuple (passed by position) or a dict (by
            name). Nothing is computed: sizes are enough.
        tensors: how many tensors may cross at a cut.

    Raises:
        CutError: the model cannot be exported, does what a graph cannot keep, or `example` does not fit it.

    Source: ours [R].
    """
    check_count("tensors", tensors)
    traced = trace(model, example)
    found = []
    for j, place in enumerate(traced.places(tensors)):
        shapes = traced.sample_shapes(place)
        shape = shapes[0] if len(shapes) == 1 else tuple(shapes)
        found.append(Cut(j, place.name, shape, len(shapes)))
    return found


def split(model: nn.Module, cut: int | str | Cut, example: Any = None, *, tensors: int = 1) -> SplitModel:
    """Split a model at a cut into a client's and a server's part.

    Args:
        model: as in `cuts`. The parts share its parameters and buffers, so training the parts trains the model. For
            several clients, copy their part with `copy.deepcopy`.
        cut: number or name of a cut, or what `cuts` returned. At 0 the server computes everything, at the last cut
            the client does. A number counts the cuts with up to `tensors` tensors.
        example: as in `cuts`; needed once per model.
        tensors: how many tensors may cross at a cut given by number or name.

    Raises:
        CutError: there is no such cut. For a place inside a block, the message names the block and the cuts around it.
    """
    traced = trace(model, example)
    place = traced.find(cut, tensors)
    client, server = stages(traced, [place])
    return SplitModel(client, server, traced.number(place), place.name)


def partition(
    model: nn.Module, cuts: Sequence[int | str | Cut], example: Any = None, *, tensors: int = 1
) -> list[nn.Module]:
    """Partition a model at several cuts into ``len(cuts) + 1`` stages that share its parameters.

    Args:
        model, example, tensors: as in `split`.
        cuts: numbers, names or what `cuts` returned, strictly increasing.

    Raises:
        CutError: there is no such cut, or the cuts do not increase.
    """
    if not isinstance(cuts, list | tuple):
        raise expected("cuts", "a list of cuts", repr(cuts), "pass [cut]", CutError)
    traced = trace(model, example)
    return stages(traced, boundaries(traced, cuts, tensors))


def boundaries(traced: TracedModel, cuts: Sequence[Any], tensors: int = 1) -> list[Place]:
    """Return the places of strictly increasing cuts of a traced model; raises as `partition`."""
    places = [traced.find(cut, tensors) for cut in cuts]
    if any(a.index >= b.index for a, b in zip(places, places[1:], strict=False)):
        got = [traced.number(place, tensors) for place in places]
        raise expected("cuts", "strictly increasing cuts", got, "sort them and drop repetitions", CutError)
    return places
