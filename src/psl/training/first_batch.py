"""Before round 1: does the model take the samples, the loss its outputs with the labels, and the metric both?"""

import warnings
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import DataError, PSLError, expected, first_line
from psl.models.values import call, copied
from psl.training.config import TrainingConfig
from psl.training.messages import class_scores, logits_of, tensors_of
from psl.training.model_preparation import prepare_model, tried_layout
from psl.training.sampling import IndexedDataset, Samples
from psl.training.scores import IGNORED, RowLoss, Score, accuracy, cross_entropy, name_of
from psl.training.seeds import own_random_state, seed_evaluation

#: What torch raises for tensors of the wrong shape or type. Other errors of a model, loss or metric are its own.
_MISFIT = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)

_METRIC_FIX = (
    "pass metric=, a function of outputs and labels with one value per row, such as "
    "lambda outputs, labels: ((outputs > 0) == (labels > 0.5)).float().flatten(1).mean(1)"
)


def checked_samples(
    model: nn.Module,
    given: tuple[IndexedDataset, IndexedDataset],
    device: torch.device,
    config: TrainingConfig,
    layout: torch.memory_format | None = None,
) -> tuple[Samples, Samples]:
    """Return training and test samples that a model, a loss and a metric take; try it on a mini-batch of each.

    Labels are converted where the meaning is plain: whole numbers of any type become int64; for the cross entropy also
    whole numbers given as floats, one number per row in a column, and one-hot rows. Images of PIL become numbers in
    [0, 1]. The random state of torch, NumPy and Python stays as it is.

    Args:
        model: runs as a copy, in eval mode.
        given: the data sets.
        device: where it is trained.
        config: with the batch size, the loss and the metric.
        layout: memory layout of images; None to try channels_last.

    Raises:
        DataError: the model does not take the samples, or the loss does not take its outputs with the labels.
        ScenarioError: the loss or the metric does not give one value per row.
    """
    with own_random_state(device):
        plain = layout or torch.contiguous_format
        train, test = (Samples(part, device, plain) for part in given)
        inputs = _tried_inputs(model, train, config.batch_size, config, "training")
        _tried_inputs(model, test, 2, config, "test")
        if layout is None:
            train.layout = test.layout = tried_layout(model, device, inputs)
    return train, test


def _tried_inputs(model: nn.Module, samples: Samples, most: int, config: TrainingConfig, name: str) -> Any:
    """Return the inputs of at most so many samples, after all that `checked_samples` tries with them."""
    inputs, labels = _drawn(samples, np.arange(min(most, len(samples))), config.seed, name)
    outputs = _outputs(model, samples.device, samples.layout, inputs, name)
    _check_labels(samples, outputs, labels, config, name)
    labels = samples.convert(labels)
    _check_loss(config.loss, outputs, labels)
    _check_metric(config.metric, outputs, labels)
    return inputs


def _drawn(samples: Samples, rows: np.ndarray, seed: int, name: str) -> tuple[Any, torch.Tensor]:
    """Return inputs and labels; warn where samples are transformed with random numbers that psl does not seed."""
    seed_evaluation(seed, 0, samples.device)
    batch = samples.fetch(rows)
    if samples.listed_labels() is None:  # made anew whenever they are read
        seed_evaluation(seed, 0, samples.device)
        again = samples.fetch(rows)
        pairs = zip(tensors_of(batch[0]), tensors_of(again[0]), strict=True)
        if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs):
            text = (
                f"the {name} samples are drawn from a random generator of their own: equal arguments will not give "
                "identical results. Draw from torch's, NumPy's or Python's global generator, which psl seeds"
            )
            warnings.warn(text, stacklevel=5)
    return batch


# --- samples ---


def _outputs(model: nn.Module, device: torch.device, layout: torch.memory_format, inputs: Any, name: str) -> Any:
    """Return what the model makes of a mini-batch.

    Raises:
        DataError: the model does not take it.
    """
    ran = prepare_model(model, device, layout).eval()
    try:
        with torch.no_grad():
            return call(ran, copied(inputs))
    except PSLError:
        raise
    except _MISFIT as cause:
        where, module, arrived = _place_of_failure(model, device, layout, inputs)
        got = f"{_described(arrived)} at {where}: {first_line(cause)}"
        want = f"{name} samples that the model takes"
        fix = _fix_of_samples(module, arrived)
        if isinstance(cause, TypeError) and "argument" in str(cause):
            fix = "give the inputs that forward takes: in its order, or in dicts by its names"
        raise expected("dataset", want, got, fix, DataError) from cause


def _place_of_failure(
    model: nn.Module, device: torch.device, layout: torch.memory_format, inputs: Any
) -> tuple[str, nn.Module, Any]:
    """Return name, module and inputs of the innermost module in which a forward pass fails."""
    ran = prepare_model(model, device, layout).eval()
    running: list[tuple[str, nn.Module, Any]] = [(type(model).__name__, ran, inputs)]
    for path, module in ran.named_modules():
        if path:
            shown = f"{path!r} ({type(module).__name__})"
            module.register_forward_pre_hook(lambda m, args, shown=shown: running.append((shown, m, args)))
            module.register_forward_hook(lambda m, args, out: running.pop() and None)
    try:
        with torch.no_grad():
            call(ran, copied(inputs))
    except _MISFIT:  # the one that is being told
        return running[-1]
    return running[0]


def _described(value: Any) -> str:
    shown = [f"{str(t.dtype).removeprefix('torch.')} of shape {tuple(t.shape)}" for t in tensors_of(value)]
    return " and ".join(shown) or type(value).__name__


def _fix_of_samples(module: nn.Module, arrived: Any) -> str:
    """Return what to do about samples that a module does not take."""
    tensors = tensors_of(arrived)
    first = tensors[0] if tensors else torch.empty(0)
    channels = getattr(module, "in_channels", None)
    if isinstance(channels, int) and first.ndim >= 3 and first.shape[-3] != channels:
        grey = ", such as torchvision's Grayscale(3)" if channels == 3 and first.shape[-3] == 1 else ""
        return f"give images with {channels} channels first{grey}, or change the layer"
    if first.dtype is torch.uint8:
        return "give numbers in [0, 1], x.float() / 255, or the transform ToTensor() to a data set of images"
    weights = next(module.parameters(), None)
    if weights is not None and weights.is_floating_point() and first.dtype != weights.dtype:
        return f"convert the samples to the type of the weights, x.to({weights.dtype})"
    features = getattr(module, "in_features", None)
    if isinstance(features, int) and first.ndim and first.shape[-1] != features:
        return f"give samples of the size for which the model was made: this layer takes {features} features"
    return "give samples of the shape and type that the model's forward takes"


# --- labels ---


class _ClassNumbers:
    """Turns labels into class numbers 0..classes−1, and refuses others.

    Args:
        outputs: of the model for a mini-batch.
        labels: of the mini-batch, as the data set has them.
        convert: whether the loss is the cross entropy, for which labels of other forms have a plain meaning.
        name: of the data, for messages.
    """

    def __init__(self, outputs: torch.Tensor, labels: torch.Tensor, convert: bool, name: str):
        self._name, self._convert = name, convert
        rows = len(outputs)
        self._column = convert and outputs.ndim == 2 and labels.shape == (rows, 1)
        self._one_hot = convert and outputs.ndim == 2 and labels.shape == outputs.shape and _is_one_hot(labels)
        found = self(labels)
        self.n_classes = class_scores(outputs, found).shape[1]

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the class numbers, whole; raises `DataError` for labels of another form."""
        if self._one_hot:
            if not _is_one_hot(labels):
                fix = "give class numbers, or pass loss= and metric= for several labels per sample"
                raise expected("labels", "one 1 per row, as in the first mini-batch", "another row", fix, DataError)
            return labels.argmax(1)
        labels = labels.squeeze(1) if self._column else labels
        if not self._convert or not labels.is_floating_point():
            return labels
        if bool((fractions := labels != labels.round()).any()):
            got, fix = f"{float(labels[fractions][0]):g}", "give class numbers, or pass loss= and metric= of your own"
            raise expected("labels", "whole class numbers for the cross entropy", got, fix, DataError)
        return labels.long()

    def in_range(self, labels: torch.Tensor) -> torch.Tensor:
        """Return labels, converted, after checking that the model has an output for each; raises `DataError`."""
        found = self(labels)
        wrong = (found >= self.n_classes) | ((found < 0) & (found != IGNORED))
        if bool(wrong.any()):
            number = int(found[wrong][0])
            shifted = "subtract 1 from the labels" if number == self.n_classes else "correct the labels"
            want = f"class numbers 0..{self.n_classes - 1}, as the model has {self.n_classes} outputs"
            fix = f"{shifted}, or give the model more outputs"
            raise expected(f"labels of the {self._name} data", want, number, fix, DataError)
        return found


def _is_one_hot(labels: torch.Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all())


def _check_labels(samples: Samples, outputs: Any, labels: torch.Tensor, config: TrainingConfig, name: str) -> None:
    """Tell the samples how to convert labels, and check those that can be listed; the others are checked as they come.

    Raises:
        DataError: a label stands for no output of the model.
    """
    loss, scores = config.loss, logits_of(outputs)
    of_entropy = loss is cross_entropy or (isinstance(loss, RowLoss) and isinstance(loss.module, nn.CrossEntropyLoss))
    if not isinstance(scores, torch.Tensor) or scores.ndim < 2:
        return
    if of_entropy and labels.is_floating_point() and labels.shape == scores.shape and not _is_one_hot(labels):
        return  # shares of every class, which the cross entropy takes
    if not of_entropy and not (config.metric is accuracy and _fits_accuracy(scores, labels)):
        return
    numbers = _ClassNumbers(scores, labels, of_entropy, name)
    listed = samples.listed_labels()
    if listed is None:
        samples.convert = numbers.in_range
        return
    numbers.in_range(listed)
    samples.convert = numbers


# --- loss and metric ---


def _check_loss(loss: Score, outputs: Any, labels: torch.Tensor) -> None:
    """Refuse a loss that fails on a mini-batch (`DataError`), or gives no value per row (`ScenarioError`)."""
    try:
        values = loss(outputs, labels)
    except PSLError:
        raise
    except _MISFIT as cause:
        got = f"{_described(labels)} for outputs of {_described(logits_of(outputs))}: {first_line(cause)}"
        fix = "give labels of the shape and type that the loss takes, such as y.float() for a binary cross entropy"
        if loss is cross_entropy:
            fix = "give class numbers, one for each prediction, or pass loss= and metric= for labels of another kind"
        raise expected("labels", f"labels that the loss {name_of(loss)} takes", got, fix, DataError) from cause
    fix = "compute with reduction='none', then take the mean over what a row has several of"
    _check_rows("loss", loss, values, labels, fix)


def _check_metric(metric: Score, outputs: Any, labels: torch.Tensor) -> None:
    """Refuse a metric that does not fit the outputs and labels, or gives no value per row.

    Raises:
        ScenarioError: with a metric that would fit.
    """
    if metric is accuracy and not _fits_accuracy(logits_of(outputs), labels):
        got = f"outputs of {_described(logits_of(outputs))} and labels of {_described(labels)}"
        want = "outputs (rows, classes ≥ 2) with whole labels (rows,) for the accuracy"
        raise expected("metric", want, got, _METRIC_FIX)
    try:
        values = metric(outputs, labels)
    except PSLError:
        raise
    except _MISFIT as cause:
        got = f"{type(cause).__name__}: {first_line(cause)}"
        raise expected("metric", "a function of outputs and labels", got, _METRIC_FIX) from cause
    _check_rows("metric", metric, values, labels, "return one value per row, such as .float().flatten(1).mean(1)")


def _fits_accuracy(scores: Any, labels: torch.Tensor) -> bool:
    """Return whether there are two outputs or more for every one of whole labels."""
    if not isinstance(scores, torch.Tensor) or scores.ndim < 2 or labels.is_floating_point():
        return False
    scores = class_scores(scores, labels)
    return scores.shape[1] > 1 and (scores.shape[0], *scores.shape[2:]) == labels.shape


def _check_rows(what: str, score: Score, values: Any, labels: torch.Tensor, fix: str) -> None:
    if not isinstance(values, torch.Tensor) or values.shape != (len(labels),):
        got = f"shape {tuple(values.shape)}" if isinstance(values, torch.Tensor) else type(values).__name__
        want = f"one value per row, shape ({len(labels)},), from {name_of(score)}"
        raise expected(what, want, got, fix)
