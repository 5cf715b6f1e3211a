"""One part of a split model with its optimizer, and its step: of devices, of pipeline stages, of whole models."""

from collections.abc import Callable

import torch
from torch import nn


class Stage:
    """Consecutive layers of a model that run forward, wait for the gradient of their output, and run backward.

    What comes in and goes out is detached from autograd, as if it crossed a link. A stage knows only tensors of its
    neighbours, so stages may run in different processes. Several passes may be under way at a time, in any order;
    their gradients add up until `step`.

    Args:
        module: the layers.
        optimizer: of their trainable parameters, None if there are none.
        first: whether the stage takes the raw data, whose gradient nobody needs.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer | None, *, first: bool = False):
        self.module, self.optimizer, self.first = module, optimizer, first
        self._passes: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # inputs and outputs, with their graph

    def forward(self, inputs: torch.Tensor, number: int = 0) -> torch.Tensor:
        """Return the outputs for a (micro-)batch; its number finds the graph again in `backward`."""
        leaf = inputs.detach()
        if not self.first:
            leaf.requires_grad_()
        outputs = self.module(leaf)
        self._passes[number] = leaf, outputs
        return outputs.detach()

    def backward(self, gradient: torch.Tensor, number: int = 0) -> torch.Tensor | None:
        """Add up the parameters' gradients, given the outputs'; returns the inputs', None in a first stage."""
        leaf, outputs = self._passes.pop(number)
        if outputs.requires_grad:
            outputs.backward(gradient)
        return leaf.grad

    def zero_grad(self) -> None:
        """Forget the gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one optimizer step with the gradients added up since `zero_grad`."""
        if self.optimizer is not None:
            self.optimizer.step()


def full_step(
    stage: Stage, batch: tuple[torch.Tensor, torch.Tensor], loss: Callable[..., torch.Tensor]
) -> torch.Tensor:
    """Train a stage that holds the whole model on one mini-batch, (inputs, labels), and return its mean loss.

    Args:
        stage: the model with its optimizer.
        batch: inputs (b, …) and labels (b,).
        loss: maps outputs and labels to one loss per row.
    """
    inputs, labels = batch
    stage.zero_grad()
    value = loss(stage.module(inputs), labels).mean()
    value.backward()
    stage.step()
    return value.detach()


def loss_and_gradient(
    outputs: torch.Tensor, labels: torch.Tensor, loss: Callable[..., torch.Tensor], share: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `share` times the mean loss of a (micro-)batch, and its gradient with respect to the model's outputs.

    Args:
        outputs: (b, …) detached.
        labels: (b,).
        loss: maps outputs and labels to one loss per row.
        share: of the mini-batch's samples; the micro-batches' values then add up to the mean over the mini-batch.
    """
    leaf = outputs.detach().requires_grad_()
    value = loss(leaf, labels).mean() * share
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient
