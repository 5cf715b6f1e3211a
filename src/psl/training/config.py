"""The configuration of a training run: the checked arguments of `psl.train`, with defaults from the plan."""

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from psl.errors import CutError, check_choice, check_count, check_number, expected
from psl.plans import Plan
from psl.training.participation import Participation
from psl.training.partition import PartitionRule, check_rule
from psl.training.plan_defaults import (
    argument_or_planned,
    check_plan,
    contradiction,
    is_planned_cut,
    planned_arguments,
    planned_cuts,
)

#: Where EPSL may take the server's Jacobian, see `psl.training.frameworks.epsl`.
LINEARISE_RULES = ("representative", "mean", "each", "cut")
_OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.05), "adam": (torch.optim.Adam, 1e-3)}  # class, default learning rate


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each row, (rows,); the default loss."""
    return F.cross_entropy(outputs, labels, reduction="none")


class FrameworkTraits:
    """What a framework's class says of itself: which arguments it takes, and whether clients may be missing."""

    name: ClassVar[str]
    splits: ClassVar[bool] = False  # needs a cut
    several_cuts: ClassVar[bool] = False  # or a list of cuts
    averages: ClassVar[bool] = False  # takes local_steps mini-batches per round
    pooled: ClassVar[bool] = False  # one batch of n_clients × batch_size from all data
    waits_for_all: ClassVar[str | None] = "its server steps on the samples of all clients at once"  # or None

    @classmethod
    def check_participation(cls, participation: object) -> None:
        """Refuse stragglers and dropouts, unless they are None, where a round needs all clients.

        Raises:
            ScenarioError: with the reason.
        """
        if participation is not None and cls.waits_for_all is not None:
            fix = "leave it out, or train fedavg or edgesplit"
            raise expected("participation", "none for this framework", f"{cls.name}: {cls.waits_for_all}", fix)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a run was asked for, checked; `psl.train` documents the arguments of these names.

    Args:
        framework: name of the framework.
        n_clients: C.
        batch_size: b, mini-batch of each client.
        optimizer: makes an optimizer from a list of parameters.
        loss: maps outputs and labels to one loss per row.
        cut: number or name; for edgesplit a list with one per client, for pipeline a list of inner boundaries; None
            for frameworks that do not split.
        micro_batch: samples at a time through a pipeline, None for the whole mini-batch.
        participation: with the device times that hold in this run; None if all clients take part in every round.
        round_time: s, the plan's time of a round of this framework; NaN without a plan.
    """

    framework: str
    n_clients: int
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    rounds: int = 1
    loss: Callable[..., torch.Tensor] = cross_entropy
    local_steps: int = 1
    cut: int | str | list[int | str] | None = None
    phi: float = 0.0
    linearise: str = "representative"
    micro_batch: int | None = None
    partition: PartitionRule = "iid"
    participation: Participation | None = None
    seed: int = 0
    eval_every: int = 1
    round_time: float = float("nan")

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """Return an optimizer for the module's trainable parameters, None if it has none."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        return self.optimizer(trainable) if trainable else None

    def evaluates_after(self, index: int) -> bool:
        """Whether the test accuracy is wanted after round `index`, counted from 0."""
        return (index + 1) % self.eval_every == 0 or index + 1 == self.rounds


def resolve(
    kind: type[FrameworkTraits],
    *,
    rounds: int,
    n_clients: int | None = None,
    batch_size: int | None = None,
    local_steps: int | None = None,
    cut: int | str | Sequence[int | str] | None = None,
    phi: float | None = None,
    linearise: str | None = None,
    micro_batch: int | None = None,
    partition: str | float | Sequence[Any] = "iid",
    participation: Participation | None = None,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
    lr: float | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
    seed: int = 0,
    eval_every: int = 1,
    plan: Plan | None = None,
) -> TrainingConfig:
    """Return the configuration of a run: each argument as given, else the plan's, else the library's default.

    Args:
        kind: the framework's class.
        plan: a plan or None; the others are as in `psl.train`.

    Raises:
        ScenarioError: an argument is out of range, unknown, or contradicts the plan.
        CutError: the cut is missing.
        DataError: the rule of the partition is none.
    """
    check_plan(plan)
    planned = planned_arguments(plan)

    def choose(name: str, value: Any, otherwise: Any) -> Any:
        return argument_or_planned(name, value, planned, otherwise)

    rounds = check_count("rounds", rounds)
    local_steps = check_count("local_steps", choose("local_steps", local_steps, 1))
    n_clients = check_count("n_clients", choose("n_clients", n_clients, 5))
    batch_size = check_count("batch_size", choose("batch_size", batch_size, 64))
    phi = check_number("phi", choose("phi", phi, 0.5), minimum=0, maximum=1, fix="pass a share in [0, 1]")
    linearise = check_choice("linearise", "representative" if linearise is None else linearise, LINEARISE_RULES)
    micro_batch = choose("micro_batch", micro_batch, None)
    round_time = float("nan")
    if plan is not None:
        round_time = plan.framework_round_time(kind.name, local_steps=local_steps if kind.averages else 1)
    cuts = _choose_cut(kind, cut, plan, n_clients)
    if participation is not None:
        if not isinstance(participation, Participation):
            got = type(participation).__name__
            raise expected("participation", "psl.training.Participation", got, "pass Participation(device_times, …)")
        kind.check_participation(participation)
        participation = participation.for_run(kind.name, plan, n_clients, round_time)
    return TrainingConfig(
        framework=kind.name,
        n_clients=n_clients,
        batch_size=batch_size,
        optimizer=optimizer_factory(optimizer, lr),
        rounds=rounds,
        loss=cross_entropy if loss is None else loss,
        local_steps=local_steps,
        cut=cuts,
        phi=phi,
        linearise=linearise,
        micro_batch=None if micro_batch is None else check_count("micro_batch", micro_batch),
        partition=check_rule(partition, n_clients),
        participation=participation,
        seed=check_count("seed", seed, minimum=0),
        eval_every=check_count("eval_every", eval_every),
        round_time=round_time,
    )


def optimizer_factory(
    optimizer: str | Callable[..., torch.optim.Optimizer], lr: float | None
) -> Callable[..., torch.optim.Optimizer]:
    """Return a function from parameters to an optimizer.

    Args:
        optimizer: ``"sgd"``, ``"adam"``, or a function from parameters, and ``lr=`` if `lr` is given.
        lr: learning rate; None for the default.

    Raises:
        ScenarioError: unknown name, no function, or a learning rate that is not above 0.
    """
    if lr is not None:
        lr = check_number("lr", lr, minimum=0, strict=True, fix="pass a learning rate above 0")
    if isinstance(optimizer, str):
        cls, usual = _OPTIMIZERS[check_choice("optimizer", optimizer, _OPTIMIZERS)]
        return functools.partial(cls, lr=usual if lr is None else lr)
    if not callable(optimizer):
        fix = "pass 'sgd', 'adam' or for example lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)"
        raise expected("optimizer", "a name or a function of parameters", repr(optimizer), fix)
    return optimizer if lr is None else functools.partial(optimizer, lr=lr)


def check_cut(cut: object) -> int | str:
    """Return a cut; refuse what is neither a whole number nor a name. Whether it exists is for `psl.split` to say.

    Raises:
        CutError: neither.
    """
    if isinstance(cut, str):
        return cut
    if isinstance(cut, int | float | np.integer | np.floating) and not isinstance(cut, bool) and cut % 1 == 0:
        return int(cut)
    fix = "pass cut= or plan=; psl.cuts(model, example) lists the cuts"
    raise expected("cut", "number or name of a cut", "none" if cut is None else repr(cut)[:80], fix, CutError)


def check_cuts(cut: object, n_clients: int | None = None) -> list[int | str]:
    """Return a list of cuts.

    Args:
        cut: a list, or one number or name.
        n_clients: C if every client has its own cut: one for all is repeated.

    Raises:
        CutError: not cuts, or not one per client.
    """
    given = [cut] * (n_clients or 1) if isinstance(cut, str) or not isinstance(cut, Iterable) else cut
    cuts = [check_cut(entry) for entry in given]
    if n_clients is not None and len(cuts) != n_clients:
        fix = "make n_clients and the list agree"
        raise expected("cut", f"one cut per client, {n_clients} in all, or one for all", len(cuts), fix, CutError)
    return cuts


def _choose_cut(
    kind: type[FrameworkTraits], cut: object, plan: Plan | None, n_clients: int
) -> int | str | list[int | str] | None:
    """Return the cut or the list of cuts that a framework takes, else the plan's; None if it does not split."""
    if not kind.splits:
        return None
    planned = planned_cuts(plan)
    if kind.several_cuts:
        if cut is None and planned is not None:
            return list(planned)
        cuts = check_cuts(cut, None if kind.pooled else n_clients)
        if plan is not None and planned is not None:
            same = len(cuts) == len(planned)
            if not same or not all(is_planned_cut(plan, j, c) for j, c in zip(planned, cuts, strict=True)):
                raise contradiction("cut", planned, cuts)
        return cuts
    common = planned[0] if planned and len(set(planned)) == 1 else None  # of plans with a cut per client
    chosen = check_cut(common if cut is None else cut)
    if plan is not None and common is not None and not is_planned_cut(plan, common, chosen):
        raise contradiction("cut", common, repr(chosen))
    return chosen
