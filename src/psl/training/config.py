"""From the arguments of `psl.train` to a framework that is ready to run."""

import copy
import functools
from collections.abc import Callable, Iterable
from numbers import Real

import torch
from torch import nn

from psl.data import load
from psl.errors import CutError, DataError, ScenarioError, check_choice, check_number, expected
from psl.models.tracing import trace
from psl.training.participation import Participation

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
        fix = "pass cut= or plan=; psl.cuts(model, example) lists the cuts"
        raise expected("cut", "number or name of a cut", "none" if cut is None else repr(cut)[:80], fix, CutError)


def choose_cut(kind, cut, plan, n_clients: int):
    """Return the cut or the list of cuts that a framework class takes, None if it does not split.

    Raises:
        CutError, ScenarioError: as `check_cut` and `choose_cuts`.
    """
    if not kind.splits:
        return None
    if kind.several_cuts:
        return choose_cuts(cut, plan, None if kind.pooled else n_clients)
    check_cut(default(None, plan, "cut", None) if cut is None else cut)
    return default(cut, plan, "cut", None)


def choose_cuts(cut, plan, n_clients: int | None = None) -> list[int | str]:
    """Return the cuts of a framework that has several: the argument's, else the plan's ``cuts``.

    Args:
        cut: a list, or one number or name.
        plan: a plan or None.
        n_clients: C if every client has its own cut: one for all is repeated.

    Raises:
        CutError: not cuts, or not one per client.
        ScenarioError: they contradict the plan.
    """
    planned = getattr(plan, "cuts", None)
    if cut is None and planned is not None:
        return [int(number) for number in planned]
    if isinstance(cut, str) or not isinstance(cut, Iterable):
        cut = [cut] * (n_clients or 1)
    cuts = list(cut)
    for entry in cuts:
        check_cut(entry)
    if n_clients is not None and len(cuts) != n_clients:
        fix = "make n_clients and the list agree"
        raise expected("cut", f"one cut per client, {n_clients} in all, or one for all", len(cuts), fix, CutError)
    if planned is not None:
        numbers = [int(number) for number in planned]
        names = list(getattr(plan, "cut_names", None) or numbers)
        if len(cuts) != len(numbers) or any(c not in pair for c, *pair in zip(cuts, numbers, names, strict=True)):
            raise expected("cut", f"the plan's {numbers}", cuts, "leave it out, or solve a plan for it")
    return cuts


def check_participation(kind, participation) -> None:
    """Refuse what is no `Participation`, and a framework class that needs all its clients."""
    if not isinstance(participation, Participation):
        got = type(participation).__name__
        raise expected("participation", "psl.training.Participation", got, "pass Participation(device_times, …)")
    if kind.waits_for_all is not None:
        fix = "leave it out, or train fedavg or edgesplit"
        raise expected("participation", "none for this framework", f"{kind.name}: {kind.waits_for_all}", fix)


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


def check_plan_fits(plan, model: nn.Module) -> None:
    """Refuse a plan that was solved for another model, whose simulated time would be wrong.

    Args:
        plan: a plan; its ``profile.n_units`` and the names of its cuts are compared if it has them.
        model: the model to train.
    """
    names = trace(model).cut_names
    n_units = getattr(getattr(plan, "profile", None), "n_units", None)
    fix = "solve a plan with this model's profile, or pass its numbers as n_clients=, batch_size=, cut= and so on"
    if n_units is not None and n_units != len(names) - 1:
        raise expected("plan", f"one of a model of {len(names) - 1} units", n_units, fix)
    numbers, planned = getattr(plan, "cuts", None), getattr(plan, "cut_names", None)
    if numbers is None or planned is None:
        numbers, planned = [getattr(plan, "cut", None)], [getattr(plan, "cut_name", None)]
    for cut, name in zip(numbers, planned, strict=True):
        if name is not None and cut >= len(names):
            raise expected("plan", f"one whose cuts are in 0..{len(names) - 1}", int(cut), fix)
        if name is not None and name != names[cut]:
            raise expected("plan", f"one whose cut {cut} is {names[cut]!r}, as in the model", repr(name), fix)


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
