"""Drawings of studies over many clusters: EdgeSplit against its baselines, and where its alternation misses."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from psl.plotting.charts import plain_ticks, plot_curves, plot_points
from psl.plotting.style import INK, PAGE, look

_OPEN: dict[str, Any] = {"linestyle": ":", "markerfacecolor": "white"}  # with a deadline
_TIMES: list[float] = [1, 2, 5, 10, 20, 40]  # of a logarithmic axis of ratios


def plot_excess(excess: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw how many clusters end above the optimum, by variant, and by how much those do.

    Args:
        excess: relative distance from the optimum, a row per cluster and a column per variant.
        titles: column to title, from top to bottom.

    Returns:
        A figure of a page's width: shares on the left; on the right a dot per cluster above the optimum, and a bar at
        their median.
    """
    shade = "#34495e"
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 1.9), sharey=True, width_ratios=[1, 2])
    for y, column in enumerate(titles):
        values = excess[column].to_numpy()
        above = 100 * values[values > 1e-9]  # less is rounding
        share = 100 * len(above) / len(excess)
        left.plot([0, share], [y, y], color=shade, linewidth=1)
        left.plot([share], [y], "o", color=shade, markersize=5, clip_on=False)
        left.annotate(f"{share:.3g} %", (share, y), (5, 4), textcoords="offset points", fontsize=7)
        if not len(above):
            right.text(0.5, y, "no cluster", transform=right.get_yaxis_transform(), va="center", ha="center")
            continue
        heights = y + np.random.default_rng(0).uniform(-0.25, 0.25, len(above))  # apart, so that dots can be seen
        right.plot(above, heights, "o", color=shade, markersize=2.2, alpha=0.45, markeredgewidth=0)
        right.plot([np.median(above)], [y], "|", color=INK, markersize=17, markeredgewidth=1.8)
    left.set_yticks(range(len(titles)), list(titles.values()))
    left.set(xlabel="clusters above the optimum (%)", ylabel="the alternation", xlim=(0, 100))
    left.set_ylim(len(titles) - 0.5, -0.6)
    right.set(xlabel="excess over the optimum in these clusters (%)", xscale="log")
    plain_ticks(right, x=[0.01, 0.1, 1, 10, 100])
    return fig


def plot_round_ratios(over: pd.DataFrame, looks: Mapping[str, str]) -> Figure:
    """Draw each method's round time over EdgeSplit's: a panel per size of the images, median, quartiles, every cluster.

    Args:
        over: a long table with "side" (pixels), "model", "method" and "over".
        looks: title of a method to its name in `psl.plotting.LOOKS`.

    Returns:
        A figure of a page's width.
    """
    sides = sorted(over.side.unique())
    fig, panels = plt.subplots(1, len(sides), figsize=(PAGE, 2.6), sharey=True, squeeze=False)
    for ax, side in zip(panels[0], sides, strict=True):
        plot_points(over.loc[over.side == side], "model", "over", "method", looks, ax=ax)
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.set(xlabel=f"{side} × {side} inputs", ylabel="round time over EdgeSplit's (×)", yscale="log")
        plain_ticks(ax, y=_TIMES)
        ax.label_outer()
        ax.get_legend().remove()
    panels[0, -1].legend(loc="upper right")
    return fig


def plot_speedup(data: pd.DataFrame, looks: Mapping[str, str], *, claimed: float, megahertz: Sequence[float]) -> Figure:
    """Draw the speed-up over each baseline against heterogeneity and against bandwidth: median and quartiles.

    Args:
        data: a long table with "sweep" ("heterogeneity" or "bandwidth_mhz"), a column of each of these names, "method"
            and "speedup".
        looks: title of a baseline to its name in `psl.plotting.LOOKS`.
        claimed: a speed-up to mark.
        megahertz: ticks of the bandwidth.

    Returns:
        A figure of a page's width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.7), sharey=True)
    for ax, name in ((left, "heterogeneity"), (right, "bandwidth_mhz")):
        plot_curves(data.loc[data.sweep == name], name, "speedup", "method", looks, markers=True, ax=ax)
        ax.axhline(1, color=INK, linewidth=0.8)
        ax.axhline(claimed, color=INK, linewidth=0.8, linestyle=":")
        ax.set(yscale="log", ylabel="speed-up of EdgeSplit (×)")
        ax.label_outer()
    left.annotate("the paper's headline", (0.01, claimed), (0, 2), ("axes fraction", "data"), "offset points")
    left.set(xlabel="heterogeneity h (100 MHz)")
    right.set(xlabel="bandwidth (MHz), h = 1", xscale="log")
    plain_ticks(left, y=[1, 2, claimed, 10, 20])
    plain_ticks(right, x=list(megahertz), y=[1, 2, claimed, 10, 20])
    right.get_legend().remove()
    return fig


def plot_headline(cells: pd.DataFrame, titles: Mapping[str, str], *, claimed: float) -> Figure:
    """Draw a grid of median speed-ups per baseline; cells that reach a claimed number are framed.

    Args:
        cells: speed-ups, indexed by "heterogeneity" and "bandwidth_mhz", a column per baseline.
        titles: column to title, from left to right.
        claimed: the number.

    Returns:
        A figure of a page's width, with one colour bar.
    """
    fig, panels = plt.subplots(1, len(titles), figsize=(PAGE, 2.2), sharey=True, squeeze=False)
    text: dict[str, Any] = {"annot": True, "fmt": ".1f", "annot_kws": {"fontsize": 6.5}}
    for ax, (column, title) in zip(panels[0], titles.items(), strict=True):
        values = cells[column].unstack().iloc[::-1]
        sns.heatmap(values, norm=LogNorm(1, 50), cmap="mako_r", linewidths=0.5, cbar=False, **text, ax=ax)
        for row, place in np.argwhere(values.to_numpy() >= claimed):
            ax.add_patch(Rectangle((place, row), 1, 1, fill=False, edgecolor="#de8f05", linewidth=1.6))
        ax.set(xlabel="bandwidth (MHz)", ylabel="heterogeneity h", title="over " + title.replace(", ", ",\n"))
        ax.tick_params(left=False, bottom=False, rotation=0, labelsize=6.5)
        ax.label_outer()
    bar = fig.colorbar(panels[0, 0].collections[0], ax=panels, label="speed-up (×)")
    plain_ticks(bar.ax, y=[1, 2, claimed, 10, 20, 40])
    return fig


def plot_stragglers(curves: pd.DataFrame, shares: pd.DataFrame, looks: Mapping[str, str]) -> Figure:
    """Draw accuracy with and without a deadline, and in how many rounds each device counts with it.

    Args:
        curves: a row per evaluation, with "plan", "rule" ("waits" or "deadline"), "simulated_time_s" and
            "accuracy_percent".
        shares: percent of the rounds, a row per device, from top to bottom, and a column per plan.
        looks: plan to its name in `psl.plotting.LOOKS`.

    Returns:
        A figure of a page's width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6), width_ratios=[1.15, 1])
    for plan, rule in curves[["plan", "rule"]].drop_duplicates().to_numpy():
        curve = curves.query("plan == @plan and rule == @rule")
        style = look(looks[plan]) | (_OPEN if rule == "deadline" else {})
        left.plot(curve.simulated_time_s, curve.accuracy_percent, **style, label=f"{plan}, {rule}")
    left.set(xlabel="simulated time (s)", ylabel="test accuracy (%)", xscale="log")
    plain_ticks(left, x=[10, 30, 100, 300, 1000])
    places = np.arange(len(shares))
    for plan in shares:
        style = look(looks[str(plan)]) | _OPEN | {"linestyle": "none", "markersize": 5.5}
        right.plot(shares[plan], places, **style)
    right.set_yticks(places, list(shares.index))
    right.set(xlabel="rounds in which it counts (%)", ylabel="device, slowest first", xlim=(-2, 102))
    right.set_ylim(len(shares) - 0.6, -0.4)
    fig.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return fig
