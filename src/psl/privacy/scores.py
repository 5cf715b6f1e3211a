"""How close reconstructions come to the images: scores of an attack, and the distance correlation as a diagnostic."""

import math

import torch
from torch.nn import functional

from psl.errors import DataError, expected

_WINDOW = 7  # pixels, of SSIM


def r2(images: torch.Tensor, found: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the share of pixel variance recovered, R² = 1 − Σ ‖x̂ − x‖² / Σ ‖x̄ − x‖².

    Args:
        images: (n, …) x, the true ones.
        found: (n, …) x̂, reconstructions.
        reference: (n, …) or (…) x̄, what R² = 0 means: the mean image, or each image's class mean.

    Source: the coefficient of determination, over all pixels of all images at once [R].
    """
    whole = float(((reference - images) ** 2).sum())
    return 1 - float(((found - images) ** 2).sum()) / whole if whole > 0 else math.nan


def reidentified(images: torch.Tensor, found: torch.Tensor) -> float:
    """Return the share of reconstructions whose nearest image of all n (Euclidean) is their own; by chance 1/n."""
    nearest = torch.cdist(found.flatten(1), images.flatten(1)).argmin(dim=1)
    return float((nearest == torch.arange(len(images))).double().mean())


def psnr(images: torch.Tensor, found: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio, 10 log10(range² / mean square error), in dB; inf for a perfect match."""
    error = float(((found - images) ** 2).mean())
    span = float(images.max() - images.min())
    return 10 * math.log10(span**2 / error) if error > 0 else math.inf


def ssim(images: torch.Tensor, found: torch.Tensor) -> float:
    """Return the mean structural similarity of images (n, channels, height, width); NaN for other samples.

    Windows are square and uniform, 7 pixels wide or as wide as the image; the range is that of all images.

    Source: Wang et al. (2004), with their constants 0.01 and 0.03; uniform windows as in scikit-image.
    """
    if images.ndim != 4 or min(images.shape[2:]) < 2:
        return math.nan
    width = min(_WINDOW, *images.shape[2:])

    def mean(x: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(x, width, stride=1)

    more = width**2 / (width**2 - 1)  # of a sample variance
    a, b = mean(images), mean(found)
    var_a, var_b = more * (mean(images**2) - a * a), more * (mean(found**2) - b * b)
    both = more * (mean(images * found) - a * b)
    span = float(images.max() - images.min())
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    score = (2 * a * b + c1) * (2 * both + c2) / ((a * a + b * b + c1) * (var_a + var_b + c2))
    return float(score.mean())


def distance_correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """Return the unbiased (bias-corrected) estimate of the squared distance correlation of two samples.

    It is 0 on average, and may be negative, where x and y are independent. It says how much of the *distances* agrees,
    not how well an image can be reconstructed: a diagnostic, no measure of leakage.

    Args:
        x, y: (n, …) with n of at least 4.

    Raises:
        DataError: fewer samples, or another number in y.

    Source: Székely and Rizzo (2013), U-centred distances.
    """
    n = len(x)
    if n < 4 or len(y) != n:
        fix = "pass as many samples of both, at least 4"
        raise expected("distance_correlation", "4 pairs or more", f"{n} and {len(y)} samples", fix, DataError)
    a, b = (_u_centred(torch.cdist(z.flatten(1).double(), z.flatten(1).double())) for z in (x, y))
    scale = float((a * a).sum() * (b * b).sum()) ** 0.5
    return float((a * b).sum()) / scale if scale > 0 else 0.0


def _u_centred(distance: torch.Tensor) -> torch.Tensor:
    n = len(distance)
    rows = distance.sum(dim=1)
    centred = distance - rows[:, None] / (n - 2) - rows / (n - 2) + rows.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0.0)
