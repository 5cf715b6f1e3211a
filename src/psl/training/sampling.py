"""The data of a run: data sets by name, and the mini-batch that a client takes at a step."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import Subset, TensorDataset

from psl.data import load
from psl.errors import DataError, expected
from psl.training.messages import each, numbers_of
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
    tensors = [_image(x) if _is_image(x) else _tensor(x, "samples") for x in samples]
    return _stacked_tensors(tensors)


def _stacked_tensors(tensors: list[torch.Tensor]) -> torch.Tensor:
    shapes = {tuple(tensor.shape) for tensor in tensors}
    if len(shapes) > 1:
        fix = "pad, crop or resize them to one shape"
        raise expected("dataset", "samples of one shape", " and ".join(map(str, sorted(shapes)[:2])), fix, DataError)
    return torch.stack(tensors)


def _tensor(value: Any, what: str) -> torch.Tensor:
    try:
        return torch.as_tensor(np.array(value) if _is_image(value) else value)
    except (TypeError, ValueError, RuntimeError) as cause:
        got, fix = type(value).__name__, "give tensors, numbers or images of PIL, with a transform of the data set"
        raise expected("dataset", f"{what} that are tensors or numbers", got, fix, DataError) from cause


def _is_image(value: Any) -> bool:
    """Return whether a value is an image of PIL, which need not be installed."""
    return type(value).__module__.startswith("PIL.")


def _image(image: Any) -> torch.Tensor:
    """Return a PIL image as (channels, height, width) numbers in [0, 1], as torchvision's ToTensor does.

    Raises:
        DataError: neither grey nor RGB.
    """
    if image.mode not in ("L", "RGB"):
        fix = "convert it in a transform, image.convert('RGB') or image.convert('L')"
        raise expected("dataset", "PIL images of mode 'L' or 'RGB'", f"mode {image.mode!r}", fix, DataError)
    pixels = torch.from_numpy(np.array(image)).float() / 255
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def _whole(labels: torch.Tensor) -> torch.Tensor:
    """Return labels with whole numbers of any type, and booleans, as int64."""
    return labels if labels.is_floating_point() else labels.long()


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


class PooledSampler:
    """Mini-batches drawn from the data of all clients together, each divided by the client that holds a sample.

    The samples of a step are those of centralised training.

    Args:
        shares: N index arrays, the samples of each client.
        batch_size: samples of a mini-batch, of all clients together.
        seed: number that the permutations are drawn from.

    Source: global sampling, GPSL (arXiv 2407.15738) [R].
    """

    def __init__(self, shares: list[np.ndarray], batch_size: int, seed: int):
        together = np.concatenate(shares)
        self._sampler = Sampler(together, batch_size, seed, 0)
        self._owner = np.full(together.max() + 1, -1)
        for client, share in enumerate(shares):
            self._owner[share] = client
        self.shares = shares

    def batch(self, step: int, client: int) -> np.ndarray:
        """Return the (b_i,) sample indices of a client in mini-batch number `step`, counted from 0."""
        batch = self._sampler.batch(step)
        return batch[self._owner[batch] == client]

    def sizes(self, step: int) -> np.ndarray:
        """Return the (N,) numbers of samples that the clients have in mini-batch number `step`."""
        return np.bincount(self._owner[self._sampler.batch(step)], minlength=len(self.shares))


@dataclass(frozen=True)
class PartSampler:
    """A client's samples of the mini-batches that a `PooledSampler` draws."""

    pool: PooledSampler
    client: int

    @property
    def indices(self) -> np.ndarray:
        """The client's samples."""
        return self.pool.shares[self.client]

    def batch(self, step: int) -> np.ndarray:
        """Return the (b_i,) sample indices of mini-batch number `step`, counted from 0."""
        return self.pool.batch(step, self.client)


def samplers_of(
    shares: list[np.ndarray], batch_size: int, seed: int, *, sampling: str = "own", together: bool = False
) -> list[Sampler] | list[PartSampler]:
    """Return what draws each client's mini-batches; with `together` one for the data of all.

    Args:
        shares: N index arrays, the samples of each client.
        batch_size: b, samples per client and mini-batch.
        seed: number that the permutations are drawn from.
        sampling: "own" or "global", as in `psl.train`.
        together: whether there is one mini-batch of N b samples, which nobody divides.
    """
    everyone = len(shares) * batch_size
    if sampling == "global":
        pool = PooledSampler(shares, everyone, seed)
        return [PartSampler(pool, client) for client in range(len(shares))]
    if together:
        return [Sampler(np.concatenate(shares), everyone, seed, 0)]
    return [Sampler(share, batch_size, seed, client) for client, share in enumerate(shares)]


class Samples:
    """Fetches samples of a `Dataset` as batches on a device; tensors held in memory are indexed at once.

    Args:
        dataset: pairs of input and label.
        device: where batches go.
        layout: memory layout of batches of images.

    Attributes:
        convert: called with the labels of every batch, whole numbers as int64, and returns them as the loss needs them.
    """

    def __init__(
        self,
        dataset: IndexedDataset,
        device: torch.device | str = "cpu",
        layout: torch.memory_format = torch.channels_last,
    ):
        self.device, self.layout = torch.device(device), layout
        self.convert: Callable[[torch.Tensor], torch.Tensor] = lambda labels: labels
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
            columns = [tensor[torch.from_numpy(rows)] for tensor in self._dataset.tensors]
            inputs, labels = _input_and_label(columns)
        else:
            pairs = [_input_and_label(self._dataset[int(row)]) for row in rows]
            inputs = _stacked([x for x, _ in pairs])
            labels = _stacked_tensors([_tensor(y, "labels") for _, y in pairs])
        return each(self._placed, inputs), self.convert(_whole(labels)).to(self.device)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        layout = self.layout if tensor.ndim == 4 else torch.preserve_format
        return tensor.to(self.device, memory_format=layout)

    @cached_property
    def numbers(self) -> int:
        """How many numbers the inputs of a sample have; reads the first."""
        return numbers_of(self.fetch([0])[0])

    def labels(self) -> np.ndarray:
        """Return all labels, (D, …); reads every sample of a data set that keeps no list of them."""
        labels = self.listed_labels()
        if labels is None:
            pairs = (_input_and_label(self._dataset[int(row)]) for row in self._index)
            labels = _whole(_stacked_tensors([_tensor(label, "labels") for _, label in pairs]))
        return self.convert(labels).numpy(force=True)

    def listed_labels(self) -> torch.Tensor | None:
        """Return all labels, (D, …), whole numbers as int64 and not converted; None if no sample may be read for it."""
        if type(self._dataset) is TensorDataset:
            labels = self._dataset.tensors[-1]
        elif hasattr(self._dataset, "targets") and getattr(self._dataset, "target_transform", None) is None:
            labels = torch.as_tensor(self._dataset.targets)
        else:
            return None
        return _whole(labels[torch.from_numpy(self._index)])

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
            labels = self.listed_labels()
            parts = [(self.fetch(few)[1] if labels is None else labels).numpy(force=True)]
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()[:16]
