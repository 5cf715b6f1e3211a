"""Pictures of training: EPSL's slots, accuracy by round and by time, time to a target accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from psl.errors import ScenarioError, expected
from psl.plotting.charts import plain_ticks, plot_curves, plot_points
from psl.plotting.style import COLUMN, INK, LOOKS, PAGE, look

_TIMES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]  # s, of a logarithmic axis
_FARTHEST = 6.0  # where a picture of ratios ends at most


def plot_slots(n_clients: int, batch_size: int, n_aggregated: int, *, ax: Axes | None = None) -> Axes:
    """Draw the mini-batches of a round of EPSL: a row per client, a column per slot, and below them the averages.

    Args:
        n_clients: N.
        batch_size: b, slots of each client's mini-batch.
        n_aggregated: n_A = ⌈φ b⌉, the slots whose last-layer gradients are averaged over the clients.
        ax: axes to draw on; a new figure of a page's width if None.

    Returns:
        The axes. Their title counts the rows of the server's backward pass, n_A + N (b − n_A) of N b.

    Raises:
        ScenarioError: more slots are aggregated than there are.
    """
    if not 0 <= n_aggregated <= batch_size:
        got, fix = str(n_aggregated), "pass n_A = ⌈φ b⌉, psl.gradient_aggregation.aggregated_rows(phi, batch_size)"
        raise expected("n_aggregated", f"0 to {batch_size}", got, fix, ScenarioError)
    if ax is None:
        _, ax = plt.subplots(figsize=(PAGE, 2.2))
    averaged, kept = LOOKS["epsl"]["color"], LOOKS["psl"]["color"]
    filled, lowest = {"cmap": ListedColormap(["#f3b993", kept]), "vmin": 0, "vmax": 1}, -1.6
    grid: dict[str, Any] = {"edgecolors": "white", "linewidth": 1 if batch_size <= 32 else 0.4}
    alone = np.broadcast_to(np.arange(batch_size) >= n_aggregated, (n_clients, batch_size))
    ax.pcolormesh(np.arange(batch_size + 1), np.arange(n_clients + 1), alone, **filled, **grid)
    if n_aggregated:
        mean = np.zeros((1, n_aggregated))
        ax.pcolormesh(np.arange(n_aggregated + 1), [lowest, lowest + 1], mean, cmap=ListedColormap([averaged]), **grid)
        arrow = {"arrowstyle": "-|>", "color": INK}
        ax.annotate("", (n_aggregated / 2, lowest + 1), (n_aggregated / 2, 0), arrowprops=arrow)
    rows = n_aggregated + n_clients * (batch_size - n_aggregated)
    ax.set_title(
        f"server's backward pass: {n_aggregated} averages + {n_clients} × {batch_size - n_aggregated} single slots "
        f"= {rows} rows instead of {n_clients * batch_size} ({rows / (n_clients * batch_size):.0%})"
    )
    names = [str(n_clients - k) for k in range(n_clients)]
    ax.set_yticks([lowest + 0.5, *(k + 0.5 for k in range(n_clients))], ["average", *names])
    shown = np.arange(0, batch_size, max(1, batch_size // 16))
    ax.set_xticks(shown + 0.5, [str(q + 1) for q in shown])
    ax.set(xlabel="slot q", ylabel="client", xlim=(0, batch_size), ylim=(lowest - 0.1, n_clients))
    ax.grid(False)
    ax.tick_params(length=0)
    sns.despine(ax=ax, left=True, bottom=True)
    return ax


def plot_accuracy(data: pd.DataFrame, x: str, looks: Mapping[str, str], *, ax: Axes) -> Axes:
    """Draw test accuracy against rounds or simulated seconds: mean of the seeds, and a band over all of them.

    Args:
        data: a row per evaluation, with columns "method", "seed", "accuracy_percent" and `x`.
        x: "round", or "simulated_time_s", which gets a logarithmic axis.
        looks: title of a method to its name in `psl.plotting.LOOKS`, in the legend's order.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels.
    """
    shown = data.loc[data.method.isin(list(looks))]
    plot_curves(shown, x, "accuracy_percent", "method", looks, centre="mean", band=("pi", 100), ax=ax)
    ax.set(xlabel=x, ylabel="test accuracy (%)")
    if x == "round":
        return ax
    ax.set(xlabel="simulated time (s)", xscale="log")
    plain_ticks(ax, x=_TIMES)
    return ax


def shared_legend(fig: Figure, axes: Iterable[Axes], *, ncols: int = 3) -> None:
    """Give a figure one legend below its panels in place of one in each; a title that several show stands once.

    Args:
        fig: the figure.
        axes: its panels, which have a legend each.
        ncols: columns of the legend; fewer where the figure is too narrow for them.
    """
    entries: dict[str, Any] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
        if (legend := panel.get_legend()) is not None:
            legend.remove()
    for columns in range(ncols, 0, -1):
        legend = fig.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent().width <= fig.bbox.width:
            break
        legend.remove()


def plot_readings(data: pd.DataFrame, looks: Mapping[str, str], references: Mapping[str, float]) -> Figure:
    """Draw final accuracy by φ and reading of EPSL: a panel per network, median, quartiles and every seed.

    Args:
        data: a row per run, with columns "network", "method", "phi" and "accuracy_percent".
        looks: title of a method to its name in `psl.plotting.LOOKS`.
        references: network to the mean accuracy of PSL in percent, drawn as a dotted line.

    Returns:
        The figure.
    """
    fig, panels = plt.subplots(1, len(references), figsize=(PAGE, 2.8), sharey=True, squeeze=False)
    for ax, (network, reference) in zip(panels[0], references.items(), strict=True):
        shown = data.loc[(data.network == network) & data.method.isin(list(looks))]
        plot_points(shown, "phi", "accuracy_percent", "method", looks, ax=ax)
        ax.axhline(reference, color=INK, linestyle=":", linewidth=1, label="PSL, full mini-batch (mean)")
        ax.set(xlabel=f"φ ({network})", ylabel="test accuracy (%)")
        ax.label_outer()
    shared_legend(fig, panels[0])
    return fig


def plot_target_times(times: pd.DataFrame, looks: Mapping[str, str], *, title: str = "") -> Figure:
    """Draw simulated seconds to a target accuracy: a panel per network, a row per method, a dot per seed.

    A bar marks the median of the seeds. A dot on the line "never" is a seed that stays below the target.

    Args:
        times: a row per network, method and seed, with columns "network", "method" and "seconds"; infinite if never.
        looks: title of a method to its name in `psl.plotting.LOOKS`, from top to bottom; methods without a row in
            `times` keep their place.
        title: above the panels.

    Returns:
        The figure.
    """
    networks = list(dict.fromkeys(times.network))
    size = (PAGE, 0.75 + 0.2 * len(looks))
    place = {"left": 0.2, "right": 0.99, "bottom": 0.17, "top": 0.86, "wspace": 0.05}
    with plt.rc_context({"figure.constrained_layout.use": False}):  # which takes a third of the time of a redraw
        fig, panels = plt.subplots(1, len(networks), figsize=size, sharey=True, squeeze=False, gridspec_kw=place)
    for ax, network in zip(panels[0], networks, strict=True):
        _target_panel(ax, times.query("network == @network"), looks)
        ax.set(xlabel=f"simulated time (s), {network}", ylabel="method" if ax is panels[0, 0] else "")
    if title:
        fig.suptitle(title, fontsize=8)
    return fig


def plot_ratios(
    data: pd.DataFrame, looks: Mapping[str, str], scenarios: Sequence[str], *, label: str = "time to target over PSL's"
) -> Figure:
    """Draw the ratio of a method's time to a target and PSL's by scenario: median and quartiles; left of 1 is sooner.

    A mark on the line "never" is a method that does not reach the target, by the median.

    Args:
        data: a row per network, scenario, method and pair of draws, with columns "network", "scenario", "method" and
            "ratio"; an infinite ratio counts in the median.
        looks: title of a method to its name in `psl.plotting.LOOKS`.
        scenarios: from top to bottom.
        label: of the horizontal axis.

    Returns:
        The figure: a panel per network.
    """
    networks = list(dict.fromkeys(data.network))
    size = (PAGE, 1.0 + 0.32 * len(scenarios))
    farthest = min(float(data.ratio[np.isfinite(data.ratio)].max()), _FARTHEST)
    never = 1.4 * farthest
    fig, panels = plt.subplots(1, len(networks), figsize=size, sharey=True, sharex=True, squeeze=False)
    for ax, network in zip(panels[0], networks, strict=True):
        for k, (method, name) in enumerate(looks.items()):
            drawn = data.query("network == @network and method == @method")
            _ratio_points(ax, drawn, scenarios, name, method, k, never)
        ax.axvline(1, color=INK, linestyle=":", linewidth=1)
        ax.set_yticks(range(len(scenarios)), list(scenarios))
        ax.set(xlabel=f"{label}, {network}", ylabel="scenario" if ax is panels[0, 0] else "", xscale="log")
        ax.set(ylim=(len(scenarios) - 0.5, -0.5), xlim=(0.9 * data.ratio.min(), 1.1 * farthest))
        if np.isinf(data.ratio).any():
            ax.set_xlim(right=1.12 * never)
            ax.axvline(never, color=INK, linestyle=":", linewidth=0.8)
            ax.text(never, -0.55, "never", ha="center", va="bottom", fontsize=7)
        plain_ticks(ax, x=[ratio for ratio in (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5) if ratio <= 1.1 * farthest])
    shared_legend(fig, panels[0], ncols=min(4, len(looks)))
    return fig


def new_panels(n: int, *, height: float = 2.8) -> tuple[Figure, list[Axes]]:
    """Return a figure with `n` panels side by side that share the vertical axis: a column wide if one, else a page."""
    fig, panels = plt.subplots(1, n, figsize=(PAGE if n > 1 else COLUMN, height), sharey=True, squeeze=False)
    return fig, list(panels[0])


def _target_panel(ax: Axes, times: pd.DataFrame, looks: Mapping[str, str]) -> None:
    """Draw one network's times: dots of the seeds and a bar at their median."""
    reached = times.seconds[np.isfinite(times.seconds)]
    low, high = (reached.min(), reached.max()) if len(reached) else (0.1, 1.0)
    never = high * (high / low) ** 0.18 * 1.3
    for y, (method, name) in enumerate(looks.items()):
        seconds = times.seconds[times.method == method].to_numpy()
        if not len(seconds):
            ax.text(low, y, "not run", va="center", color="grey", fontsize=7)
            continue
        style = {"color": look(name)["color"], "linestyle": "none"}
        shown, middle = np.where(np.isfinite(seconds), seconds, never), float(np.median(seconds))
        ax.plot(shown, np.full(len(shown), y), marker=look(name)["marker"], alpha=0.6, markeredgewidth=0, **style)
        ax.plot([middle if np.isfinite(middle) else never], [y], marker="|", markersize=11, markeredgewidth=2, **style)
    ax.axvline(never, color=INK, linestyle=":", linewidth=0.8)
    ax.text(never, -0.75, "never", ha="center", va="bottom", fontsize=7)
    ax.set(xscale="log", xlim=(low / 1.4, never * 1.25), ylim=(len(looks) - 0.5, -0.7))
    ax.set_yticks(range(len(looks)), list(looks))
    plain_ticks(ax, x=[t for t in _TIMES if low / 1.4 <= t <= high * 1.05])


def _ratio_points(
    ax: Axes, data: pd.DataFrame, scenarios: Sequence[str], name: str, method: str, place: int, never: float
) -> None:
    """Draw one method's medians and quartiles, each a little below the method before; infinite ones at `never`."""
    style = {"color": look(name)["color"], "marker": look(name)["marker"], "linestyle": "none"}
    for y, scenario in enumerate(scenarios):
        ratios = data.ratio[data.scenario == scenario].dropna().to_numpy()
        if not len(ratios):
            continue
        at = y + 0.16 * (place - 1)
        quartiles = np.quantile(ratios, [0.25, 0.5, 0.75], method="nearest")
        low, middle, high = np.where(np.isfinite(quartiles), quartiles, never)
        ax.plot([low, high], [at, at], color=style["color"], linewidth=1)
        ax.plot([middle], [at], label=method, **style)
