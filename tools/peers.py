"""Write the tables of docs/peers.md from benchmarks/results/peers_*.csv.

Usage: python tools/peers.py [--check]

A table stands in the page between ``<!-- table: name -->`` and ``<!-- / -->``. With --check nothing is written, and the
exit status is 1 if the page is out of date.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "peers.md"
RESULTS = ROOT / "benchmarks" / "results"
MARKED = re.compile(r"<!-- table: (\w+) -->.*?<!-- / -->", re.DOTALL)
SAME = 1e-7  # relative: a plan of psl's that is longer by less is as good
TOLERANCE = 1e-4  # relative: a peer's plan that is longer by less is as good; solvers meet limits to a tolerance


def rows(question: str) -> pd.DataFrame:
    """Return the rows of one question."""
    return pd.read_csv(RESULTS / f"peers_{question}.csv")


def markdown(header: list[str], lines: list[list[str]]) -> str:
    """Return a table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def seconds(value: float) -> str:
    """Return a time with two digits."""
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.2g} µs"


def times(values: pd.Series) -> str:
    """Return the median and the range of ratios."""
    shown = [f"{v:,.0f}" if v >= 10 else f"{v:.2g}" for v in (values.median(), values.min(), values.max())]
    return f"{shown[0]} ({shown[1]}–{shown[2]})"


def pairs(question: str) -> pd.DataFrame:
    """Return one row per case, instance and peer, with what psl did on the same instance."""
    found = rows(question)
    ours = found[found.method == "psl"].drop(columns="method")
    both = found[found.method != "psl"].merge(ours, on=["case", "instance"], suffixes=("", "_psl"))
    return both.assign(ratio=both.seconds / both.seconds_psl, above=both.value / both.value_psl - 1)


def solvers(question: str) -> str:
    """Return the table of a question in which plans are made."""
    header = ["case", "instances", "peer", "psl, median", "peer, median", "peer's time over psl's", "peer's plan worse",
              "psl's plan worse", "proven by the peer", "proven by psl"]  # fmt: skip
    lines = []
    for (case, method), part in pairs(question).groupby(["case", "method"], sort=False):
        solved = np.isfinite(part.value)
        worse, better = (part.above > TOLERANCE).sum(), (part.above < -SAME).sum()
        largest, none = 100 * part.above[solved].max(), int((~solved).sum())
        proven = part.status.astype(str).str.lower().isin(["optimal", "gaplimit"]).sum()
        ours = (part.value_psl <= part.bound_psl * (1 + 1e-9)).sum()
        short = f", by up to {largest:.2g} %" if worse > none else ""
        long = f", by up to {-100 * part.above.min():.2g} %" if better else ""
        lines.append([
            case, str(len(part)), method, seconds(part.seconds_psl.median()), seconds(part.seconds.median()),
            times(part.ratio), f"{worse - none}{short}" + (f"; no plan: {none}" if none else ""), f"{better}{long}",
            str(proven), str(ours),
        ])  # fmt: skip
    return markdown(header, lines)


def simulation() -> str:
    """Return the table of the event simulation."""
    lines = [
        [case, f"{part.jobs.min():,.0f}–{part.jobs.max():,.0f}", seconds(part.seconds_psl.median()),
         seconds(part.seconds.median()), times(part.ratio), f"{part.above.abs().max():.1g}"]
        for case, part in pairs("simulation").groupby("case", sort=False)
    ]  # fmt: skip
    header = ["case", "jobs", "psl, median", "SimPy, median", "SimPy's time over psl's", "makespans differ by at most"]
    return markdown(header, lines)


def splitting() -> str:
    """Return the table of models that are split."""
    found = rows("splitting").assign(shown=lambda f: f.status.str.replace("split, ", ""))
    wide = found.pivot(index="instance", columns="method", values="shown").reindex(found.instance.unique())
    wide = wide[["psl", *(name for name in wide if name != "psl")]]
    return markdown(
        ["model", *wide], [[name, *(str(v) for v in line)] for name, line in zip(wide.index, wide.values, strict=True)]
    )


def training() -> str:
    """Return the table of training steps."""
    found = rows("training")
    steps = found[found.seconds.notna()].pivot(index="instance", columns="method", values="seconds")
    off = found[found.seconds.isna()].set_index("method").value
    lines = [
        [name, seconds(steps[name].median()), times(steps[name] / steps["whole model"]), f"{off[name]:.1g}"]
        for name in ("whole model", *(name for name in steps if name != "whole model"))
    ]
    return markdown(
        ["step of", "median", "over the whole model's, step by step", "weights differ at the end by"], lines
    )


def flops() -> str:
    """Return the table of FLOP counts."""
    found = rows("flops")
    wide = found.pivot(index="instance", columns="method", values="value").reindex(found.instance.unique())
    stated = wide.pop("torchvision's documentation")
    wide = wide[["psl", *(name for name in wide if name != "psl")]]
    lines = [
        [name, f"{stated[name] / 1e9:.2f}", *(f"{v / 1e9:.2f} ({100 * (v / stated[name] - 1):+.1f} %)" for v in line)]
        for name, line in zip(wide.index, wide.values, strict=True)
    ]
    medians = found.groupby("method").seconds.median()
    lines.append(["CPU seconds, median", "", *(seconds(medians[name]) for name in wide)])
    return markdown(["model", "torchvision's documentation, GFLOP", *(f"{name}, GFLOP" for name in wide)], lines)


TABLES = {
    "epsl": lambda: solvers("epsl"),
    "edgesplit": lambda: solvers("edgesplit"),
    "placement": lambda: solvers("placement"),
    "simulation": simulation,
    "splitting": splitting,
    "training": training,
    "flops": flops,
}


def filled(text: str) -> str:
    """Return the page with its tables written anew."""
    return MARKED.sub(lambda m: f"<!-- table: {m[1]} -->\n{TABLES[m[1]]()}\n<!-- / -->", text)


def main(arguments: list[str]) -> int:
    """Write the page, or check it."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" not in arguments:
        PAGE.write_text(new, encoding="utf-8")
    return int("--check" in arguments and new != old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
