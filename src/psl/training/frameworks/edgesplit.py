"""EdgeSplit: every device has its own cut, the server holds the layers behind it, and all models are averaged."""

from typing import Any

import numpy as np
import torch
from torch import nn

from psl.models.stages import stages
from psl.models.tracing import trace
from psl.training.communication import exchanged
from psl.training.config import TrainingConfig, check_cuts
from psl.training.devices import Device, copy_into
from psl.training.frameworks.base import Round, refuse_raw_data
from psl.training.frameworks.local_training import LocalTraining
from psl.training.frameworks.micro_batched import alone_in_micro_batches, weighted
from psl.training.frameworks.split_step import ServerGradients, only_needed, server_backward, server_step
from psl.training.stage import Stage


class EdgeSplit(LocalTraining):
    """Split learning at a depth of its own for every device; after the local steps w ← Σ_i λ_i w_i of the full models.

    A local step sends a device's activations and labels up and their gradient down, whole or in micro-batches
    (`psl.training.frameworks.micro_batched`); device and server each step with an optimizer of their own for this
    device. At the last cut the whole model is on the device and only the model travels. The result is FedAvg's,
    whatever the cuts. After the local steps the device parts go up; down goes to every device the average of its own
    part, unicast, since the parts differ.

    Attributes:
        cut: number of each device's cut.

    Source: EdgeSplit (arXiv 2403.15815): own depth and parallel training [P], the rest [R].
    """

    name = "edgesplit"
    splits = True
    several_cuts = True
    micro_batched = True

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        traced = trace(model, config.example)
        places = [traced.find(cut, config.tensors) for cut in check_cuts(config.cut)]
        self.cut = [traced.number(place) for place in places]
        self._device_parts: dict[int | str, nn.Module] = {}  # by cut, as the other two
        self._server_parts: dict[int | str, nn.Module | None] = {}
        for cut, place in dict(zip(self.cut, places, strict=True)).items():
            refuse_raw_data(cut)
            whole = place is traced.all_places[-1]
            self._device_parts[cut], self._server_parts[cut] = (model, None) if whole else stages(traced, [place])
        for i, cut in enumerate(self.cut):
            self.optimizers[f"client {i}"] = config.make_optimizer(self._device_parts[cut])
            server_part = self._server_parts[cut]
            if server_part is not None:
                self.optimizers[f"server {i}"] = config.make_optimizer(server_part)
        self.devices = [
            Stage(self._device_parts[cut], self.optimizers[f"client {i}"], first=True) for i, cut in enumerate(self.cut)
        ]

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        micro = {} if self.config.micro_batch is None else {"micro_batch": self.config.micro_batch}
        return super().settings() | {"cut": self.cut} | micro

    def train(self, mode: bool = True) -> None:
        """Put the model and all its parts into training or evaluation mode."""
        super().train(mode)
        for part in (*self._device_parts.values(), *self._server_parts.values()):
            if part is not None:
                part.train(mode)

    def local_step(self, device: Device, step: int, this: Round) -> torch.Tensor:
        """Train one device, and the server for it, on one mini-batch and return its mean loss."""
        place, size = self._place(device), self.config.micro_batch
        if self.server_part(place) is None:
            return device.train_alone(step)
        if size is not None:
            return self._micro_batched_step(device, step, this, size)
        sent = device.forward(step)
        smashed, labels = self.bits.up(sent.smashed), self.bits.up(sent.labels)
        with this.at_server(device.number, step):
            found = self.update_server_part(place, [smashed], [labels])
        device.backward(step, None, self.bits.down(only_needed(found.own[0], sent.needed)))
        return found.loss

    def _place(self, device: Device) -> int:
        """Return where a device stands in the lists here, which hold one entry in a copy for it alone."""
        return 0 if len(self.cut) == 1 else device.number

    def _micro_batched_step(self, device: Device, step: int, this: Round, size: int) -> torch.Tensor:
        place = self._place(device)
        server_part, optimizer = self.server_part(place), self.optimizers[f"server {place}"]
        assert server_part is not None

        def serve(_: Any, smashed: list[Any], labels: list[torch.Tensor], share: float, number: int) -> ServerGradients:
            with this.at_server(device.number, number):
                return server_backward(server_part, smashed, labels, np.ones(1), weighted(self.config.loss, share))

        options = {"batch_size": self.config.batch_size, "size": size}
        return server_step(optimizer, lambda: alone_in_micro_batches(device, step, serve, self.bits, **options))

    def server_part(self, client: int) -> nn.Module | None:
        """Return the server's layers for a device, None if it holds the whole model."""
        return self._server_parts[self.cut[client]]

    def update_server_part(self, client: int, smashed: list[Any], labels: list[torch.Tensor]) -> ServerGradients:
        """Take the server's part of a step for one device, one that does not hold the whole model."""
        server_part = self.server_part(client)
        assert server_part is not None
        return server_step(
            self.optimizers[f"server {client}"],
            lambda: server_backward(server_part, smashed, labels, np.ones(1), self.config.loss),
        )

    def receive(self, device: Device) -> list[torch.Tensor]:
        """Return a device's full model at the server: only the device's part travels."""
        copy_into(self.part_of(device), [self.bits.up(tensor) for tensor in device.give()])
        return [tensor.detach() for tensor in exchanged(self.model)]

    def send(self, average: list[torch.Tensor]) -> list[torch.Tensor]:
        """Send every device the average of its own part."""
        for copy in (self, *self.copies.values()):
            for stage in copy.devices if copy is not self or not self.copies else ():
                for tensor in exchanged(stage.module):
                    self.bits.down(tensor)
        return average
