"""One part of a split model with its optimizer, and its step: of devices, of pipeline stages, of whole models."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from psl.models.values import call
from psl.training.messages import Gradients, Message, each, entries, flat, leaves


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
        self._passes: dict[int, tuple[Gradients | None, Any]] = {}  # of the inputs; the outputs with their graph

    def forward(self, inputs: Any, number: int = 0) -> Any:
        """Return the outputs for a (micro-)batch; its number finds the graph again in `backward`.

        Args:
            inputs: of a first stage what the model takes; of others what the stage before returned.
            number: of the pass.
        """
        if self.first:
            gradients, outputs = None, call(self.module, each(torch.Tensor.detach, inputs))
        else:
            arrived = leaves(inputs)
            gradients, outputs = Gradients(arrived), self.module(arrived)
        self._passes[number] = gradients, outputs
        return each(torch.Tensor.detach, outputs)

    def needs_gradient(self, number: int = 0) -> list[bool]:
        """Return for each part of a pass's outputs whether the stage has a use for its gradient."""
        return [isinstance(x, torch.Tensor) and x.requires_grad for x in entries(self._passes[number][1])]

    def backward(self, gradient: Message | None, number: int = 0) -> Any:
        """Add up the parameters' gradients, given the outputs'; returns the inputs', None in a first stage."""
        gradients, outputs = self._passes.pop(number)
        pairs = [
            (output, given)
            for output, given in zip(flat(outputs), flat(gradient), strict=False)
            if isinstance(output, torch.Tensor) and output.requires_grad and given is not None
        ]
        if pairs:
            torch.autograd.backward([output for output, _ in pairs], [given for _, given in pairs])
        return None if gradients is None else gradients.message

    def zero_grad(self) -> None:
        """Forget the gradients."""
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Take one optimizer step with the gradients added up since `zero_grad`."""
        if self.optimizer is not None:
            self.optimizer.step()


def full_step(stage: Stage, batch: tuple[Any, torch.Tensor], loss: Callable[..., torch.Tensor]) -> torch.Tensor:
    """Train a stage that holds the whole model on one mini-batch, (inputs, labels), and return its mean loss.

    Args:
        stage: the model with its optimizer.
        batch: inputs, with a batch of b samples first, and labels (b,).
        loss: maps outputs and labels to one loss per row.
    """
    inputs, labels = batch
    stage.zero_grad()
    value = loss(call(stage.module, inputs), labels).mean()
    value.backward()
    stage.step()
    return value.detach()


def loss_and_gradient(
    outputs: Any, labels: torch.Tensor, loss: Callable[..., torch.Tensor], share: float = 1.0
) -> tuple[torch.Tensor, Any]:
    """Return `share` times the mean loss of a (micro-)batch, and its gradient with respect to the model's outputs.

    Args:
        outputs: (b, …) detached; a tensor, or a dict or tuple of tensors.
        labels: (b,).
        loss: maps outputs and labels to one loss per row.
        share: of the mini-batch's samples; the micro-batches' values then add up to the mean over the mini-batch.
    """
    given = leaves(outputs)
    value = loss(given, labels).mean() * share
    return value.detach(), output_gradients(value, given)


def output_gradients(value: torch.Tensor, outputs: Any) -> Any:
    """Return the gradient of a value with respect to a model's outputs, of `leaves`: a tensor, or a tuple of all.

    None stands for what has no gradient, because it is no tensor, holds whole numbers, or is not used.
    """
    listed = flat(outputs)
    floating = [x for x in listed if isinstance(x, torch.Tensor) and x.requires_grad]
    found = iter(torch.autograd.grad(value, floating, allow_unused=True))
    parts = [next(found) if isinstance(x, torch.Tensor) and x.requires_grad else None for x in listed]
    return parts[0] if isinstance(outputs, torch.Tensor) else tuple(parts)
