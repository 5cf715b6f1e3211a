"""Measure what every unit of a model costs in seconds, on a real device."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from tqdm.auto import tqdm

from psl.errors import check_count
from psl.models.flops import profile
from psl.models.tracing import TracedModel, trace
from psl.profiles import Profile


def measure(
    model: nn.Module,
    example: tuple[int, ...],
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    repeats: int = 10,
    warmup: int = 2,
    progress: bool = False,
) -> Profile:
    """Measure the forward and backward seconds of every unit of a model on a device.

    The whole model runs as it does in training. A clock is read at each cut, in the forward pass and, by a gradient
    hook, in the backward pass. The result holds each unit's median over `repeats`. Reading the clock
    takes time as well. Passes without clock readings are timed in between, and the difference is subtracted from all
    units in equal parts.

    Args:
        model: `nn.Module` with one input and one output that torch.fx can trace; a copy is run, in train mode.
        example: shape of one sample, for example ``(3, 224, 224)``.
        batch_size: samples per pass, at least 2; seconds are divided by it.
        device: where to run, for example ``"cpu"`` or ``"cuda"``.
        repeats: passes that count.
        warmup: passes before them that do not count.
        progress: show a progress bar.

    Returns:
        A measured `Profile` (``unit="s"``): seconds per sample on this device in place of FLOP. Bits and memory are
        those of `psl.profile`.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.
        ScenarioError: `batch_size` or `repeats` is out of range.

    Source: ours [R]; the papers take measured tables as given.
    """
    return UnitTimer(device).measure(
        model, example, batch_size=batch_size, repeats=repeats, warmup=warmup, progress=progress
    )


@dataclass(frozen=True)
class UnitTimer:
    """How the units of a model are timed.

    Args:
        device: where to run.
        clock: returns seconds, for example `time.perf_counter`; or `time.thread_time`, the computing time of this
            thread, for one torch thread on the CPU of a machine that does other work too.
        before: called before every forward and backward pass, outside the time.
        average: over the passes: `numpy.median`, which outliers do not move, or `numpy.mean`.
    """

    device: str | torch.device = "cpu"
    clock: Callable[[], float] = time.perf_counter
    before: Callable[[], object] | None = None
    average: Callable[..., Any] = np.median

    def measure(
        self,
        model: nn.Module,
        example: tuple[int, ...],
        *,
        batch_size: int,
        repeats: int = 10,
        warmup: int = 2,
        progress: bool = False,
    ) -> Profile:
        """Return the measured profile of a model; arguments and errors are those of `measure`."""
        check_count("batch_size", batch_size, minimum=2)
        check_count("repeats", repeats)
        counted = profile(model, example)
        run = _Stopwatch(trace(copy.deepcopy(model).to(self.device).train()), self)
        x = torch.randn(batch_size, *example, device=self.device)
        tables, wholes = [], []
        for k in tqdm(range(warmup + repeats), desc="measure", disable=not progress):
            table, whole = run.one_pass(x), run.plain_pass(x)
            if k >= warmup:
                tables.append(table)
                wholes.append(whole)
        units = self.average(tables, axis=0)  # (2, L+1)
        excess = units.sum(axis=1) - self.average(wholes, axis=0)  # (2,)
        forward, backward = _without(units, excess) / batch_size
        # The last layer's share of its unit's time is its share of the unit's operations.
        operations = np.diff(counted.bwd_cost, prepend=0.0)
        unit = int(np.flatnonzero(operations)[-1]) if operations.any() else 0
        last = backward[unit] * counted.last_bwd_cost / operations[unit] if unit else 0.0
        seconds = {"fwd_cost": np.cumsum(forward), "bwd_cost": np.cumsum(backward), "last_bwd_cost": last}
        return replace(counted, **seconds, unit="s")


def _without(units: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Return (2, L+1) seconds less the (2,) excess of their sums, in equal parts; every unit keeps a tenth at least."""
    kept = units.copy()
    for row, left in zip(kept, excess, strict=True):
        order = np.argsort(row[1:]) + 1  # the smallest first: what is too much for them is shared by the others
        for n, unit in enumerate(order):
            part = min(max(left, 0.0) / (len(order) - n), 0.9 * row[unit])
            row[unit] -= part
            left -= part
    return kept


class _Stopwatch(fx.Interpreter):
    """Runs a model node by node and reads the clock at every cut."""

    def __init__(self, traced: TracedModel, timer: UnitTimer):
        super().__init__(traced.model, graph=traced.graph)
        self.device = torch.device(timer.device)
        for name, tensor in traced.constants.items():
            setattr(self.module, name, tensor.to(self.device))
        self.cut_index = {node: j for j, node in enumerate(traced.cut_nodes)}
        self.clock, self.before = timer.clock, timer.before or (lambda: None)
        self.passed = self.returned = np.zeros(len(traced.cut_nodes))  # when each cut was passed in the current pass

    def _read(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock()

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.cut_index:
            j = self.cut_index[node]
            self.passed[j] = self._read()
            if value.requires_grad:
                # Called when the gradient of this cut is ready, even if the next unit overwrites the value in place.
                value.register_hook(lambda _: self.returned.__setitem__(j, self._read()))
        return value

    def one_pass(self, x: torch.Tensor) -> np.ndarray:
        """Return (2, L+1) seconds: forward and backward of each unit, 0 for the input."""
        last = len(self.cut_index) - 1
        self.passed, self.returned = np.zeros(last + 1), np.full(last + 1, np.nan)
        self.before()
        output = self.run(x)
        self.before()
        if output.requires_grad:  # a frozen model has no backward pass
            output.backward(torch.ones_like(output))
        self.returned[0] = self._read()
        self.module.zero_grad(set_to_none=True)
        # A unit without a gradient hook (nothing before it is trained) takes no time of its own.
        for j in range(1, last + 1):
            if np.isnan(self.returned[j]):
                self.returned[j] = self.returned[0]
        forward = np.diff(self.passed, prepend=self.passed[0])
        backward = -np.diff(self.returned, prepend=self.returned[0])
        return np.maximum([forward, backward], 0.0)

    def plain_pass(self, x: torch.Tensor) -> np.ndarray:
        """Return (2,) seconds: forward and backward of the whole model, without clocks inside."""
        self.before()
        begin = self._read()
        output = self.module(x)
        forward = self._read() - begin
        self.before()
        begin = self._read()
        if output.requires_grad:
            output.backward(torch.ones_like(output))
        backward = self._read() - begin
        self.module.zero_grad(set_to_none=True)
        return np.array([forward, backward])
