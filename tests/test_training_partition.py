"""The division of data among clients."""

import numpy as np
import pytest

from psl.training.partition import partition

LABELS = np.repeat(np.arange(5), 40)


def divide(rule, n_clients=4, minimum=1, seed=0):
    return partition(rule, len(LABELS), n_clients, labels=lambda: LABELS, minimum=minimum, seed=seed)


@pytest.mark.parametrize("rule", ["iid", 0.3, 100.0])
def test_every_sample_goes_to_one_client_and_seeds_repeat(rule):
    parts = divide(rule)
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    assert all(np.array_equal(a, b) for a, b in zip(parts, divide(rule), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, divide(rule, seed=1), strict=True))


def test_iid_shares_are_equal_within_one():
    sizes = [len(part) for part in divide("iid", n_clients=7)]
    assert max(sizes) - min(sizes) <= 1


def spread(alpha):
    """How far the clients' class shares are from equal: the mean over many seeds of the largest share of a class."""
    shares = []
    for seed in range(40):
        counts = np.array([np.bincount(LABELS[part], minlength=5) for part in divide(alpha, seed=seed)])  # (C, classes)
        shares.append((counts / counts.sum(0)).max(0).mean())
    return np.mean(shares)


def test_small_alpha_is_more_uneven():
    assert spread(0.1) > spread(1.0) > spread(100.0)
    assert spread(1000.0) == pytest.approx(0.25, abs=0.03)


def test_dirichlet_shares_have_the_right_variance():
    """A share of Dirichlet(α, …, α) over C clients has variance (1/C)(1 - 1/C) / (Cα + 1)."""
    alpha, n_clients = 1.0, 4
    shares = []
    for seed in range(400):
        shares.extend(np.mean(LABELS[part] == c) * len(part) / 40 for part in divide(alpha, seed=seed) for c in [2])
    want = (1 / n_clients) * (1 - 1 / n_clients) / (n_clients * alpha + 1)
    assert np.var(shares) == pytest.approx(want, rel=0.2), "seeds 0..399"


def test_dirichlet_is_redrawn_until_every_client_has_a_batch():
    loose, strict = divide(0.3, minimum=1, seed=3), divide(0.3, minimum=30, seed=3)
    assert min(map(len, loose)) < 30 <= min(map(len, strict)), "seed 3"


def test_labels_are_not_read_unless_needed():
    def refuse():
        raise AssertionError("labels were read")

    partition("iid", 10, 2, labels=refuse)
    partition([[0], [1]], 10, 2, labels=refuse)
