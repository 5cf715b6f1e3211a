"""The model that is trained: a copy of the given one, on its device, in the memory layout that is fastest."""

from typing import Any

import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.refusals import copy_for_export
from psl.models.splitting import boundaries
from psl.models.tracing import trace
from psl.models.values import call, tensors_in
from psl.models.verification import verify_stages
from psl.training.config import TrainingConfig, check_cuts
from psl.training.messages import each
from psl.training.seeds import own_random_state


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
    """Return a copy on the device, in train mode, image weights in the layout; raises `CutError` if it has none."""
    prepared = copy_for_export(model, share=False).to(device)
    return prepared.to(memory_format=layout).train()  # pyright: ignore[reportCallIssue]  # torch's stub has no 4-D form


def tried_layout(model: nn.Module, device: torch.device, inputs: Any) -> torch.memory_format:
    """Return the layout of `image_layout` if the model takes it and computes the same in it, else contiguous.

    Args:
        model: runs once forward and backward in either layout, as copies in eval mode.
        device: where it is trained.
        inputs: of a mini-batch, contiguous.
    """
    fast = image_layout(model, device)
    images = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())
    if fast is torch.contiguous_format or not images:
        return torch.contiguous_format
    plain = _trained_outputs(model, device, torch.contiguous_format, inputs)
    try:
        found = _trained_outputs(model, device, fast, inputs)
    except RuntimeError:  # for example x.view(b, -1) of a convolution's output
        return torch.contiguous_format
    same = len(found) == len(plain) and all(
        a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4 * _largest(b), equal_nan=True)
        for a, b in zip(found, plain, strict=True)
        if b.is_floating_point() and b.numel()
    )
    return fast if same else torch.contiguous_format


def _largest(outputs: torch.Tensor) -> float:
    """Return the largest finite size of a number."""
    return float(outputs.abs().where(outputs.isfinite(), 0.0).max() + 1e-30)


def _trained_outputs(
    model: nn.Module, device: torch.device, layout: torch.memory_format, inputs: Any
) -> list[torch.Tensor]:
    """Return the output tensors of a forward pass after a backward pass, in a layout."""
    ran = prepare_model(model, device, layout).eval()
    inputs = each(lambda x: x.clone(memory_format=layout) if x.ndim == 4 else x.clone(), inputs)
    with torch.enable_grad(), own_random_state(device):
        found = list(tensors_in(call(ran, inputs)))
        learned = [x for x in found if x.requires_grad]
        torch.autograd.backward(learned, [torch.ones_like(x) for x in learned])
    return [x.detach() for x in found]


def verify_cuts(model: nn.Module, config: TrainingConfig) -> None:
    """Compare a prepared model with its stages at all cuts of a run, on the run's example.

    Raises:
        CutError: they differ.
    """
    try:
        _compare_once(model, config)
    except CutError:  # then the model was exported anew: the operations may have been those of another model
        _compare_once(model, config)


def _compare_once(model: nn.Module, config: TrainingConfig) -> None:
    traced = trace(model, config.example)
    wanted = {traced.find(cut, config.tensors) for cut in check_cuts(config.cut)}
    places = boundaries(traced, sorted(wanted, key=lambda place: place.index))
    inner = [place for place in places if 0 < place.index < len(traced.all_places) - 1]
    verify_stages(traced, inner, config.example)
