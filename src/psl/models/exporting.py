"""Export a model: its operations in one mode, as torch.export records them, and what that would lose."""

import functools
import inspect
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils.checkpoint import CheckpointFunction

from psl.errors import CutError, expected
from psl.models.examples import Example, read_example
from psl.models.refusals import (
    changed_attributes,
    copy_for_export,
    plain_state,
    python_randomness_refused,
    refuse,
)


@dataclass(frozen=True)
class Exported:
    """A model's operations in one mode.

    Args:
        program: what torch.export recorded.
        functions: Python functions by the name of the operator that stands for them in the program: the custom
            autograd functions that forward applied.
        example: what it was exported with.
        training: the modes of the modules, by name.
    """

    program: ExportedProgram
    functions: dict[str, Callable[..., Any]]
    example: Example
    training: dict[str, bool]


def export_modes(model: nn.Module, example: Any) -> tuple[nn.Module, dict[bool | None, Exported]]:
    """Export a model in train mode, in eval mode, and under None in its present modes if these are neither.

    Args:
        model: that is exported; a copy is, so that it stays as it is.
        example: a shape or tensors, as `read_example` takes it.

    Returns:
        The copy, which shares parameters and buffers but holds what the first forward pass fills, and the exports.

    Raises:
        CutError: it cannot be exported, or the graph would lose what forward does.
    """
    shared = copy_for_export(model)
    given = read_example(shared, example)
    if example_is_for_token_ids(shared, example, given):
        given = read_example(shared, example, whole_numbers=True)
    found: dict[bool | None, Exported] = {}
    present = modes_of(shared)
    for _ in range(2):
        found.clear()
        with forward_observed(shared) as changed:
            for training in (True, False):
                shared.train(training)
                found[training] = _export(shared, given)
            if present not in [one.training for one in found.values()]:
                set_modes(shared, present)
                found[None] = _export(shared, given)
            set_modes(shared, present)
        if not changed:
            return shared, found
        if not all(is_lazy_filling for is_lazy_filling in changed.values()):
            break
        # Tensors that the first forward pass keeps on the model: let it, then export what follows.
        shared = _after_one_forward(model, shared, given)
    names = ", ".join(sorted(changed))
    fix = "keep what changes from step to step in a registered buffer, and change it in place with torch operations"
    refuse(f"forward of {type(model).__name__} changes {names}, which is Python state that no graph keeps", fix)


def modes_of(model: nn.Module) -> dict[str, bool]:
    """Return whether each module is in train mode, by name."""
    return {name: module.training for name, module in model.named_modules()}


def set_modes(model: nn.Module, modes: dict[str, bool]) -> None:
    """Set the mode of every module by itself, as `modes_of` returned it."""
    for name, module in model.named_modules():
        module.training = modes.get(name, module.training)


def example_is_for_token_ids(model: nn.Module, example: object, given: Example) -> bool:
    """Return whether a shape stands for token ids: of one dimension, for a model that begins with an embedding."""
    if isinstance(example, torch.Tensor | dict) or not isinstance(example, tuple | list):
        return False
    if any(isinstance(part, torch.Tensor) for part in example) or len(example) != 1:
        return False
    with_weights = (m for m in model.modules() if any(True for _ in m.parameters(recurse=False)))
    return isinstance(next(with_weights, None), nn.Embedding)


@contextmanager
def forward_observed(model: nn.Module) -> Iterator[dict[str, bool]]:
    """Yield the names of attributes that forward changes while the model is exported; True for tensors it keeps.

    torch.export puts attributes back after forward, so they are compared at the end of forward itself.
    """
    changed: dict[str, bool] = {}
    forward = model.forward

    @functools.wraps(forward)
    def observed(*args: Any, **kwargs: Any) -> Any:
        before = plain_state(model)
        result = forward(*args, **kwargs)
        tensors, others = changed_attributes(before, plain_state(model))
        changed.update(dict.fromkeys(tensors, True) | dict.fromkeys(others, False))
        return result

    replaced = vars(model).get("forward")
    model.forward = observed
    try:
        yield changed
    finally:
        if replaced is None:
            del model.forward
        else:
            model.forward = replaced


def _after_one_forward(model: nn.Module, shared: nn.Module, example: Example) -> nn.Module:
    """Return a copy that has run once and again shares the model's parameters and buffers."""
    if any(tensor.is_meta for tensor in model.parameters()):
        return shared
    ran = copy_for_export(model, share=False).eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        ran(*example.tensors[: example.n_positional], **dict(_named(example)))
    modes = modes_of(model)
    set_modes(ran, modes)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in ran.named_modules():
        for name in [n for n, _ in module.named_parameters(recurse=False, remove_duplicate=False)]:
            setattr(module, name, own[f"{path}.{name}".lstrip(".")])
        for name in [n for n, _ in module.named_buffers(recurse=False, remove_duplicate=False)]:
            full = f"{path}.{name}".lstrip(".")
            if full in own:
                setattr(module, name, own[full])
    return ran


def _named(example: Example) -> Iterator[tuple[str, torch.Tensor]]:
    yield from zip(example.names[example.n_positional :], example.tensors[example.n_positional :], strict=True)


def _export(model: nn.Module, example: Example) -> Exported:
    """Export a model in its present modes; the copy's forward takes the inputs by position."""
    forward, n = model.forward, example.n_positional
    inputs = example.for_export()
    modes = modes_of(model)

    def by_position(*values: torch.Tensor) -> Any:
        return forward(*values[:n], **dict(zip(example.names[n:], values[n:], strict=True)))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    by_position.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in example.names])  # pyright: ignore[reportFunctionMemberAccess]
    dynamic = tuple(
        {d: Dim.AUTO if d in dims else Dim.STATIC for d in range(tensor.ndim)}
        for tensor, dims in zip(inputs.tensors, example.dynamic_dimensions(), strict=True)
    )
    model.forward = by_position
    try:
        with _recording(model) as functions:
            program = torch.export.export(model, inputs.tensors, dynamic_shapes=dynamic, strict=False)
    except CutError:
        raise
    except Exception as cause:  # whatever forward or torch.export says
        raise _not_exportable(model, cause) from cause
    finally:
        model.forward = forward
    return Exported(program, functions, inputs, modes)


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, Callable[..., Any]]]:
    """What torch.export needs to keep, or to refuse, what it would lose; yields the custom autograd functions."""
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch.export's own, about its internals
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(python_randomness_refused(model))
        stack.enter_context(_replaced(torch.Tensor, "register_hook", _refuse_tensor_hook))
        stack.enter_context(_replaced(torch.inference_mode, "__enter__", _enter_no_grad))
        stack.enter_context(_replaced(torch.inference_mode, "__exit__", _exit_no_grad))
        yield stack.enter_context(_autograd_functions_kept())


@contextmanager
def _replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _refuse_tensor_hook(tensor: torch.Tensor, hook: Any) -> None:
    refuse("a gradient hook that forward puts on a tensor", "write what it does as a torch.autograd.Function")


def _enter_no_grad(self: Any) -> None:
    self.no_grad = torch.no_grad()  # what is made there needs no gradient either, which is what the graph can keep
    self.no_grad.__enter__()


def _exit_no_grad(self: Any, *exception: Any) -> None:
    self.no_grad.__exit__(*exception)


_LIBRARY = "psl_autograd"


@contextmanager
def _autograd_functions_kept() -> Iterator[dict[str, Callable[..., Any]]]:
    """Record every custom autograd function that is applied as an operator of its own.

    torch.export would go inside, and with the function its backward pass would be lost.
    """
    functions: dict[str, Callable[..., Any]] = {}
    library = torch.library.Library(_LIBRARY, "FRAGMENT")
    original = torch.autograd.Function.apply.__func__  # pyright: ignore[reportFunctionMemberAccess]
    inside = False
    token = f"{random.SystemRandom().getrandbits(48):x}"  # operators' names are never free again

    def apply(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if inside:
            return original(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            refuse(
                "torch.utils.checkpoint with use_reentrant=True, whose backward pass runs forward again",
                "call checkpoint(..., use_reentrant=False)",
            )
        if kwargs or any(isinstance(a, list | tuple | dict) and _holds_tensors(a) for a in args):
            refuse(
                f"{cls.__name__}.apply with tensors in a list or by name", "pass the tensors one by one, by position"
            )
        name = f"{cls.__name__}_{token}_{len(functions)}".lower()
        is_tensor = [isinstance(a, torch.Tensor) for a in args]
        is_size = [isinstance(a, torch.SymInt) for a in args]
        others = [None if tensor or size else a for a, tensor, size in zip(args, is_tensor, is_size, strict=True)]
        form: list[Any] = []  # what the function returns: which of the outputs are tensors

        def call(tensors: list[torch.Tensor], sizes: list[int]) -> list[torch.Tensor]:
            nonlocal inside
            values, numbers = iter(tensors), iter(sizes)
            full = [
                next(values) if tensor else next(numbers) if size else value
                for value, tensor, size in zip(others, is_tensor, is_size, strict=True)
            ]
            inside = True
            try:
                result = original(cls, *full)
            finally:
                inside = False
            outputs = result if isinstance(result, tuple) else (result,)
            if any(output is tensor for output in outputs for tensor in tensors):
                refuse(f"{cls.__name__}, which works in place (mark_dirty)", "return a new tensor")
            form[:] = [isinstance(result, tuple), [None if isinstance(o, torch.Tensor) else (o,) for o in outputs]]
            return [output for output in outputs if isinstance(output, torch.Tensor)]

        library.define(f"{name}(Tensor[] tensors, SymInt[] sizes) -> Tensor[]")
        torch.library.register_fake(f"{_LIBRARY}::{name}", call, lib=library)
        functions[f"{_LIBRARY}::{name}"] = call
        operator = getattr(getattr(torch.ops, _LIBRARY), name)
        tensors = iter(
            operator([a for a in args if isinstance(a, torch.Tensor)], [a for a in args if isinstance(a, torch.SymInt)])
        )
        several, outputs = form
        filled = tuple(next(tensors) if known is None else known[0] for known in outputs)
        return filled if several else filled[0]

    with _replaced(torch.autograd.Function, "apply", classmethod(apply)):
        yield functions


def _holds_tensors(value: Any) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return any(isinstance(entry, torch.Tensor) for entry in entries)


def _not_exportable(model: nn.Module, cause: Exception) -> CutError:
    """Return the error of a model that torch.export refuses, with the place in the user's code if it is known."""
    text = str(cause)
    first = next((line for line in text.splitlines() if line.strip()), "")
    fix = "make forward a function of tensors: torch.where in place of if, no .item() or .tolist() on computed values"
    got = f"{type(model).__name__}, which torch.export refuses: {type(cause).__name__}: {first[:300]}"
    if "ata-dependent" in text or "unbacked" in text or "GuardOn" in type(cause).__name__:
        got = f"{type(model).__name__}, whose forward pass depends on values of tensors: {first[:300]}"
    elif isinstance(cause, IndexError | TypeError | ValueError | RuntimeError) and "export" not in text.lower():
        fix = "check that the example fits the model: the shape of one sample, or tensors as the model takes them"
    error = expected("model", "a forward pass that torch.export can record", got, fix, CutError)
    assert isinstance(error, CutError)
    return error
