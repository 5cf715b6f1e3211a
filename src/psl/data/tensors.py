"""From images in memory to normalised data sets."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch.utils.data import TensorDataset


def normalised(
    train_images: ArrayLike, train_labels: ArrayLike, test_images: ArrayLike, test_labels: ArrayLike
) -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test), scaled so that every channel has mean 0 and standard deviation 1 over the training images.

    Args:
        train_images: (D, channels, height, width), uint8 or float.
        train_labels: (D,) whole numbers.
        test_images: as `train_images`, with their own D.
        test_labels: as `train_labels`.
    """
    images = np.asarray(train_images)
    pixels = images.shape[0] * images.shape[2] * images.shape[3]
    sums = images.sum(axis=(0, 2, 3), dtype=np.float64)  # (channels,)
    squares = np.stack([np.square(images[:, c], dtype=np.float32).sum(dtype=np.float64) for c in range(len(sums))])
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - mean**2, 0))
    scale = 1 / np.where(std > 0, std, 1)
    return (
        _dataset(images, train_labels, mean, scale),
        _dataset(np.asarray(test_images), test_labels, mean, scale),
    )


def _dataset(images: np.ndarray, labels: ArrayLike, mean: np.ndarray, scale: np.ndarray) -> TensorDataset:
    shape = (1, -1, 1, 1)
    tensor = torch.from_numpy(np.ascontiguousarray(images)).float()
    tensor.sub_(torch.tensor(mean, dtype=torch.float32).view(shape))
    tensor.mul_(torch.tensor(scale, dtype=torch.float32).view(shape))
    return TensorDataset(tensor, torch.as_tensor(np.asarray(labels), dtype=torch.int64))
