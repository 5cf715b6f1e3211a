"""The profile of a model: what each cut costs, as plain arrays. Knows nothing of torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl import html
from psl.errors import check_array, check_number, expected
from psl.profile_tables import Table, read_layers
from psl.records import Record

_SHOWN = 12  # cuts that a notebook shows


@dataclass(frozen=True, repr=False, eq=False)
class Profile(Record):
    """Cost of a model per sample, cumulative from the input through each cut j = 0..L.

    Args:
        names: L+1 names of the cuts; the first is the raw input, the last the output.
        fwd_cost: (L+1,) ρ_j, FLOP (or seconds, see `unit`) of the forward pass of units 1..j; one multiply-add
            is 2 FLOP.
        bwd_cost: (L+1,) ϖ_j, the same of the backward pass.
        act_bits: (L+1,) ψ_j, bits of the activation at cut j.
        grad_bits: (L+1,) χ_j, bits of its gradient.
        param_bits: (L+1,) δ_j, bits of what an exchange of units 1..j sends (per model, not per sample): trainable
            parameters and floating-point buffers.
        act_memory: (L+1,) a_j, bytes of activations that units 1..j keep for their backward pass.
        last_bwd_cost: ϖ_last, the backward pass of the last layer alone.
        unit: ``"FLOP"``, or ``"s"`` for a measured profile: seconds on a reference device in place
            of FLOP. A node of speed 1.0 is then that device, one of speed 0.5 half as fast.
        param_memory: (L+1,) π_j, bytes that the weights of units 1..j take, with gradients and optimizer state of what
            trains; None for 3 δ_j / 8, where all of it trains: it then follows `param_bits`, also in a replaced copy.
        step_cost: (L+1,) σ_j, what one step of the optimizer on units 1..j costs, in the same unit; not per sample, but
            once for every mini-batch. None for nothing.

    A model whose first units are frozen has ϖ_j, χ_j and δ_j of 0 up to the first cut behind a weight that trains.

    Raises:
        ScenarioError: wrong lengths, NaN, negative entries, or cumulative arrays that decrease or do not
            start at 0.

    Source: EPSL (arXiv 2303.15991): costs per cut [P]; their definition [R].
    """

    names: tuple[str, ...]
    fwd_cost: np.ndarray
    bwd_cost: np.ndarray
    act_bits: np.ndarray
    grad_bits: np.ndarray
    param_bits: np.ndarray
    act_memory: np.ndarray
    last_bwd_cost: float = 0.0
    unit: str = "FLOP"
    param_memory: np.ndarray | None = None
    step_cost: np.ndarray | None = None

    def __post_init__(self) -> None:
        names = tuple(str(name) for name in self.names)
        self._set(names=names)
        if len(names) < 2:
            raise expected("Profile.names", "at least 2 cuts, input and output", len(names), "name every cut")
        if self.unit not in ("FLOP", "s"):
            raise expected("Profile.unit", "'FLOP' or 's'", repr(self.unit), "use Profile.measured for seconds")
        fix = "give one entry per cut, L+1 in all, per sample, starting with the raw input"
        given = [name for name in ("param_memory", "step_cost") if getattr(self, name) is not None]
        for field in ("fwd_cost", "bwd_cost", "act_bits", "grad_bits", "param_bits", "act_memory", *given):
            array = check_array(f"Profile.{field}", getattr(self, field), shape=(len(names),), minimum=0, fix=fix)
            self._set(**{field: array})
            if not field.endswith("_bits") or field == "param_bits":
                _check_cumulative(f"Profile.{field}", array)
        last = check_number("Profile.last_bwd_cost", self.last_bwd_cost, minimum=0)
        if last > self.bwd_cost[-1] * (1 + 1e-9):
            fix = "give the backward cost of the last layer alone"
            want = f"at most bwd_cost[-1] = {self.bwd_cost[-1]:g}"
            raise expected("Profile.last_bwd_cost", want, f"{last:g}", fix)
        self._set(last_bwd_cost=last)

    @classmethod
    def measured(
        cls,
        names: Iterable[Any],
        fwd_seconds: ArrayLike,
        bwd_seconds: ArrayLike,
        act_bits: ArrayLike,
        grad_bits: ArrayLike | None = None,
        param_bits: ArrayLike | None = None,
        act_memory: ArrayLike | None = None,
        last_bwd_seconds: float = 0.0,
        param_memory: ArrayLike | None = None,
        step_seconds: ArrayLike | None = None,
    ) -> Self:
        """Build a profile from measured seconds per sample, cumulative like FLOP.

        Args:
            names, act_bits, grad_bits, param_bits, act_memory, param_memory: as in `Profile`; `grad_bits` defaults
                to `act_bits`, `param_bits` and `act_memory` to zeros, `param_memory` to 3 δ_j / 8.
            fwd_seconds, bwd_seconds: (L+1,) seconds per sample on the reference device, cumulative.
                For a table per layer use ``numpy.cumsum`` with a leading 0.
            last_bwd_seconds: seconds per sample of the last layer's backward pass.
            step_seconds: (L+1,) seconds of an optimizer step on units 1..j, per mini-batch; default none.

        Raises:
            ScenarioError: as `Profile`.

        Source: ours [B]; EPSL (arXiv 2303.15991) counts FLOP.
        """
        names = tuple(names)
        zeros = np.zeros(len(names))
        fields: dict[str, Any] = {
            "names": names,
            "fwd_cost": fwd_seconds,
            "bwd_cost": bwd_seconds,
            "act_bits": act_bits,
            "grad_bits": act_bits if grad_bits is None else grad_bits,
            "param_bits": zeros if param_bits is None else param_bits,
            "act_memory": zeros if act_memory is None else act_memory,
            "last_bwd_cost": last_bwd_seconds,
            "param_memory": param_memory,
            "step_cost": step_seconds,
        }
        return cls(**fields, unit="s")

    @classmethod
    def from_table(cls, table: Table, *, batch_size: int = 1, input_bits: float = 0.0) -> Self:
        """Read a table of measured times per layer, made by another tool, into a measured profile.

        One row per layer, in the order of the computation, *not* cumulative:

        ======================================  ========================================================================
        ``name``                                of the layer; the cut behind it gets this name
        ``fwd_s`` | ``fwd_ms`` | ``fwd_us``     time of its forward pass for the batch
        ``bwd_s`` | ``bwd_ms`` | ``bwd_us``     time of its backward pass for the batch
        ``step_s`` | ``step_ms`` | ``step_us``  time of the optimizer's step on its parameters; by default none. Also
                                                ``optimizer_s``, ``optimizer_ms``, ``optimizer_us``
        ``act_bits`` | ``act_bytes``            its output for the batch
        ``grad_bits`` | ``grad_bytes``          gradient of its output for the batch; by default as large as the output
        ``param_bits`` | ``param_bytes``        its parameters, as far as they are sent; by default none
        ``param_memory_bytes``                  its weights, with gradients and optimizer state of what trains; by
                                                default three times its parameters
        ``memory_bytes``                        what it keeps for its backward pass for the batch; by default its output
        ======================================  ========================================================================

        A first row named ``input`` (``Input0``, ...) is the raw input: it gives the bits of cut 0, and the time it took
        to load is left out. Other columns are ignored. A file that holds PipeDream's profiler output (``graph.txt``) is
        recognised: per layer ``node3 -- Conv2d(...) -- forward_compute_time=1.5, backward_compute_time=3.1,
        activation_size=802816.0, parameter_size=7168.0`` in milliseconds and bytes, per edge ``node3 -- node4``. Layers
        between two points that every path passes become one unit, so residual blocks stay whole.

        Args:
            table: path of a CSV file (separated by commas, semicolons or tabs, with decimal points) or of a PipeDream
                graph, or a `pandas.DataFrame`.
            batch_size: samples per batch in the measurement; times, activations and memory are divided by it.
            input_bits: bits of one raw sample, where the table has no row for the input; refused where it has one.

        Raises:
            ScenarioError: the file cannot be read, a column is missing or given in two units, an entry is no number,
                NaN or negative, or a graph has several inputs or outputs or a cycle.

        Source: ours [B]; the graph's format and units: PipeDream (arXiv 1806.03377) and its published code.
        """
        return cls.measured(**read_layers(table, batch_size, input_bits))

    @property
    def n_units(self) -> int:
        """L, the number of units; cuts are numbered 0..L."""
        return len(self.names) - 1

    @property
    def steps(self) -> np.ndarray:
        """(L+1,) σ_j, `step_cost`, or zeros."""
        return np.zeros(len(self.names)) if self.step_cost is None else self.step_cost

    def training_memory(self, samples: int) -> np.ndarray:
        """Return (L+1,) bytes that training units 1..j takes: π_j + samples × a_j.

        Without `param_memory` weights, their gradients and one value of optimizer state each take δ_j / 8 bytes; every
        sample whose backward pass is still to come keeps its activations. What units i+1..j take is the difference of
        two entries.

        Args:
            samples: whose activations are kept at a time; 0 for the parameters' part alone.

        Source: the usual account of training memory [R].
        """
        memory = 3 * self.param_bits / 8 if self.param_memory is None else self.param_memory
        return memory + samples * self.act_memory

    def cut_index(self, cut: int | str) -> int:
        """Return the number of a cut given by number or name; raises `ScenarioError` for none, or for several."""
        numbers = [j for j, name in enumerate(self.names) if name == cut] if isinstance(cut, str) else []
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            got = f"{cut!r}, the name of cuts {', '.join(map(str, numbers))}"
            raise expected("cut", "a name that only one cut has", got, "pass the number of the one you mean")
        if isinstance(cut, int | float | np.integer | np.floating) and not isinstance(cut, bool):
            within = 0 <= cut <= self.n_units  # NaN is not
            if within and int(cut) == cut:
                return int(cut)
        want = f"a number 0..{self.n_units} or a name such as {self.names[min(1, self.n_units)]!r}"
        raise expected("cut", want, repr(cut), "see profile.names")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cut with the cumulative arrays; index is the cut number."""
        time = "flops" if self.unit == "FLOP" else "seconds"
        columns = {
            "name": self.names,
            f"fwd_{time}": self.fwd_cost,
            f"bwd_{time}": self.bwd_cost,
            "act_bits": self.act_bits,
            "grad_bits": self.grad_bits,
            "param_bits": self.param_bits,
            "act_memory_bytes": self.act_memory,
            "param_memory_bytes": self.training_memory(0),
        }
        if self.step_cost is not None:
            columns[f"step_{time}"] = self.step_cost
        return pd.DataFrame(columns).rename_axis("cut")

    def __repr__(self) -> str:
        if self.unit == "FLOP":
            cost = f"{self.fwd_cost[-1] / 1e9:.4g} GFLOP forward, {self.bwd_cost[-1] / 1e9:.4g} GFLOP backward"
        else:
            cost = f"{self.fwd_cost[-1]:.3g} s forward, {self.bwd_cost[-1]:.3g} s backward (measured)"
        parameters = f"{self.param_bits[-1] / 8e6:.4g} MB of parameters"
        return f"Profile({self.n_units} units, {cost} per sample, {parameters})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the ends and the cuts that send least, with what the device computes."""
        sent, cost = self.act_bits + self.grad_bits, self.fwd_cost + self.bwd_cost
        lightest = (1 + np.argsort(sent[1:-1], kind="stable")).tolist()
        chosen = html.some(len(self.names), [0, self.n_units, *lightest], _SHOWN)
        rows = []
        for j in chosen:
            part = html.share(cost[j], cost[-1])
            bits = self.act_bits[j] / 1e6, self.grad_bits[j] / 1e6
            rows.append([j, self.names[j], *bits, html.percent(part), html.Bar([part])])
        work = "FLOP" if self.unit == "FLOP" else "seconds"
        header = ["cut", "name", "Mbit up per sample", "Mbit down", f"{work} before the cut", ""]
        out = len(self.names) - len(chosen)
        note = f"{out} cuts are left out; each sends at least as much as any inner cut that is shown" if out else ""
        return html.table(repr(self), header, rows, note=note)


def _check_cumulative(name: str, array: np.ndarray) -> None:
    fix = "make the array cumulative: entry j sums units 1..j, entry 0 is 0"
    if array[0] != 0:
        raise expected(name, "0 at entry 0", f"{array[0]:g}", fix)
    falls = np.flatnonzero(np.diff(array) < 0)
    if falls.size:
        raise expected(name, "a cumulative array that never falls", f"a fall at entry {falls[0] + 1}", fix)
