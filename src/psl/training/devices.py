"""The clients of a run as a round sees them: their half of a step, their data, and their part of the model.

Here they are objects of one process. `psl.distributed` has others that answer to the same calls from processes of their
own, so a framework's round is written once.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import nn

from psl.models.values import copied
from psl.training.communication import exchanged
from psl.training.defences import Defence, added
from psl.training.messages import check_rows, each, entries, rows_of, split_rows
from psl.training.stage import Stage, full_step

Result = TypeVar("Result")


class Upload(NamedTuple):
    """What a client sends up in a step: activations, labels or None, and which of the activations need a gradient."""

    smashed: Any
    labels: torch.Tensor | None
    needed: list[bool]


class Device:
    """One client in this process.

    Args:
        number: of the client.
        stage: its layers before the server's.
        draw: ``draw(client, k)`` fetches inputs and labels of mini-batch k of the round.
        seed_for: called before it computes, see `psl.training.frameworks.base.Framework.round`.
        loss: maps outputs and labels to one loss per row, for a client that holds the whole model.
        defence: what it does to its smashed data.
    """

    def __init__(
        self,
        number: int,
        stage: Stage,
        draw: Callable[[int, int], tuple[Any, torch.Tensor]],
        seed_for: Callable[..., None],
        loss: Callable[..., torch.Tensor],
        *,
        defence: Defence | None = None,
    ):
        self.number, self.stage = number, stage
        self._draw, self._seed_for, self._loss = draw, seed_for, loss
        self._defence, self._penalty = defence or Defence(), None
        self._uploads: list[Upload] = []
        self._model: nn.Module = stage.module  # its part of the model

    def _batch(self, step: int) -> tuple[Any, torch.Tensor]:
        self._seed_for("device", self.number, step)
        return self._draw(self.number, step)

    def forward(self, step: int) -> Upload:
        """Start a local step: return activations at the cut and labels.

        Raises:
            CutError: the activations do not have one row per sample.
        """
        inputs, labels = self._batch(step)
        smashed, self._penalty = defended_forward(self.stage, inputs, self._defence)
        return Upload(smashed, labels, self.stage.needs_gradient())

    def backward(self, step: int, *answer: Any) -> None:
        """End a local step with what the server answered, the first arguments of `device_backward`."""
        device_backward(self.stage, *answer, more=self._penalty)

    def parts(self, step: int, size: int) -> Iterator[Upload]:
        """Start a local step in micro-batches of `size` samples: yield what is sent of each, computed when asked for.

        Raises:
            CutError: the activations do not have one row per sample.
        """
        inputs, labels = self._batch(step)
        self.stage.zero_grad()
        for k, (part, marks) in enumerate(zip(split_rows(inputs, size), labels.split(size), strict=True)):
            n_rows = rows_of(part)
            smashed = self.stage.forward(part, k)
            check_rows(smashed, n_rows)
            yield Upload(self._defence.sent(smashed), marks, self.stage.needs_gradient(k))

    def begin(self, step: int, size: int) -> None:
        """Start a local step in micro-batches: go forward through all of them."""
        self._uploads = list(self.parts(step, size))

    def part(self, k: int) -> Upload:
        """Return what is sent of micro-batch k."""
        return self._uploads[k]

    def part_backward(self, k: int, shared: Any, own: Any) -> None:
        """Go back through micro-batch k, with gradients as in `device_backward`."""
        self.stage.backward(own if shared is None else stacked(shared, own), k)

    def finish(self) -> None:
        """End a local step in micro-batches: step with the sum of their gradients."""
        self.stage.step()

    def train_alone(self, step: int) -> torch.Tensor:
        """Take a local step of the whole model, which this client holds, and return its mean loss."""
        return full_step(self.stage, self._batch(step), self._loss)

    def give(self) -> list[torch.Tensor]:
        """Return the tensors of its part of the model that travel."""
        return exchanged(self._model)

    def take(self, tensors: Sequence[torch.Tensor], *, broadcast: bool = False) -> None:
        """Overwrite its part of the model; `broadcast` if all clients get the same."""
        copy_into(exchanged(self._model), tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return its part of the model by the names of the whole model."""
        return self.stage.module.state_dict()


class Devices:
    """The clients of a run in this process.

    Args:
        devices: of all clients.
    """

    def __init__(self, devices: Sequence[Device] = ()):
        self._devices = devices

    @property
    def present(self) -> list[int]:
        """Numbers of the clients that are there, in order."""
        return [device.number for device in self._devices]

    def each(self, clients: Iterable[int], action: Callable[[Any], Result]) -> Iterator[tuple[int, Result]]:
        """Yield the number of each of these clients with the result of an action on it, in order.

        Clients in processes of their own act at the same time, and those that fail are left out and no longer present.
        Here one acts after the other, as their results are taken.
        """
        for client in clients:
            yield client, action(self._devices[client])

    def do(self, clients: Iterable[int], action: Callable[[Any], Result]) -> dict[int, Result]:
        """Do something with several clients, as `each`; returns all results, by client."""
        return dict(self.each(clients, action))


def device_forward(device: Stage, inputs: Any) -> Any:
    """Start a device's step: returns the activations at the cut, one row per sample.

    Raises:
        CutError: they have another number of rows.
    """
    device.zero_grad()
    smashed = device.forward(inputs)
    check_rows(smashed, rows_of(inputs))
    return smashed


def defended_forward(device: Stage, inputs: Any, defence: Defence) -> tuple[Any, Any]:
    """Return what a device sends of its smashed data, and the gradient of its penalty or None."""
    kept = copied(inputs) if defence.penalises else inputs  # forward may overwrite its inputs
    smashed = device_forward(device, inputs)
    return defence.sent(smashed), defence.penalty_gradient(kept, smashed)


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


@torch.no_grad()
def copy_into(targets: Iterable[torch.Tensor], sources: Iterable[torch.Tensor]) -> None:
    """Overwrite the targets' values."""
    for target, source in zip(targets, sources, strict=True):
        if target.data_ptr() != source.data_ptr() or target.numel() == 0:
            target.copy_(source)
