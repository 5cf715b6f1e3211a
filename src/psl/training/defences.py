"""What a client may do to its smashed data before it sends them: noise, quantisation, or a penalty while it trains."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from psl.errors import check_count, check_number, expected
from psl.profiles import Profile
from psl.records import Record
from psl.training.messages import each, entries, tensors_of

_FLOAT_BITS = 32  # of a number that is not quantised


@dataclass(frozen=True)
class Defence(Record):
    """Base of the defences; by itself it sends the smashed data as they are."""

    penalises: ClassVar[bool] = False  # whether `penalty_gradient` returns one

    def sent(self, smashed: Any) -> Any:
        """Return what arrives at the server; gradients come back for it, and the client takes them for its own."""
        return smashed

    def penalty_gradient(self, inputs: Any, smashed: Any) -> Any:
        """Return the gradient of the client's extra loss with respect to its smashed data; None without one."""
        return None

    def bits_of(self, tensor: torch.Tensor) -> int:
        """Return the bits that a tensor of smashed data takes on the link."""
        return 8 * tensor.element_size() * tensor.numel()

    def packed(self, sent: Any) -> Any:
        """Return what `sent` returned in the form in which it crosses between processes."""
        return sent

    def unpacked(self, packed: Any, like: Any) -> Any:
        """Return what was packed; `like` has its form, shapes of rows and number types."""
        return packed

    def profile(self, profile: Profile) -> Profile:
        """Return the profile of a model whose clients use the defence, to plan with."""
        return profile


@dataclass(frozen=True)
class Noise(Defence):
    """Gaussian noise on the smashed data: s + σ · sd(s) · ε, drawn anew for every sending.

    Args:
        sigma: σ, relative to the standard deviation of all numbers of the mini-batch's smashed data; so neither client
            nor server can make it small by scaling the layers.

    Raises:
        ScenarioError: σ is negative.

    Source: additive noise, as in Shredder (Mireshghallah et al. 2020), which trains it; here with one fixed σ [R].
    """

    sigma: float

    def __post_init__(self) -> None:
        check_number("Noise.sigma", self.sigma, minimum=0, fix="pass a share of the smashed data's sd, such as 0.5")

    def sent(self, smashed: Any) -> Any:
        """Return the smashed data with noise from torch's generator."""

        def noisy(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point() or self.sigma == 0:
                return tensor
            return tensor + self.sigma * tensor.std(correction=0) * torch.randn_like(tensor)

        return each(noisy, smashed)


@dataclass(frozen=True)
class Quantise(Defence):
    """Smashed data in few bits: every number is sent as one of 2^bits levels between the mini-batch's extremes.

    The two extremes of a tensor cross as a header and are not counted. The gradients that come back keep their
    precision; the client takes them for those of what it had before rounding (straight-through).

    Args:
        bits: per number, 1..16.

    Raises:
        ScenarioError: bits are no whole number in that range.

    Source: uniform quantisation with straight-through gradients (Bengio et al. 2013) [R].
    """

    bits: int

    def __post_init__(self) -> None:
        fix = "pass whole bits per number, 1 to 16"
        if check_count("Quantise.bits", self.bits, fix=fix) > 16:
            raise expected("Quantise.bits", "at most 16", self.bits, fix)

    def sent(self, smashed: Any) -> Any:
        """Return the smashed data rounded to the levels."""

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            low, high = tensor.min(), tensor.max()
            if not tensor.is_floating_point() or high == low:
                return tensor
            step = (high - low) / (2**self.bits - 1)
            return low + ((tensor - low) / step).round() * step

        return each(rounded, smashed)

    def packed(self, sent: Any) -> Any:
        """Return rounded smashed data as (codes, lowest number, step), each row padded to whole bytes."""

        def codes(tensor: torch.Tensor) -> Any:
            if not tensor.is_floating_point():
                return tensor
            low, high = float(tensor.min()), float(tensor.max())
            step = (high - low) / (2**self.bits - 1)
            levels = ((tensor - low) / (step or 1.0)).round().to(torch.int32).flatten(1).cpu().numpy()
            digits = (levels[..., None] >> np.arange(self.bits)) & 1
            return torch.from_numpy(np.packbits(digits.astype(np.uint8).reshape(len(tensor), -1), axis=1)), low, step

        return each(codes, sent)

    def unpacked(self, packed: Any, like: Any) -> Any:
        """Return rounded smashed data, equal to what was packed but for the last digit of a float."""

        def numbers(form: torch.Tensor, part: Any) -> torch.Tensor:
            if not form.is_floating_point():
                return part
            codes, low, step = part
            digits = np.unpackbits(codes.cpu().numpy(), axis=1, count=self.bits * form[0].numel())
            levels = (digits.reshape(len(codes), -1, self.bits).astype(np.int32) << np.arange(self.bits)).sum(-1)
            return (low + torch.from_numpy(levels) * step).to(form).view(len(codes), *form.shape[1:])

        if isinstance(like, tuple):
            return tuple(map(self.unpacked, packed, like))
        return numbers(like, packed) if isinstance(like, torch.Tensor) else packed

    def bits_of(self, tensor: torch.Tensor) -> int:
        """Return bits × numbers for floats, the full size for others."""
        return self.bits * tensor.numel() if tensor.is_floating_point() else super().bits_of(tensor)

    def profile(self, profile: Profile) -> Profile:
        """Return the profile with ψ_j · bits / 32: it must count 32 bits per number, as `psl.profile` does."""
        return dataclasses.replace(profile, act_bits=profile.act_bits * self.bits / _FLOAT_BITS)


@dataclass(frozen=True)
class NoPeek(Defence):
    """Clients minimise α · dCor(x, s) beside their loss: the distance correlation of inputs and smashed data.

    The penalty is the usual biased estimate, as published. It is high for independent data too where mini-batches are
    small (about 0.9 at b = 64), and a low value did not stop reconstruction here: measure, do not assume.

    Args:
        alpha: α, the penalty's weight.

    Raises:
        ScenarioError: α is negative.

    Source: NoPeek (Vepakomma et al., arXiv 2008.09161) [P: distance correlation as a second loss; R: the rest].
    """

    penalises: ClassVar[bool] = True
    alpha: float

    def __post_init__(self) -> None:
        check_number("NoPeek.alpha", self.alpha, minimum=0, fix="pass a weight, such as 0.1")

    def penalty_gradient(self, inputs: Any, smashed: Any) -> Any:
        """Return α ∂dCor/∂s; of several tensors that cross, each is compared by itself."""
        x = torch.cat([t.detach().flatten(1).float() for t in tensors_of(inputs)], dim=1)

        def gradient(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_floating_point():
                return torch.zeros_like(tensor)
            with torch.enable_grad():
                s = tensor.detach().requires_grad_()
                return torch.autograd.grad(self.alpha * biased_distance_correlation(x, s.flatten(1)), s)[0]

        return each(gradient, smashed)


def biased_distance_correlation(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the usual sample distance correlation of (n, p) and (n, q), which can be differentiated in y.

    Source: Székely, Rizzo and Bakirov (2007).
    """
    a, b = _centred(x), _centred(y)
    tiny = torch.finfo(b.dtype).tiny
    covariance = (a * b).mean()
    scale = ((a * a).mean() * (b * b).mean()).clamp_min(tiny).sqrt()
    return (covariance / scale).clamp_min(1e-12).sqrt()


def _centred(x: torch.Tensor) -> torch.Tensor:
    products = x @ x.T
    squares = products.diagonal()
    # A small number under the root: the distance of a sample to itself has no derivative.
    distance = (squares[:, None] + squares - 2 * products).clamp_min(0).add(1e-8).sqrt()
    return distance - distance.mean(dim=0) - distance.mean(dim=1, keepdim=True) + distance.mean()


def added(gradient: Any, more: Any) -> Any:
    """Return the sum of two gradient messages; None stands for a part without gradient."""
    if more is None:
        return gradient
    pairs = zip(entries(gradient), entries(more), strict=True)
    parts = [b if a is None else a if b is None else a + b for a, b in pairs]
    return tuple(parts) if isinstance(gradient, tuple) else parts[0]


def check_defence(defence: object) -> Defence | None:
    """Return a defence or None; raises `ScenarioError` for anything else."""
    if defence is None or isinstance(defence, Defence):
        return defence
    fix = "pass psl.privacy.Noise(sigma), Quantise(bits) or NoPeek(alpha)"
    raise expected("defence", "a defence or None", repr(defence)[:80], fix)
