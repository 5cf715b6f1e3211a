"""Test metric of the clients' own models."""

import numpy as np
import torch

from psl.models.values import copied
from psl.training.frameworks import Framework
from psl.training.sampling import Samples
from psl.training.scores import Mean
from psl.training.seeds import own_random_state, seed_evaluation

_BATCH = 500  # test samples at a time


@torch.inference_mode()
def evaluate(framework: Framework, samples: Samples, index: int) -> np.ndarray:
    """Return the mean of the metric over the test data for each distinct client model, evaluated in eval mode.

    A defence that changes smashed data does so here too, as it would in use.

    Every test batch is fetched once for all clients; clients that hold the same model (sl, sfl,
    fedavg) are evaluated once.

    Args:
        framework: its models and the metric of its configuration.
        samples: the test data.
        index: of the round, from which what test samples are transformed with at random is drawn.
    """
    clients = framework.client_models()
    means = [Mean() for _ in clients]
    framework.train(False)
    with own_random_state(samples.device):
        seed_evaluation(framework.config.seed, index, samples.device)
        for rows in test_batches(len(samples)):
            inputs, labels = samples.fetch(rows)
            for i, client in enumerate(clients):
                # Every model gets its own copy: forward may overwrite its inputs.
                outputs = framework.outputs(client, copied(inputs) if i + 1 < len(clients) else inputs)
                means[i].add(framework.config.metric(outputs, labels))
    framework.train(True)
    return np.array([mean.value for mean in means])


def test_batches(n_samples: int) -> list[np.ndarray]:
    """Return the sample numbers of each batch that is evaluated at a time."""
    return [np.arange(start, min(start + _BATCH, n_samples)) for start in range(0, n_samples, _BATCH)]
