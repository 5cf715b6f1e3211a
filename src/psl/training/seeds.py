"""Random numbers: the stream that each part of a run draws from, so that no two parts share one."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Literal, get_args

import numpy as np
import torch

from psl.models.generators import numpy_and_python_kept

Party = Literal["device", "server", "stage", "tail"]
_PARTIES: tuple[Party, ...] = get_args(Party)


class Stream(IntEnum):
    """What random numbers are for. Together with the run's seed a stream gives the same numbers in every process."""

    PARTITION = 0  # which client gets which samples
    BATCHES = 1  # order of a client's samples; further keys: client, epoch
    ROUND = 2  # EPSL's representatives and torch's state at the start of a round; further key: round
    PARTICIPATION = 3  # stragglers and dropouts of a round; further key: round
    COMPUTATION = 4  # samples' transforms and dropout layers; further keys: round, party, client, local step
    EVALUATION = 5  # transforms of test samples; further keys: round, model, batch
    SCENARIO = 7  # emulated networks of psl.distributed


def generator(stream: Stream, seed: int, *keys: int) -> np.random.Generator:
    """Return the random numbers of a stream.

    Args:
        stream: what they are for.
        seed: the run's.
        keys: further whole numbers, such as the round.
    """
    return np.random.default_rng([seed, int(stream), *keys])


def seed_round(seed: int, index: int, device: torch.device) -> np.random.Generator:
    """Seed the global generators for round `index`, counted from 0; return the round's random numbers.

    The first of them seeded torch, NumPy and Python.
    """
    rng = generator(Stream.ROUND, seed, index)
    _seed_all(int(rng.integers(2**63)), device)
    return rng


def seed_computation(seed: int, index: int, device: torch.device, party: Party, client: int, step: int) -> None:
    """Seed the global generators for what one party draws and computes, the same in every process.

    Args:
        seed: the run's.
        index: of the round.
        device: where it is computed.
        party: "device", "server", "stage" of a pipeline, or "tail" of a device whose split is U-shaped.
        client: for which the party computes, the first of several; of a stage its number.
        step: local step of the round; of a stage the number of the micro-batch.
    """
    rng = generator(Stream.COMPUTATION, seed, index, _PARTIES.index(party), client, step)
    _seed_all(int(rng.integers(2**63)), device)


def seed_evaluation(seed: int, index: int, device: torch.device, model: int = 0, batch: int = 0) -> None:
    """Seed the global generators for the evaluation after round `index`, the same in every process.

    Test samples may be transformed at random, and what clients send may be changed at random.

    Args:
        seed: the run's.
        index: of the round.
        device: where it is computed.
        model: number of the client-side model; what the first draws follows the transforms of the samples.
        batch: number of the batch of test samples.
    """
    more = (model, batch) if model or batch else ()
    _seed_all(int(generator(Stream.EVALUATION, seed, index, *more).integers(2**63)), device)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave the random state of torch, NumPy and Python as it was found."""
    with numpy_and_python_kept(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_all(number: int, device: torch.device) -> None:
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
