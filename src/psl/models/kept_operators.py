"""Operations that stay whole in an export: custom autograd functions, recurrent and other layers."""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from psl.models.refusals import refuse


@contextmanager
def replaced(owner: type, name: str, value: Any) -> Iterator[None]:
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


_LIBRARY = "psl_autograd"


@contextmanager
def autograd_functions_kept() -> Iterator[dict[str, Callable[..., Any]]]:
    """Record every custom autograd function that is applied as an operator of its own.

    torch.export would go inside, and with the function its backward pass would be lost.
    """
    functions: dict[str, Callable[..., Any]] = {}
    library = torch.library.Library(_LIBRARY, "FRAGMENT")
    found = inspect.getattr_static(torch.autograd.Function, "apply")  # written in Python, or in C from torch 2.14 on
    inside = False
    token = f"{random.SystemRandom().getrandbits(48):x}"  # operators' names are never free again

    def original(cls: type[torch.autograd.Function], *args: Any, **kwargs: Any) -> Any:
        return found.__get__(None, cls)(*args, **kwargs)

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

    with replaced(torch.autograd.Function, "apply", classmethod(apply)):
        yield functions


def _holds_tensors(value: Any) -> bool:
    entries = value.values() if isinstance(value, dict) else value
    return any(isinstance(entry, torch.Tensor) for entry in entries)


# --- layers ---

_LAYERS = torch.library.Library("psl_layers", "FRAGMENT")

#: By our stand-in for a layer, the operator that it stands for.
STANDS_FOR: dict[Any, Any] = {}


def _stand_in(real: Any, fake: Callable[..., Any]) -> Any:
    """Define an operator with the arguments of a real one, of which only the shapes of its results are known."""
    name = real.name().split("::")[1].split(".")[0]
    text = str(real._schema)
    _LAYERS.define(name + text[text.index("(") :])
    torch.library.register_fake(f"psl_layers::{name}", fake, lib=_LAYERS)
    made = getattr(torch.ops.psl_layers, name).default
    STANDS_FOR[made] = real
    return made


def _recurrent(input: Any, hx: Any, params: Any, has_biases: Any, num_layers: Any, dropout: Any, train: Any,
               bidirectional: Any, batch_first: Any) -> tuple[torch.Tensor, ...]:  # fmt: skip
    states = hx if isinstance(hx, list | tuple) else [hx]
    width = states[0].shape[2] * (1 + bidirectional)
    return input.new_empty(*input.shape[:2], width), *(torch.empty_like(state) for state in states)


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: Any = None) -> torch.Tensor:
    if input.shape[-1] != weight.shape[-1]:
        raise RuntimeError(f"linear: a weight of shape {tuple(weight.shape)} takes no input {tuple(input.shape)}")
    return input.new_empty(*input.shape[:-1], *weight.shape[:-1])


def _attention(query: torch.Tensor, key: Any, value: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
    return query.new_empty(*query.shape[:-1], value.shape[-1])


def _batch_norm(stand_in: Any, input: Any, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None,
                training: bool = False, momentum: float = 0.1, eps: float = 1e-5) -> torch.Tensor:  # fmt: skip
    cudnn = torch.backends.cudnn.enabled
    return stand_in(input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn)


_aten = torch.ops.aten
# torch.export would unroll these over the length of the example.
_RECURRENT = {
    real: _stand_in(getattr(_aten, real.__name__).input, _recurrent)
    for real in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
}
# And decompose these, only to learn one shape: half of its time with ResNet-50 and with Llama.
_DECOMPOSED = {
    F.layer_norm: _stand_in(_aten.layer_norm.default, lambda input, *rest, **options: input.new_empty(input.shape)),
    F.linear: _stand_in(_aten.linear.default, _linear),
    F.scaled_dot_product_attention: _stand_in(_aten.scaled_dot_product_attention.default, _attention),
    F.batch_norm: partial(_batch_norm, _stand_in(_aten.batch_norm.default, lambda x, *rest: torch.empty_like(x))),
}


class layers_kept(TorchFunctionMode):  # a context
    """Record layers as one operation each, which torch.export would take apart."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the stand-in for a layer: recurrent ones on padded sequences, since packed ones pass lengths second.

        Others only where neither autocast nor a class of tensors decides what they return.
        """
        if func in _DECOMPOSED:
            autocast = torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
            if not types and not autocast:
                return _DECOMPOSED[func](*args, **(kwargs or {}))
        elif func in _RECURRENT and isinstance(args[3], bool):
            return _RECURRENT[func](*args)
        return func(*args, **(kwargs or {}))
