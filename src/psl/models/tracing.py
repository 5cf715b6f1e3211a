"""Trace a model with torch.export, find its cuts, and remember both for models of the same structure."""

import difflib
import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.examples import Example, is_shape, read_example
from psl.models.exporting import example_is_for_token_ids, modes_of
from psl.models.programs import batch_axis, interface_at
from psl.models.refusals import check_model_kind
from psl.models.structure import Place, Structure, make_structure, structure_key


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A model with the places at which it can be cut.

    Args:
        model: the model itself, not a copy.
        structure: what it shares with other models of its structure.
        tensors: its parameters and buffers by name, tied ones under each of their names.
    """

    model: nn.Module
    structure: Structure
    tensors: dict[str, torch.Tensor]

    @property
    def all_places(self) -> tuple[Place, ...]:
        """All places, also those that are no cut."""
        return self.structure.places

    @property
    def constants(self) -> dict[str, torch.Tensor]:
        """Tensors that the operations use and that are no state of the model, by name."""
        return self.structure.constants

    def places(self, tensors: int = 1) -> list[Place]:
        """Return the cuts with up to this many tensors; the input and the output always belong to them."""
        first, *inner, last = self.structure.places
        return [first, *(p for p in inner if p.n_tensors <= tensors and not p.reason), last]

    def cut_names(self, tensors: int = 1) -> tuple[str, ...]:
        """Return the names of the cuts of `places`."""
        return tuple(place.name for place in self.places(tensors))

    def number(self, place: Place, tensors: int = 1) -> int | str:
        """Return the number of a place among the cuts of `places`; its name if it is not among them."""
        found = [k for k, other in enumerate(self.places(tensors)) if other is place]
        return found[0] if found else place.name

    def find(self, cut: Any, tensors: int = 1) -> Place:
        """Return the place of a cut given by number, by name, or as what `psl.cuts` returned.

        Args:
            cut: a number counts the cuts with up to `tensors` tensors.
            tensors: how many may cross at a cut given by number or name.

        Raises:
            CutError: there is no such cut; for a place inside a block the message names the nearest cuts around it.
        """
        if isinstance(cut, Place):
            return cut
        if not isinstance(cut, str | int | float) and hasattr(cut, "name"):
            tensors, cut = max(tensors, getattr(cut, "n_tensors", 1)), cut.name
        if not isinstance(cut, str):
            places = self.places(tensors)
            if isinstance(cut, bool) or cut not in range(len(places)):
                raise CutError(
                    f"cut: expected a number 0..{len(places) - 1}, got {cut!r}. Fix: psl.cuts lists the cuts"
                )
            return places[int(cut)]
        if cut in self.structure.aliases:
            place = self.structure.places[self.structure.aliases[cut]]
            if place in self.places(tensors):
                return place
            raise self._no_cut(cut, place, tensors)
        analysis = self.structure.analysis
        inside = [n for n in analysis.graph.calls if n.name == cut or f"{n.meta['path']}.".startswith(f"{cut}.")]
        inside = [n for n in inside if n in analysis.carried]
        if not inside:
            close = difflib.get_close_matches(cut, self.structure.aliases, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
            raise CutError(f"cut: expected the name of a cut, got {cut!r}. Fix: {hint}psl.cuts lists the cuts")
        position = analysis.position[inside[-1]]
        behind = next(p for p in self.structure.places if p.crossings[True].position >= position)
        raise self._no_cut(cut, behind, tensors)

    def _no_cut(self, cut: str, place: Place, tensors: int) -> CutError:
        cuts = self.places(tensors)
        before = [p for p in cuts if p.index < place.index][-1]
        after = next(p for p in cuts if p.index >= place.index)
        number = {p: k for k, p in enumerate(cuts)}
        around = (
            f"cut before it, at {before.name!r} ({number[before]}), or after it, at {after.name!r} ({number[after]})"
        )
        if place.reason:
            return CutError(
                f"cut: expected a point at which the model can be cut, got {cut!r}: {place.reason}, or {around}"
            )
        block = after.name
        for path in reversed([cut.rsplit(".", k)[0] for k in range(1, cut.count(".") + 1)]):
            index = self.structure.aliases.get(path, -1)
            if index >= place.index and self.structure.places[index] in cuts:
                block = path
        several = (
            f", or take a cut of {place.n_tensors} tensors: tensors={place.n_tensors}" if place.n_tensors > 1 else ""
        )
        return CutError(
            f"cut: expected a point that every path passes, got {cut!r}, which lies inside block {block!r}: more than "
            f"one tensor is alive there. Fix: {around}{several}"
        )

    def unused_state(self) -> list[str]:
        """Return the names of parameters and buffers that no operation uses in any mode."""
        nodes = [
            node for a in self.structure.analyses.values() for node in a.graph.graph.nodes if node.op == "get_attr"
        ]
        used = {id(self.tensors[str(node.target)]) for node in nodes if node.target in self.tensors}
        return [name for name, tensor in self.tensors.items() if id(tensor) not in used]

    def sample_shapes(self, place: Place) -> list[tuple[int, ...]]:
        """Return the shapes of a place's tensors for one sample, without the batch dimension."""
        graph, shapes = self.structure.analysis.graph, []
        for node in place.crossings[True].tensors:
            axis = batch_axis(self.structure.analysis, node)
            sizes = node.meta["val"].shape
            shapes.append(tuple(graph.size(n, 1) for d, n in enumerate(sizes) if d != axis))
        return shapes

    def sample_crossing(self, place: Place) -> tuple[float, float]:
        """Return how many floats cross at a place per sample, and how many bits of other numbers; side inputs count."""
        analysis = self.structure.analysis
        crossing, found = interface_at(analysis, place.crossings[True]), [0.0, 0.0]
        for node in (*crossing.tensors, *crossing.side):
            tensor = node.meta["val"]
            large, small = (math.prod(analysis.graph.size(n, batch) for n in tensor.shape) for batch in (4, 2))
            floating = tensor.is_floating_point()
            found[not floating] += (large - small) / 2 * (1 if floating else 8 * tensor.element_size())
        return found[0], found[1]


# --- the memory of structures ---

_STRUCTURES: OrderedDict[Hashable, tuple[Structure, list[Any]]] = OrderedDict()  # with what keeps identities alive
_EXAMPLES: OrderedDict[Hashable, Any] = OrderedDict()  # last example, by the classes of a model's modules
_LOCK = threading.RLock()
_REMEMBERED = 64


def trace(model: nn.Module, example: Any = None, *, afresh: bool = False) -> TracedModel:
    """Trace a model in train and in eval mode and find its cuts; the model is left as it was.

    Models of one structure (classes, attributes, sizes) are exported once.

    Args:
        model: the model.
        example: the shape of one sample, or tensors with a batch dimension: a tensor, a tuple, a dict. None: the last
            example of a model of these classes.
        afresh: export again.

    Raises:
        CutError: the model cannot be exported or the graph would lose what forward does; no example is known.
    """
    check_model_kind(model)
    with _LOCK:
        kind = tuple((path, type(module)) for path, module in model.named_modules())
        if example is None:
            if kind not in _EXAMPLES:
                fix = "pass example=, the shape of one sample or a batch of inputs; it is needed once per model"
                raise expected("example", f"an example of the inputs of {type(model).__name__}", "none", fix, CutError)
            example = _fitted(_EXAMPLES[kind], model)
        given = read_example(model, example)
        if example_is_for_token_ids(model, example, given):
            given = read_example(model, example, whole_numbers=True)
        alive: list[Any] = [model.__class__]
        key = (structure_key(model, alive), given.signature())
        if afresh:
            _STRUCTURES.pop(key, None)
        modes = modes_of(model)
        found = _STRUCTURES.get(key)
        if found is not None and modes not in [a.graph.training for a in found[0].analyses.values()]:
            key = (key, tuple(modes.items()))
            found = _STRUCTURES.get(key)
        if found is None:
            structure = make_structure(model, example)
            if None in structure.analyses and len(key) == 2:
                key = (key, tuple(modes.items()))
            _STRUCTURES[key] = structure, alive
        else:
            structure = found[0]
        _STRUCTURES.move_to_end(key)
        _remember(kind, example if is_shape(example) else _small(given))
        while len(_STRUCTURES) > _REMEMBERED:
            _STRUCTURES.popitem(last=False)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return TracedModel(model, structure, tensors)


def _remember(kind: Hashable, example: Any) -> None:
    _EXAMPLES[kind] = example
    _EXAMPLES.move_to_end(kind)
    while len(_EXAMPLES) > _REMEMBERED:
        _EXAMPLES.popitem(last=False)


def _fitted(example: Any, model: nn.Module) -> Any:
    """Return a remembered example with floating-point tensors of the model's kind, on its device."""
    if is_shape(example):
        return example
    state = (*model.parameters(), *model.buffers())
    like = next((tensor for tensor in state if tensor.is_floating_point()), torch.empty(0))

    def fitted(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(like.device, like.dtype if tensor.is_floating_point() else tensor.dtype)

    if isinstance(example, dict):
        return {name: fitted(tensor) for name, tensor in example.items()}
    return tuple(fitted(tensor) for tensor in example)


def _small(given: Example) -> Any:
    """Return an example of two samples in the form that a user passes."""
    two = given.of_batch(2)
    n = given.n_positional
    if n == 0:
        return dict(zip(two.names, two.tensors, strict=True))
    return two.tensors if n == len(two.names) else dict(zip(two.names, two.tensors, strict=True))
