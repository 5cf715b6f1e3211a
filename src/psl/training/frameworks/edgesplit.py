"""EdgeSplit: every device has its own cut, the server holds the rest of each, and all models are averaged."""

from functools import partial

from psl.models.splitting import stages
from psl.models.tracing import trace
from psl.training.communication import exchanged
from psl.training.frameworks.full import full_step
from psl.training.frameworks.local_training import LocalTraining
from psl.training.frameworks.split_step import refuse_raw_data, server_step, split_step
from psl.training.gradient_aggregation import server_backward
from psl.training.stage import Stage


class EdgeSplit(LocalTraining):
    """Split learning at a depth of its own for every device, then the average of the full models with λ_i.

    A local step sends a device's activations and labels up and their gradient down; device and server each step with
    an optimizer of their own for this device. At the last cut the whole model is on the device and only the model
    travels. The result is FedAvg's, whatever the cuts. After the local steps the device parts go up; down goes
    to every device the average of its own part, unicast, since the parts differ.

    Source: EdgeSplit (arXiv 2403.15815): own depth and parallel training [P], the rest [R].
    """

    name = "edgesplit"
    splits = True
    several_cuts = True

    def __init__(self, setup, link):
        super().__init__(setup, link)
        traced = trace(setup.model)
        self.cut = [traced.find(cut) for cut in setup.cut]
        self._rests, self._parts = {}, {}  # by cut: the server's layers, and the ids of the tensors of the device's
        devices = {}
        for cut in set(self.cut):
            refuse_raw_data(cut)
            whole = cut == len(traced.cut_nodes) - 1
            devices[cut], self._rests[cut] = (setup.model, None) if whole else stages(traced, [cut])
            self._parts[cut] = {id(tensor) for tensor in exchanged(devices[cut])}
        for i, cut in enumerate(self.cut):
            self.optimizers[f"client {i}"] = setup.make_optimizer(devices[cut])
            if self._rests[cut] is not None:
                self.optimizers[f"server {i}"] = setup.make_optimizer(self._rests[cut])
        self.devices = [Stage(devices[j], self.optimizers[f"client {i}"], first=True) for i, j in enumerate(self.cut)]

    def local_step(self, client, batch):
        device = self.devices[client]
        if self.rest(client) is None:
            return full_step(device.module, device.optimizer, batch, self.setup.loss)
        return split_step([device], [batch], partial(self.server_step, client), self.link)

    def rest(self, client):
        """Return the server's layers for a device, None if it holds the whole model."""
        return self._rests[self.cut[client]]

    def server_step(self, client, smashed, labels):
        """Take the server's half of a step for one device; see `split.server_step`."""
        rest, loss = self.rest(client), self.setup.loss

        def backward():
            return server_backward(rest, smashed, labels, [1.0], loss=loss)

        return server_step(self.optimizers[f"server {client}"], backward)

    def receive(self, client, tensors):
        part = self._parts[self.cut[client]]
        return [self.link.up(tensor) if id(tensor) in part else tensor.detach() for tensor in tensors]

    def send(self, average):
        traveling = exchanged(self.modules["model"])
        for cut in self.cut:
            for tensor, mean in zip(traveling, average, strict=True):
                if id(tensor) in self._parts[cut]:
                    self.link.down(mean)
        return average
