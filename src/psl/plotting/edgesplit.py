"""Drawings of EdgeSplit's plans: its alternation, the proof in one picture, one device, and who gets which cut."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from psl.plotting.charts import plain_ticks
from psl.plotting.style import INK, PAGE, bar_looks, look

_MEGAHERTZ: list[float] = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]  # of logarithmic axes
_SECONDS: list[float] = [50, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000, 20000, 50000]
_FRUGAL, _PATH = "#1d6fa5", "#c4510a"  # no method's: the bound of the proof, and the way of the alternation
# Two panels placed by hand: a layout engine takes half of the time that a slider has.
_PLACED = {"left": 0.17, "right": 0.985, "bottom": 0.16, "top": 0.9, "wspace": 0.22}


def plot_alternation(cuts: pd.DataFrame, steps: pd.DataFrame, *, optimum: float, n_units: int) -> Figure:
    """Draw every device's cut after each step of the alternation, and the round time after each half step.

    Args:
        cuts: numbers of cuts, a row per step and a column per device, slowest device first.
        steps: a row per half step, with columns "step", "block" ("cuts" or "bandwidth") and "round_time", s.
        optimum: s, the shortest round that exists.
        n_units: L, which the colours end at.

    Returns:
        A figure of a page's width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.1), width_ratios=[2.0, 1])
    text = {"annot": True, "fmt": "d", "annot_kws": {"fontsize": 6.5}}
    sns.heatmap(cuts, vmin=0, vmax=n_units, cmap="crest", linewidths=0.5, cbar=False, **text, ax=left)
    left.set(xlabel="device, slowest first", ylabel="step", title=f"cut after each step ({n_units}: the whole model)")
    left.tick_params(left=False, bottom=False, rotation=0)
    places = np.arange(len(steps))
    right.plot(places, steps.round_time, **look("edgesplit"))
    right.axhline(optimum, color=INK, linestyle=":", label="proven optimum")
    short = steps.block.replace({"bandwidth": "band"})
    names = [f"{step} {block}" for step, block in zip(steps.step, short, strict=True)]
    right.set_xticks(places, names, rotation=40, ha="right", rotation_mode="anchor")
    right.set(xlabel="half step", ylabel="round time\n(s, simulated)", ylim=(0, None))
    right.legend(loc="lower left")
    return fig


def plot_fixed_point(needs: pd.DataFrame, *, band: float, path: pd.DataFrame | None = None, ax: Axes) -> Axes:
    """Draw the bandwidth that all devices together need for a deadline, and the band that they have.

    Args:
        needs: MHz by deadline (index, s): first with the most frugal cuts, then with the cuts of each step.
        band: MHz, W.
        path: the way of the alternation: rows with "step", "deadline_s" and "mhz", which each begin on the line `band`,
            fall to the curve of their step and go along it; None draws none.
        ax: axes to draw on.

    Returns:
        `ax`, with logarithmic axes, labels and a legend. A star marks where the first curve meets the band.
    """
    frugal, *others = needs.columns
    ax.plot(needs.index, needs[frugal], color=_FRUGAL, linewidth=2.2, label=r"most frugal cuts, $\Sigma_i w_i(T)$")
    for k, name in enumerate(others):
        dashes = ("--", "-.", (0, (1, 1)))[k % 3]
        ax.plot(needs.index, needs[name], color="0.4", linewidth=1.2, linestyle=dashes, label=name)
    ax.axhline(band, color=INK, linewidth=0.9, label="the band W")
    if path is not None:
        for _, way in path.groupby("step"):
            ax.plot(way.deadline_s, way.mhz, color=_PATH, linewidth=3.2, alpha=0.45, solid_capstyle="butt")
            for at in (1, len(way) // 2, len(way)):
                ends = way[["deadline_s", "mhz"]].to_numpy()[[at - 2 if at > 1 else 0, at - 1 if at > 1 else 1]]
                ax.annotate("", ends[1], ends[0], arrowprops={"arrowstyle": "-|>", "color": _PATH, "shrinkB": 0})
        starts = path.groupby("step").deadline_s.first()
        dot = {"marker": "o", "markersize": 4.5, "linestyle": "none", "color": _PATH}
        ax.plot(starts, np.full(len(starts), band), **dot, label="a step of the alternation begins")
    optimum = float(np.interp(-band, -needs[frugal], needs.index))  # the need falls in T
    star = {"marker": "*", "markersize": 11, "linestyle": "none", "color": "white", "markeredgecolor": INK}
    ax.plot([optimum], [band], **star, zorder=5, label=r"the optimum $T^\star$")
    ax.set(xscale="log", yscale="log", xlabel="deadline T (s, simulated)", ylabel="bandwidth needed (MHz)")
    ax.set(xlim=(needs.index.min(), needs.index.max()), ylim=(needs[frugal].min() * 0.8, 4.5 * band))
    plain_ticks(ax, x=_SECONDS, y=_MEGAHERTZ)
    ax.legend(loc="lower left")
    return ax


def plot_deadline(devices: pd.DataFrame, needs: pd.DataFrame, *, deadline: float, band: float) -> Figure:
    """Draw what a deadline asks for: each device's least bandwidth (left), their sum against the band (right).

    Args:
        devices: a row per device, from top to bottom, with "name", "cut" and "mhz", w_i(T); equal names stand together.
        needs: MHz of all devices together by deadline (index, s): one column, with the most frugal cuts.
        deadline: s, T.
        band: MHz, W.

    Returns:
        A figure of a page's width. Its title says whether the deadline can be met.
    """
    fig = plt.figure(figsize=(PAGE, 2.8), layout="none")  # few ticks and texts: they take most of a redraw's time
    left, right = fig.subplots(1, 2, gridspec_kw={**_PLACED, "wspace": 0.25})
    places = np.arange(len(devices))
    for cut, marker, colour in zip(
        np.unique(devices.cut.to_numpy()), "os^DvP*X" * 10, bar_looks(5)[::2] * 10, strict=False
    ):
        some = (devices.cut == cut).to_numpy()
        style = {"markersize": 4.5, "linestyle": "none", "color": colour["facecolor"]}
        left.plot(devices.mhz[some], places[some], marker=marker, label=f"cut {cut}", **style)
    boards, first, counts = np.unique(devices.name.to_numpy(dtype=str), return_index=True, return_counts=True)
    middles = first + (counts - 1) / 2
    left.set_yticks(middles, [f"{name} ({n})" for name, n in zip(boards, counts, strict=True)], fontsize=7)
    left.tick_params(axis="y", length=0)
    left.hlines(first - 0.5, 0.08, 200, color="0.85", linewidth=0.5)
    left.grid(False, axis="y")
    left.set(xlabel="least bandwidth $w_i(T)$ (MHz)", xscale="log", xlim=(0.08, 200), ylim=(len(devices) - 0.4, -0.6))
    plain_ticks(left, x=[0.1, 1, 10, 100])
    left.legend(loc="lower right", handletextpad=0.2)
    plot_fixed_point(needs, band=band, ax=right)
    right.get_legend().remove()
    right.text(needs.index.max(), band * 1.06, "the band W", ha="right")
    plain_ticks(right, x=[300, 500, 1000, 2000], y=[10, 30, 100, 300])
    total = devices.mhz.sum()
    right.plot([deadline, deadline], [total, band], color=_PATH, linewidth=1.2)
    right.plot([deadline], [total], "D", color=_PATH, markersize=5)
    verdict = f"{total - band:.0f} MHz too much" if total > band * 1.001 else f"met, {band - total:.0f} MHz are left"
    fig.suptitle(f"T = {deadline:.0f} s needs {total:.0f} MHz of W = {band:.0f} MHz: {verdict}", fontsize=8, y=0.985)
    return fig


def plot_device_round(terms: pd.DataFrame, cut: int, curve: pd.DataFrame, megahertz: float, *, title: str) -> Figure:
    """Draw one device's time of a round: by cut at one bandwidth, and by bandwidth with one cut.

    Args:
        terms: seconds, a row per cut 1..L and a column per term; stacked on the left.
        cut: the cut looked at.
        curve: by bandwidth (index, MHz): "this_cut" and "best_cut", s.
        megahertz: the bandwidth looked at.
        title: of the whole figure.

    Returns:
        A figure of a page's width.
    """
    fig = plt.figure(figsize=(PAGE, 2.5), layout="none")
    left, right = fig.subplots(1, 2, gridspec_kw={**_PLACED, "left": 0.1, "bottom": 0.18, "top": 0.87, "wspace": 0.28})
    edge = np.zeros(len(terms))
    for name, style in zip(terms, bar_looks(len(terms.columns)), strict=True):
        top = edge + terms[name].to_numpy()
        left.fill_between(terms.index, edge, top, step="mid", color=style["facecolor"], linewidth=0, label=name)
        edge = top
    best = int(terms.index[terms.sum(axis=1).argmin()])
    for j, dashes, label in ((cut, "-", f"cut {cut}"), (best, ":", f"best cut: {best}")):
        left.plot([j, j], [0, terms.loc[j].sum()], color=_PATH, linestyle=dashes, linewidth=1.6, label=label)
    left.set(xlabel="cut j", ylabel="time of a round (s)", xlim=(0.5, len(terms) + 0.5), ylim=(0, 1.25 * edge.max()))
    left.locator_params(nbins=5)
    left.legend(ncols=2, loc="upper right", fontsize=6.5)
    right.plot(curve.index, curve.best_cut, color="0.65", linewidth=3, label="its best cut")
    right.plot(curve.index, curve.this_cut, color=_PATH, linestyle="--", label=f"cut {cut}")
    right.plot([megahertz], [terms.loc[cut].sum()], "D", color=_PATH, markersize=5)
    right.set(xlabel="bandwidth $w_i$ (MHz)", ylabel="time of a round (s)", xscale="log", yscale="log")
    plain_ticks(right, x=[0.2, 1, 5, 20], y=[100, 300, 1000, 3000, 10000, 30000])
    right.legend(loc="upper right")
    fig.suptitle(title, fontsize=8, y=0.98)
    return fig


def plot_who_gets_which_cut(devices: pd.DataFrame, names: Mapping[int, str]) -> Figure:
    """Draw cut against speed, and bandwidth against spectral efficiency, of every device of a plan.

    Args:
        devices: a row per device, with "gflops", "cut", "spectral_efficiency" and "bandwidth_hz".
        names: what stands beside the cuts that are used.

    Returns:
        A figure of a page's width.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.6))
    shade: dict[str, Any] = {"c": devices.gflops, "cmap": "viridis", "norm": LogNorm()}
    left.scatter(devices.gflops, devices.cut, s=11, linewidths=0, **shade)
    left.set_yticks(list(names), [f"{j}: {name}" for j, name in names.items()])
    left.set(xscale="log", xlabel="device speed (GFLOP/s)", ylabel="cut")
    plain_ticks(left, x=[10, 20, 50, 100, 200, 500])
    megahertz = devices.bandwidth_hz / 1e6
    dots = right.scatter(devices.spectral_efficiency, megahertz, s=13, linewidths=0.25, edgecolors=INK, **shade)
    right.set(xlabel="spectral efficiency (bit/s/Hz)", ylabel="bandwidth (MHz)", yscale="log")
    plain_ticks(right, y=[0.5, 1, 2, 5, 10, 20, 50, 100, 200])
    bar = fig.colorbar(dots, ax=right, label="device speed (GFLOP/s)")
    plain_ticks(bar.ax, y=[10, 20, 50, 100, 200, 500])
    return fig
