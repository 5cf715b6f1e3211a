"""The step of client and server in split learning: activations up, gradients down. All split frameworks take it."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from psl.models import split
from psl.models.values import call, copied
from psl.training.communication import BitCounter
from psl.training.config import TrainingConfig, check_cut
from psl.training.defences import Defence, added
from psl.training.frameworks.base import Batch, Framework, Round, refuse_raw_data
from psl.training.messages import Gradients, check_rows, each, entries, joined, leaves, rows_of
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
    devices: Sequence[Stage],
    batches: Iterable[Batch],
    server: Callable[[list[torch.Tensor], list[torch.Tensor]], ServerGradients],
    bits: BitCounter,
    defence: Defence | None = None,
) -> torch.Tensor:
    """Train devices and server on one mini-batch per device and return Σ_i λ_i ℓ̄_i.

    It has three parts: `device_forward`, the server's `server_step`, and `device_backward`. They exchange nothing but
    tensors, so they may run in different processes (`psl.distributed`).

    Args:
        devices: the device-side parts.
        batches: inputs and labels for each.
        server: takes the server's step, from activations and labels of all devices as received.
        bits: counts what crosses.
        defence: what the devices do to their smashed data.

    Raises:
        CutError: the tensor at the cut does not have one row per sample.
    """
    defence = defence or Defence()
    smashed, labels, more = [], [], []
    for device, (inputs, targets) in zip(devices, batches, strict=True):
        received, penalty = defended_forward(device, inputs, defence, bits)
        smashed.append(received)
        more.append(penalty)
        labels.append(bits.up(targets))
    found = server(smashed, labels)
    # Of what crossed, a gradient goes back where the devices have a use for one.
    needed = devices[0].needs_gradient()
    shared = None if found.shared is None else bits.broadcast(only_needed(found.shared, needed))  # (n_A, …)
    for i, (device, own) in enumerate(zip(devices, found.own, strict=True)):
        rows = None if found.rows is None else bits.down(found.rows[i])
        device_backward(device, shared, bits.down(only_needed(own, needed)), rows, more[i])
    return found.loss


def only_needed(gradient: Any, needed: list[bool]) -> Any:
    """Return a gradient message without the parts that are not needed."""
    parts = [part if yes else None for part, yes in zip(entries(gradient), needed, strict=True)]
    return tuple(parts) if isinstance(gradient, tuple) else parts[0]


def device_forward(device: Stage, inputs: Any) -> Any:
    """Start a device's step: returns the activations at the cut, one row per sample.

    Raises:
        CutError: they have another number of rows.
    """
    device.zero_grad()
    smashed = device.forward(inputs)
    check_rows(smashed, rows_of(inputs))
    return smashed


def defended_forward(device: Stage, inputs: Any, defence: Defence, bits: BitCounter) -> tuple[Any, Any]:
    """Return what the server receives of a device's smashed data, and the gradient of its penalty or None."""
    kept = copied(inputs) if defence.penalises else inputs  # forward may overwrite its inputs
    smashed = device_forward(device, inputs)
    penalty = defence.penalty_gradient(kept, smashed)
    return bits.up(defence.sent(smashed), defence.bits_of), penalty


def device_backward(device: Stage, shared: Any, own: Any, rows: torch.Tensor | None = None, more: Any = None) -> None:
    """End a device's step.

    Args:
        device: the device-side part.
        shared: (n_A, …) gradients of the slots that all devices share, None if there are none.
        own: (b - n_A, …) gradients of its other slots.
        rows: (b,) mask of the rows that `own` belongs to, None for all.
        more: (b, …) gradients of the device's own penalty on its smashed data, None without one.
    """
    if rows is not None:
        own = among_zeros(own, rows)
    device.backward(added(own if shared is None else stacked(shared, own), more))
    device.step()


def among_zeros(gradient: Any, rows: torch.Tensor) -> Any:
    """Return a gradient message of some rows as one of all rows, 0 where the (b,) mask is False."""

    def placed(part: torch.Tensor) -> torch.Tensor:
        whole = part.new_zeros(len(rows), *part.shape[1:])
        whole[rows] = part
        return whole

    return each(placed, gradient)


def stacked(first: Any, second: Any) -> Any:
    """Return two gradient messages one under the other."""
    parts = [
        None if a is None or b is None else torch.cat([a, b])
        for a, b in zip(entries(first), entries(second), strict=True)
    ]
    return tuple(parts) if isinstance(second, tuple) else parts[0]


def server_step(optimizer: torch.optim.Optimizer | None, gradients: Callable[[], ServerGradients]) -> ServerGradients:
    """Take the server's part of a step.

    Args:
        optimizer: the server's, None if it has nothing to train.
        gradients: runs the server forward and backward, such as `server_backward`.
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
        devices: the client-side part of each client with its optimizer.
    """

    splits = True
    defends = True
    one_client_model: ClassVar[bool] = False  # which all clients train one after the other

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
        for module in self.modules.values():
            module.zero_grad(set_to_none=True)
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

    def train_clients(self, clients: Sequence[int], weights: np.ndarray, step: int, this: Round) -> torch.Tensor:
        """Train some clients, by number, and the server on one mini-batch each; returns Σ_i λ_i ℓ̄_i.

        Args:
            clients: their numbers.
            weights: λ_i of these clients, summing to 1.
            step: local step of the round.
            this: the round.
        """

        def batches() -> Iterator[Batch]:
            for i in clients:
                this.seed_for("device", i, step)
                yield this.draw(i, step)

        def server(smashed: list[Any], labels: list[torch.Tensor]) -> ServerGradients:
            this.seed_for("server", clients[0], step)
            return self.update_server(smashed, labels, weights, this.rng)

        return split_step([self.devices[i] for i in clients], batches(), server, self.bits, self.config.defence)

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


def _tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of all parameters and buffers, tied ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
