"""BatchNorm over groups of rows: the running statistics must still see every real row once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from psl.errors import PSLError, expected
from psl.models.normalisation import changed_momentum

_BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm


@contextmanager
def one_row_refused(what: str, want: str, fix: str) -> Iterator[None]:
    """Say in the house form that BatchNorm cannot normalise a single row in train mode.

    Args:
        what, want, fix: what the caller should change, for `psl.errors.expected`.

    Raises:
        ScenarioError: in place of torch's `ValueError`, for one row.
    """
    try:
        yield
    except ValueError as cause:
        if isinstance(cause, PSLError) or "more than 1 value per channel" not in str(cause):
            raise
        raise expected(what, want, 1, fix) from cause


class GroupStatistics:
    """Feeds a module its rows in groups while BatchNorm's running statistics stay those of one batch.

    In train mode BatchNorm normalises each group with the group's own batch statistics. Its running
    statistics after the last group are ``(1 - m)·running + m·Σ_g (n_g / n)·statistics_g``, where m
    is BatchNorm's momentum, n_g the rows of group g and n their total: every row has the same
    weight, as if one batch had come. Its batch counter rises by one. In eval mode nothing happens.

    Args:
        module: the module whose BatchNorm layers are meant.
        n_rows: n, the number of real rows over all groups.

    Source: EPSL (arXiv 2303.15991) [R].
    """

    def __init__(self, module: nn.Module, n_rows: int):
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]  # of a stage none: it runs operations
        counters = [t for name, t in module.named_buffers() if name.endswith("num_batches_tracked")]
        self._counters = counters if module.training else []
        self._momentum = {m: _momentum(m) for m in norms if m.track_running_stats and m.training}
        self._n_rows = n_rows
        self._seen = 0

    @contextmanager
    def group(self, n_rows: int) -> Iterator[None]:
        """Within this context the module sees the next group, of `n_rows` real rows."""
        # Momentum m_g = m·(n_g/n) / (1 - m·(rows still to come)/n): later groups shrink what earlier ones added.
        later = 1 - (self._seen + n_rows) / self._n_rows

        def of_group(momentum: float) -> float:
            return momentum * n_rows / self._n_rows / (1 - momentum * later)

        before = {m: m.momentum for m in self._momentum}
        counted = [counter.clone() for counter in self._counters]
        for m, momentum in self._momentum.items():
            m.momentum = of_group(momentum)
        try:
            with changed_momentum(of_group):
                yield
        finally:
            for m, momentum in before.items():
                m.momentum = momentum
            if self._seen:
                self._restore(counted)
            self._seen += n_rows

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Within this context rows that are no real samples leave the running statistics alone."""
        counted = [counter.clone() for counter in self._counters]
        for m in self._momentum:
            m.track_running_stats = False
        try:
            with changed_momentum(lambda momentum: None):
                yield
        finally:
            for m in self._momentum:
                m.track_running_stats = True
            self._restore(counted)

    def _restore(self, counted: list[torch.Tensor]) -> None:
        for counter, value in zip(self._counters, counted, strict=True):
            counter.copy_(value)


def _momentum(norm: _BatchNorm) -> float:
    """BatchNorm's momentum m; None stands for the mean over all batches so far, this one included."""
    return norm.momentum if norm.momentum is not None else 1 / (int(_counter(norm)) + 1)


def _counter(norm: _BatchNorm) -> torch.Tensor:
    counter = norm.num_batches_tracked
    assert counter is not None, "a layer that tracks running statistics counts its batches"
    return counter
