"""Drawings of plans in real processes: who is joined to whom, and what was measured beside what was predicted."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from psl.plotting.charts import plain_ticks
from psl.plotting.gantt import GANTT_LOOKS, plot_gantt
from psl.plotting.style import INK, PAGE, look

_NAMESPACE, _PROCESS, _LAUNCHER = "#eef3f7", "#ffffff", "#e6e6e6"
_LABEL: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": "small"}
_PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10]


def plot_processes(n_clients: int = 3, ax: Axes | None = None) -> Axes:
    """Draw the processes of a run on one machine: launcher, server and clients, their namespaces and their links.

    Args:
        n_clients: clients drawn, 1 to 4.
        ax: axes to draw on; a new figure of a page's width if None.

    Returns:
        The axes.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(PAGE, 1.0 + 0.62 * n_clients))
    height = 1.0 / n_clients
    _box(ax, 0.23, 0.5, 0.20, 0.62, _NAMESPACE, "--")
    _box(ax, 0.25, 0.5, 0.16, 0.34, _PROCESS, "-", "server\nprocess 0")
    _box(ax, 0.0, 0.5, 0.13, 0.34, _LAUNCHER, "-", "launcher\n(this notebook)")
    ax.text(0.33, 0.835, "namespace 0", ha="center", va="bottom", fontsize="small")
    for k in range(n_clients):
        y = 1.0 - (k + 0.5) * height
        _box(ax, 0.73, y, 0.27, 0.84 * height, _NAMESPACE, "--")
        _box(ax, 0.75, y, 0.13, 0.52 * height, _PROCESS, "-", f"client {k}\nprocess {k + 1}")
        note = f"namespace {k + 1}\n{(8, 11, 14, 9)[k]} × slower"
        ax.text(0.89, y, note, va="center", fontsize="small")
        start = 0.5 + 0.5 * (y - 0.5)
        _join(ax, (0.43, start), (0.73, y), "<|-|>", INK)
        ax.text(0.58, (start + y) / 2, f"link {k}: rate up, rate down", **_LABEL, bbox=_PLAIN)
    _join(ax, (0.13, 0.5), (0.25, 0.5), "<|-|>", "0.5", (0, (1, 1)))
    ax.text(0.065, 0.28, "starts processes,\ncollects what\nthey noted", ha="center", va="top", fontsize="small")
    ax.text(0.58, -0.06, "tensors over TCP; the kernel (tc tbf) or the sender keeps each rate", **_LABEL)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.12, 1.04))
    ax.set_axis_off()
    return ax


def plot_two_gantts(
    predicted: pd.DataFrame, measured: pd.DataFrame, titles: tuple[str, str], rows: Mapping[str, str] | None = None
) -> Figure:
    """Draw a predicted round of a star above the measured one: the same rows and the same time axis.

    Args:
        predicted: columns resource, kind, micro_batch, start_s, end_s, as of `Timeline.to_frame()`.
        measured: the same columns, as of `Run.events`, of one round; it may begin at any time.
        titles: of the two panels.
        rows: resource of `measured` to the row of `predicted` in which it is drawn; others keep their name.

    Returns:
        The figure, of a page's width.
    """
    order = [str(name) for name in dict.fromkeys(predicted["resource"].astype(str))]
    frames = []
    for frame in (predicted, measured):
        names = frame["resource"].astype(str).replace(dict(rows or {}))
        known = [*order, *(name for name in dict.fromkeys(names) if name not in order)]
        frame = frame.assign(resource=pd.Categorical(names, known))[frame["kind"].isin(GANTT_LOOKS)]
        begin = frame["start_s"].min()
        frames.append(frame.assign(start_s=frame["start_s"] - begin, end_s=frame["end_s"] - begin))
    fig, panels = plt.subplots(2, 1, figsize=(PAGE, 1.3 + 0.44 * len(order)), sharex=True)
    for ax, frame, title in zip(panels, frames, titles, strict=True):
        plot_gantt(frame, ax=ax)
        ax.set_title(title, loc="left")
        ax.set_ylabel("")
    handles = list({text.get_text(): handle for ax in panels for handle, text in _legend(ax)}.values())
    for ax in panels:
        ax.get_legend().remove()
        ax.set_ylabel("resource")
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    end = max(frame["end_s"].max() for frame in frames)
    panels[0].set(xlim=(0, 1.02 * end), xlabel="")
    return fig


def _legend(ax: Axes) -> list:
    legend = ax.get_legend()
    return [] if legend is None else list(zip(legend.legend_handles, legend.get_texts(), strict=True))


def plot_measured_against_predicted(rounds: pd.DataFrame, titles: Mapping[str, str], target: float = 10.0) -> Figure:
    """Draw measured over predicted round times (left), and the errors with their median and quartiles (right).

    Args:
        rounds: a row per scenario: scheduler, predicted_s, measured_s, error (measured over predicted − 1).
        titles: scheduler, a name of `psl.plotting.LOOKS`, to its title.
        target: error in % that the grey bands show.

    Returns:
        The figure, of a page's width; the left panel is square.
    """
    fig, (left, right) = plt.subplots(1, 2, figsize=(PAGE, 3.1))
    both = rounds[["predicted_s", "measured_s"]]
    ends = np.array([0.8 * both.min(axis=None), 1.25 * both.max(axis=None)])
    share = target / 100
    band = {"color": "0.6", "alpha": 0.25, "linewidth": 0, "label": f"± {target:g} %"}
    left.fill_between(ends, (1 - share) * ends, (1 + share) * ends, **band)
    left.plot(ends, ends, color=INK, linewidth=0.8)
    for k, (scheduler, title) in enumerate(titles.items()):
        mine = rounds[rounds.scheduler == scheduler]
        fill = "none" if k % 2 == 0 else "full"  # two of the methods have the same marker
        style = look(scheduler) | {"linestyle": "none", "fillstyle": fill, "markersize": 5}
        left.plot(mine.predicted_s, mine.measured_s, **style, label=title)
    left.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    left.set(xlabel="predicted round time (s)", ylabel="measured round time (s)")
    plain_ticks(left, x=_TICKS, y=_TICKS)
    left.set(xlim=ends, ylim=ends)
    left.legend()
    errors = rounds.assign(percent=100 * rounds.error, title=rounds.scheduler.map(dict(titles)))
    colours = {title: look(scheduler)["color"] for scheduler, title in titles.items()}
    shared = {"x": "title", "y": "percent", "hue": "title", "palette": colours, "ax": right}
    right.axhspan(-target, target, color="0.6", alpha=0.25, linewidth=0)
    right.axhline(0, color=INK, linewidth=0.8)
    sns.stripplot(errors, **shared, jitter=False, size=3.5, alpha=0.6)
    middle = {"estimator": "median", "errorbar": ("pi", 50), "linestyle": "none", "marker": "_", "markersize": 22}
    sns.pointplot(errors, **shared, err_kws={"linewidth": 1.2}, **middle)
    right.set(xlabel="scheduler", ylabel="measured over predicted − 1 (%)")
    return fig


def _box(ax: Axes, x: float, y: float, width: float, height: float, colour: str, line: str, text: str = "") -> None:
    """Draw a box whose left edge is at x and whose middle is at height y."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.012", "facecolor": colour, "edgecolor": INK, "linewidth": 0.8}
    ax.add_patch(FancyBboxPatch((x, y - height / 2), width, height, linestyle=line, **style))
    ax.text(x + width / 2, y, text, ha="center", va="center", fontsize="small")


def _join(ax: Axes, start: Any, end: Any, arrow: str, colour: str, dashes: Any = "-") -> None:
    style = {"arrowstyle": arrow, "mutation_scale": 9, "color": colour, "linewidth": 1.2, "linestyle": dashes}
    ax.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))
