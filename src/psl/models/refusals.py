"""What a model may do in forward that no graph can keep: found before or while it is exported, and refused by name."""

import copy
import random
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from psl.errors import CutError, expected
from psl.models.generators import numpy_and_python_kept


def refuse(got: str, fix: str, want: str = "a model whose forward pass can be split", cause: Any = None) -> NoReturn:
    """Raise the error of a model that cannot be split."""
    raise expected("model", want, got, fix, CutError) from cause


def check_model_kind(model: object) -> None:
    """Refuse what wraps a model, or is none yet.

    Raises:
        CutError: no module; compiled, parallel, scripted or lazy; or with hooks on gradients.
    """
    if not isinstance(model, nn.Module):
        raise expected("model", "a torch.nn.Module", type(model).__name__, "pass the model itself", CutError)
    for path, module in model.named_modules():
        where = f"{path!r} ({type(module).__name__})" if path else type(module).__name__
        if type(module).__name__ == "OptimizedModule":
            refuse(f"{where}, made by torch.compile", "pass the model as it was before torch.compile")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            refuse(where, "pass what it wraps, model.module")
        if isinstance(module, torch.jit.ScriptModule):
            refuse(f"{where}, a TorchScript module", "pass the Python module that it was scripted or traced from")
        if any(is_lazy(tensor) for tensor in (*module.parameters(False), *module.buffers(False))):
            refuse(f"{where}, a lazy module without sizes", "run the model once on a batch, then pass it")
        if module._backward_hooks or module._backward_pre_hooks:
            refuse(f"a backward hook on {where}", "remove the hook, or write what it does as a torch.autograd.Function")
    for name, tensor in model.named_parameters():
        if tensor._backward_hooks or tensor._post_accumulate_grad_hooks:
            refuse(f"a gradient hook on parameter {name!r}", "remove the hook; change gradients in the optimizer")


def copy_for_export(model: nn.Module, *, share: bool = True) -> nn.Module:
    """Return a copy in which forward may leave what it likes.

    Args:
        model: that is copied.
        share: whether the copy holds the same parameters and buffers (an export computes nothing).

    Raises:
        CutError: it cannot be copied.
    """
    state = (*model.parameters(), *model.buffers()) if share else ()
    try:
        return copy.deepcopy(model, {id(tensor): tensor for tensor in state})
    except Exception as cause:  # a module may hold anything: open files, locks, tensors with a history
        old = next((name for name, value in computed_attributes(model)), None)
        fix = "keep only what copy.deepcopy can copy on the model"
        if old is not None:
            fix = f"{old!r} is a computed tensor: use torch.nn.utils.parametrizations in place of the old weight_norm"
        reason = (str(cause).splitlines() or [""])[0]
        refuse(f"{type(model).__name__}, which cannot be copied ({type(cause).__name__}: {reason})", fix, cause=cause)


def computed_attributes(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield names and values of tensors that are attributes of modules and were computed, as old weight_norm's."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor) and value.grad_fn is not None:
                yield f"{path}.{name}".lstrip("."), value


class RandomDraw(CutError):
    """Something drew from Python's or NumPy's generator while a model was exported."""


# --- what forward leaves behind ---


def plain_state(model: nn.Module) -> dict[str, Any]:
    """Return what forward may change on a model but for parameters and buffers, in a form that can be compared."""
    state = set(map(id, (*model.parameters(), *model.buffers())))
    memory: list[Any] = []  # keeps what is known by its identity alive
    found: dict[str, Any] = {"memory": memory}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name == "training" or isinstance(value, nn.Module):
                continue
            found[f"{path}.{name}".lstrip(".")] = _comparable(value, state, memory, depth=4)
    return found


def _comparable(value: Any, state: set[int], memory: list[Any], depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return type(value).__name__, repr(value)
    if isinstance(value, torch.Tensor):
        memory.append(value)
        return ("state", "") if id(value) in state else ("tensor", id(value))
    memory.append(value)
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool) or depth == 0:
        return type(value).__name__, id(value)
    if isinstance(value, nn.Module):
        return "module", id(value)
    if isinstance(value, weakref.ref):
        return "weak reference", ""
    if isinstance(value, dict):
        items = [(repr(key), _comparable(entry, state, memory, depth - 1)) for key, entry in value.items()]
        # The dicts of parameters and buffers hold the same names, whatever tensors stand there now.
        return "dict", [
            (key, ("state", "")) if entry[0] in ("tensor", "state") else (key, entry) for key, entry in items
        ]
    if isinstance(value, list | tuple | set | frozenset):
        return type(value).__name__, [_comparable(entry, state, memory, depth - 1) for entry in value]
    if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        attributes = vars(value).items()
        return id(value), [(name, _comparable(entry, state, memory, depth - 1)) for name, entry in attributes]
    return type(value).__name__, id(value)


def changed_attributes(before: dict[str, Any], after: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names of tensors that forward put on the model, and of other things that it changed there."""
    tensors, others = [], []
    for name in before.keys() | after.keys():
        old, new = before.get(name), after.get(name)
        refers_to_state = new is not None and new[0] == "list" and all(e == ("state", "") for e in new[1])
        if name != "memory" and old != new and not refers_to_state:  # recurrent layers list their own parameters
            (tensors if _holds_new_tensors(old, new) else others).append(name)
    return sorted(tensors), sorted(others)


def _holds_new_tensors(old: Any, new: Any) -> bool:
    """Return whether a value is now a tensor, or a dict with more entries than before."""
    if new is None or old is None:
        return new is not None and new[0] == "tensor"
    return new[0] == "tensor" or (new[0] == old[0] == "dict" and all(entry in new[1] for entry in old[1]))


@contextmanager
def python_randomness_refused(model: nn.Module) -> Iterator[None]:
    """Refuse a forward pass that draws from Python's or NumPy's generator; both are given back as they were."""
    with numpy_and_python_kept() as (numpy, python):
        yield
        drew = []
        if random.getstate() != python:
            drew.append("random")
        if not all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), numpy, strict=True)):  # noqa: NPY002
            drew.append("numpy.random")
        if drew:
            got = f"draws from {' and '.join(drew)} in {type(model).__name__}.forward"
            fix = "draw with torch (torch.rand) and choose with torch.where; a graph would hold one draw for ever"
            raise RandomDraw(f"model: expected a model whose forward pass can be split, got {got}. Fix: {fix}")
