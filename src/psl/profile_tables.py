"""Tables of measured times per layer, made by other tools: CSV files and the graphs of PipeDream's profiler."""

import os
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from psl.errors import check_array, check_count, check_number, expected

#: What `Profile.from_table` reads: the path of a file, or a table in memory.
Table = str | os.PathLike[str] | pd.DataFrame

#: Columns that `read_layers` reads: the names a quantity may have, each with its factor to s, bits or bytes.
TABLE_COLUMNS = {
    "forward time": {"fwd_s": 1.0, "fwd_ms": 1e-3, "fwd_us": 1e-6},
    "backward time": {"bwd_s": 1.0, "bwd_ms": 1e-3, "bwd_us": 1e-6},
    "optimizer time": {
        **{"step_s": 1.0, "step_ms": 1e-3, "step_us": 1e-6},
        **{"optimizer_s": 1.0, "optimizer_ms": 1e-3, "optimizer_us": 1e-6},
    },
    "activation": {"act_bits": 1.0, "act_bytes": 8.0},
    "gradient": {"grad_bits": 1.0, "grad_bytes": 8.0},
    "parameters": {"param_bits": 1.0, "param_bytes": 8.0},
    "memory of the parameters": {"param_memory_bytes": 1.0},
    "memory": {"memory_bytes": 1.0},
}
_PIPEDREAM_NODE = re.compile(
    r"(?P<id>\S+) -- (?P<what>.+) -- forward_compute_time=(?P<fwd_ms>\S+), backward_compute_time=(?P<bwd_ms>\S+), "
    r"activation_size=(?P<act_bytes>\[[^\]]*\]|[^\s,]+), parameter_size=(?P<param_bytes>[^\s,]+)"
)
_PIPEDREAM_EDGE = re.compile(r"\s*(?P<tail>\S+) -- (?P<head>\S+)")


def read_layers(table: Table, batch_size: int = 1, input_bits: float = 0.0) -> dict[str, Any]:
    """Return the arguments of `Profile.measured` for a table per layer; see `Profile.from_table`."""
    batch_size = check_count("batch_size", batch_size, fix="give the samples per batch of the measurement")
    input_bits = check_number("input_bits", input_bits, minimum=0)
    frame = table if isinstance(table, pd.DataFrame) else _read_table(table)
    if "name" not in frame.columns or not len(frame):
        got = f"columns {', '.join(map(str, frame.columns)) or 'none'} and {len(frame)} rows"
        raise expected("table", "a column 'name' and a row per layer", got, "name every layer in column 'name'")
    names = [str(name).strip() for name in frame["name"]]
    has_input = re.fullmatch(r"(?i)input\d*", names[0]) is not None and len(names) > 1
    take = lambda what, default: _table_column(frame, what, default)  # noqa: E731
    forward, backward = take("forward time", None) / batch_size, take("backward time", None) / batch_size
    activation = take("activation", None) / batch_size
    if not (forward.any() or backward.any()):
        fix = "check the unit and the columns: a table of zeros plans nothing"
        raise expected("table", "a forward or backward time above 0", f"zeros in all {len(frame)} rows", fix)
    gradient = take("gradient", activation * batch_size) / batch_size
    memory = take("memory", activation * batch_size / 8) / batch_size
    parameters = take("parameters", np.zeros(len(frame)))
    weights = take("memory of the parameters", 3 * parameters / 8)
    steps = take("optimizer time", np.zeros(len(frame)))  # once per batch, whatever its size
    if has_input and input_bits:
        fix = "leave input_bits out, or the row"
        raise expected("input_bits", f"none, as the table has a row {names[0]!r}", f"{input_bits:g}", fix)
    if has_input:
        layers = (forward, backward, parameters, weights, memory, steps)
        forward, backward, parameters, weights, memory, steps = (values[1:] for values in layers)
    else:
        names = ["input", *names]
        activation, gradient = np.append(input_bits, activation), np.append(input_bits, gradient)
    from_zero = lambda values: np.append(0.0, np.cumsum(values))  # noqa: E731
    return {
        "names": names,
        "fwd_seconds": from_zero(forward),
        "bwd_seconds": from_zero(backward),
        "act_bits": activation,
        "grad_bits": gradient,
        "param_bits": from_zero(parameters),
        "act_memory": from_zero(memory),
        "last_bwd_seconds": float(backward[-1]),
        "param_memory": from_zero(weights) if "param_memory_bytes" in frame.columns else None,
        "step_seconds": from_zero(steps) if steps.any() else None,
    }


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
    fix = "give one measured number per layer, with a decimal point, not cumulative"
    return check_array(f"column {found[0]!r}", frame[found[0]], minimum=0, fix=fix) * choices[found[0]]


def _read_table(path: str | os.PathLike[str]) -> pd.DataFrame:
    fix = "pass the path of a CSV file with a heading (commas, semicolons or tabs), or of a PipeDream graph.txt"
    try:
        text = Path(path).read_text()
    except (OSError, TypeError, UnicodeDecodeError) as cause:
        raise expected("table", "a readable text file or a DataFrame", f"{path!r} ({cause})", fix) from cause
    if " -- forward_compute_time=" in text:
        return _read_pipedream(text)
    heading = text.partition("\n")[0]
    try:
        separator = max("\t;,", key=heading.count)
        return pd.read_csv(Path(path), sep=separator, skipinitialspace=True)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as cause:
        raise expected(f"table {str(path)!r}", "columns with a heading", str(cause), fix) from cause


def _read_pipedream(text: str) -> pd.DataFrame:
    """Return one row per unit of a PipeDream graph: cuts are the nodes that every path passes."""
    nodes: dict[str, dict[str, str]] = {}  # what the graph says of each
    before: dict[str, set[str]] = {}  # the nodes whose output each reads
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
    rows: list[dict[str, Any]] = []
    unit: list[dict[str, float]] = []  # the nodes since the last cut
    open_until = 0  # place of the last reader of any node before the current one
    for k, node in enumerate(order):
        values = {key: _size(value, node, key) for key, value in nodes[node].items() if key != "what"}
        unit.append(values)
        if open_until <= k:  # nobody behind this node reads anything before it
            kind = nodes[node]["what"].split("(")[0].strip()
            total = {key: sum(part[key] for part in unit) for key in values}
            label = kind if re.fullmatch(r"(?i)input\d*", kind) and not rows else f"{node} {kind}"
            rows.append({"name": label, **total, "act_bytes": values["act_bytes"], "memory_bytes": total["act_bytes"]})
            unit = []
        open_until = max(open_until, last_use[node])
    return pd.DataFrame(rows)


def _size(text: str, node: str, key: str) -> float:
    """Return a number of a PipeDream graph; a list of sizes, of a layer with several outputs, is their sum."""
    parts = re.split(r"[;,]", text[1:-1]) if text.startswith("[") and text.endswith("]") else [text]
    try:
        return sum(map(float, parts))
    except ValueError as cause:
        raise expected(f"{key} of {node}", "a number", repr(text), "pass the graph.txt as written") from cause
