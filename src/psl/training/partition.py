"""How the training data is divided among the clients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from psl.errors import DataError, check_number, expected
from psl.training.seeds import Stream, generator

_REDRAWS = 1000  # of a Dirichlet partition, before giving up

#: A checked rule: "iid", a Dirichlet α, or one index array per client.
PartitionRule = str | float | tuple[np.ndarray, ...]


def partition(
    rule: str | float | Sequence[Any],
    n_samples: int,
    n_clients: int,
    *,
    labels: Callable[[], np.ndarray],
    minimum: int = 1,
    seed: int = 0,
) -> list[np.ndarray]:
    """Divide D samples among N clients and return the N index arrays.

    Args:
        rule: ``"iid"``: shuffled, shares equal within one sample; a number α > 0: every class is
            divided by its own draw from Dirichlet(α, …, α), redrawn until every client has at
            least `minimum` samples; or a list of N disjoint index arrays, taken as it is.
        n_samples: D.
        n_clients: N.
        labels: returns the (D,) classes; called by the Dirichlet rule only.
        minimum: least number of samples of a client, the mini-batch size.
        seed: draws the shuffle and the Dirichlet proportions.

    Raises:
        DataError: a client would have no data, or less than `minimum`; an explicit list has the
            wrong length, an index outside 0..D-1, or one twice.
    """
    checked = check_rule(rule, n_clients)
    if isinstance(checked, str):
        rng = generator(Stream.PARTITION, seed)
        parts = np.array_split(rng.permutation(n_samples), n_clients)
    elif isinstance(checked, tuple):
        parts = _explicit(checked, n_samples)
    else:
        parts = _dirichlet(labels(), checked, n_clients, minimum, generator(Stream.PARTITION, seed))
    for client, part in enumerate(parts):
        who = f"client {client}"
        if len(part) == 0:
            fix = "use fewer clients, more data or another partition"
            raise expected(who, "at least one training sample", "none", fix, DataError)
        if len(part) < minimum:
            fix = "use a smaller batch_size, fewer clients or another partition"
            raise expected(who, f"at least batch_size = {minimum} training samples", len(part), fix, DataError)
    return [np.sort(part) for part in parts]


def check_rule(rule: str | float | Sequence[Any], n_clients: int) -> PartitionRule:
    """Return the rule of `partition` as "iid", a number or arrays; refuse what would fail with any data.

    Raises:
        ScenarioError: α is not above 0.
        DataError: no rule, not one array per client, or not of whole numbers.
    """
    if isinstance(rule, int | float | np.number):
        return check_number("partition", rule, minimum=0, strict=True, fix="pass a Dirichlet α above 0")
    if isinstance(rule, str) and rule == "iid":
        return rule
    if isinstance(rule, str) or not hasattr(rule, "__iter__"):
        want = "'iid', a Dirichlet α or a list of index arrays"
        raise expected("partition", want, repr(rule), "pass one of the three", DataError)
    parts = tuple(np.asarray(part) for part in rule)
    if len(parts) != n_clients:
        want, fix = f"one index array per client, {n_clients} in all", "make n_clients and the list agree"
        raise expected("partition", want, len(parts), fix, DataError)
    for client, part in enumerate(parts):
        if part.size and (part.ndim != 1 or part.dtype.kind not in "iu"):
            got, fix = f"shape {part.shape}, {part.dtype}", "index the training set with whole numbers"
            raise expected(f"partition[{client}]", "a 1-D array of integers", got, fix, DataError)
    return parts


def _dirichlet(
    labels: np.ndarray, alpha: float, n_clients: int, minimum: int, rng: np.random.Generator
) -> list[np.ndarray]:
    if labels.size != len(labels):
        got, fix = f"shape {labels.shape[1:]} per sample", "pass 'iid' or a list of index arrays"
        raise expected(f"partition={alpha:g}", "one class number per sample to divide by", got, fix, DataError)
    labels = labels.reshape(-1)
    classes = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    for _ in range(_REDRAWS):
        shares: list[list[np.ndarray]] = [[] for _ in range(n_clients)]
        for members in classes:
            edges = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(members)  # (N - 1,)
            for share, piece in zip(shares, np.split(rng.permutation(members), edges.astype(int)), strict=True):
                share.append(piece)
        parts = [np.concatenate(share) for share in shares]
        if min(map(len, parts)) >= minimum:
            return parts
    want = f"{n_clients} clients with at least {minimum} samples each"
    got = f"none in {_REDRAWS} Dirichlet draws from {len(labels)} samples"
    fix = "use a larger α, a smaller batch_size, fewer clients or more data"
    raise expected(f"partition={alpha:g}", want, got, fix, DataError)


def _explicit(parts: tuple[np.ndarray, ...], n_samples: int) -> tuple[np.ndarray, ...]:
    taken = np.zeros(n_samples, dtype=bool)
    for client, part in enumerate(parts):
        outside = part[(part < 0) | (part >= n_samples)] if part.size else part
        if outside.size:
            want, fix = f"indices in 0..{n_samples - 1}", "index the training set with whole numbers"
            raise expected(f"partition[{client}]", want, int(outside[0]), fix, DataError)
        if part.size:
            names, counts = np.unique(part, return_counts=True)
            again = names[(counts > 1) | taken[names]]
            if again.size:
                want, fix = "samples of no other client, each once", "give every sample to one client"
                raise expected(f"partition[{client}]", want, f"sample {again[0]} again", fix, DataError)
            taken[names] = True
    return parts
