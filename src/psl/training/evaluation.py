"""Test metric of the clients' own models."""

import numpy as np
import torch

from psl.models.values import copied
from psl.training.frameworks import Framework
from psl.training.sampling import Samples
from psl.training.scores import Mean
from psl.training.seeds import own_random_state, seed_evaluation

_MOST_ROWS, _MOST_NUMBERS = 500, 1 << 23  # at a time: samples, and numbers in their inputs


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
        for k, rows in enumerate(test_batches(len(samples), rows_at_a_time(samples.numbers))):
            seed_evaluation(framework.config.seed, index, samples.device, batch=k)
            inputs, labels = samples.fetch(rows)
            for i, client in enumerate(clients):
                if i:
                    seed_evaluation(framework.config.seed, index, samples.device, model=i, batch=k)
                # Every model gets its own copy: forward may overwrite its inputs.
                outputs = framework.outputs(client, copied(inputs) if i + 1 < len(clients) else inputs)
                means[i].add(framework.config.metric(outputs, labels))
    framework.train(True)
    return np.array([mean.value for mean in means])


def rows_at_a_time(numbers: int) -> int:
    """Return how many samples go through a model, or over a link, at a time: fewer of those with many numbers."""
    return max(1, min(_MOST_ROWS, _MOST_NUMBERS // max(numbers, 1)))


def test_batches(n_samples: int, rows: int) -> list[np.ndarray]:
    """Return the sample numbers of each batch, of so many rows, that is evaluated at a time."""
    return np.split(np.arange(n_samples), np.arange(rows, n_samples, rows)) if n_samples else []
