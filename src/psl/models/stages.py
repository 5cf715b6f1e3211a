"""Stages: parts of a model between two cuts, as modules that share its parameters."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.examples import Example
from psl.models.programs import Program, stage_program
from psl.models.structure import Place
from psl.models.tracing import TracedModel


@dataclass(frozen=True, eq=False)
class Entrance:
    """What the first stage takes: the inputs of the model.

    Args:
        example: what the model was exported with.
        guards: by mode; they raise AssertionError for sizes that the operations do not hold for.
    """

    example: Example
    guards: Mapping[bool | None, Callable[..., Any] | None]

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any], mode: bool | None) -> list[Any]:
        """Return the inputs in the example's order.

        Raises:
            CutError: other inputs than those of the example, or sizes that the model was not exported for.
        """
        names = self.example.names
        given = dict(zip(names, args, strict=False)) if len(args) <= len(names) else {}
        if not kwargs and len(args) == len(names):
            values = list(args)
        else:
            if not set(given) & set(kwargs) and len(args) <= len(names):
                given |= {name: value for name, value in kwargs.items() if value is not None}
            if set(given) != set(names):
                got = ", ".join([*map(str, range(len(args))), *kwargs]) if kwargs or args else "none"
                fix = "pass these inputs, or split the model with an example that has the inputs you pass"
                raise expected("inputs", f"those of the example: {', '.join(names)}", got, fix, CutError)
            values = [given[name] for name in names]
        self._check(values, mode)
        return values

    def _check(self, values: list[Any], mode: bool | None) -> None:
        dimensions = self.example.dynamic_dimensions()
        for name, value, like, dynamic in zip(
            self.example.names, values, self.example.tensors, dimensions, strict=True
        ):
            fits = isinstance(value, torch.Tensor) and value.ndim == like.ndim
            if not fits or any(
                n != m for d, (n, m) in enumerate(zip(value.shape, like.shape, strict=True)) if d not in dynamic
            ):
                want = ["any" if d in dynamic else n for d, n in enumerate(like.shape)]
                got = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
                fix = "pass samples of the example's size, or split the model again with an example of this size"
                raise expected(
                    f"input {name!r}", f"a tensor of shape ({', '.join(map(str, want))})", got, fix, CutError
                )
        guard = self.guards[mode]
        if guard is not None:
            try:
                guard(*values)
            except AssertionError as cause:
                fix = "pass sizes as in the example, or split the model again with an example of this size"
                want = "sizes for which forward does what it did for the example"
                raise expected("inputs", want, str(cause), fix, CutError) from cause


@dataclass(frozen=True, eq=False)
class Part:
    """What a stage runs.

    Args:
        programs: the operations by mode: True in train mode, False in eval mode, None in the modes as they were.
        entrance: of the first stage, None for the others.
        unflatten: of the last stage, by mode: gives the outputs the form in which the model returns them.
    """

    programs: Mapping[bool | None, Program]
    entrance: Entrance | None
    unflatten: Mapping[bool | None, Callable[[list[Any]], Any]] | None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Part":
        return self  # it holds no state


class Container(nn.Module):
    """A place for parameters, buffers and constants under the names that they have in the whole model."""


class StageModule(nn.Module):
    """A part of a model: operations between two cuts, with the parameters and buffers that they use.

    The first stage takes what the model takes, the last one returns what the model returns. In between goes one
    tensor, or a tuple of tensors and whole numbers if more crosses: further tensors, side inputs, sizes. The last one
    also holds the parameters and buffers that no operation uses.

    Attributes:
        psl_part: what it runs.
        psl_slots: by mode, where each state tensor of the program is kept: module and attribute.
        psl_as_found: whether it runs in the mixed modes that the model was in; `train` and `eval` end that.
    """

    def __init__(
        self,
        part: Part,
        tensors: Mapping[str, torch.Tensor],
        constants: Mapping[str, torch.Tensor],
        persistent: Collection[str],
        unused: Iterable[str] = (),
    ):
        super().__init__()
        self.psl_part = part
        self.psl_as_found = None in part.programs
        used = (name for program in part.programs.values() for name in program.state)
        for name in dict.fromkeys((*used, *unused)):
            self._keep(name, tensors, constants, name in persistent)
        self.psl_slots = {mode: [self._slot(name) for name in program.state] for mode, program in part.programs.items()}

    def _keep(
        self, name: str, tensors: Mapping[str, torch.Tensor], constants: Mapping[str, torch.Tensor], persistent: bool
    ) -> None:
        *path, last = name.split(".")
        owner: nn.Module = self
        for step in path:
            if step not in dict(owner.named_children()):
                owner.add_module(step, Container())
            owner = owner.get_submodule(step)
        if name in constants:
            owner.register_buffer(last, constants[name], persistent=False)
        elif isinstance(tensor := tensors[name], nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor, persistent=persistent)

    def _slot(self, name: str) -> tuple[nn.Module, str]:
        path, _, last = name.rpartition(".")
        return self.get_submodule(path), last

    def train(self, mode: bool = True) -> "StageModule":
        """Set the mode, which decides what operations run."""
        super().train(mode)
        self.psl_as_found = False
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the stage; see the class."""
        mode = None if self.psl_as_found else self.training
        part = self.psl_part
        program = part.programs[mode]
        if part.entrance is not None:
            inputs = part.entrance.read(args, kwargs, mode)
        else:
            (given,) = args
            inputs = list(given) if isinstance(given, tuple | list) else [given]
        state = [getattr(owner, name) for owner, name in self.psl_slots[mode]]
        device = next((value.device for value in inputs if isinstance(value, torch.Tensor)), torch.device("cpu"))
        outputs = program.run(device, state, inputs)
        if part.unflatten is not None:
            return part.unflatten[mode](outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


class Identity(nn.Module):
    """A stage without operations: behind the output, it returns what it is given."""

    def forward(self, x: Any) -> Any:
        """Return the argument."""
        return x


def stages(traced: TracedModel, places: Sequence[Place]) -> list[nn.Module]:
    """Return the stages of a model between cuts, ``len(places) + 1`` modules that share its parameters.

    Args:
        traced: the model.
        places: in the order of the model.
    """
    last = traced.all_places[-1]
    persistent = traced.model.state_dict(keep_vars=True).keys()
    ends = [traced.all_places[0], *places, last]
    made: list[nn.Module] = []
    for k, (first, end) in enumerate(zip(ends, ends[1:], strict=False)):
        is_last = k == len(places)
        if is_last and first is last:
            stage: nn.Module = Identity()
        else:
            unused = traced.unused_state() if end is last else ()
            part = _part(traced, first, end, k == 0)
            stage = StageModule(part, traced.tensors, traced.constants, persistent, unused)
        for module in stage.modules():  # not train(), which would end mixed modes
            module.training = traced.model.training
        made.append(stage)
    return made


def _part(traced: TracedModel, first: Place, last: Place, is_first: bool) -> Part:
    """Return what a stage between two places runs, made once for all models of the structure."""
    structure = traced.structure
    key = first.index, last.index, is_first
    if key not in structure.parts:
        to_output = last is structure.places[-1]
        name = f"stage {first.name} to {last.name}"
        programs = {
            mode: stage_program(analysis, first.crossings[mode], last.crossings[mode], to_output=to_output, name=name)
            for mode, analysis in structure.analyses.items()
        }
        entrance = unflatten = None
        if is_first:
            guards = {mode: analysis.graph.guard for mode, analysis in structure.analyses.items()}
            entrance = Entrance(structure.example, guards)
        if to_output:
            unflatten = {mode: analysis.graph.unflatten for mode, analysis in structure.analyses.items()}
        structure.parts[key] = Part(programs, entrance, unflatten)
    return structure.parts[key]
