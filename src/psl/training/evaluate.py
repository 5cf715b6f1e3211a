"""Test accuracy of the clients' own models."""

import numpy as np
import torch

from psl.training.batches import Samples
from psl.training.frameworks import Framework

_BATCH = 500  # test samples at a time


@torch.inference_mode()
def evaluate(framework: Framework, samples: Samples) -> np.ndarray:
    """Return the test accuracy of each distinct client model, evaluated in eval mode.

    Every test batch is fetched once for all clients; clients that hold the same model (sl, sfl,
    fedavg) are evaluated once.
    """
    clients, server = framework.client_models(), framework.server
    correct = torch.zeros(len(clients), dtype=torch.int64)
    framework.train(False)
    for start in range(0, len(samples), _BATCH):
        inputs, labels = samples.fetch(np.arange(start, min(start + _BATCH, len(samples))))
        for i, client in enumerate(clients):
            outputs = client(inputs) if server is None else server(client(inputs))
            correct[i] += (outputs.argmax(dim=1) == labels).sum().cpu()
    framework.train(True)
    return correct.numpy() / len(samples)
