"""The model that is trained: a copy of the given one, on its device, in the memory layout that is fastest."""

import copy

import torch
from torch import nn

from psl.errors import expected


def check_model(model: object) -> None:
    """Refuse what is not a module, or has nothing to train.

    Raises:
        ScenarioError: either.
    """
    if not isinstance(model, nn.Module):
        raise expected("model", "a torch.nn.Module", type(model).__name__, "pass a module")
    if not any(p.requires_grad for p in model.parameters()):
        raise expected("model", "at least one trainable parameter", "none", "call requires_grad_() on a part of it")


def image_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Return the memory layout of images for this model: channels_last, which is faster for convolutions.

    On the CPU a model with a strided 1 × 1 convolution of few input channels keeps the contiguous layout: in
    channels_last oneDNN's weight gradient writes past its buffer (wrong gradients, hangs, crashes; oneDNN issue
    6035, seen with torch 2.12). "Few" is less than oneDNN's channel block, 8 with AVX2 and 16 with AVX-512.
    """
    risky = any(
        m.kernel_size == (1, 1) and max(m.stride) > 1 and m.in_channels // m.groups < 16
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    )
    return torch.contiguous_format if risky and device.type == "cpu" else torch.channels_last


def prepare_model(model: nn.Module, device: torch.device, layout: torch.memory_format) -> nn.Module:
    """Return a copy on the device, in train mode, image weights in the layout."""
    prepared = copy.deepcopy(model).to(device)
    return prepared.to(memory_format=layout).train()  # pyright: ignore[reportCallIssue]  # torch's stub has no 4-D form
