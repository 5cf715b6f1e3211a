"""The step of client and server in split learning: activations up, gradients down. All split frameworks take it."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.models import split
from psl.models.values import call
from psl.training.communication import BitCounter
from psl.training.config import TrainingConfig, check_cut
from psl.training.defences import Defence
from psl.training.devices import Devices, Result
from psl.training.frameworks.base import Framework, Round, refuse_raw_data
from psl.training.messages import Gradients, entries, joined, leaves
from psl.training.scores import cross_entropy
from psl.training.stage import Stage


@dataclass(frozen=True)
class ServerGradients:
    """What the server's backward pass leaves: its parameters' ``.grad``, and the gradients at the cut.

    Args:
        loss: Σ_i λ_i ℓ̄_i.
        shared: (n_A, …) gradients of the slots that EPSL aggregates, for all clients; None if there are none.
        own: N tensors (b - n_A, …), each the gradient of that client's own mean loss ℓ̄_i.
        rows: N masks (b,) of the rows that `own` belongs to, if only some were drawn: the gradient of the others is 0.
    """

    loss: torch.Tensor
    shared: Any
    own: list[Any]
    rows: list[torch.Tensor] | None = None


def split_step(
    devices: Devices,
    clients: Sequence[int],
    step: int,
    server: Callable[[list[int], list[Any], list[torch.Tensor]], ServerGradients],
    bits: BitCounter,
    bits_of: Callable[[torch.Tensor], int] | None = None,
) -> torch.Tensor | float:
    """Train devices and server on one mini-batch per device and return Σ_i λ_i ℓ̄_i.

    It has three parts: the devices' forward pass, the server's `server_step`, and the devices' backward pass. They
    exchange nothing but tensors, so they may run in different processes (`psl.distributed`).

    Args:
        devices: the clients.
        clients: numbers of those that train.
        step: local step of the round.
        server: takes the server's step, from the numbers of those whose activations and labels arrived, and these.
        bits: counts what crosses.
        bits_of: the bits of a tensor of smashed data; default the size of its dtype.

    Returns:
        The loss, NaN if nothing arrived.

    Raises:
        CutError: the tensor at the cut does not have one row per sample.
    """
    arrived = devices.do(clients, lambda device: device.forward(step))
    if not arrived:
        return float("nan")
    there = list(arrived)
    smashed = [bits.up(sent.smashed, bits_of) for sent in arrived.values()]
    found = server(there, smashed, [bits.up(sent.labels) for sent in arrived.values()])
    # Of what crossed, a gradient goes back where the devices have a use for one.
    needed = arrived[there[0]].needed
    shared = None if found.shared is None else bits.broadcast(only_needed(found.shared, needed))  # (n_A, …)
    own = {i: bits.down(only_needed(part, needed)) for i, part in zip(there, found.own, strict=True)}
    rows = {} if found.rows is None else {i: bits.down(mask) for i, mask in zip(there, found.rows, strict=True)}
    devices.do(there, lambda device: device.backward(step, shared, own[device.number], rows.get(device.number)))
    return found.loss


def only_needed(gradient: Any, needed: list[bool]) -> Any:
    """Return a gradient message without the parts that are not needed."""
    parts = [part if yes else None for part, yes in zip(entries(gradient), needed, strict=True)]
    return tuple(parts) if isinstance(gradient, tuple) else parts[0]


def server_step(optimizer: torch.optim.Optimizer | None, gradients: Callable[[], Result]) -> Result:
    """Take the server's part of a step; returns what `gradients` found.

    Args:
        optimizer: the server's, None if it has nothing to train.
        gradients: runs the server forward and backward, such as `server_backward`, once or several times.
    """
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    found = gradients()
    if optimizer is not None:
        optimizer.step()
    return found


def server_backward(
    server: nn.Module,
    smashed: list[Any],
    labels: list[torch.Tensor],
    weights: np.ndarray,
    loss: Callable[..., torch.Tensor] = cross_entropy,
) -> ServerGradients:
    """Run the server forward and backward on the smashed data of N clients, nothing aggregated.

    The server's parameters get the gradient of Σ_i λ_i ℓ̄_i. Each client gets that of its own mean loss ℓ̄_i, not
    multiplied by λ_i, so that a learning rate means the same for every N.

    Args:
        server: the server-side model.
        smashed: N tensors (b, …); b may differ.
        labels: N tensors (b,).
        weights: (N,) λ_i, summing to 1.
        loss: maps outputs and labels to one loss per row.

    Source: EPSL (arXiv 2303.15991) with φ = 0 [R].
    """
    shares = torch.as_tensor(weights, device=labels[0].device)
    arrived = leaves(joined(smashed))  # (N·b, …)
    gradients = Gradients(arrived)
    losses = loss(server(arrived), torch.cat(labels))
    sizes = [len(part) for part in labels]
    means = losses.view(len(labels), -1).mean(dim=1) if len(set(sizes)) == 1 else client_means(losses, sizes)
    objective = weighted_sum(shares, means)
    objective.backward()
    return ServerGradients(objective.detach(), None, own_gradients(gradients.message, shares, sizes))


def weighted_sum(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return Σ_i λ_i values_i of (N, …) values and (N,) weights."""
    return torch.tensordot(weights.to(values.dtype), values, dims=1)


def client_means(losses: torch.Tensor, sizes: list[int]) -> torch.Tensor:
    """Return (N,) ℓ̄_i of the losses of all rows, client by client."""
    return torch.stack([part.mean() for part in losses.split(sizes)])


def own_gradients(gradients: Any, weights: torch.Tensor, sizes: list[int] | None = None) -> list[Any]:
    """Divide gradients of Σ_i λ_i ℓ̄_i at the cut by client; client i's are those of ℓ̄_i, without λ_i.

    Args:
        gradients: (rows, …), client by client.
        weights: (N,) λ_i.
        sizes: N numbers of rows; None for equal ones.
    """
    if isinstance(gradients, tuple):
        each_tensor = [[None] * len(weights) if g is None else own_gradients(g, weights, sizes) for g in gradients]
        return list(zip(*each_tensor, strict=True))
    parts = gradients.split(sizes or len(gradients) // len(weights)) if len(gradients) else [gradients] * len(weights)
    return [part / weight for part, weight in zip(parts, weights.tolist(), strict=True)]


class SplitFramework(Framework):
    """A server-side model and client-side models: vanilla split learning, PSL, SFL and EPSL.

    Attributes:
        cut: its number; its name if several tensors cross there; of a U-shaped split the numbers of both.
        clients: the distinct client-side models.
    """

    splits = True
    defends = True

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        self._client_part, self._server_part, self.cut = self.divide(model, config)
        refuse_raw_data(self.cut)
        n_models = 1 if self.one_client_model else config.n_clients
        self.clients: list[nn.Module] = [copy.deepcopy(self._client_part) for _ in range(n_models)]
        self.modules = {f"client {i}": client for i, client in enumerate(self.clients)} | {"server": self.server}
        owned = [self.clients[i % n_models] for i in range(config.n_clients)]
        self.optimizers = {f"client {i}": config.make_optimizer(module) for i, module in enumerate(owned)}
        self.devices = [
            Stage(module, optimizer, first=True)
            for module, optimizer in zip(owned, self.optimizers.values(), strict=True)
        ]
        self.optimizers["server"] = config.make_optimizer(self.server)

    def divide(self, model: nn.Module, config: TrainingConfig) -> tuple[nn.Module, nn.Module, Any]:
        """Return the client's part, the server's part and the cut; they share the model's tensors."""
        parts = split(model, check_cut(config.cut), config.example, tensors=config.tensors)
        return parts.client, parts.server, parts.cut

    @property
    def server(self) -> nn.Module:
        """The server-side model."""
        return self._server_part

    def client_models(self) -> list[nn.Module]:
        """Return the distinct client-side models."""
        return self.clients

    def full_models(self) -> list[nn.Module]:
        """Return one model of the given class per client-side model; all share the server's tensors."""
        original = dict(_tensors(self._client_part))
        shared = {id(t): t for _, t in _tensors(self.server)}
        self.forget_gradients()
        models = []
        for client in self.client_models():
            trained = {id(original[name]): tensor for name, tensor in _tensors(client)}
            models.append(copy.deepcopy(self.model, memo=shared | trained))
        return models

    def outputs(self, client: nn.Module, inputs: Any) -> Any:
        """Return what a client-side model and the server make of inputs, the defence between them."""
        return self.server((self.config.defence or Defence()).sent(call(client, inputs)))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        return super().settings() | {"cut": self.cut}

    def train_clients(
        self, clients: Sequence[int], weights: np.ndarray, step: int, this: Round
    ) -> torch.Tensor | float:
        """Train some clients, by number, and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i.

        Args:
            clients: their numbers.
            weights: λ_i of these clients, summing to 1; if one is lost, those of the others are divided by their sum.
            step: local step of the round.
            this: the round.
        """

        def server(there: list[int], smashed: list[Any], labels: list[torch.Tensor]) -> ServerGradients:
            with this.at_server(there[0], step):
                return self.update_server(smashed, labels, weights_left(there, clients, weights), this.rng)

        bits_of = None if self.config.defence is None else self.config.defence.bits_of
        return split_step(this.devices, clients, step, server, self.bits, bits_of)

    def update_server(
        self, smashed: list[Any], labels: list[torch.Tensor], weights: np.ndarray, rng: np.random.Generator
    ) -> ServerGradients:
        """Take the server's part of a step on the rows of some clients with their weights; see `server_step`."""
        return server_step(self.optimizers["server"], lambda: self.server_gradients(smashed, labels, weights, rng))

    def server_gradients(
        self,
        smashed: list[Any],
        labels: list[torch.Tensor],
        weights: np.ndarray,
        rng: np.random.Generator,
        loss: Callable[..., torch.Tensor] | None = None,
    ) -> ServerGradients:
        """Run the server forward and backward with a loss, default the run's; see `server_backward`."""
        return server_backward(self.server, smashed, labels, weights, loss or self.config.loss)


def weights_left(there: Sequence[int], clients: Sequence[int], weights: np.ndarray) -> np.ndarray:
    """Return the weights of those of the clients that are still there, divided by their sum if some are lost."""
    if len(there) == len(clients):
        return weights
    known = dict(zip(clients, weights, strict=True))
    return normalised(np.array([known[i] for i in there]))


def normalised(weights: np.ndarray) -> np.ndarray:
    """Return weights divided by their sum."""
    return weights / weights.sum()


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of all parameters and buffers, tied ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
