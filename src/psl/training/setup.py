"""From the arguments of `psl.train` to a framework that is ready to run."""

import copy
import functools
from collections.abc import Callable
from numbers import Real

import torch
from torch import nn

from psl.data import load
from psl.errors import CutError, DataError, ScenarioError, check_choice, check_number, expected
from psl.models.tracing import trace

_OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.05), "adam": (torch.optim.Adam, 1e-3)}  # class, default learning rate


def default(value, plan, name: str, otherwise):
    """Return an argument, else the plan's, else the library's default.

    Raises:
        ScenarioError: the argument contradicts the plan, whose simulated time would then be wrong.
    """
    planned = getattr(plan, name, None)
    if value is None:
        return otherwise if planned is None else planned
    if planned is not None and value not in (planned, getattr(plan, f"{name}_name", planned)):
        raise expected(name, f"the plan's {planned!r}", repr(value), "leave it out, or solve a plan for it")
    return value


def check_model(model) -> None:
    """Refuse what is not a module, or has nothing to train."""
    if not isinstance(model, nn.Module):
        raise expected("model", "a torch.nn.Module", type(model).__name__, "pass a module")
    if not any(p.requires_grad for p in model.parameters()):
        raise expected("model", "at least one trainable parameter", "none", "call requires_grad_() on a part of it")


def check_cut(cut) -> None:
    """Refuse what is neither a whole number nor a name; whether the cut exists is for `psl.split` to say."""
    whole = isinstance(cut, Real) and not isinstance(cut, bool) and cut % 1 == 0
    if not whole and not isinstance(cut, str):
        fix = "pass cut= or plan=; psl.cuts(model, input_shape) lists the cuts"
        raise expected("cut", "number or name of a cut", "none" if cut is None else repr(cut)[:80], fix, CutError)


def check_plan(plan, framework: str, local_steps: int) -> float:
    """Return the plan's seconds of one round, NaN without a plan.

    Raises:
        ScenarioError: not a plan.
    """
    if plan is None:
        return float("nan")
    if not callable(getattr(plan, "framework_round_time", None)):
        fix = "pass what a scheduler's solve returns"
        raise expected("plan", "method framework_round_time(framework, local_steps)", type(plan).__name__, fix)
    return plan.framework_round_time(framework, local_steps=local_steps)


def check_plan_fits(plan, model: nn.Module, cut: int) -> None:
    """Refuse a plan that was solved for another model, whose simulated time would be wrong.

    Args:
        plan: a plan or None; its ``cut_name`` and ``profile.n_units`` are compared if it has them.
        model: the model to train.
        cut: number of the cut.
    """
    names = trace(model).cut_names
    planned = getattr(plan, "cut_name", None)
    n_units = getattr(getattr(plan, "profile", None), "n_units", None)
    fix = "solve a plan with this model's profile, or pass its numbers as n_clients=, batch_size=, cut= and phi="
    if planned is not None and planned != names[cut]:
        raise expected("plan", f"one whose cut {cut} is {names[cut]!r}, as in the model", repr(planned), fix)
    if n_units is not None and n_units != len(names) - 1:
        raise expected("plan", f"one of a model of {len(names) - 1} units", n_units, fix)


def open_dataset(dataset):
    """Return (train, test) from a name or a pair of data sets."""
    if isinstance(dataset, str):
        return load(dataset)
    if not isinstance(dataset, tuple | list) or len(dataset) != 2 or not all(hasattr(d, "__len__") for d in dataset):
        fix = "pass 'digits' or another name, or (train, test)"
        raise expected("dataset", "a name or a pair of data sets", type(dataset).__name__, fix, DataError)
    for part, name in zip(dataset, ("training", "test"), strict=True):
        if len(part) == 0:
            raise expected("dataset", f"at least one {name} sample", "none", f"pass a {name} set with data", DataError)
    return tuple(dataset)


def image_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory layout of images for this model: channels_last, measurably faster for convolutions.

    Except on the CPU with a strided 1 × 1 convolution of few input channels: there oneDNN's weight
    gradient writes past its buffer in this layout (wrong gradients, hangs, crashes; oneDNN issue
    6035, seen with torch 2.12). Its channel block is 8 with AVX2 and 16 with AVX-512.
    """
    risky = any(
        m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels // m.groups < 16
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    return torch.contiguous_format if risky and device.type == "cpu" else torch.channels_last


def prepare_model(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """Return a copy on the device, in train mode, image weights in the layout."""
    return copy.deepcopy(model).to(device).to(memory_format=layout).train()


def optimizer_factory(optimizer: str | Callable, lr: float | None) -> Callable:
    """Return a function from parameters to an optimizer."""
    if lr is not None:
        lr = check_number("lr", lr, minimum=0, strict=True, fix="pass a learning rate above 0")
    if isinstance(optimizer, str):
        cls, usual = _OPTIMIZERS[check_choice("optimizer", optimizer, _OPTIMIZERS)]
        return functools.partial(cls, lr=usual if lr is None else lr)
    if not callable(optimizer):
        fix = "pass 'sgd', 'adam' or for example lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)"
        raise expected("optimizer", "a name or a function of parameters", repr(optimizer), fix, ScenarioError)
    return optimizer if lr is None else functools.partial(optimizer, lr=lr)


def describe_optimizers(optimizers) -> str:
    """Return class and settings of the first optimizer; all are made alike."""
    for optimizer in filter(None, optimizers):
        values = {k: v for k, v in optimizer.defaults.items() if isinstance(v, int | float | tuple) and v is not False}
        return f"{type(optimizer).__name__}({', '.join(f'{k}={v}' for k, v in values.items())})"
    return "none"
