"""What all tests share."""

import signal

import pytest
import torch
from torch.utils.data import TensorDataset

# Tensors are small here: more threads only wait for each other, up to twenty times slower on a busy machine.
torch.set_num_threads(1)

# A shell that starts tests in the background lets them ignore Ctrl-C, which some of them send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module")
def data():
    """Random images of four classes: 100 to train, 30 to test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(130, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (130,), generator=generator)
    return TensorDataset(images[:100], labels[:100]), TensorDataset(images[100:], labels[100:])


@pytest.fixture(scope="session")
def nursery():
    """Where the worker processes of all tests start."""
    from psl.distributed import Nursery

    with Nursery() as nursery:
        yield nursery
