"""Measure what every unit of a model costs in seconds, on a real device."""

import copy
import time

import numpy as np
import torch
from torch import fx, nn
from tqdm.auto import tqdm

from psl.errors import check_count
from psl.models.counting import profile
from psl.models.tracing import TracedModel, trace
from psl.profiles import Profile


def measure(
    model: nn.Module,
    input_shape: tuple[int, ...],
    *,
    batch_size: int,
    device: str | torch.device = "cpu",
    repeats: int = 10,
    warmup: int = 2,
    progress: bool = False,
) -> Profile:
    """Measure the forward and backward seconds of every unit of a model on a device.

    The whole model runs as it does in training; a clock is read where each cut is passed, forwards
    and (by a gradient hook) backwards. Per unit the median over `repeats` is kept.

    Args:
        model: single-input, single-output `nn.Module` that torch.fx can trace; a copy is run, in
            train mode.
        input_shape: shape of one sample.
        batch_size: samples per pass; seconds are divided by it.
        device: where to run, for example ``"cpu"`` or ``"cuda"``.
        repeats, warmup: passes that count, and passes before them that do not.
        progress: show a progress bar.

    Returns:
        A measured `Profile` (``unit="s"``): seconds per sample on this device in place of FLOP. Bits
        and memory are those of `psl.profile`.

    Raises:
        CutError: the model cannot be traced, or `input_shape` does not fit it.
    """
    check_count("batch_size", batch_size, minimum=2)
    check_count("repeats", repeats)
    counted = profile(model, input_shape)
    traced = trace(copy.deepcopy(model).to(device).train())
    run = _Stopwatch(traced, torch.device(device))
    x = torch.randn(batch_size, *input_shape, device=device)
    tables = []
    for k in tqdm(range(warmup + repeats), desc="measure", disable=not progress):
        table = run.one_pass(x)
        if k >= warmup:
            tables.append(table)
    forward, backward = np.median(tables, axis=0) / batch_size  # (L+1,) each
    # The last layer's share of its unit's time is its share of the unit's operations.
    operations = np.diff(counted.bwd_flops, prepend=0.0)
    unit = int(np.flatnonzero(operations)[-1]) if operations.any() else 0
    last = backward[unit] * counted.last_bwd_flops / operations[unit] if unit else 0.0
    return Profile.measured(
        counted.names, np.cumsum(forward), np.cumsum(backward), counted.act_bits, counted.grad_bits,
        counted.param_bits, counted.act_memory, last_bwd_seconds=last,
    )  # fmt: skip


class _Stopwatch(fx.Interpreter):
    """Runs a model node by node and reads the clock at every cut."""

    def __init__(self, traced: TracedModel, device: torch.device):
        super().__init__(traced.model, graph=traced.graph)
        for name, tensor in traced.constants.items():
            setattr(self.module, name, tensor.to(device))
        self.cut_index = {node: j for j, node in enumerate(traced.cut_nodes)}
        self.device = device

    def _read(self) -> float:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

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
        output = self.run(x)
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
