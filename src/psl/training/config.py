"""The configuration of a training run, the one record that all frameworks are built from, and checks of its parts."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import CutError, check_choice, check_number, expected
from psl.models.splitting import Cut
from psl.training.defences import Defence
from psl.training.participation import Participation
from psl.training.partition import PartitionRule
from psl.training.scores import Score, accuracy, cross_entropy

#: Where EPSL may take the server's Jacobian for aggregated gradients, see `psl.training.frameworks.epsl`.
AGGREGATION_RULES = ("representative", "mean", "each", "cut")
#: What EPSL may do with last-layer gradients: aggregate, or draw rows, see `psl.training.frameworks.drawn_rows`.
LINEARISE_RULES = (*AGGREGATION_RULES, "sampled")
#: How many rows are drawn: as many as φ says, or fewer when few of them matter.
ROW_RULES = ("fixed", "adaptive")
#: What a mini-batch is drawn from: every client's own data, or the data of all clients.
SAMPLING_RULES = ("own", "global")
_OPTIMIZERS = {"sgd": (torch.optim.SGD, 0.05), "adam": (torch.optim.Adam, 1e-3)}  # class, default learning rate


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a run was asked for, checked; `psl.train` documents the arguments of these names.

    Args:
        framework: name of the framework.
        n_clients: N.
        batch_size: b, mini-batch of each client.
        optimizer: makes an optimizer from a list of parameters.
        loss, metric: map outputs and labels to one value per row.
        cut: number or name; for edgesplit a list with one per client, for pipeline a list of inner boundaries, for a
            U-shaped split a list of two; None for frameworks that do not split.
        micro_batch: samples at a time through a pipeline, or of a client's mini-batch in psl, epsl and edgesplit; None
            for the whole mini-batch.
        defence: what clients do to their smashed data; None for nothing.
        participation: with the device times that hold in this run; None if all clients take part in every round.
        rows, sampling: of `ROW_RULES` and `SAMPLING_RULES`.
        server_steps: on resampled activations, before the clients' gradients; 0 for one step together with the clients.
        round_time: s, the plan's time of a round of this framework; NaN without a plan.
        drawn_time: from (N,) numbers of rows to the seconds of a round in which they were drawn; None where all rounds
            take `round_time`.
        example: inputs of the model as they will come, with a batch first; None if the model was traced before.
        tensors: how many tensors may cross at a cut given by number or name.
    """

    framework: str
    n_clients: int
    batch_size: int
    optimizer: Callable[..., torch.optim.Optimizer]
    rounds: int = 1
    loss: Score = cross_entropy
    metric: Score = accuracy
    local_steps: int = 1
    cut: int | str | Cut | list[int | str | Cut] | None = None
    phi: float = 0.0
    linearise: str = "representative"
    rows: str = "fixed"
    sampling: str = "own"
    server_steps: int = 0
    micro_batch: int | None = None
    partition: PartitionRule = "iid"
    participation: Participation | None = None
    defence: Defence | None = None
    seed: int = 0
    eval_every: int = 1
    round_time: float = float("nan")
    drawn_time: Callable[[np.ndarray], float] | None = None
    example: Any = None
    tensors: int = 1

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """Return an optimizer for the module's trainable parameters, None if it has none."""
        return optimizer_of(module, self.optimizer)


def optimizer_of(module: nn.Module, make: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer | None:
    """Return what `make` makes for the module's trainable parameters, None if it has none."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return make(trainable) if trainable else None


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


def check_cut(cut: object) -> int | str | Cut:
    """Return a cut; refuse what is neither a whole number nor a name. Whether it exists is for `psl.split` to say.

    Raises:
        CutError: neither.
    """
    if isinstance(cut, str | Cut):
        return cut
    if isinstance(cut, int | float | np.integer | np.floating) and not isinstance(cut, bool) and cut % 1 == 0:
        return int(cut)
    fix = "pass cut= or plan=; psl.cuts(model, example) lists the cuts"
    raise expected("cut", "number or name of a cut", "none" if cut is None else repr(cut)[:80], fix, CutError)


def check_cuts(cut: object, n_clients: int | None = None) -> list[int | str | Cut]:
    """Return a list of cuts.

    Args:
        cut: a list, or one number or name.
        n_clients: N if every client has its own cut: one for all is repeated.

    Raises:
        CutError: not cuts, or not one per client.
    """
    given = [cut] * (n_clients or 1) if isinstance(cut, str | Cut) or not isinstance(cut, Iterable) else cut
    cuts = [check_cut(entry) for entry in given]
    if n_clients is not None and len(cuts) != n_clients:
        fix = "make n_clients and the list agree"
        raise expected("cut", f"one cut per client, {n_clients} in all, or one for all", len(cuts), fix, CutError)
    return cuts
