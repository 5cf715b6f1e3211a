"""Export a model: its operations in one mode, as torch.export records them, and what that would lose."""

import functools
import inspect
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from psl.errors import CutError, expected
from psl.models.examples import Example, read_example
from psl.models.kept_operators import autograd_functions_kept, layers_kept, replaced
from psl.models.refusals import (
    RandomDraw,
    changed_attributes,
    copy_for_export,
    plain_state,
    python_randomness_refused,
    refuse,
)
from psl.models.values import call_on_example, fixed_arguments

_one_at_a_time = threading.RLock()  # an export replaces functions of torch, for all threads


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


def export_modes(model: nn.Module, example: Any) -> tuple[nn.Module, dict[bool | None, Exported], set[str]]:
    """Export a model in train mode, in eval mode, and under None in its present modes if these are neither.

    Args:
        model: that is exported; a copy is, so that it stays as it is.
        example: a shape or tensors, as `read_example` takes it.

    Returns:
        The copy, the exports, and the names of buffers that the first forward pass of the copy has filled in another
        shape. The copy shares all other parameters and buffers with the model.

    Raises:
        CutError: it cannot be exported, or the graph would lose what forward does.
    """
    shared = copy_for_export(model)
    given = read_example(shared, example)
    if example_is_for_token_ids(shared, example, given):
        given = read_example(shared, example, whole_numbers=True)
    present = modes_of(shared)
    found, changes = _export_all(shared, given, present)
    reshaped = {name for name, kind in changes.items() if kind == "shape"}
    if changes:
        # What only the first forward pass does is no state: the second one must change nothing. Tensors that the first
        # one keeps are then a cache, which its operations compute in place of it; for the rest the second pass counts.
        only_cached = set(changes.values()) == {"tensor"}
        shared = _after_one_forward(model, shared, given)
        again, changes = _export_all(shared, given, present)
        if not only_cached:
            found = again
        elif set(changes.values()) <= {"tensor"} and not changes.keys() & _constants_read(again):
            changes = {}  # what forward leaves behind and never reads
    if changes:
        names = ", ".join(sorted(changes))
        fix = "keep what changes from step to step in a registered buffer, and change it in place with torch operations"
        refuse(f"forward of {type(model).__name__} changes {names}, which is Python state that no graph keeps", fix)
    return shared, found, reshaped


def _constants_read(found: dict[bool | None, Exported]) -> set[str]:
    """Return the names of tensors that operations read and that are no parameters."""
    specs = [spec for one in found.values() for spec in one.program.graph_signature.input_specs]
    return {spec.target for spec in specs if spec.target is not None and spec.kind.name != "PARAMETER"}


def _export_all(
    model: nn.Module, given: Example, present: dict[str, bool]
) -> tuple[dict[bool | None, Exported], dict[str, str]]:
    """Return the exports by mode, and what forward changed on the model: see `forward_observed`."""
    found: dict[bool | None, Exported] = {}
    with forward_observed(model) as changes:
        for training in (False, True):
            if any(module.training is not training for module in model.modules()):
                model.train(training)  # it may drop what an earlier pass kept
            found[training] = _export(model, given)
        if present not in [one.training for one in found.values()]:
            set_modes(model, present)
            found[None] = _export(model, given)
        set_modes(model, present)
    return found, changes


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
def forward_observed(model: nn.Module) -> Iterator[dict[str, str]]:
    """Yield what forward changes on the model while it is exported, by the attribute's name.

    The kinds are "tensor", a tensor that is kept; "shape", a buffer of another shape; and "other". torch.export puts
    attributes back after forward, so they are compared at the end of forward itself.
    """
    changes: dict[str, str] = {}
    forward = model.forward

    @functools.wraps(forward)
    def observed(*args: Any, **kwargs: Any) -> Any:
        before = plain_state(model)
        shapes = {name: tensor.shape for name, tensor in model.named_buffers()}
        result = forward(*args, **kwargs)
        tensors, others = changed_attributes(before, plain_state(model))
        changes.update(dict.fromkeys(tensors, "tensor") | dict.fromkeys(others, "other"))
        for name, tensor in model.named_buffers():
            if name in shapes and tensor.shape != shapes[name]:
                changes[name] = "shape"
        return result

    replaced_forward = vars(model).get("forward")
    model.forward = observed
    try:
        yield changes
    finally:
        if replaced_forward is None:
            del model.forward
        else:
            model.forward = replaced_forward


def _after_one_forward(model: nn.Module, shared: nn.Module, example: Example) -> nn.Module:
    """Return a copy that has run once and again shares the model's parameters and buffers."""
    if any(tensor.is_meta for tensor in model.parameters()):
        return shared
    ran = copy_for_export(model, share=False)
    ran.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        call_on_example(ran, example)
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in ran.named_modules():
        for name in [n for n, _ in module.named_parameters(recurse=False, remove_duplicate=False)]:
            setattr(module, name, own[f"{path}.{name}".lstrip(".")])
        for name in [n for n, _ in module.named_buffers(recurse=False, remove_duplicate=False)]:
            full = f"{path}.{name}".lstrip(".")
            if full in own and own[full].shape == getattr(module, name).shape:
                setattr(module, name, own[full])
    return ran


def _export(model: nn.Module, example: Example) -> Exported:
    """Export a model in its present modes; the copy's forward takes the inputs by position."""
    forward, n = model.forward, example.n_positional
    inputs = example.for_export()
    modes = modes_of(model)

    fixed = {name: value for name, value in fixed_arguments(model).items() if name not in example.names}

    def by_position(*values: torch.Tensor) -> Any:
        return forward(*values[:n], **dict(zip(example.names[n:], values[n:], strict=True)), **fixed)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    by_position.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in example.names])  # pyright: ignore[reportFunctionMemberAccess]
    dynamic = tuple(
        {d: Dim.AUTO if d in dims else Dim.STATIC for d in range(tensor.ndim)}
        for tensor, dims in zip(inputs.tensors, example.dynamic_dimensions(), strict=True)
    )
    model.forward = by_position
    drew: RandomDraw | None = None
    try:
        try:
            with _recording(model) as functions:
                program = torch.export.export(model, inputs.tensors, dynamic_shapes=dynamic, strict=False)
        except RandomDraw as cause:  # or another thread of the program
            drew = cause
    except CutError:
        raise
    except Exception as cause:  # whatever forward or torch.export says
        raise _not_exportable(model, cause) from cause
    finally:
        model.forward = forward
    if drew is not None and _forward_draws(model, example):
        raise drew
    return Exported(program, functions, inputs, modes)


def _forward_draws(model: nn.Module, example: Example) -> bool:
    """Return whether every forward pass of a copy draws from Python's or NumPy's generator."""
    ran = copy_for_export(model, share=False)
    vars(ran).pop("forward", None)  # that of `forward_observed`, which runs the model itself
    for _ in range(5):
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]), python_randomness_refused(model):
                call_on_example(ran, example)
            return False
        except RandomDraw:
            continue
    return True


@contextmanager
def _recording(model: nn.Module) -> Iterator[dict[str, Callable[..., Any]]]:
    """What torch.export needs to keep, or to refuse, what it would lose; yields the custom autograd functions."""
    devices = sorted({t.device.index or 0 for t in model.parameters() if t.device.type == "cuda"})
    with ExitStack() as stack:
        stack.enter_context(_one_at_a_time)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch.export's own, about its internals
        stack.enter_context(torch.random.fork_rng(devices=devices))
        stack.enter_context(python_randomness_refused(model))
        stack.enter_context(replaced(torch.Tensor, "register_hook", _refuser(torch.Tensor.register_hook)))
        stack.enter_context(replaced(torch.inference_mode, "__enter__", _enter_no_grad))
        stack.enter_context(replaced(torch.inference_mode, "__exit__", _exit_no_grad))
        stack.enter_context(layers_kept())
        yield stack.enter_context(autograd_functions_kept())


def _refuser(register_hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return what stands for a tensor's `register_hook` in this thread; others may train meanwhile."""
    here = threading.get_ident()

    def refuse_hook(tensor: torch.Tensor, hook: Any) -> Any:
        if threading.get_ident() != here:
            return register_hook(tensor, hook)
        return refuse("a gradient hook that forward puts on a tensor", "write what it does as an autograd.Function")

    return refuse_hook


def _enter_no_grad(self: Any) -> None:
    self.no_grad = torch.no_grad()  # what is made there needs no gradient either, which is what the graph can keep
    self.no_grad.__enter__()


def _exit_no_grad(self: Any, *exception: Any) -> None:
    self.no_grad.__exit__(*exception)


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
