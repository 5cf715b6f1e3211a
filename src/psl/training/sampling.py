"""The data of a run: data sets by name, and the mini-batch that a client takes at a step."""

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Subset, TensorDataset

from psl.data import load
from psl.errors import DataError, expected
from psl.training.messages import each
from psl.training.seeds import Stream, generator

_DIGESTED = 16  # samples that a fingerprint looks at


@runtime_checkable
class IndexedDataset(Protocol):
    """A torch data set of known length, with pairs of input and label by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def open_dataset(dataset: object) -> tuple[IndexedDataset, IndexedDataset]:
    """Return (train, test) from a name for `psl.data.load` or a pair of data sets.

    Raises:
        DataError: neither, or a set without samples.
    """
    if isinstance(dataset, str):
        return load(dataset)
    pair = tuple(dataset) if isinstance(dataset, tuple | list) else ()
    if len(pair) != 2 or not all(isinstance(part, IndexedDataset) for part in pair):
        fix = "pass 'digits' or another name, or (train, test)"
        raise expected("dataset", "a name or a pair of data sets", type(dataset).__name__, fix, DataError)
    for part, name in zip(pair, ("training", "test"), strict=True):
        if len(part) == 0:
            raise expected("dataset", f"at least one {name} sample", "none", f"pass a {name} set with data", DataError)
    return pair


def _input_and_label(sample: Any) -> tuple[Any, Any]:
    """Return a sample's input and label: of a tuple the last is the label, of a dict ``labels`` or ``label``.

    Raises:
        DataError: neither.
    """
    if isinstance(sample, Mapping):
        names = [name for name in ("labels", "label") if name in sample]
        if len(names) != 1 or len(sample) < 2:
            fix = "name the label 'label' or 'labels', and the inputs as the model does"
            raise expected("dataset", "dicts with inputs and one label", sorted(map(str, sample)), fix, DataError)
        return {name: value for name, value in sample.items() if name != names[0]}, sample[names[0]]
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        fix = "return (input, label), (input, …, label) or a dict with 'label'"
        raise expected("dataset", "samples with a label", type(sample).__name__, fix, DataError)
    *inputs, label = sample
    return inputs[0] if len(inputs) == 1 else tuple(inputs), label


def _stacked(samples: list[Any]) -> Any:
    """Return the inputs of some samples as a batch of the same form."""
    if isinstance(samples[0], Mapping):
        return {name: _stacked([sample[name] for sample in samples]) for name in samples[0]}
    if isinstance(samples[0], tuple):
        return tuple(_stacked(list(column)) for column in zip(*samples, strict=True))
    try:
        tensors = [torch.as_tensor(x) for x in samples]
    except (TypeError, ValueError, RuntimeError) as cause:
        got, fix = type(samples[0]).__name__, "give the data set a transform that makes tensors, such as ToTensor()"
        raise expected("dataset", "samples that are tensors or numbers", got, fix, DataError) from cause
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        fix = "pad, crop or resize them to one shape"
        raise expected("dataset", "samples of one shape", " and ".join(map(str, sorted(shapes)[:2])), fix, DataError)
    return torch.stack(tensors)


class Sampler:
    """The mini-batches of one client, as a function of the step number alone.

    Every epoch visits a fresh permutation drawn from (seed, client, epoch) and leaves out the last
    incomplete batch. With no state to save, a resumed run continues with the very same batches, and
    every framework sees the same ones.

    Args:
        indices: the client's samples.
        batch_size: b, at most ``len(indices)``.
        seed, client: numbers that the permutations are drawn from.
    """

    def __init__(self, indices: np.ndarray, batch_size: int, seed: int, client: int):
        self.indices = np.asarray(indices)
        self.batch_size = batch_size
        self._seed, self._client = seed, client
        self._epoch, self._order = -1, self.indices

    def batch(self, step: int) -> np.ndarray:
        """Return the (b,) sample indices of mini-batch number `step`, counted from 0."""
        epoch, position = divmod(step, len(self.indices) // self.batch_size)
        if epoch != self._epoch:
            rng = generator(Stream.BATCHES, self._seed, self._client, epoch)
            self._epoch, self._order = epoch, rng.permutation(self.indices)
        return self._order[position * self.batch_size : (position + 1) * self.batch_size]


class Samples:
    """Fetches samples of a `Dataset` as batches on a device; tensors held in memory are indexed at once.

    Args:
        dataset: pairs of input and label.
        device: where batches go.
        layout: memory layout of batches of images.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ):
        self.device, self._layout = torch.device(device), layout
        index, found = np.arange(len(dataset)), dataset
        while type(found) is Subset:
            found, index = found.dataset, np.asarray(found.indices)[index]
        self._dataset: Any = found
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    def fetch(self, indices: ArrayLike) -> tuple[Any, torch.Tensor]:
        """Return inputs, a tensor (b, …) or a tuple or dict of them, and labels (b,), whole numbers as int64."""
        rows = self._index[np.asarray(indices)]
        if type(self._dataset) is TensorDataset:
            *columns, labels = (tensor[torch.from_numpy(rows)] for tensor in self._dataset.tensors)
            inputs = columns[0] if len(columns) == 1 else tuple(columns)
        else:
            pairs = [_input_and_label(self._dataset[int(row)]) for row in rows]
            inputs = _stacked([x for x, _ in pairs])
            labels = torch.stack([torch.as_tensor(y) for _, y in pairs])
            labels = labels if labels.is_floating_point() else labels.long()
        return each(self._placed, inputs), labels.to(self.device)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        layout = self._layout if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, memory_format=layout)

    def labels(self) -> np.ndarray:
        """Return all labels, (D,); reads every sample of a data set that keeps no list of them."""
        if type(self._dataset) is TensorDataset:
            labels = self._dataset.tensors[-1].numpy(force=True)
        elif self._lists_labels:
            labels = np.asarray(self._dataset.targets)
        else:
            return np.array([np.asarray(_input_and_label(self._dataset[int(row)])[1]) for row in self._index])
        return labels[self._index]

    @property
    def _lists_labels(self) -> bool:
        return hasattr(self._dataset, "targets") and getattr(self._dataset, "target_transform", None) is None

    def digest(self) -> str:
        """Return a hash of the labels and, of tensors in memory, of a few inputs; others may be transformed at random.

        Of a data set that keeps no list of its labels only a few are read.
        """
        few = np.unique(np.linspace(0, len(self) - 1, _DIGESTED).astype(int))
        if type(self._dataset) is TensorDataset:
            chosen = torch.from_numpy(self._index[few])
            columns = [tensor[chosen].double().numpy(force=True) for tensor in self._dataset.tensors[:-1]]
            parts = [self.labels(), *columns]
        else:
            parts = [self.labels() if self._lists_labels else self.fetch(few)[1].numpy(force=True)]
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]
