"""Test accuracy of the clients' own models."""

from typing import Any

import numpy as np
import torch

from psl.errors import DataError, expected
from psl.models.values import call, copied
from psl.training.frameworks import Framework
from psl.training.messages import class_scores
from psl.training.sampling import Samples

_BATCH = 500  # test samples at a time


@torch.inference_mode()
def evaluate(framework: Framework, samples: Samples) -> np.ndarray:
    """Return the test accuracy of each distinct client model, evaluated in eval mode.

    Every test batch is fetched once for all clients; clients that hold the same model (sl, sfl,
    fedavg) are evaluated once.
    """
    clients, server = framework.client_models(), framework.server
    correct = torch.zeros(len(clients), dtype=torch.float64)
    framework.train(False)
    for rows in test_batches(len(samples)):
        inputs, labels = samples.fetch(rows)
        for i, client in enumerate(clients):
            # Every model gets its own copy: forward may overwrite its inputs.
            outputs = call(client, copied(inputs) if i + 1 < len(clients) else inputs)
            outputs = outputs if server is None else server(outputs)
            correct[i] += hits(outputs, labels)
    framework.train(True)
    return correct.numpy() / len(samples)


def test_batches(n_samples: int) -> list[np.ndarray]:
    """Return the sample numbers of each batch that is evaluated at a time."""
    return [np.arange(start, min(start + _BATCH, n_samples)) for start in range(0, n_samples, _BATCH)]


def hits(outputs: Any, labels: torch.Tensor) -> float:
    """Return how many rows have their largest output at the label; of rows with many labels, such as pixels, the share.

    Args:
        outputs: (b, classes, …), for texts also (b, tokens, classes), or an object or dict with such ``logits``.
        labels: (b, …).

    Raises:
        DataError: labels of another shape.
    """
    found = class_scores(outputs, labels).argmax(dim=1)
    if found.shape != labels.shape:
        got, fix = f"shape {tuple(labels.shape)}", "give class numbers as labels, one for each prediction"
        raise expected("labels", f"shape {tuple(found.shape)}, as the predictions have", got, fix, DataError)
    right = found == labels
    return float(right.sum()) / max(1, right[0].numel())
