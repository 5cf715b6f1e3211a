"""Drawings of rounds in micro-batches: the round by their number, and rounds beside their lower bounds."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from psl.plotting.style import INK, bar_looks, look


def plot_round_by_micro_batches(table: pd.DataFrame, looks: Mapping[str, str], *, ax: Axes) -> Axes:
    """Draw round times by the number of micro-batches, a curve for each scenario, over their lower bounds.

    Args:
        table: a row per scenario and number; columns scenario, micro_batches (0 for a round with barriers), round_time
            and lower_bound (s).
        looks: scenario to name in `psl.plotting.LOOKS`, in the legend's order.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels: rounds with barriers stand at the left, at "barriers".
    """
    numbers = sorted(table.micro_batches.unique())
    place = {number: k for k, number in enumerate(numbers)}
    for scenario, name in looks.items():
        mine = pd.DataFrame(table[table.scenario == scenario]).sort_values(by="micro_batches")
        x = mine.micro_batches.map(place)
        style = look(name)
        ax.plot(x, mine.round_time, **style, label=scenario)
        ax.plot(x, mine.lower_bound, color=style["color"], linestyle="none", marker="_", markersize=9)
        best = mine.round_time.to_numpy().argmin()
        ax.plot(x.iloc[best], mine.round_time.iloc[best], "o", markersize=9, fillstyle="none", color=style["color"])
    ax.plot([], [], color=INK, linestyle="none", marker="_", markersize=9, label="lower bound")
    ax.set_xticks(range(len(numbers)), ["barriers" if number == 0 else f"{number}" for number in numbers])
    ax.set(xlabel="micro-batches M", ylabel="round time (s, simulated)", ylim=(0, None))
    ax.legend()
    return ax


def plot_rounds_and_bounds(table: pd.DataFrame, *, ax: Axes) -> Axes:
    """Draw round times as bars, one under the other, each with its lower bound as a line across the bar.

    Args:
        table: a row per plan, its name as index; columns round_time and lower_bound (s).
        ax: axes to draw on.

    Returns:
        `ax`, with its labels; the bars say their seconds.
    """
    places = np.arange(len(table))
    style = bar_looks(3)[1]
    ax.barh(places, table.round_time, height=0.62, **style)
    for k, (value, bound) in enumerate(zip(table.round_time, table.lower_bound, strict=True)):
        ax.plot([bound, bound], [k - 0.4, k + 0.4], color=INK, linewidth=1.4, label="" if k else "lower bound")
        ax.text(value + 0.01 * table.round_time.max(), k, f"{value:.3f}", va="center", fontsize=7.5)
    ax.set_yticks(places, list(table.index))
    ax.invert_yaxis()
    ax.set(xlabel="round time (s, simulated)", ylabel="plan", xlim=(0, 1.12 * table.round_time.max()))
    ax.grid(False, axis="y")
    ax.legend(loc="lower right")
    return ax
