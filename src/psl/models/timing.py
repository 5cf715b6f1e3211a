"""Measure what every unit of a model costs in seconds, on a real device."""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import fx, nn
from tqdm.auto import tqdm

from psl.errors import check_choice, check_count
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
    clock: str = "wall",
    before: Callable[[], object] | None = None,
    average: str = "median",
) -> Profile:
    """Measure the forward and backward seconds of every unit of a model on a device.

    The whole model runs as it does in training; a clock is read where each cut is passed, forwards
    and (by a gradient hook) backwards. Per unit the average over `repeats` is kept. Reading clocks takes time too:
    passes without are timed in between, and what they take less is taken off the units in equal parts.

    Args:
        model: single-input, single-output `nn.Module` that torch.fx can trace; a copy is run, in
            train mode.
        example: shape of one sample.
        batch_size: samples per pass; seconds are divided by it.
        device: where to run, for example ``"cpu"`` or ``"cuda"``.
        repeats, warmup: passes that count, and passes before them that do not.
        progress: show a progress bar.
        clock: "wall"; or "cpu": the computing time of this thread, for one torch thread on the CPU of a machine that
            does other work too.
        before: called before every forward and backward pass, outside the time, such as something that idles as
            devices do that wait for one another.
        average: "median", which outliers do not move; or "mean", which sums of many passes tend to.

    Returns:
        A measured `Profile` (``unit="s"``): seconds per sample on this device in place of FLOP. Bits
        and memory are those of `psl.profile`.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.
    """
    check_count("batch_size", batch_size, minimum=2)
    check_count("repeats", repeats)
    check_choice("clock", clock, ("wall", "cpu"))
    middle = {"median": np.median, "mean": np.mean}[check_choice("average", average, ("median", "mean"))]
    counted = profile(model, example)
    traced = trace(copy.deepcopy(model).to(device).train())
    run = _Stopwatch(traced, torch.device(device), clock, before)
    x = torch.randn(batch_size, *example, device=device)
    tables, wholes = [], []
    for k in tqdm(range(warmup + repeats), desc="measure", disable=not progress):
        table, whole = run.one_pass(x), run.plain_pass(x)
        if k >= warmup:
            tables.append(table)
            wholes.append(whole)
    units = middle(tables, axis=0)  # (2, L+1)
    forward, backward = _without(units, units.sum(axis=1) - middle(wholes, axis=0)) / batch_size
    # The last layer's share of its unit's time is its share of the unit's operations.
    operations = np.diff(counted.bwd_cost, prepend=0.0)
    unit = int(np.flatnonzero(operations)[-1]) if operations.any() else 0
    last = backward[unit] * counted.last_bwd_cost / operations[unit] if unit else 0.0
    return Profile.measured(
        counted.names, np.cumsum(forward), np.cumsum(backward), counted.act_bits, counted.grad_bits,
        counted.param_bits, counted.act_memory, last_bwd_seconds=last,
    )  # fmt: skip


def _without(units: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Return (2, L+1) seconds less the (2,) excess of their sums, in equal parts; every unit keeps a tenth at least."""
    kept = units.copy()
    for row, left in zip(kept, excess, strict=True):
        order = np.argsort(row[1:]) + 1  # small ones first: what they cannot bear is shared by the others
        for n, unit in enumerate(order):
            part = min(max(left, 0.0) / (len(order) - n), 0.9 * row[unit])
            row[unit] -= part
            left -= part
    return kept


class _Stopwatch(fx.Interpreter):
    """Runs a model node by node and reads the clock at every cut."""

    def __init__(self, traced: TracedModel, device: torch.device, clock: str, before: Callable | None):
        super().__init__(traced.model, graph=traced.graph)
        for name, tensor in traced.constants.items():
            setattr(self.module, name, tensor.to(device))
        self.cut_index = {node: j for j, node in enumerate(traced.cut_nodes)}
        self.device, self.before = device, before or (lambda: None)
        self.clock = time.perf_counter if clock == "wall" else time.thread_time

    def _read(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return self.clock()

    def run_node(self, node):
        value = super().run_node(node)
        if node in self.cut_index:
            j = self.cut_index[node]
            self.passed[j] = self._read()
            if value.requires_grad:
                # Called when the gradient of this cut is ready, also if the next unit overwrites
                # the value in place.
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
        """Return (2,) seconds: forward and backward of the whole model, run as it is."""
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
