"""What models have in common whose operations are the same, so that one export serves them all."""

import functools
import hashlib
import inspect
import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from psl.models.cut_points import Analysis, Crossing, Key, names_of
from psl.models.examples import Example, layout_of
from psl.models.exporting import export_modes
from psl.models.graphs import flat_graph

Mode = bool | None


@dataclass(frozen=True, eq=False)
class Place:
    """A place between two operations at which a model may be cut.

    Args:
        name: unique in the model.
        index: among all places of the model, whatever crosses.
        crossings: what crosses there, by mode.
        reason: why it is no cut, empty if it is one.
    """

    name: str
    index: int
    crossings: dict[Mode, Crossing]
    reason: str = ""

    @property
    def n_tensors(self) -> int:
        """How many tensors cross there, not counting side inputs."""
        return max(len(crossing.tensors) for crossing in self.crossings.values())


@dataclass(frozen=True, eq=False)
class Structure:
    """What models of one structure have in common: operations and places. Holds no model.

    Args:
        analyses: by mode: True train, False eval, None mixed modes as they were found.
        places: in order, from the input to the output.
        aliases: names that stand for a place, with its index.
        constants: tensors that are no state of the model, by name.
        parts: programs of stages already made.
    """

    analyses: dict[Mode, Analysis]
    places: tuple[Place, ...]
    aliases: dict[str, int]
    constants: dict[str, torch.Tensor]
    parts: dict[Any, Any] = field(default_factory=dict)

    @property
    def analysis(self) -> Analysis:
        """The one of train mode."""
        return self.analyses[True]

    @property
    def example(self) -> Example:
        """What was exported, at the example's own sizes but for the batch."""
        return self.analysis.graph.example


def make_structure(model: nn.Module, example: Any) -> Structure:
    """Export a model and find its places.

    Raises:
        CutError: it cannot be exported, or the graph would lose what forward does.
    """
    copy, exported, filled = export_modes(model, example)
    first: dict[int, str] = {}
    state_of, trainable = {}, set()
    named = [*copy.named_parameters(remove_duplicate=False), *copy.named_buffers(remove_duplicate=False)]
    for name, tensor in named:
        state_of[name] = first.setdefault(id(tensor), name)
        if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
            trainable.add(state_of[name])
    analyses = {mode: Analysis(flat_graph(one), frozenset(trainable), state_of) for mode, one in exported.items()}
    constants = {name: tensor for a in analyses.values() for name, tensor in a.graph.constants.items()}
    constants |= {name: tensor for name, tensor in copy.named_buffers() if name in filled}
    places, aliases = _places(analyses)
    return Structure(analyses, places, aliases, constants)


def _places(analyses: dict[Mode, Analysis]) -> tuple[tuple[Place, ...], dict[str, int]]:
    """Return the places that every mode has, with names; the same tensors cross there in all modes."""
    crossings = {mode: analysis.crossings() for mode, analysis in analyses.items()}
    identities = {mode: [_identity(analyses[mode], c) for c in found] for mode, found in crossings.items()}
    train = identities[True]
    inner = [i for i in train[1:-1] if all(i in others[1:-1] for others in identities.values())]
    by_mode = {}
    for mode, found in crossings.items():
        position = dict(zip(identities[mode][1:-1], found[1:-1], strict=True))
        by_mode[mode] = [found[0], *(position[i] for i in inner), found[-1]]
    names, aliases = names_of(analyses[True], by_mode[True])
    places = []
    for k, name in enumerate(names):
        here = {mode: found[k] for mode, found in by_mode.items()}
        torn = sorted({name for crossing in here.values() for name in crossing.torn})
        places.append(Place(name, k, here, _why_torn(torn, analyses[True]) if 0 < k < len(names) - 1 else ""))
    return tuple(places), aliases


def _why_torn(torn: Sequence[str], analysis: Analysis) -> str:
    if not torn:
        return ""
    what = ", ".join(map(repr, torn[:3])) + (" and others" if len(torn) > 3 else "")
    if any(name in analysis.trainable for name in torn):
        return f"{what} trains and is used on both sides of it. Fix: freeze it (requires_grad_(False)) or untie it"
    return f"{what} is changed by forward and used on both sides of it. Fix: use it on one side only"


def _identity(analysis: Analysis, crossing: Crossing) -> tuple[Key | str, ...]:
    return tuple(analysis.keys.get(node, node.name) for node in crossing.tensors)


def structure_key(model: nn.Module, alive: list[Any]) -> Hashable:
    """Return what two models have in common whose operations are the same: classes, attributes, sizes, sharing.

    Args:
        model: that is described.
        alive: filled with the objects that the key knows by their identity only; keep it as long as the key.
    """
    shared: dict[int, int] = {}
    state = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]:
        twin = shared.setdefault(id(tensor), len(shared))
        state[id(tensor)] = None
        alive_layout = (layout_of(tensor), tuple(tensor.stride()) if tensor.ndim else ())
        state[name] = (tensor.shape, tensor.dtype, tensor.device.type, tensor.requires_grad, twin, alive_layout)
    modules = []
    seen: dict[int, int] = {}
    for path, module in model.named_modules():
        attributes = tuple(
            (name, _described(value, state, seen, alive, depth=5))
            for name, value in sorted(vars(module).items())
            if name != "training" and not _holds_parts(value, state)  # these are listed by name above and below
        )
        modules.append((path, type(module), attributes))
    return tuple(modules), tuple((k, v) for k, v in state.items() if isinstance(k, str))


def _holds_parts(value: Any, state: dict[Any, Any]) -> bool:
    """Return whether a value is a dict of parameters, buffers or modules."""
    return (
        isinstance(value, dict)
        and bool(value)
        and all(entry is None or isinstance(entry, nn.Module) or id(entry) in state for entry in value.values())
    )


def _described(value: Any, state: dict[Any, Any], seen: dict[int, int], alive: list[Any], depth: int) -> Hashable:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | type | torch.dtype):
        return type(value), repr(value) if isinstance(value, float) else value
    if isinstance(value, torch.Tensor):
        if id(value) in state:
            return "state"
        if value.is_meta:
            return value.shape, value.dtype
        content = value.detach().cpu().contiguous().view(-1)
        return (
            value.shape,
            value.dtype,
            hashlib.sha256(content.view(torch.uint8).numpy().tobytes()).digest() if (content.numel()) else b"",
        )
    if isinstance(value, nn.Module | weakref.ref):
        return type(value)
    if id(value) in seen:  # what many modules refer to, such as a configuration
        return "seen", seen[id(value)]
    if isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
        return "partial", tuple(_described(part, state, seen, alive, depth - 1) for part in parts)
    if inspect.ismethod(value):
        return value.__func__, _described(value.__self__, state, seen, alive, depth - 1)
    if depth > 0:
        if isinstance(value, dict):
            seen[id(value)] = len(seen)
            return "dict", tuple((repr(k), _described(v, state, seen, alive, depth - 1)) for k, v in value.items())
        if isinstance(value, list | tuple):
            return type(value), tuple(_described(v, state, seen, alive, depth - 1) for v in value)
        if isinstance(value, set | frozenset):
            return type(value), tuple(sorted(repr(entry) for entry in value))
        if isinstance(value, torch.Size | torch.device | torch.layout | torch.memory_format):
            return repr(value)
        if hasattr(value, "__dict__") and not callable(value):
            seen[id(value)] = len(seen)
            entries = tuple((k, _described(v, state, seen, alive, depth - 1)) for k, v in vars(value).items())
            return type(value), entries
    alive.append(value)
    return type(value), id(value)
