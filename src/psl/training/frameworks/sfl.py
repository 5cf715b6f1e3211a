"""Split federated learning: parallel split learning whose client-side models are averaged."""

import torch
from torch import nn

from psl.training.communication import exchanged
from psl.training.frameworks.base import Round
from psl.training.frameworks.local_training import Average
from psl.training.frameworks.psl import PSL


class SFL(PSL):
    """PSL for local_steps mini-batches, then all client-side models become w_c ← Σ_i λ_i w_c,i.

    BatchNorm's running statistics are averaged like the parameters.

    Source: SplitFed (Thapa et al., arXiv 2004.12088), its first variant.
    """

    name = "sfl"
    averages = True
    micro_batched = False  # its plans have barriers

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Train all clients at once, then average their models."""
        loss = super().train_round(this)
        average = Average(exchanged(self.clients[0]))
        for client, model in this.devices.each(this.devices.present, lambda device: device.give()):
            average.add([self.bits.up(tensor) for tensor in model], self.weights[client])
        if average.weight:
            mean = average.means(whole=len(this.devices.present) == len(self.weights))
            self.at_server = [self.bits.broadcast(tensor) for tensor in mean]
            this.devices.do(this.devices.present, lambda device: device.take(mean, broadcast=True))
        return loss

    def client_models(self) -> list[nn.Module]:
        """Return the client-side model, which all clients share after the average."""
        return self.clients[:1]
