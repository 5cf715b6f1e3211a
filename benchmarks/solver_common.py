"""What the benchmarks of solvers share: figures that are printed at once and kept for the CSV."""

from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).resolve().parent / "results"

_rows: list[dict] = []


def record(part: str, what: str, value: float, unit: str) -> None:
    """Print one figure and keep it for the CSV."""
    print(f"  {what:<74} {value:>12.5g} {unit}", flush=True)
    _rows.append({"part": part, "figure": what, "value": value, "unit": unit})


def write(path: Path, merge: bool = False) -> None:
    """Write the recorded figures; with `merge`, parts of an older file that were not run again stay."""
    frame = pd.DataFrame(_rows)
    if merge and path.exists():
        known = pd.read_csv(path, keep_default_na=False)
        order = list(dict.fromkeys([*known["part"], *frame["part"]]))
        frame = pd.concat([known[~known["part"].isin(frame["part"])], frame])
        frame = frame.sort_values("part", key=lambda part: part.map(order.index), kind="stable")
    path.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(path, index=False, float_format="%.6g")
    print(f"wrote {path}")
