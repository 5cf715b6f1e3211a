"""The Gantt chart of a simulation."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from psl.plotting.style import INK, PAGE

#: Bars by kind: lightness tells computations apart, hatching tells transfers from computations.
GANTT_LOOKS: dict[str, dict[str, str]] = {
    "forward": {"facecolor": "#56b4e9", "hatch": ""},
    "backward": {"facecolor": "#0b3d66", "hatch": ""},
    "activation": {"facecolor": "#f7f7f7", "hatch": "//////"},
    "gradient": {"facecolor": "#b0b0b0", "hatch": "\\\\\\\\\\\\"},
    "broadcast": {"facecolor": "#d9d9d9", "hatch": "xxxxxx"},
    "model": {"facecolor": "#ffffff", "hatch": "....."},
    "step": {"facecolor": "#e69f00", "hatch": ""},
}


def plot_gantt(frame: pd.DataFrame, ax: Axes | None = None, *, numbered: bool = True) -> Axes:
    """Draw who does what when: one row per resource, one bar per event, micro-batch numbers where they fit.

    Args:
        frame: columns resource, kind, micro_batch, start_s, end_s; `Timeline.to_frame()` has them. Rows follow the
            categories of `resource` if it has any, otherwise the order of first use.
        ax: axes to draw on; a new figure of a page's width and fitting height if None.
        numbered: write the numbers of micro-batches; without them drawing takes half the time.

    Returns:
        The axes.
    """
    names, kinds = (np.array([str(value) for value in frame[column]]) for column in ("resource", "kind"))
    start, end = (np.array(frame[column], dtype=float) for column in ("start_s", "end_s"))
    numbers = np.array(frame["micro_batch"], dtype=int)
    categories = getattr(frame["resource"].dtype, "categories", None)
    used = dict.fromkeys(names.tolist())
    rows = list(used) if categories is None else [str(name) for name in categories if str(name) in used]
    if ax is None:
        _, ax = plt.subplots(figsize=(PAGE, 0.8 + 0.22 * len(rows)))
    span = float(end.max(initial=0.0))
    several = numbered and bool(numbers.max(initial=0) > 0)  # one alone needs no number
    few = len(frame) <= 1200  # beyond, edges would hide the bars
    for row, name in enumerate(rows):
        for kind in GANTT_LOOKS:
            mine = np.flatnonzero((names == name) & (kinds == kind))
            if len(mine):
                style: dict[str, Any] = {**GANTT_LOOKS[kind], "linewidth": 0.3 if few else 0.1}
                style["edgecolor"] = "white" if kind == "backward" else INK
                bars = [(float(start[k]), float(end[k] - start[k])) for k in mine]
                ax.broken_barh(bars, (row - 0.4, 0.8), **style)
            for k in mine if several else ():
                width = end[k] - start[k]
                if numbers[k] >= 0 and width > 0.006 * span * (1 + len(str(numbers[k]))):
                    _number(ax, float(start[k] + width / 2), row, int(numbers[k]), kind)
    right = span * 1.005 if span > 0 else 1.0
    ax.set(xlabel="time (s)", ylabel="resource", xlim=(0, right), ylim=(len(rows) - 0.4, -0.6))
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False, axis="y")
    seen = [kind for kind in GANTT_LOOKS if kind in kinds]
    patches = [_patch(kind) for kind in seen]
    ax.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=max(1, len(patches)))
    return ax


def phases(frame: pd.DataFrame) -> dict[str, float | str]:
    """Return where a pipeline's mini-batch fills, runs and drains, and which node works most.

    The last stage is the node whose first backward pass begins first: it turns a micro-batch round at once.

    Args:
        frame: columns resource, kind, micro_batch, start_s, end_s, of a pipeline with forward and backward passes.

    Returns:
        ``filled_s``: when the last stage begins; ``drained_s``: when its last backward pass ends; ``end_s``;
        ``last`` and ``busiest``: the node of the last stage, and the node that computes for the most seconds.
    """
    name, kind = (np.array([str(value) for value in frame[column]]) for column in ("resource", "kind"))
    start, end = (np.array(frame[column], dtype=float) for column in ("start_s", "end_s"))
    computes, backward = np.isin(kind, ["forward", "backward"]), kind == "backward"
    last = str(name[np.argmin(np.where(backward, start, np.inf))])
    busy = {node: float((end - start)[computes & (name == node)].sum()) for node in name[computes]}
    mine = computes & (name == last)
    return {
        "filled_s": float(start[mine].min()),
        "drained_s": float(end[mine].max()),
        "end_s": float(end.max()),
        "last": last,
        "busiest": max(busy, key=lambda node: busy[node]),
    }


def mark_phases(frame: pd.DataFrame, ax: Axes) -> Axes:
    """Number five things to look at in a pipeline's Gantt chart: the guide beside the chart says what they are.

    1 fill, 2 steady state and 4 drain stand above the rows, over brackets from begin to end. 3 stands at the row of the
    busiest node, 5 at that of the last stage, where forward and backward take turns.

    Args:
        frame: what `plot_gantt` drew on `ax`.
        ax: the axes; five numbers and three brackets are added, and room for them above.

    Returns:
        `ax`.
    """
    found = phases(frame)
    top = -0.85  # in rows; the first row is at 0
    bounds = [0.0, found["filled_s"], found["drained_s"], found["end_s"]]
    for number, name, begin, end in zip("124", ("fill", "steady state", "drain"), bounds, bounds[1:], strict=False):
        begin, end = float(begin), float(end)
        ax.annotate("", (end, top), (begin, top), arrowprops={"arrowstyle": "<->", "color": INK, "linewidth": 0.8})
        ax.text((begin + end) / 2, top - 0.75, f"{number} {name}", ha="center", va="center", fontsize=7)
        ax.axvline(end, color=INK, linewidth=0.6, linestyle=":", zorder=0)
    rows = {label.get_text(): row for row, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    text = {str(found["busiest"]): "3", str(found["last"]): "5"}
    if found["busiest"] == found["last"]:
        text = {str(found["last"]): "3, 5"}
    circle = {"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": INK, "linewidth": 0.8}
    for name, number in text.items():
        ends = frame.loc[frame["resource"].astype(str) == name, "end_s"].max()
        ax.annotate(
            number, (float(ends), rows[name]), (7, 0), textcoords="offset points", va="center", fontsize=7, bbox=circle
        )
    ax.set_ylim(len(rows) - 0.4, -2.2)
    return ax


def _patch(kind: str) -> Patch:
    style: dict[str, Any] = {**GANTT_LOOKS[kind], "edgecolor": INK, "linewidth": 0.3, "label": kind}
    return Patch(**style)


def _number(ax: Axes, x: float, row: int, number: int, kind: str) -> None:
    box = None if kind in ("forward", "backward") else {"facecolor": "white", "edgecolor": "none", "pad": 0.4}
    colour = "white" if kind == "backward" else "black"
    ax.text(x, row, str(number), color=colour, bbox=box, ha="center", va="center", fontsize=6, clip_on=True)
