"""The Gantt chart of a simulation."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.patches import Patch

#: Bars by kind: lightness tells computations apart, hatching tells transfers from computations.
GANTT_LOOKS = {
    "forward": {"facecolor": "#9ecae1", "hatch": ""},
    "backward": {"facecolor": "#08306b", "hatch": ""},
    "activation": {"facecolor": "#f7f7f7", "hatch": "////"},
    "gradient": {"facecolor": "#969696", "hatch": "\\\\\\\\"},
    "broadcast": {"facecolor": "#d9d9d9", "hatch": "xxxx"},
    "model": {"facecolor": "#ffffff", "hatch": "...."},
}


def plot_gantt(frame: pd.DataFrame, ax=None):
    """Draw who does what when: one row per resource, one bar per event, micro-batch numbers where they fit.

    Args:
        frame: columns resource, kind, micro_batch, start_s, end_s; `Timeline.to_frame()` has them. Rows follow the
            categories of `resource` if it has any, otherwise the order of first use.
        ax: matplotlib axes; a new figure of fitting height if None.

    Returns:
        The matplotlib axes.
    """
    kinds = frame["kind"].astype(str)
    names = frame["resource"].astype(str)
    categories = getattr(frame["resource"].dtype, "categories", None)
    rows = list(names.unique()) if categories is None else [str(name) for name in categories if name in set(names)]
    if ax is None:
        _, ax = plt.subplots(figsize=(8.2, 1.1 + 0.32 * len(rows)))
    span = frame["end_s"].max()
    several = frame["micro_batch"].max() > 0  # one alone needs no number
    few = len(frame) <= 1200  # beyond, edges would hide the bars
    for row, name in enumerate(rows):
        for kind, look in GANTT_LOOKS.items():
            mine = frame[(names == name) & (kinds == kind)]
            bars = list(zip(mine["start_s"], mine["end_s"] - mine["start_s"], strict=True))
            if bars:
                edge = {
                    "edgecolor": "#252525" if kind != "backward" else "white",
                    "linewidth": 0.4 if few else 0.1,
                }
                ax.broken_barh(bars, (row - 0.4, 0.8), **look, **edge)
            for (start, width), number in zip(bars, mine["micro_batch"], strict=True):
                if several and number >= 0 and width > 0.009 * span * (1 + len(str(number))):
                    _number(ax, start + width / 2, row, number, kind)
    ax.set(
        xlabel="time (s)", ylabel="resource", xlim=(0, span * 1.005 if span > 0 else 1), ylim=(len(rows) - 0.4, -0.6)
    )
    ax.set_yticks(range(len(rows)), rows)
    ax.grid(False, axis="y")
    seen = [kind for kind in GANTT_LOOKS if (kinds == kind).any()]
    patches = [Patch(**GANTT_LOOKS[kind], edgecolor="#252525", linewidth=0.4, label=kind) for kind in seen]
    ax.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(patches), fontsize=8)
    return ax


def _number(ax, x: float, row: int, number: int, kind: str) -> None:
    box = None if kind in ("forward", "backward") else {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    text = {"ha": "center", "va": "center", "fontsize": 7, "clip_on": True}
    ax.text(x, row, str(number), color="white" if kind == "backward" else "black", bbox=box, **text)
