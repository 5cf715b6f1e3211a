"""scikit-learn's handwritten digits: real handwriting that needs no network."""

from typing import Any, cast

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import TensorDataset

from psl.data.tensors import normalised

_TEST_SHARE = 0.2
_SPLIT_SEED = 0  # fixed, so that every run has the same test set


def load_handwritten_digits() -> tuple[TensorDataset, TensorDataset]:
    """Return (train, test): 1,437 and 360 images of shape (1, 8, 8), classes 0-9, always the same split.

    The split is stratified: every class has the same share of both parts.
    """
    found = cast(Any, load_digits())  # a Bunch, unless asked for a pair
    images = found.images[:, None].astype(np.float32)  # (1797, 1, 8, 8), 0..16
    parts = train_test_split(
        images, found.target, test_size=_TEST_SHARE, random_state=_SPLIT_SEED, stratify=found.target
    )
    train_images, test_images, train_labels, test_labels = parts
    return normalised(train_images, train_labels, test_images, test_labels)
