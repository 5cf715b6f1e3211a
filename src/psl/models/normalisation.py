"""BatchNorm in the stages of a model: as torch does it, with a momentum that may be changed from outside."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

#: From a layer's momentum to the one to use now, None to leave the running statistics alone.
Momentum = Callable[[float], float | None]

_MOMENTUM: ContextVar[Momentum | None] = ContextVar("momentum", default=None)


@contextmanager
def changed_momentum(change: Momentum) -> Iterator[None]:
    """Within this context BatchNorm in train mode uses another momentum in every stage."""
    token = _MOMENTUM.set(change)
    try:
        yield
    finally:
        _MOMENTUM.reset(token)


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> torch.Tensor:
    """Normalise as ``torch.nn.functional.batch_norm`` does.

    Raises:
        ValueError: train mode, and one value per channel only.
    """
    change = _MOMENTUM.get()
    if training:
        if x.numel() == x.shape[1]:
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")
        if change is not None and running_mean is not None:
            changed = change(momentum)
            if changed is None:
                running_mean = running_var = None
            else:
                momentum = changed
    return torch.batch_norm(x, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
