"""What all training frameworks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from psl.training.communication import Link

Draw = Callable[[int, int], tuple[torch.Tensor, torch.Tensor]]
Turn = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Setup:
    """What a framework is built from; `psl.train` documents the fields it shares.

    Args:
        model: the model to train, already a copy on its device.
        weights: (C,) λ_i = D_i / D.
        optimizer: makes an optimizer from a list of parameters.
        loss: maps outputs and labels to one loss per row.
        cut: number or name; for edgesplit one per client, for pipeline the inner boundaries.
        micro_batch: samples at a time through a pipeline, None for the whole mini-batch.
    """

    model: nn.Module
    weights: np.ndarray
    batch_size: int
    optimizer: Callable
    loss: Callable
    local_steps: int = 1
    cut: int | str | list[int | str] | None = None
    phi: float = 0.0
    linearise: str = "representative"
    micro_batch: int | None = None

    @property
    def n_clients(self) -> int:
        """C, the number of clients."""
        return len(self.weights)

    def make_optimizer(self, module: nn.Module) -> torch.optim.Optimizer | None:
        """Return an optimizer for the module's trainable parameters, None if it has none."""
        trainable = [p for p in module.parameters() if p.requires_grad]
        return self.optimizer(trainable) if trainable else None


class Framework(ABC):
    """Base of the frameworks: a subclass fills `modules` and `optimizers`, and defines `round`.

    Optimizers stay with the client (or server) that steps with them from round to round, and their
    state, such as momentum, is never exchanged or averaged: it stays local like the data. With one
    local step the average of such clients still equals centralised SGD with momentum, because a
    momentum buffer is linear in the gradients and every client starts the step from the same weights.

    Attributes:
        cut: number of the cut, or their list; frameworks that do not split have none.
        modules: every module that is trained, by name.
        optimizers: every optimizer by name, None for a module without parameters.
        steps: mini-batches per client and round.
        turn: called before a party computes, with "device" or "server", the (first) client it computes for and the
            local step: `psl.train` seeds its dropout there, so that parties in different processes draw the same.
    """

    name: ClassVar[str]
    splits: ClassVar[bool] = False  # needs a cut
    several_cuts: ClassVar[bool] = False  # or a list of cuts
    averages: ClassVar[bool] = False  # takes local_steps mini-batches per round
    pooled: ClassVar[bool] = False  # one batch of n_clients × batch_size from all data
    waits_for_all: ClassVar[str | None] = "its server steps on the samples of all clients at once"  # or None

    def __init__(self, setup: Setup, link: Link):
        self.setup, self.link = setup, link
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer | None] = {}
        self.steps = setup.local_steps if self.averages else 1
        self.turn: Turn = lambda party, client, step: None

    @abstractmethod
    def round(self, draw: Draw, rng: np.random.Generator) -> torch.Tensor:
        """Run one round and return its training loss Σ_i λ_i ℓ̄_i, averaged over local steps.

        Args:
            draw: ``draw(i, k)`` fetches mini-batch k of this round for client i.
            rng: this round's random numbers.

        Frameworks with ``waits_for_all = None`` take the round's ``attendance`` as well.
        """

    @abstractmethod
    def client_models(self) -> list[nn.Module]:
        """Return the distinct client-side models, one if all clients share it; whole models without a server."""

    @property
    def server(self) -> nn.Module | None:
        """The server-side model, None for frameworks that do not split."""
        return self.modules.get("server")

    def full_models(self) -> list[nn.Module]:
        """Return the trained models of the given model's class, one for each of `client_models`."""
        return self.client_models()

    def train(self, mode: bool = True) -> None:
        """Put every module into training or evaluation mode."""
        for module in self.modules.values():
            module.train(mode)

    def state_dict(self) -> dict:
        """Return everything that training changes, as tensors and plain values."""
        return {
            "modules": {name: dict(module.state_dict()) for name, module in self.modules.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items() if opt is not None},
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizers"][name])
