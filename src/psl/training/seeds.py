"""Random numbers: the stream that each part of a run draws from, so that no two parts share one."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Literal

import numpy as np
import torch

Party = Literal["device", "server"]


class Stream(IntEnum):
    """What random numbers are for. Together with the run's seed a stream gives the same numbers in every process."""

    PARTITION = 0  # which client gets which samples
    BATCHES = 1  # order of a client's samples; further keys: client, epoch
    ROUND = 2  # EPSL's representatives and torch's state at the start of a round; further key: round
    PARTICIPATION = 3  # stragglers and dropouts of a round; further key: round
    COMPUTATION = 4  # dropout layers; further keys: round, party, client, local step
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
    """Seed torch for round `index`, counted from 0; return the round's random numbers, the first of which it took."""
    rng = generator(Stream.ROUND, seed, index)
    _seed_torch(int(rng.integers(2**63)), device)
    return rng


def seed_computation(seed: int, index: int, device: torch.device, party: Party, client: int, step: int) -> None:
    """Seed torch for what one party computes, so that parties in different processes draw as in `psl.train`.

    Args:
        seed: the run's.
        index: of the round.
        device: where it is computed.
        party: "device" or "server".
        client: for which the party computes, the first of several.
        step: local step of the round.
    """
    rng = generator(Stream.COMPUTATION, seed, index, ("device", "server").index(party), client, step)
    _seed_torch(int(rng.integers(2**63)), device)


@contextmanager
def own_random_state(device: torch.device) -> Iterator[None]:
    """Leave torch's random state as it was found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_torch(number: int, device: torch.device) -> None:
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
