"""The profile of a model: what each cut costs, as plain arrays. Knows nothing of torch."""

import re
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pandas as pd

from psl.errors import ScenarioError, check_array, check_count, check_number, expected
from psl.records import Record

#: Columns that `Profile.from_table` reads: the names a quantity may have, each with its factor to s, bits or bytes.
TABLE_COLUMNS = {
    "forward time": {"fwd_s": 1.0, "fwd_ms": 1e-3, "fwd_us": 1e-6},
    "backward time": {"bwd_s": 1.0, "bwd_ms": 1e-3, "bwd_us": 1e-6},
    "activation": {"act_bits": 1.0, "act_bytes": 8.0},
    "gradient": {"grad_bits": 1.0, "grad_bytes": 8.0},
    "parameters": {"param_bits": 1.0, "param_bytes": 8.0},
    "memory": {"memory_bytes": 1.0},
}
_NEEDED = ("forward time", "backward time", "activation")
_PIPEDREAM_NODE = re.compile(
    r"(?P<id>\S+) -- (?P<what>.+) -- forward_compute_time=(?P<fwd_ms>\S+), backward_compute_time=(?P<bwd_ms>\S+), "
    r"activation_size=(?P<act_bytes>[^\s,]+), parameter_size=(?P<param_bytes>[^\s,]+)"
)
_PIPEDREAM_EDGE = re.compile(r"\s*(?P<tail>\S+) -- (?P<head>\S+)")


@dataclass(frozen=True, repr=False, eq=False)
class Profile(Record):
    """Cost of a model per sample, cumulative from the input through each cut j = 0..L.

    Args:
        names: L+1 names of the cuts; the first is the raw input, the last the output.
        fwd_flops: (L+1,) ρ_j, FLOP of the forward pass of units 1..j; one multiply-add is 2 FLOP.
        bwd_flops: (L+1,) ϖ_j, FLOP of the backward pass of units 1..j.
        act_bits: (L+1,) ψ_j, bits of the activation at cut j.
        grad_bits: (L+1,) χ_j, bits of its gradient.
        param_bits: (L+1,) δ_j, bits of the parameters of units 1..j (per model, not per sample).
        act_memory: (L+1,) a_j, bytes of activations that units 1..j keep for their backward pass.
        last_bwd_flops: ϖ_last, backward FLOP of the last layer alone.
        unit: ``"FLOP"``, or ``"s"`` for a measured profile: seconds on a reference device in place
            of FLOP. A node of speed 1.0 is then that device, one of speed 0.5 half as fast.

    Raises:
        ScenarioError: wrong lengths, NaN, negative entries, or cumulative arrays that fall or do not
            start at 0.

    Source: EPSL (arXiv 2303.15991): costs per cut [P]; their definition [R].
    """

    names: tuple[str, ...]
    fwd_flops: np.ndarray
    bwd_flops: np.ndarray
    act_bits: np.ndarray
    grad_bits: np.ndarray
    param_bits: np.ndarray
    act_memory: np.ndarray
    last_bwd_flops: float = 0.0
    unit: str = "FLOP"

    def __post_init__(self):
        names = tuple(str(name) for name in self.names)
        object.__setattr__(self, "names", names)
        if len(names) < 2:
            raise expected("Profile.names", "at least 2 cuts, input and output", len(names), "name every cut")
        if self.unit not in ("FLOP", "s"):
            raise expected("Profile.unit", "'FLOP' or 's'", repr(self.unit), "use Profile.measured for seconds")
        fix = "give one entry per cut, L+1 in all, per sample, starting with the raw input"
        for field in ("fwd_flops", "bwd_flops", "act_bits", "grad_bits", "param_bits", "act_memory"):
            array = check_array(f"Profile.{field}", getattr(self, field), shape=(len(names),), minimum=0, fix=fix)
            object.__setattr__(self, field, array)
            if not field.endswith("_bits") or field == "param_bits":
                _check_cumulative(f"Profile.{field}", array)
        last = check_number("Profile.last_bwd_flops", self.last_bwd_flops, minimum=0)
        if last > self.bwd_flops[-1] * (1 + 1e-9):
            raise expected(
                "Profile.last_bwd_flops",
                f"at most bwd_flops[-1] = {self.bwd_flops[-1]:g}",
                f"{last:g}",
                "give the backward cost of the last layer alone",
            )
        object.__setattr__(self, "last_bwd_flops", last)

    @classmethod
    def measured(
        cls,
        names,
        fwd_seconds,
        bwd_seconds,
        act_bits,
        grad_bits=None,
        param_bits=None,
        act_memory=None,
        last_bwd_seconds=0.0,
    ) -> "Profile":
        """Build a profile from measured seconds per sample, cumulative like FLOP.

        Args:
            names, act_bits, grad_bits, param_bits, act_memory: as in `Profile`; `grad_bits` defaults
                to `act_bits`, the other two to zeros.
            fwd_seconds, bwd_seconds: (L+1,) seconds per sample on the reference device, cumulative.
                For a table per layer use ``numpy.cumsum`` with a leading 0.
            last_bwd_seconds: seconds per sample of the last layer's backward pass.

        Source: ours [B]; EPSL (arXiv 2303.15991) counts FLOP.
        """
        zeros = np.zeros(len(tuple(names)))
        return cls(
            names, fwd_seconds, bwd_seconds, act_bits,
            act_bits if grad_bits is None else grad_bits,
            zeros if param_bits is None else param_bits,
            zeros if act_memory is None else act_memory,
            last_bwd_seconds, unit="s",
        )  # fmt: skip

    @classmethod
    def from_table(cls, table, *, batch_size: int = 1, input_bits: float = 0.0) -> "Profile":
        """Read a table of measured times per layer, made by another tool, into a measured profile.

        One row per layer, in the order of the computation, *not* cumulative:

        ======================================  ========================================================================
        ``name``                                of the layer; the cut behind it gets this name
        ``fwd_s`` | ``fwd_ms`` | ``fwd_us``     time of its forward pass for the batch
        ``bwd_s`` | ``bwd_ms`` | ``bwd_us``     time of its backward pass for the batch
        ``act_bits`` | ``act_bytes``            its output for the batch
        ``grad_bits`` | ``grad_bytes``          gradient of its output for the batch; by default as large as the output
        ``param_bits`` | ``param_bytes``        its parameters; by default none
        ``memory_bytes``                        what it keeps for its backward pass for the batch; by default its output
        ======================================  ========================================================================

        A first row named ``input`` (``Input0``, ...) is the raw input: it gives the bits of cut 0, and the time it took
        to load is left out. Other columns are ignored. A file that holds PipeDream's profiler output (``graph.txt``) is
        recognised: per layer ``node3 -- Conv2d(...) -- forward_compute_time=1.5, backward_compute_time=3.1,
        activation_size=802816.0, parameter_size=7168.0`` in milliseconds and bytes, per edge ``node3 -- node4``. Layers
        between two points that every path passes become one unit, so residual blocks stay whole.

        Args:
            table: path of a CSV or tab-separated file or of a PipeDream graph, or a `pandas.DataFrame`.
            batch_size: samples per batch in the measurement; times, activations and memory are divided by it.
            input_bits: bits of one raw sample, where the table has no row for the input.

        Raises:
            ScenarioError: the file cannot be read, a column is missing or given in two units, an entry is no number,
                NaN or negative, or a graph has several inputs or outputs or a cycle.

        Source: ours [B]; the graph's format and units: PipeDream (arXiv 1806.03377) and its published code.
        """
        batch_size = check_count("batch_size", batch_size, fix="give the samples per batch of the measurement")
        frame = table if isinstance(table, pd.DataFrame) else _read_table(table)
        if "name" not in frame.columns or not len(frame):
            got = f"columns {', '.join(map(str, frame.columns)) or 'none'} and {len(frame)} rows"
            raise expected("table", "a column 'name' and a row per layer", got, "name every layer in column 'name'")
        names = [str(name).strip() for name in frame["name"]]
        has_input = re.fullmatch(r"(?i)input\d*", names[0]) is not None and len(names) > 1
        take = lambda what, default: _table_column(frame, what, default)  # noqa: E731
        forward, backward = take("forward time", None) / batch_size, take("backward time", None) / batch_size
        activation = take("activation", None) / batch_size
        gradient = take("gradient", activation * batch_size) / batch_size
        memory = take("memory", activation * batch_size / 8) / batch_size
        parameters = take("parameters", np.zeros(len(frame)))
        if has_input:
            forward, backward, parameters, memory = (x[1:] for x in (forward, backward, parameters, memory))
        else:
            start = check_number("input_bits", input_bits, minimum=0)
            names = ["input", *names]
            activation, gradient = np.append(start, activation), np.append(start, gradient)
        from_zero = lambda values: np.append(0.0, np.cumsum(values))  # noqa: E731
        return cls.measured(
            names, from_zero(forward), from_zero(backward), activation, gradient, from_zero(parameters),
            from_zero(memory), float(backward[-1]),
        )  # fmt: skip

    @property
    def n_units(self) -> int:
        """L, the number of units; cuts are numbered 0..L."""
        return len(self.names) - 1

    def cut_index(self, cut: int | str) -> int:
        """Return the number of a cut given by number or name; raises `ScenarioError` if there is none."""
        if isinstance(cut, str):
            if cut in self.names:
                return self.names.index(cut)
        elif (
            isinstance(cut, int | float | np.integer | np.floating) and not isinstance(cut, bool)
            and 0 <= cut <= self.n_units and int(cut) == cut  # NaN is in no range
        ):  # fmt: skip
            return int(cut)
        raise expected(
            "cut",
            f"a number 0..{self.n_units} or a name such as {self.names[min(1, self.n_units)]!r}",
            repr(cut),
            "see profile.names",
        )

    def to_frame(self) -> pd.DataFrame:
        """Return one row per cut with the cumulative arrays; index is the cut number."""
        time = "flops" if self.unit == "FLOP" else "seconds"
        columns = {
            "name": self.names, f"fwd_{time}": self.fwd_flops, f"bwd_{time}": self.bwd_flops,
            "act_bits": self.act_bits, "grad_bits": self.grad_bits, "param_bits": self.param_bits,
            "act_memory_bytes": self.act_memory,
        }  # fmt: skip
        return pd.DataFrame(columns).rename_axis("cut")

    def __repr__(self):
        if self.unit == "FLOP":
            cost = f"{self.fwd_flops[-1] / 1e9:.4g} GFLOP forward, {self.bwd_flops[-1] / 1e9:.4g} GFLOP backward"
        else:
            cost = f"{self.fwd_flops[-1]:.3g} s forward, {self.bwd_flops[-1]:.3g} s backward (measured)"
        parameters = f"{self.param_bits[-1] / 8e6:.4g} MB of parameters"
        return f"Profile({self.n_units} units, {cost} per sample, {parameters})"


def _check_cumulative(name: str, array: np.ndarray) -> None:
    fix = "make the array cumulative: entry j sums units 1..j, entry 0 is 0"
    if array[0] != 0:
        raise expected(name, "0 at entry 0", f"{array[0]:g}", fix, ScenarioError)
    falls = np.flatnonzero(np.diff(array) < 0)
    if falls.size:
        raise expected(name, "a cumulative array that never falls", f"a fall at entry {falls[0] + 1}", fix)


def _table_column(frame: pd.DataFrame, what: str, default: np.ndarray | None) -> np.ndarray:
    """Return one quantity of a table in s, bits or bytes, from whichever of its columns is there."""
    choices = TABLE_COLUMNS[what]
    found = [name for name in choices if name in frame.columns]
    if not found and default is not None:
        return default
    if len(found) != 1:
        got = ", ".join(found) if found else f"only {', '.join(map(str, frame.columns))}"
        fix = "keep one of them" if found else "rename the column that holds it"
        raise expected(f"{what} of the table", f"one column out of {', '.join(choices)}", got, fix)
    fix = "give one measured number per layer, not cumulative"
    return check_array(f"column {found[0]!r}", frame[found[0]], minimum=0, fix=fix) * choices[found[0]]


def _read_table(path) -> pd.DataFrame:
    fix = "pass the path of a CSV or tab-separated file with a heading, or of a PipeDream graph.txt"
    try:
        text = Path(path).read_text()
    except (OSError, TypeError, UnicodeDecodeError) as cause:
        raise expected("table", "a readable text file or a DataFrame", f"{path!r} ({cause})", fix) from cause
    if " -- forward_compute_time=" in text:
        return _read_pipedream(text)
    try:
        return pd.read_csv(Path(path), sep="\t" if "\t" in text.partition("\n")[0] else ",", skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as cause:
        raise expected(f"table {str(path)!r}", "columns with a heading", str(cause), fix) from cause


def _read_pipedream(text: str) -> pd.DataFrame:
    """Return one row per unit of a PipeDream graph: cuts are the nodes that every path passes."""
    nodes, before = {}, {}
    for number, line in enumerate(text.splitlines(), 1):
        if match := _PIPEDREAM_NODE.match(line.strip()):
            row = match.groupdict()
            key = row.pop("id")
            nodes[key] = row
            before.setdefault(key, set())
        elif match := _PIPEDREAM_EDGE.fullmatch(line.rstrip()):
            before.setdefault(match["head"], set()).add(match["tail"])
        elif line.strip():
            fix = "pass the graph.txt as the profiler wrote it"
            raise expected(f"line {number} of the graph", "a node or an edge", repr(line[:60]), fix)
    if unknown := set().union(before, *before.values()) - set(nodes):
        raise expected("graph", "a line for every node", f"none for {min(unknown)}", "add the node's line")
    try:
        order = list(TopologicalSorter(before).static_order())
    except CycleError as cause:
        raise expected("graph", "no cycle", " -> ".join(cause.args[1]), "remove an edge") from cause
    place = {node: k for k, node in enumerate(order)}
    last_use = dict(place)  # place of the last reader
    for head, tails in before.items():
        for tail in tails:
            last_use[tail] = max(last_use[tail], place[head])
    starts = [node for node in order if not before[node]]
    ends = [node for node in order if last_use[node] == place[node]]
    if len(starts) != 1 or len(ends) != 1:
        got = f"inputs {', '.join(starts)} and outputs {', '.join(ends)}"
        raise expected("graph", "one input and one output", got, "remove nodes whose output is never used")
    rows, unit, open_until = [], [], 0  # open_until: place of the last reader of any node before the current one
    for k, node in enumerate(order):
        values = {key: _number(value, node, key) for key, value in nodes[node].items() if key != "what"}
        unit.append(values)
        if open_until <= k:  # nobody behind this node reads anything before it
            kind = nodes[node]["what"].split("(")[0].strip()
            total = {key: sum(part[key] for part in unit) for key in values}
            label = kind if re.fullmatch(r"(?i)input\d*", kind) and not rows else f"{node} {kind}"
            rows.append({"name": label, **total, "act_bytes": values["act_bytes"], "memory_bytes": total["act_bytes"]})
            unit = []
        open_until = max(open_until, last_use[node])
    return pd.DataFrame(rows)


def _number(text: str, node: str, key: str) -> float:
    try:
        return float(text)
    except ValueError as cause:
        raise expected(f"{key} of {node}", "a number", repr(text), "pass the graph.txt as written") from cause
