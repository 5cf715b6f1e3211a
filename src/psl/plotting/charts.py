"""Charts that compare methods: curves, points with every draw, stacked terms, parts of a total, bounds."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from psl.plotting.style import INK, PAGE, bar_looks, look


def plot_curves(
    data: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    looks: Mapping[str, str],
    *,
    centre: str = "median",
    band: tuple[str, float] | None = ("pi", 50),
    markers: bool = False,
    ax: Axes,
) -> Axes:
    """Draw one curve per method through the centre of its draws, with a band that shows their spread.

    Args:
        data: a long table: a row per method, draw (seed, sampled cell) and point.
        x, y: columns of `data`.
        by: column with the method's title, which the legend shows.
        looks: title to name in `psl.plotting.LOOKS`, in the legend's order.
        centre: "median" or "mean" of the draws.
        band: seaborn's errorbar: ("pi", 50) from the lower to the upper quartile, ("pi", 100) all draws, None for none.
        markers: draw a marker at every point.
        ax: axes to draw on.

    Returns:
        `ax`, with axis labels still to be set.
    """
    styles = {title: look(name) for title, name in looks.items()}
    sns.lineplot(
        data=data,
        x=x,
        y=y,
        hue=by,
        style=by,
        hue_order=list(styles),
        style_order=list(styles),
        palette={title: style["color"] for title, style in styles.items()},
        dashes={title: _dashes(style["linestyle"]) for title, style in styles.items()},
        markers={title: style["marker"] for title, style in styles.items()} if markers else False,
        markeredgewidth=0.3,
        markersize=4.5,
        estimator=centre,
        errorbar=band,
        err_kws={"alpha": 0.15, "linewidth": 0},
        ax=ax,
    )
    ax.legend(title=None)
    return ax


def plot_points(data: pd.DataFrame, x: str, y: str, by: str, looks: Mapping[str, str], *, ax: Axes) -> Axes:
    """Draw the median and quartiles of each method's draws as a point with a bar, and every draw as a dot beside it.

    Args:
        data: a long table: a row per group, method and draw.
        x: column of the groups on the horizontal axis.
        y: column of the values.
        by: column with the method's title.
        looks: title to name in `psl.plotting.LOOKS`, in the order from left to right.
        ax: axes to draw on.

    Returns:
        `ax`, with axis labels still to be set.
    """
    width, n = 0.8, len(looks)
    shared: dict[str, Any] = {
        "data": data,
        "x": x,
        "y": y,
        "hue": by,
        "hue_order": list(looks),
        "palette": {title: look(name)["color"] for title, name in looks.items()},
        "ax": ax,
    }
    sns.stripplot(**shared, dodge=True, jitter=False, size=2, alpha=0.5, legend=False)
    pointed: dict[str, Any] = {
        "dodge": width - width / n if n > 1 else False,
        "markers": [look(name)["marker"] for name in looks.values()],
        "markersize": 5.5,
        "markeredgewidth": 0.5,
        "markeredgecolor": "white",
    }
    spread: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 50), "err_kws": {"linewidth": 1.2}}
    sns.pointplot(**shared, **pointed, **spread, linestyle="none")
    ax.legend(title=None)
    return ax


def plain_ticks(ax: Axes, *, x: list[float] | None = None, y: list[float] | None = None) -> None:
    """Put plain numbers at the given places of a logarithmic axis, and nothing between them."""
    for axis, places in ((ax.xaxis, x), (ax.yaxis, y)):
        if places is not None:
            axis.set_major_locator(FixedLocator(places))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_locator(NullLocator())
            axis.set_minor_formatter(NullFormatter())


def plot_terms(terms: pd.DataFrame, titles: Mapping[str, str], *, longest: float) -> Figure:
    """Draw the terms of rounds as stacked bars, one bar per row; a bar that is too long runs out of the picture.

    Args:
        terms: seconds, a row per framework and a column per term.
        titles: what stands beside each row's bar.
        longest: s, where the picture ends at most; a longer bar says its length there.

    Returns:
        The figure.
    """
    shown = terms.loc[:, terms.sum() > 0]
    names, left = [titles[name] for name in shown.index], np.zeros(len(shown))
    fig, ax = plt.subplots(figsize=(PAGE, 2.4))
    for column, style in zip(shown, bar_looks(len(shown.columns)), strict=True):
        ax.barh(names, shown[column], left=left, label=column.replace("_", " "), height=0.7, linewidth=0.4, **style)
        left += shown[column].to_numpy()
    ax.invert_yaxis()
    ax.grid(False, axis="y")
    ax.set(xlabel="round time (s, simulated)", ylabel="framework")
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
    for y in np.flatnonzero(left > longest):
        ax.set_xlim(0, longest)
        ax.annotate(f"{left[y]:.1f} s →", (0.985 * longest, y), ha="right", va="center", bbox=box)
    ax.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4)
    return fig


def plot_parts(data: pd.DataFrame, x: str, parts: Mapping[str, str], *, ylabel: str, ax: Axes) -> Axes:
    """Draw a total and its parts against `x`: medians of the draws, with a band from the lower to the upper quartile.

    Args:
        data: a row per draw and value of `x`.
        x: column of the horizontal axis.
        parts: column to title, in the legend's order.
        ylabel: label of the vertical axis.
        ax: axes to draw on.

    Returns:
        `ax`; its horizontal axis has still to be labelled.
    """
    long = data.rename(columns=dict(parts)).melt(x, list(parts.values()), "part", ylabel)
    sns.lineplot(
        long,
        x=x,
        y=ylabel,
        hue="part",
        style="part",
        markers=True,
        palette=sns.color_palette("mako", len(parts) + 1)[: len(parts)],
        estimator="median",
        errorbar=("pi", 50),
        err_kws={"alpha": 0.15, "linewidth": 0},
        ax=ax,
    )
    ax.set(ylim=(0, None))
    ax.legend(title=None, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=3, columnspacing=1, handletextpad=0.4)
    return ax


def plot_over_bound(over: pd.DataFrame, titles: Mapping[str, str], *, ax: Axes) -> Axes:
    """Draw round times over the lower bound of the same cell: every cell a dot, their median and quartiles.

    Args:
        over: a row per cell and a column per method, round time divided by lower bound.
        titles: column to title, from left to right.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels and a logarithmic axis.
    """
    long = over.rename(columns=dict(titles)).melt(value_vars=list(titles.values()), var_name="x", value_name="y")
    shades = sns.color_palette("mako", 4)
    sns.stripplot(long, x="x", y="y", color=shades[3], size=3, alpha=0.6, jitter=False, ax=ax)
    spread: dict[str, Any] = {"estimator": "median", "errorbar": ("pi", 50), "err_kws": {"linewidth": 1.2}}
    sns.pointplot(long, x="x", y="y", color=shades[1], linestyle="none", marker="_", markersize=14, **spread, ax=ax)
    ax.axhline(1, color=INK, linestyle=":", label="lower bound")
    ax.set(ylabel="round time over the\nlower bound (×, simulated)", xlabel="what is optimised", yscale="log")
    plain_ticks(ax, y=[1, 1.5, 2, 3, 5, 8])
    ax.tick_params(axis="x", rotation=20)
    ax.legend()
    return ax


def _dashes(linestyle: Any) -> Any:
    """Return a line style of matplotlib as seaborn takes it: lengths of dashes and gaps, or "" for a solid line."""
    return "" if linestyle == "-" else linestyle[1]
