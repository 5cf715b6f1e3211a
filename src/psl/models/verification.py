"""Verify that the stages of a model compute and learn what the model does."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import CutError
from psl.models.examples import Inputs
from psl.models.refusals import changed_attributes, plain_state
from psl.models.splitting import boundaries
from psl.models.stages import stages
from psl.models.structure import Place
from psl.models.tracing import TracedModel, trace
from psl.models.values import at_least_two_rows, call, copied, tensors_in

_TOLERANCE = 1e-6  # of the largest value: the rounding of sums whose terms are added in another order


def verify(model: nn.Module, cut: Any, batch: Inputs) -> None:
    """Compare a model with its stages on a batch, in train and in eval mode; nothing changes.

    Both start from the same random state. Compared are the outputs, the gradients of every parameter (the stages get
    the gradients at the cuts from one another, as if they were on different machines), buffers, the states of
    torch's, NumPy's and Python's generators, and plain attributes.

    Args:
        model: as in `psl.cuts`.
        cut: number or name of a cut, or a list of increasing ones.
        batch: what the model takes, with a batch dimension: a tensor, a tuple or a dict of tensors. A single row is
            taken twice.

    Raises:
        CutError: the first difference, with the tensor, the module, the likely cause and what to do; or there is no
            such cut.

    Source: ours [B].
    """
    try:
        _verify_once(model, cut, batch)
    except CutError:  # then the model was exported anew: the operations may have been those of another model
        _verify_once(model, cut, batch)


def _verify_once(model: nn.Module, cut: Any, batch: Inputs) -> None:
    traced = trace(model, batch)
    verify_stages(traced, boundaries(traced, cut if isinstance(cut, list | tuple) else [cut]), batch)


def verify_stages(traced: TracedModel, places: Sequence[Place], batch: Inputs) -> None:
    """Compare a traced model with its stages between some places; see `verify`.

    Raises:
        CutError: the first difference. The model has then been exported anew: its operations may have been remembered
            from another model of the same structure, so a second call may succeed.
    """
    try:
        _compare(traced, places, at_least_two_rows(batch))
    except CutError:
        trace(traced.model, batch, afresh=True)
        raise


@dataclass
class _Outcome:
    """What one pass leaves."""

    outputs: list[torch.Tensor]
    gradients: dict[str, torch.Tensor | None]
    buffers: dict[str, torch.Tensor]
    generators: dict[str, Any]


def _compare(traced: TracedModel, places: Sequence[Place], batch: Inputs) -> None:
    model = traced.model
    whole, twin = copy.deepcopy(model), copy.deepcopy(model)
    parts = stages(trace_twin(traced, twin), places)
    for training in (True, False):
        mode = "train" if training else "eval"
        whole.train(training)
        for part in parts:
            part.train(training)
        with _random_state_kept():
            start = _generators()
            before = {} if training else plain_state(whole)  # the first pass may prepare something once
            from_whole = _run_whole(whole, copied(batch), training)
            others = [] if training else changed_attributes(before, plain_state(whole))[1]
            _restore(start)
            from_parts = _run_stages(parts, twin, copied(batch), training)
        if others:
            raise _difference(model, mode, f"attribute {others[0]!r}", "Python state that forward changes", others[0])
        for name in traced.constants:  # a buffer that the first pass fills in another shape
            from_whole.buffers.pop(name, None)
        _report(model, mode, from_whole, from_parts)


def trace_twin(traced: TracedModel, twin: nn.Module) -> TracedModel:
    """Return a copy of a traced model's module as a traced model of the same structure."""
    tensors = dict(twin.named_parameters(remove_duplicate=False)) | dict(twin.named_buffers(remove_duplicate=False))
    return TracedModel(twin, traced.structure, tensors)


def _run_whole(model: nn.Module, batch: Any, training: bool) -> _Outcome:
    with torch.set_grad_enabled(training):
        outputs = list(tensors_in(call(model, batch)))
    if training:
        _backward(outputs, [_direction(x) for x in outputs])
    return _outcome(model, outputs)


def _run_stages(parts: list[nn.Module], twin: nn.Module, batch: Any, training: bool) -> _Outcome:
    passes: list[tuple[list[Any], list[Any], dict[int, torch.Tensor]]] = []
    value: Any = batch
    final: Any = None
    with torch.set_grad_enabled(training):
        for k, part in enumerate(parts):
            arrived: dict[int, torch.Tensor] = {}
            leaves: list[Any] = []
            if k == 0:
                made = call(part, value)
            else:
                given = [_leaf(x, needs) for x, needs in value]
                for n, leaf in enumerate(given):
                    if isinstance(leaf, torch.Tensor) and leaf.requires_grad:
                        # The hook sees the gradient as it is; leaf.grad might hold it in another memory layout.
                        leaf.register_hook(lambda g, n=n, arrived=arrived: arrived.__setitem__(n, g))
                leaves = given
                made = part(given[0] if len(given) == 1 else tuple(given))
            final = made
            sent = list(made) if isinstance(made, tuple) and k + 1 < len(parts) else [made]
            passes.append((leaves, sent, arrived))
            value = [(x.detach(), x.requires_grad) if isinstance(x, torch.Tensor) else (x, False) for x in sent]
    outputs = list(tensors_in(final))
    if training:
        _backward(outputs, [_direction(x) for x in outputs])
        for (_, sent, _), (leaves, _, arrived) in reversed(list(zip(passes, passes[1:], strict=False))):
            pairs = [(sent[n], arrived[n]) for n in range(len(leaves)) if n in arrived]
            _backward([x for x, _ in pairs], [g for _, g in pairs])
    return _outcome(twin, outputs)


def _leaf(x: Any, needs_gradient: bool) -> Any:
    return x.requires_grad_(needs_gradient) if isinstance(x, torch.Tensor) and needs_gradient else x


def _backward(outputs: list[torch.Tensor], directions: list[torch.Tensor]) -> None:
    pairs = [(x, d) for x, d in zip(outputs, directions, strict=True) if x.requires_grad]
    if pairs:
        torch.autograd.backward([x for x, _ in pairs], [d for _, d in pairs])


def _direction(x: torch.Tensor) -> torch.Tensor:
    """Return a fixed gradient of an output: no two elements alike, drawn without any generator."""
    if not x.is_floating_point() and not x.is_complex():
        return x
    ramp = torch.arange(x.numel(), device=x.device, dtype=torch.float32)
    return torch.cos(ramp).view(x.shape).to(x.dtype)


def _outcome(model: nn.Module, outputs: list[torch.Tensor]) -> _Outcome:
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return _Outcome(outputs, gradients, dict(model.named_buffers()), _generators())


def _generators() -> dict[str, Any]:
    found = {"torch's generator": torch.get_rng_state()}
    for k in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        found[f"torch's generator of cuda:{k}"] = torch.cuda.get_rng_state(k)
    return found | {"numpy.random": np.random.get_state(), "random": random.getstate()}  # noqa: NPY002


def _restore(generators: dict[str, Any]) -> None:
    for name, state in generators.items():
        if name == "random":
            random.setstate(state)
        elif name == "numpy.random":
            np.random.set_state(state)  # noqa: NPY002
        elif "cuda" in name:
            torch.cuda.set_rng_state(state, int(name.rpartition(":")[2]))
        else:
            torch.set_rng_state(state)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    start = _generators()
    try:
        yield
    finally:
        _restore(start)


def _report(model: nn.Module, mode: str, whole: _Outcome, parts: _Outcome) -> None:
    """Raise the error of the first difference, if there is one."""
    for name, state in whole.generators.items():
        if not _same_state(state, parts.generators[name]):
            raise _difference(model, mode, f"the state of {name}", "a random draw that the graph does not make", "")
    if len(whole.outputs) != len(parts.outputs):
        raise _difference(model, mode, "the number of outputs", "forward returns different things at times", "")
    for k, (a, b) in enumerate(zip(whole.outputs, parts.outputs, strict=True)):
        if (distance := _distance(a, b)) > _TOLERANCE:
            what = f"output {k}" if len(whole.outputs) > 1 else "the output"
            cause = "forward depends on Python state, or on values that the graph holds fixed"
            raise _difference(model, mode, f"{what} (by {distance:.2g} of its largest value)", cause, "")
    for name, a in whole.buffers.items():
        if name not in parts.buffers or _distance(a, parts.buffers[name]) > _TOLERANCE:
            raise _difference(
                model, mode, f"buffer {name!r}", "forward changes it in a way that the graph does not", name
            )
    largest = max((g.abs().max().item() for g in whole.gradients.values() if g is not None and g.numel()), default=0.0)
    for name, a in whole.gradients.items():
        b = parts.gradients[name]
        if a is None and b is None:
            continue
        a, b = (torch.zeros(()) if g is None else g for g in (a, b))
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a.to(b.device), b.to(a.device))
        if _distance(a, b, largest) > _TOLERANCE:
            cause = "a backward pass of its own: a hook, a context or a function that the graph does not hold"
            raise _difference(model, mode, f"the gradient of {name!r}", cause, name)


def _same_state(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple) and any(isinstance(x, np.ndarray) for x in a):  # NumPy's
        return len(a) == len(b) and all(_same_state(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


def _distance(a: torch.Tensor, b: torch.Tensor, largest: float | None = None) -> float:
    """Return the largest difference, over the largest value."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if torch.equal(a, b) or not a.numel():
        return 0.0
    if not a.is_floating_point() and not a.is_complex():
        return float("inf")
    a, b = a.detach(), b.detach()
    same = (a == b) | (a.isnan() & b.isnan())
    if bool(same.all()):
        return 0.0
    difference = torch.where(same, 0.0, (a - b).abs()).max().item()
    scale = a.abs().max().item() if largest is None else largest
    allowed = max(1.0, torch.finfo(a.dtype).eps / torch.finfo(torch.float32).eps)  # half precision rounds more
    ratio = difference / (scale or 1.0) / allowed
    return float("inf") if np.isnan(ratio) else ratio


def _difference(model: nn.Module, mode: str, what: str, cause: str, name: str) -> CutError:
    path = name.rpartition(".")[0]
    module = dict(model.named_modules()).get(path)
    where = f" in module {path!r} ({type(module).__name__})" if path and module is not None else ""
    return CutError(
        f"verify: expected stages that do what {type(model).__name__} does in {mode} mode, got a difference in {what}"
        f"{where}. Likely cause: {cause}. Fix: write forward as a function of its inputs, parameters and registered "
        "buffers, or train without splitting"
    )
