"""Rows drawn by importance: the server goes back through few rows of every client, and its gradient stays unbiased.

Row (i, q) is slot q of client i, as in `psl.training.frameworks.epsl`; the objective is Σ_i λ_i ℓ̄_i. Instead of
averaging gradients of different samples, the server draws samples:

1. All N b rows go forward without an autograd graph. Row (i, q) gets the score ζ_iq = λ_i ‖z_iq‖, where z_iq is the
   gradient of its loss at the output of the last layer.
2. Of client i d_i rows are drawn, by systematic sampling with inclusion probabilities γ_iq. These are proportional to
   the scores mixed with a share of 0.2 for the uniform distribution, add up to d_i, and are at most 1.
3. The drawn rows go forward again, with a graph, and back with the weight 1 / γ_iq:
   g = Σ_i (λ_i / b) Σ_{q drawn} ∇ℓ_iq / γ_iq. Its expectation is ∇ Σ_i λ_i ℓ̄_i.
4. Only the gradients of the drawn rows go down, to their own clients, with a mask that says which rows they are. In
   expectation a client gets the gradient of its own ℓ̄_i. Nothing is broadcast.

Backward is d = Σ_i d_i rows, where ``rows="fixed"`` takes the d of EPSL's aggregation at the same φ
(`psl.gradient_aggregation.sampled_rows`). The price is a second forward pass of d rows. If d is N b, nothing is
drawn: it is PSL, and with one client split training, bit for bit.

``rows="adaptive"`` draws fewer rows when few matter: d = ½ (Σ ζ)² / Σ ζ², half the effective number of rows, at most
the d of φ and at least one row per client, in equal shares. φ = 0 then sets no limit below N b.

BatchNorm on the server, in train mode: the pass over all rows feeds the running statistics, as PSL's does. The drawn
rows are normalised by their own statistics, which leave the running ones alone (`GroupStatistics`). With BatchNorm the
gradient is therefore that of the drawn group and unbiased only in a frozen or BatchNorm-free server. BatchNorm on a
client couples all rows of its mini-batch: its backward pass is exact, and takes all b rows.

Source: ours [B]. Importance sampling by the gradient at the last layer is known from Alain et al. (2015, arXiv
1511.06481), who show that probabilities proportional to gradient norms have the least variance, and from Katharopoulos
and Fleuret (2018, arXiv 1803.00942), whose upper bound uses the gradient at the last layer; backward passes of chosen
rows alone from Jiang et al. (2019, arXiv 1910.00762), who select without weights.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.gradient_aggregation import equal_shares
from psl.training.batchnorm import GroupStatistics
from psl.training.frameworks.split_step import ServerGradients, own_gradients, server_backward, weighted_sum
from psl.training.messages import Gradients, flat, joined, leaves
from psl.training.messages import rows as some_rows
from psl.training.scores import cross_entropy
from psl.training.stage import output_gradients

UNIFORM = 0.2  # share of the uniform distribution: no row of a small score gets a large weight


def sampled_backward(
    server: nn.Module,
    smashed: list[Any],
    labels: list[torch.Tensor],
    weights: np.ndarray,
    *,
    rows: np.ndarray,
    rng: np.random.Generator,
    adaptive: bool = False,
    loss: Callable[..., torch.Tensor] = cross_entropy,
) -> ServerGradients:
    """Run the server forward on all rows of N clients, draw some, and run it forward and backward on these.

    Gradients add to the ``.grad`` of the server's parameters.

    Args:
        server: the server-side model.
        smashed: N tensors (b, …).
        labels: N tensors (b,).
        weights: (N,) λ_i, summing to 1.
        rows: (N,) d_i, how many rows of each client are drawn, 1..b; with `adaptive` their sum is the most.
        rng: draws them.
        adaptive: draw fewer rows when few matter.
        loss: maps outputs and labels to one loss per row.

    Source: ours [B], see the top of this file.
    """
    n_clients, size = len(labels), len(labels[0])
    if rows.sum() >= n_clients * size and (not adaptive or n_clients == 1):
        return server_backward(server, smashed, labels, weights, loss)
    shares = torch.as_tensor(weights, device=labels[0].device)
    groups = GroupStatistics(server, n_clients * size)
    with torch.no_grad(), groups.group(n_clients * size):
        outputs = server(joined(smashed))
    objective, norms = _losses_and_norms(outputs, torch.cat(labels), loss, shares)
    scores = np.asarray(weights)[:, None] * norms  # (N, b)
    counts = adaptive_rows(scores, rows) if adaptive else rows
    chances = [inclusion_probabilities(score, int(count)) for score, count in zip(scores, counts, strict=True)]
    drawn = [torch.from_numpy(systematic(chance, rng)).to(labels[0].device) for chance in chances]

    arrived = leaves(joined([some_rows(message, mask) for message, mask in zip(smashed, drawn, strict=True)]))
    gradients = Gradients(arrived)
    with groups.unseen():
        outputs = server(arrived)
    losses = loss(outputs, torch.cat([part[mask] for part, mask in zip(labels, drawn, strict=True)]))
    factors = [
        weight / (size * torch.from_numpy(chance).to(mask.device)[mask])
        for weight, chance, mask in zip(shares, chances, drawn, strict=True)
    ]
    (losses * torch.cat(factors).to(losses.dtype)).sum().backward()
    sizes = [int(mask.sum()) for mask in drawn]
    return ServerGradients(objective, None, own_gradients(gradients.message, shares, sizes), drawn)


def _losses_and_norms(
    outputs: Any, labels: torch.Tensor, loss: Callable[..., torch.Tensor], shares: torch.Tensor
) -> tuple[torch.Tensor, np.ndarray]:
    """Return Σ_i λ_i ℓ̄_i, and (N, b) ‖z_iq‖ over all outputs together."""
    given = leaves(outputs)
    losses = loss(given, labels)
    found = [z for z in flat(output_gradients(losses.sum(), given)) if z is not None]
    squares = sum(z.double().flatten(1).square().sum(1) for z in found)
    means = losses.detach().view(len(shares), -1).mean(dim=1)
    norms = torch.as_tensor(squares).sqrt().view(len(shares), -1).numpy(force=True)
    return weighted_sum(shares, means), norms


def adaptive_rows(scores: np.ndarray, most: np.ndarray) -> np.ndarray:
    """Return (N,) rows to draw, together ½ (Σ ζ)² / Σ ζ² in equal shares, at least 1 each and at most `most` together.

    Args:
        scores: (N, b) ζ_iq.
        most: (N,) numbers of rows, whose sum is the limit.

    Source: ours [B]; (Σ ζ)² / Σ ζ² is Kish's effective sample size.
    """
    n_clients = len(scores)
    squares = float(np.square(scores).sum())
    effective = float(scores.sum()) ** 2 / squares if 0 < squares < np.inf else 0.0
    total = int(np.clip(np.ceil(0.5 * effective), n_clients, max(most.sum(), n_clients)))
    return equal_shares(total, n_clients)


def inclusion_probabilities(scores: np.ndarray, count: int) -> np.ndarray:
    """Return (b,) γ_q in (0, 1] that add up to `count`: proportional to the mixed scores but for those capped at 1.

    Args:
        scores: (b,) of one client, at least 0; scores without a finite sum above 0 count as equal.
        count: rows to draw, 1..b.
    """
    total = scores.sum()
    even = np.full(len(scores), 1 / len(scores))
    mixed = (1 - UNIFORM) * scores / total + UNIFORM * even if 0 < total < np.inf else even
    sure = np.zeros(len(scores), dtype=bool)
    while sure.sum() < count:
        chances = np.where(sure, 1.0, mixed * ((count - sure.sum()) / mixed[~sure].sum()))
        over = (chances >= 1) & ~sure
        if not over.any():
            return chances
        sure |= over
    return np.where(sure, 1.0, 0.0)


def systematic(chances: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a (b,) mask of rows, each drawn with its chance, and always as many as the chances add up to.

    One random number places a comb with teeth at distance 1 over the chances laid end to end.

    Args:
        chances: (b,) in [0, 1], adding up to a whole number.
        rng: draws the number.

    Source: systematic sampling with unequal probabilities, Madow (1949).
    """
    sure = chances >= 1
    maybe = np.flatnonzero(~sure)
    count = round(float(chances[maybe].sum()))
    ends = np.cumsum(chances[maybe])
    teeth = rng.random() + np.arange(count)
    mask = sure.copy()
    if count:
        mask[maybe[np.minimum(np.searchsorted(ends, teeth, side="right"), len(maybe) - 1)]] = True
    return mask
