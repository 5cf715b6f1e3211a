"""Charts that compare methods: curves with a band over the draws, and points with every draw beside them."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from psl.plotting.style import look


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


def _dashes(linestyle: Any) -> Any:
    """Return a line style of matplotlib as seaborn takes it: lengths of dashes and gaps, or "" for a solid line."""
    return "" if linestyle == "-" else linestyle[1]
