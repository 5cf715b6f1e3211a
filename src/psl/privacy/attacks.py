"""Attacks that reconstruct images from smashed data: ridge regression, a trained decoder, white-box optimisation.

All are given the same: auxiliary images with their smashed data as the attacker computes them, and the smashed data of
the private images as they arrive. Smashed data and images are rows, (n, d) and (n, p).
"""

from collections.abc import Callable

import torch
from torch import nn

_RIDGES = torch.logspace(-12, 2, 29, dtype=torch.float64)  # ridge parameters tried, times the mean square of a feature
_HIDDEN, _STEPS, _ROWS = 256, 400, 128  # the decoder's width, steps and mini-batch
_DESCENT_STEPS, _DESCENT_RATE, _SMOOTH = 300, 0.05, 1e-3  # of white-box optimisation


def ridge(known: torch.Tensor, images: torch.Tensor, smashed: torch.Tensor) -> torch.Tensor:
    """Return images reconstructed by ridge regression from smashed data to pixels.

    The ridge parameter is the one with the least leave-one-out error on the auxiliary images, in closed form. The
    result has no random part.

    Args:
        known: (m, d) smashed data of the attacker's auxiliary images.
        images: (m, p) these images.
        smashed: (n, d) what arrives.

    Source: ridge regression with leave-one-out selection (Golub, Heath and Wahba 1979) as an inversion attack [B].
    """
    x, y, asked = known.double(), images.double(), smashed.double()
    centre, mean = x.mean(dim=0), y.mean(dim=0)
    x, y, asked = x - centre, y - mean, asked - centre
    scale = x.square().mean().sqrt().clamp_min(1e-300)
    x, asked = x.div_(scale), asked.div_(scale)
    m, d = x.shape
    # x = u s vᵀ without the parts of rank 0, by the smaller of the two products.
    if d <= m:
        squares, v = torch.linalg.eigh(x.T @ x)
        keep = squares > squares[-1].clamp_min(1e-300) * 1e-13
        s, v = squares[keep].sqrt(), v[:, keep]
        u, seen = x @ v / s, asked @ v
    else:
        squares, u = torch.linalg.eigh(x @ x.T)
        keep = squares > squares[-1].clamp_min(1e-300) * 1e-13
        s, u = squares[keep].sqrt(), u[:, keep]
        seen = asked @ x.T @ u / s  # v = xᵀ u / s is as large as x, and not needed
    inside = u.T @ y  # (rank, p)
    # Of more pixels than images only the lengths of rows matter for the error: m numbers per row have the same.
    short = y if y.shape[1] <= m else torch.linalg.qr(y.T, mode="r").R.T
    within, leverage = u.T @ short, u * u
    best, chosen = torch.inf, torch.ones_like(s)
    for strength in (_RIDGES * m * d).tolist():
        kept = s * s / (s * s + strength)
        left = 1 - leverage @ kept - 1 / m  # 1 − leverage, the mean's included
        error = float((((short - u @ (kept[:, None] * within)) / left.clamp_min(1e-12)[:, None]) ** 2).sum())
        if error < best:
            best, chosen = error, kept
    return (mean + seen @ ((chosen / s)[:, None] * inside)).to(images.dtype)


def decoder(known: torch.Tensor, images: torch.Tensor, smashed: torch.Tensor, seed: int) -> torch.Tensor:
    """Return images reconstructed by a small network, trained on the auxiliary images with Adam.

    Args:
        known, images, smashed: as in `ridge`.
        seed: of its weights and mini-batches.

    Source: the usual inversion network, two layers on standardised smashed data [R].
    """
    spread, centre = known.std(dim=0).clamp_min(1e-6), known.mean(dim=0)
    x, asked = (known - centre) / spread, (smashed - centre) / spread
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(x.shape[1], _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, images.shape[1]))
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-3, weight_decay=1e-5)
        with torch.enable_grad():
            for _ in range(_STEPS):
                rows = torch.randint(len(x), (min(_ROWS, len(x)),))
                optimizer.zero_grad()
                nn.functional.mse_loss(network(x[rows]), images[rows]).backward()
                optimizer.step()
        return network(asked).detach()


def white_box(
    layers: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor, smashed: torch.Tensor, shape: torch.Size
) -> torch.Tensor:
    """Return images whose smashed data come close to what arrived, by gradient descent on the pixels.

    Args:
        layers: from images (n, …) to smashed data (n, d), with the weights that the attacker knows.
        start: (p,) the first guess of every image.
        smashed: (n, d) what arrives.
        shape: of one image.

    Source: the white-box inversion of He, Zhang and Lee (ACSAC 2019), with total variation; steps and rates [R].
    """
    x = start.expand(len(smashed), -1).reshape(-1, *shape).clone().requires_grad_()
    optimizer = torch.optim.Adam([x], lr=_DESCENT_RATE)
    scale = (smashed - smashed.mean(dim=0)).square().mean().clamp_min(1e-12)
    with torch.enable_grad():
        for _ in range(_DESCENT_STEPS):
            optimizer.zero_grad()
            loss = (layers(x) - smashed).square().mean(dim=1).sum() / scale
            if x.ndim == 4:
                loss = loss + _SMOOTH * (x.diff(dim=2).abs().sum() + x.diff(dim=3).abs().sum())
            loss.backward()
            optimizer.step()
    return x.detach().flatten(1)
