"""The server steps first, on resampled activations of all clients, and answers the clients with its new weights.

Source: CycleSL (arXiv 2511.18611) trains the server on a data set of resampled features, then the clients against the
updated server [R: our reconstruction from its abstract].
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.training.batchnorm import GroupStatistics
from psl.training.frameworks.split_step import ServerGradients, server_backward
from psl.training.messages import joined
from psl.training.messages import rows as some_rows
from psl.training.scores import cross_entropy


def resampled_step(
    server: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    smashed: list[Any],
    labels: list[torch.Tensor],
    weights: np.ndarray,
    *,
    steps: int,
    rng: np.random.Generator,
    loss: Callable[..., torch.Tensor] = cross_entropy,
) -> ServerGradients:
    """Take several steps of the server on all rows in random order, then find the clients' gradients.

    The rows of all clients are shuffled and divided into mini-batches of almost equal size, one optimizer step for
    each. A row of client i has the weight N λ_i, so that the mean over all rows is Σ_i λ_i ℓ̄_i. Afterwards all rows go
    through the server once more, and every client gets the gradient of its own ℓ̄_i; the server does not step on this.
    BatchNorm's running statistics see every row once, in the mini-batches.

    Args:
        server: the server-side model.
        optimizer: the server's, None if it has nothing to train.
        smashed: N tensors (b, …).
        labels: N tensors (b,).
        weights: (N,) λ_i, summing to 1.
        steps: how many mini-batches, at least 1; at most one per row is used.
        rng: shuffles the rows.
        loss: maps outputs and labels to one loss per row.

    Returns:
        The clients' gradients; the loss is that of the updated server.
    """
    everything, targets = joined(smashed), torch.cat(labels)
    sizes = [len(part) for part in labels]
    scale = torch.as_tensor(np.repeat(np.asarray(weights) * len(targets) / np.array(sizes), sizes))
    groups = GroupStatistics(server, len(targets))
    for part in np.array_split(rng.permutation(len(targets)), min(steps, len(targets))):
        chosen = torch.from_numpy(part).to(targets.device)
        if optimizer is not None:
            optimizer.zero_grad(set_to_none=True)
        with groups.group(len(part)):
            losses = loss(server(some_rows(everything, chosen)), targets[chosen])
        if optimizer is not None:
            (losses * scale[chosen.cpu()].to(losses)).mean().backward()
            optimizer.step()
    with groups.unseen():
        found = server_backward(server, smashed, labels, weights, loss)
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=True)
    return found
