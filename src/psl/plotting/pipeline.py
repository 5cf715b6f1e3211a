"""Drawings of pipelined split learning: Gantt charts, the search, micro-batches, what a plan brings, its training."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.plotting.charts import plain_ticks, plot_curves, plot_points
from psl.plotting.gantt import mark_phases, plot_gantt
from psl.plotting.style import INK, PAGE

#: What stands for no method: the front, what the search visits, the curve, the bound; dark to light.
_DARK, _MIDDLE, _LIGHT = sns.color_palette("mako", 6).as_hex()[1:6:2]
_MARK = "#d55e00"  # what is chosen
_SIZES = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
_SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10]


def plot_gantts(frames: Mapping[str, pd.DataFrame], guide: str | None = None) -> Figure:
    """Draw Gantt charts of pipelines one above the other, with one time axis and one legend.

    Args:
        frames: title to events, as `Timeline.to_frame()` has them.
        guide: the title of the chart that gets the numbers 1 to 5 of `mark_phases`; or None.

    Returns:
        The figure, of a page's width.
    """
    rows = [frame["resource"].nunique() for frame in frames.values()]
    fig, panels = plt.subplots(
        len(frames), 1, figsize=(PAGE, 1.1 + 0.21 * sum(rows)), sharex=True, squeeze=False,
        gridspec_kw={"height_ratios": [r + 2 * (title == guide) for r, title in zip(rows, frames, strict=True)]},
    )  # fmt: skip
    handles: dict[str, Any] = {}
    for ax, (title, frame) in zip(panels[:, 0], frames.items(), strict=True):
        plot_gantt(frame, ax=ax)
        legend = ax.get_legend()
        handles |= {text.get_text(): h for text, h in zip(legend.get_texts(), legend.legend_handles, strict=True)}
        legend.remove()
        if title == guide:
            mark_phases(frame, ax)
        ax.set_title(title, loc="left")
        ax.set_xlabel("")
    panels[-1, 0].set_xlabel("time (s, simulated)")
    panels[0, 0].set_xlim(0, 1.01 * max(frame["end_s"].max() for frame in frames.values()))
    fig.legend(handles=list(handles.values()), loc="outside lower center", ncols=len(handles))
    return fig


def plot_pareto_walk(front: pd.DataFrame, steps: pd.DataFrame, n_micro_batches: int) -> Figure:
    """Draw the efficient pairs of interval and fill time, the order in which the search visits some, and the best one.

    Args:
        front: columns fill_time, interval and total, s, of all efficient paths, fill times rising.
        steps: the same columns of the paths that the search found, in its order.
        n_micro_batches: M; the dotted line through the best pair has the slope −(M − 1).

    Returns:
        The figure: the whole front, and its corner near the best pair.
    """
    best = steps.loc[steps["total"].idxmin()]
    near = front[front["total"] <= 1.03 * best["total"]]
    fig, panels = plt.subplots(1, 2, figsize=(PAGE, 2.6))
    line = np.linspace(front["interval"].min(), front["interval"].max(), 50)
    level = best["total"] - (n_micro_batches - 1) * line
    for ax in panels:
        x, y = 1e3 * front["interval"], 1e3 * front["fill_time"]
        ax.plot(x, y, drawstyle="steps-post", color=_LIGHT, linewidth=1)
        ax.plot(x, y, "o", color=_DARK, markersize=3.5, label=f"efficient paths: {len(front)}")
        found = {"linestyle": "none", "color": _MARK, "markerfacecolor": "none", "markersize": 7}
        ax.plot(1e3 * steps["interval"], 1e3 * steps["fill_time"], "s", **found, label="visited by the search")
        ax.plot(1e3 * line, 1e3 * level, color=INK, linestyle=":", label="as long in total as the best")
        ax.set(xlabel="interval $T_i$ (ms, simulated)", ylabel="fill time $T_f$ (ms, simulated)")
    panels[0].set_ylim(0.9e3 * front["fill_time"].min(), 1.1e3 * front["fill_time"].max())
    room = 0.4 * max(near["interval"].max() - near["interval"].min(), 0.01 * best["interval"])
    panels[1].set_xlim(1e3 * (near["interval"].min() - room), 1e3 * (near["interval"].max() + room))
    panels[1].set_ylim(0.9e3 * near["fill_time"].min(), 1.08e3 * near["fill_time"].max())
    groups: Any = steps.groupby(["interval", "fill_time"])
    for (interval, fill), same in groups:
        order = ", ".join(str(n + 1) for n in same.index)
        ax = panels[1] if fill >= near["fill_time"].min() else panels[0]
        ax.annotate(order, (1e3 * interval, 1e3 * fill), xytext=(6, 4), textcoords="offset points")
    panels[0].legend()
    for ax, title in zip(panels, ("the whole front", "its corner near the best pair"), strict=True):
        ax.set_title(title, loc="left")
    return fig


def plot_micro_batch_curve(table: pd.DataFrame, chosen: Mapping[str, int], ax: Axes | None = None) -> Axes:
    """Draw T(m) of a fixed plan with its two parts, and the sizes that rules choose.

    Args:
        table: index m; columns fill_time_s and total_s, as of `MicroBatchCurve.to_frame()`.
        chosen: rule to the size that it chooses; every size is in the table's index, or between two of it.
        ax: axes to draw on; a new figure of a page's width if None.

    Returns:
        The axes.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(PAGE, 2.7))
    sizes = np.array(table.index, dtype=float)
    fill, total = (np.array(table[column], dtype=float) for column in ("fill_time_s", "total_s"))
    ax.plot(sizes, total, color=_DARK, marker=".", label="$T(m)$, every useful $m$")
    ax.plot(sizes, fill, color=_MIDDLE, linestyle="--", label="fill time $T_f$")
    ax.plot(sizes[total > fill], (total - fill)[total > fill], color=_LIGHT, linestyle="-.", label="$(M-1)\\,T_i$")
    for (rule, size), marker, large in zip(chosen.items(), "*sv^D", (13, 9, 8, 7, 6), strict=False):
        there = float(np.interp(size, sizes, total))
        style: dict[str, Any] = {"markerfacecolor": "none", "color": _MARK, "linestyle": "none"}
        label = f"{rule}: $m$ = {size}, {there:.3g} s"
        ax.plot(size, there, marker, markersize=large, label=label, **style)
    largest = int(sizes.max())
    ticks = [float(size) for size in _SIZES if size < 0.7 * largest] + [largest]
    ax.set(xscale="log", yscale="log", xlabel="micro-batch $m$ (samples)", ylabel="time per mini-batch (s, simulated)")
    low, high = 0.8 * fill.min(), 1.2 * total.max()
    ax.set_ylim(low, high)
    plain_ticks(ax, x=ticks, y=[value for value in _SECONDS if low <= value <= high])
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


def plot_micro_batch_choice(table: pd.DataFrame, m: int, frame: pd.DataFrame, end: float) -> Figure:
    """Draw T(m) with one m marked, and the nodes' Gantt chart at that m; for a slider, so quick, with fixed margins.

    Args:
        table: index m; columns fill_time_s and total_s.
        m: the size to show, of the table's index.
        frame: events of a mini-batch at that size.
        end: s, where the chart's time axis ends: the same for all m.

    Returns:
        The figure.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.4), width_ratios=(1, 2.2), layout="none")
    fig.subplots_adjust(0.09, 0.18, 0.97, 0.86, wspace=0.36)
    left.plot(table.index, table["total_s"], color=_DARK, marker=".", label="T")
    left.plot(table.index, table["fill_time_s"], color=_MIDDLE, linestyle="--", label="fill time")
    left.plot(m, table.loc[m, "total_s"], "o", color=_MARK, markersize=8, markerfacecolor="none")
    left.set(xscale="log", xlabel="micro-batch m (samples)", ylabel="seconds (simulated)", ylim=(0, None))
    plain_ticks(left, x=list(table.index))
    left.legend()
    nodes = np.isin(np.array(frame["kind"].astype(str)), ["forward", "backward"])
    computed: Any = frame[nodes]
    plot_gantt(computed, ax=right, numbered=False)
    right.get_legend().remove()
    right.set(xlabel="time (s, simulated)", ylabel="", xlim=(0, end))
    share = float(table.loc[m, "total_s"])
    title = f"m = {m}: closed form {share:.3g} s, simulated {frame['end_s'].max():.3g} s"
    right.set_title(title, loc="left")
    left.locator_params(axis="y", nbins=4)
    right.locator_params(axis="x", nbins=4)
    return fig


def plot_over_optimum(ratios: pd.DataFrame, looks: Mapping[str, str], x: str = "model", panel: str = "links") -> Figure:
    """Draw the times of methods over the optimum's: median, quartiles and every draw, a panel per kind of network.

    Args:
        ratios: a row per network and method; columns `x`, `panel`, "method" and "over".
        looks: the method's title to its name in `LOOKS`, from left to right.
        x: column of the groups on the horizontal axis.
        panel: column of the panels.

    Returns:
        The figure.
    """
    kinds = list(dict.fromkeys(ratios[panel]))
    fig, panels = plt.subplots(1, len(kinds), figsize=(PAGE, 2.8), sharey=True, squeeze=False)
    for ax, kind in zip(panels[0], kinds, strict=True):
        ax.axhline(1, color=INK, linewidth=0.8)
        plot_points(_where(ratios, panel, kind), x, "over", "method", looks, ax=ax)
        label = "time over the joint optimum\n(×, simulated)"
        ax.set(xlabel=f"{panel} of {kind}", ylabel=label, yscale="log")
        plain_ticks(ax, y=[1, 1.5, 2, 3, 5, 8])
        ax.label_outer()
        ax.get_legend().remove()
    fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(looks))
    return fig


def plot_plan_sweeps(swept: pd.DataFrame, looks: Mapping[str, str], labels: Mapping[str, str]) -> Figure:
    """Draw the time of a mini-batch against one quantity at a time: median and range of networks, log axes.

    Args:
        swept: a row per quantity, value, seed and method (its title); column time_s, NaN where there is no plan. A
            point is drawn only where every network has one.
        looks: the method's title to its name in `LOOKS`.
        labels: quantity to the label of its axis; a panel each, in this order.

    Returns:
        The figure.
    """
    n_seeds = swept["seed"].nunique()
    fig, panels = plt.subplots(1, len(labels), figsize=(PAGE, 2.6), sharey=True, squeeze=False)
    for ax, (quantity, label) in zip(panels[0], labels.items(), strict=True):
        mine = _where(swept, "quantity", quantity)
        shown = mine[mine.groupby(["value", "method"])["time_s"].transform("count") == n_seeds]
        plot_curves(shown, "value", "time_s", "method", looks, band=("pi", 100), markers=True, ax=ax)
        ax.set(xlabel=label, ylabel="time per mini-batch\n(s, simulated)", xscale="log", yscale="log")
        plain_ticks(ax, x=sorted(set(mine["value"])), y=_SECONDS)
        ax.tick_params(axis="x", labelsize=7)
        ax.label_outer()
        ax.get_legend().remove()
    fig.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(looks))
    return fig


def plot_closed_form(ratios: pd.DataFrame, limited: pd.DataFrame, flush: float) -> Figure:
    """Draw simulated over closed-form times (left), and what a limit on micro-batches in flight costs (right).

    Args:
        ratios: a row per plan; columns formula_s, ratio (simulated over closed form) and links.
        limited: a row per plan and limit; columns window (micro-batches in flight per stage, inf for no limit), time
            and memory, both over those without limit.
        flush: time of the flush order over the usual order, the median of plans.

    Returns:
        The figure.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 2.7))
    colours = dict(zip(dict.fromkeys(ratios["links"]), (_DARK, _LIGHT), strict=False))
    sns.scatterplot(ratios, x="formula_s", y="ratio", hue="links", style="links", palette=colours, ax=left)
    left.axhline(1, color=INK, linewidth=0.8)
    left.set(xlabel="closed form $T$ (s)", ylabel="event simulation\nover closed form", xscale="log")
    plain_ticks(left, x=[0.05, 0.1, 0.2, 0.5, 1, 2])
    left.legend(title="links of")

    windows = np.unique(limited["window"])  # inf comes last
    finite = np.isfinite(windows)
    places = np.where(finite, windows, windows[finite].max() + 1)
    for name, label, marker, colour, shift in (
        ("time", "time", "o", _DARK, -0.03), ("memory", "activation memory", "s", _MARK, 0.03),
    ):  # fmt: skip
        draws = [_where(limited, "window", window)[name] for window in windows]
        low, middle, high = np.array([np.quantile(these, (0.25, 0.5, 0.75)) for these in draws]).T
        spread = {"elinewidth": 1.2, "linestyle": "none", "marker": marker, "markersize": 5, "color": colour}
        right.errorbar(places + shift, middle, [middle - low, high - middle], label=label, **spread)
        right.plot(places[finite] + shift, middle[finite], color=colour)
    right.axhline(flush, color="0.5", linestyle=":", label="time of the flush order (GPipe)")
    right.set_xticks(places, [f"{w:g}" if np.isfinite(w) else "no limit" for w in windows])
    right.set(xlabel="micro-batches in flight, per stage", ylabel="over no limit (×, simulated)", ylim=(0, None))
    right.legend(loc="lower right")
    return fig


def plot_micro_batch_training(curves: pd.DataFrame, reference: str, sizes: Sequence[str], unit: str) -> Figure:
    """Draw how far the loss of training in micro-batches is from that on one machine, and the accuracy of both.

    Args:
        curves: a row per network, micro_batch (text) and round; columns train_loss and test_accuracy (NaN where not
            evaluated).
        reference: the `micro_batch` of training on one machine.
        sizes: the other values of `micro_batch`, largest first.
        unit: label of the horizontal axis.

    Returns:
        The figure: a panel of losses for all networks, and one panel of accuracies per network.
    """
    networks = list(dict.fromkeys(curves["network"]))
    fig, panels = plt.subplots(1, 1 + len(networks), figsize=(PAGE, 2.6))
    tones = dict(zip([reference, *sizes], [INK, *sns.color_palette("viridis", len(sizes)).as_hex()], strict=True))
    dashes = dict(zip(tones, ["-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1))], strict=False))
    floor = 1e-8  # equal losses have no place on a logarithmic axis
    for network, line in zip(networks, ("--", "-"), strict=False):
        losses = curves[curves["network"] == network].pivot_table(
            index="round", columns="micro_batch", values="train_loss"
        )
        for size in sizes:
            apart = np.maximum((losses[size] - losses[reference]).abs(), floor)
            panels[0].plot(np.array(losses.index), apart, color=tones[size], linestyle=line, linewidth=1)
        panels[0].plot([], [], color=INK, linestyle=line, label=network)
    panels[0].set(xlabel=unit, ylabel="loss: distance from one machine", yscale="log", ylim=(0.5 * floor, 30))
    panels[0].set_yticks([floor, 1e-6, 1e-4, 1e-2, 1], ["0", "10⁻⁶", "10⁻⁴", "10⁻²", "1"])
    panels[0].legend(loc="upper right", fontsize=6.5)
    for ax, network in zip(panels[1:], networks, strict=True):
        for size, tone in tones.items():
            mine = _where(_where(curves, "network", network), "micro_batch", size).dropna(subset="test_accuracy")
            label = size if size == reference else f"$m$ = {size}"
            ax.plot(mine["round"], 100 * mine["test_accuracy"], color=tone, linestyle=dashes[size], label=label)
        ax.set(xlabel=unit, ylabel="test accuracy (%)", title=network, ylim=(0, 100))
    panels[1].legend(loc="lower right")
    return fig


def _where(table: pd.DataFrame, column: str, value: object) -> Any:
    """Return the rows of a table that have a value in a column."""
    return table[table[column] == value]
