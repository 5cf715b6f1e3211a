"""What all training frameworks have in common."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.values import call
from psl.training.communication import BitCounter
from psl.training.config import TrainingConfig
from psl.training.devices import Device, Devices
from psl.training.participation import Attendance
from psl.training.seeds import Party
from psl.training.stage import Stage

Batch = tuple[Any, torch.Tensor]  # inputs (b, …), labels (b,)
Draw = Callable[[int, int], Batch]
SeedFor = Callable[[Party, int, int], None]


def no_seed(party: Party, client: int, step: int) -> None:
    """Leave torch's random numbers as they are."""


class Round(NamedTuple):
    """What a framework is given for one round: the arguments of `Framework.round`, and who takes part.

    Args:
        draw, rng, attendance, seed_for: see there.
        devices: the clients.
        at_server: ``at_server(client, step)`` is the context of what the server computes for the (first) client;
            ``at_server(client, step, "backward")`` that of a backward pass which begins later than its forward pass.
    """

    draw: Draw
    rng: np.random.Generator
    attendance: Attendance | None
    seed_for: SeedFor
    devices: Devices
    at_server: Callable[..., AbstractContextManager[None]]
    sizes: Callable[[int], np.ndarray] | None = None


class Framework(ABC):
    """Base of the frameworks: a subclass fills `modules` and `optimizers`, and defines `train_round`.

    Optimizers stay with the client (or server) that steps with them from round to round, and their
    state, such as momentum, is never exchanged or averaged: it stays local like the data. With one
    local step the average of such clients still equals centralised SGD with momentum, because a
    momentum buffer is linear in the gradients and every client starts the step from the same weights.

    Args:
        model: the model to train, already a copy on its device.
        config: the arguments of the run.
        weights: (N,) λ_i = D_i / D, the clients' shares of the data; default equal shares.

    Attributes:
        bits: counts what clients and server send each other.
        modules: every module that is trained, by name.
        optimizers: every optimizer by name, None for a module without parameters.
        steps: mini-batches per client and round.
        rows: (N,) how many rows of each client were drawn in the last round; None where that is not by chance.
        devices: the client-side part of each client with its optimizer.
        at_server: what the server last had of the model that clients exchange; None before, and where they do not.
    """

    name: ClassVar[str]
    splits: ClassVar[bool] = False  # needs a cut
    u_shaped: ClassVar[bool] = False  # or two cuts: the server holds what is between them
    defends: ClassVar[bool] = False  # clients may change their smashed data
    several_cuts: ClassVar[bool] = False  # or a list of cuts
    averages: ClassVar[bool] = False  # takes local_steps mini-batches per round
    micro_batched: ClassVar[bool] = False  # a client's mini-batch may go through in micro-batches
    pooled: ClassVar[bool] = False  # one batch of n_clients × batch_size from all data
    one_client_model: ClassVar[bool] = False  # which all clients train one after the other
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

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        self.model, self.config = model, config
        self.weights = np.full(config.n_clients, 1 / config.n_clients) if weights is None else weights
        self.bits = BitCounter()
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer | None] = {}
        self.steps = config.local_steps if self.averages else 1
        self.rows: np.ndarray | None = None
        self.devices: list[Stage] = []
        self.at_server: list[torch.Tensor] | None = None

    def round(
        self,
        draw: Draw,
        rng: np.random.Generator,
        attendance: Attendance | None = None,
        seed_for: SeedFor = no_seed,
        sizes: Callable[[int], np.ndarray] | None = None,
    ) -> torch.Tensor | float:
        """Run one round and return its training loss Σ_i λ_i ℓ̄_i, averaged over local steps.

        Args:
            draw: ``draw(i, k)`` fetches mini-batch k of this round for client i.
            rng: this round's random numbers.
            attendance: who takes part; None for everybody.
            seed_for: called before a party computes, with its name, the (first) client it computes for
                and the local step. `psl.train` seeds dropout there, so that parties in different processes draw the
                same numbers.
            sizes: ``sizes(k)`` gives the (N,) samples of each client in mini-batch k, some of them 0; None for b each.

        Raises:
            ScenarioError: an attendance, in a framework that needs all clients in every round.
        """
        self.check_participation(attendance)

        @contextmanager
        def at_server(client: int, step: int, kind: str = "forward") -> Iterator[None]:
            if kind == "forward":
                seed_for("server", client, step)
            yield

        devices = self.local_devices(draw, seed_for)
        return self.train_round(Round(draw, rng, attendance, seed_for, devices, at_server, sizes))

    def local_devices(self, draw: Draw, seed_for: SeedFor) -> Devices:
        """Return the clients in this process; arguments as in `round`."""
        return Devices([self.device(i, i, draw, seed_for) for i in range(len(self.devices))])

    def device(self, client: int, number: int, draw: Draw, seed_for: SeedFor) -> Device:
        """Return a client in this process; `number` is that of the run, `client` of this framework."""
        return Device(number, self.devices[client], draw, seed_for, self.config.loss, defence=self.config.defence)

    @abstractmethod
    def train_round(self, this: Round) -> torch.Tensor | float:
        """Do the work of `round`."""

    @abstractmethod
    def client_models(self) -> list[nn.Module]:
        """Return the distinct client-side models, one if all clients share it; whole models without a server."""

    def outputs(self, client: nn.Module, inputs: Any) -> Any:
        """Return what one of `client_models`, with the server, makes of inputs."""
        found = call(client, inputs)
        return found if self.server is None else self.server(found)

    @property
    def server(self) -> nn.Module | None:
        """The server-side model, None where the server has none of its own."""
        return None

    def full_models(self) -> list[nn.Module]:
        """Return the trained models of the given model's class, one for each of `client_models`."""
        self.forget_gradients()
        return self.client_models()

    def forget_gradients(self) -> None:
        """Free the parameters' gradients, which are as large as they are."""
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        return {"local_steps": self.config.local_steps} if self.averages else {}

    def train(self, mode: bool = True) -> None:
        """Put every module into training or evaluation mode."""
        for module in self.modules.values():
            module.train(mode)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes, as tensors and plain values."""
        return {
            "modules": {name: dict(module.state_dict()) for name, module in self.modules.items()},
            "optimizers": {name: opt.state_dict() for name, opt in self.optimizers.items() if opt is not None},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            if optimizer is not None:
                optimizer.load_state_dict(state["optimizers"][name])


def refuse_raw_data(cut: int | str | list[int | str]) -> None:
    """Refuse to cut before the first layer.

    Raises:
        CutError: the cut is 0.
    """
    if cut == 0 or (isinstance(cut, list) and cut[0] == 0):
        want, fix = "a cut after the first layer or later", "psl.cuts(model, example) lists the cuts"
        raise expected("cut", want, "0, which would send the raw data", fix, CutError)
