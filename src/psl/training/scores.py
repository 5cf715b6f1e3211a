"""What a run minimises and what it reports: losses and metrics, each with one value per row."""

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F

from psl.errors import expected
from psl.training.messages import class_scores, logits_of

#: Maps a model's outputs and labels to one value per row, (rows,).
Score = Callable[[Any, torch.Tensor], torch.Tensor]

IGNORED = -100  # class number of what is not predicted, as in `torch.nn.functional.cross_entropy`
_NORMALISES_BY_WEIGHT = (nn.CrossEntropyLoss, nn.NLLLoss)  # with class weights they do not take a plain mean


def cross_entropy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each row, (rows,); the default loss.

    Args:
        outputs: (rows, classes, …), for texts also (rows, tokens, classes); or an object or dict with such ``logits``.
        labels: (rows, …) class numbers; of several in a row it is the mean. −100 is not counted.
    """
    losses = F.cross_entropy(class_scores(outputs, labels), labels, reduction="none")
    if losses.ndim == 1:
        return losses
    counted = (labels != IGNORED).flatten(1).sum(1).clamp(min=1)
    return losses.flatten(1).sum(1) / counted


def accuracy(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """Return for each row whether its largest output is at the label, (rows,) of 0 and 1; the default metric.

    Of a row with several labels, such as tokens or pixels, it is the share of those that are not −100; NaN if all are.

    Args:
        outputs: (rows, classes, …), for texts also (rows, tokens, classes); or an object or dict with such ``logits``.
        labels: (rows, …) class numbers.
    """
    right = class_scores(outputs, labels).argmax(dim=1) == labels
    counted = (labels != IGNORED).reshape(len(labels), -1)
    return (right.reshape(len(labels), -1) & counted).sum(1).double() / counted.sum(1)


class RowLoss:
    """A loss module of torch with one value per row in place of their mean.

    Args:
        module: with ``reduction="none"``.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.__name__ = type(module).__name__

    def __call__(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """Return (rows,) losses; of several in a row it is the mean."""
        scores = class_scores(outputs, labels) if isinstance(self.module, nn.CrossEntropyLoss) else logits_of(outputs)
        losses = self.module(scores, labels)
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses

    def __repr__(self) -> str:
        values = ", ".join(str(tensor.tolist()) for tensor in self.module.state_dict().values())
        return f"{self.module!r}{values}"


def row_loss(loss: Any) -> Score:
    """Return a loss with one value per row: the default for None, a torch module with ``reduction="mean"`` unreduced.

    Raises:
        ScenarioError: no function; a class; a module that trains, or whose value is no mean over rows.
    """
    if loss is None:
        return cross_entropy
    example = "lambda outputs, labels: F.cross_entropy(outputs, labels, reduction='none')"
    fix = f"pass a function of outputs and labels with one value per row, such as {example}"
    if isinstance(loss, type) or not callable(loss):
        got = f"the class {loss.__name__}" if isinstance(loss, type) else repr(loss)[:80]
        raise expected("loss", "a function of outputs and labels", got, fix)
    if not isinstance(loss, nn.Module):
        return cast(Score, loss)
    name, reduction = type(loss).__name__, getattr(loss, "reduction", None)
    if any(p.requires_grad for p in loss.parameters()):
        got = f"{name} with trainable parameters"
        raise expected("loss", "a loss without parameters, as only the model trains", got, "put them into the model")
    if reduction in (None, "none"):
        return loss if reduction is None else RowLoss(loss)
    if reduction != "mean":
        raise expected("loss", f"{name} with reduction='mean' or 'none'", f"reduction={reduction!r}", fix)
    if isinstance(loss, _NORMALISES_BY_WEIGHT) and loss.weight is not None:
        got = f"{name} with class weights and reduction='mean', which divides by the weights of the labels at hand"
        raise expected("loss", "one value per row", got, f"make it {name}(weight=…, reduction='none')")
    unreduced = copy.deepcopy(loss)
    vars(unreduced)["reduction"] = "none"
    return RowLoss(unreduced)


def check_metric(metric: Any) -> Score:
    """Return a metric: `accuracy` for "accuracy".

    Raises:
        ScenarioError: neither that name nor a function.
    """
    if metric == "accuracy":
        return accuracy
    if isinstance(metric, type) or not callable(metric):
        fix = "pass 'accuracy' or a function of outputs and labels with one value per row"
        raise expected("metric", "'accuracy' or a function", repr(metric)[:80], fix)
    return cast(Score, metric)


def name_of(score: Score) -> str:
    """Return the name of a loss or metric, for settings and what is printed."""
    return getattr(score, "__name__", type(score).__name__)


def metric_name(metric: Score) -> str:
    """Return the name of a metric as it is printed; "accuracy", a share in per cent, is the library's own alone."""
    name = name_of(metric)
    return name if metric is accuracy or name not in ("accuracy", "<lambda>") else "metric"


class Mean:
    """The mean of a metric over the rows of several batches; rows of NaN, with nothing to score, are left out."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def add(self, values: torch.Tensor) -> None:
        """Add (rows,) values."""
        scored = values[~values.isnan()].double()
        self._sum, self._count = self._sum + float(scored.sum()), self._count + len(scored)

    @property
    def value(self) -> float:
        """The mean so far; NaN if no row had a value."""
        return self._sum / self._count if self._count else float("nan")
