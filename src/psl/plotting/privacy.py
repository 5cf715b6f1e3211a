"""Pictures of leakage: reconstructions, scores by cut, knowledge by cut, budgets and plans, defences, labels."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.plotting.charts import plain_ticks
from psl.plotting.style import COLUMN, INK, PAGE, look


def plot_reconstructions(rows: Mapping[str, np.ndarray]) -> Figure:
    """Draw images in rows under each other: the true ones, a baseline, and what an attack made of them at some cuts.

    Args:
        rows: title of a row to its images (k, channels, height, width), all k alike.

    Returns:
        The figure; grey for one channel, else colours. All images share the range of the first row.
    """
    first = next(iter(rows.values()))
    low, high = float(first.min()), float(first.max())
    fig, axes = plt.subplots(len(rows), 1, figsize=(PAGE * 0.62, 0.62 * len(rows)), sharex=True, squeeze=False)
    for ax, (title, images) in zip(axes[:, 0], rows.items(), strict=True):
        strip = np.concatenate([np.pad(image, ((0, 0), (0, 0), (0, 1)), constant_values=high) for image in images], 2)
        shown = np.clip((strip - low) / (high - low), 0, 1).transpose(1, 2, 0)
        ax.imshow(shown.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect="equal")
        ax.set_ylabel(title, rotation=0, ha="right", va="center")
        ax.set(xticks=[], yticks=[])
        ax.grid(False)
        sns.despine(ax=ax, left=True, bottom=True)
    axes[-1, 0].set_xlabel("private images")
    return fig


def plot_leakage_by_cut(data: pd.DataFrame, baseline: float, *, ax: Axes) -> Axes:
    """Draw R² and re-identification at every cut with their spread, and the largest R² at or behind each cut.

    Args:
        data: a row per cut in order: "name", "r2", "r2_sd", "reidentified", "reidentified_sd", "r2_at_or_behind".
        baseline: R² of the class mean.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels.
    """
    x = np.arange(len(data))
    for column, title, name in (("r2", "R²", "epsl"), ("reidentified", "re-identified", "psl")):
        style = look(name)
        ax.errorbar(x, data[column], yerr=data[f"{column}_sd"].fillna(0), capsize=2, label=title, **style)
    ax.step(x, data["r2_at_or_behind"], where="mid", color=INK, linewidth=0.8, label="R² at this cut or behind it")
    ax.axhline(baseline, color=INK, linestyle=":", linewidth=1, label="R² of the class mean")
    ax.set_xticks(x, data["name"], rotation=45, ha="right")
    ax.set(xlabel="cut", ylabel="share", ylim=(0, 1.04))
    ax.legend()
    return ax


def plot_knowledge(table: pd.DataFrame, *, ax: Axes) -> Axes:
    """Draw R² by what the attacker knows and by cut as a heat map; values below 0 count as 0 in the colour.

    Args:
        table: a row per attacker, a column per cut.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels.
    """
    sns.heatmap(table, annot=True, fmt=".2f", vmin=0, vmax=1, cmap="mako_r", cbar_kws={"label": "R²"}, ax=ax)
    ax.set(xlabel="cut", ylabel="the attacker has")
    ax.tick_params(axis="y", rotation=0)
    return ax


def plot_budget(data: pd.DataFrame, budget: float, *, ax: Axes) -> Axes:
    """Draw the round time of the best plan at each cut against the leakage there; what a budget forbids is shaded.

    Args:
        data: a row per cut: "name", "r2_at_or_behind", "round_time_s".
        budget: most R².
        ax: axes to draw on.

    Returns:
        `ax`, with its labels and a logarithmic axis of time.
    """
    inside = (data["r2_at_or_behind"] <= budget).to_numpy()
    ax.axvspan(budget, 1.02, color="#bbbbbb", alpha=0.35, linewidth=0, label=f"not allowed: R² > {budget:g}")
    for mask, style in ((inside, look("epsl")), (~inside, look("fedavg"))):
        points = data[mask]
        ax.plot(points["r2_at_or_behind"], points["round_time_s"], color=style["color"], marker="o", linestyle="none")
    if np.any(inside):
        k = int(np.argmin(np.where(inside, data["round_time_s"], np.inf)))
        best = data["r2_at_or_behind"].iloc[k], data["round_time_s"].iloc[k]
        ax.scatter(*best, s=70, facecolor="none", edgecolor=INK, label="best allowed")
    seen: list[tuple[float, float]] = []
    for at, time, name in zip(data["r2_at_or_behind"], data["round_time_s"], data["name"], strict=True):
        if all(abs(at - a) + abs(np.log(time / t)) > 0.03 for a, t in seen):
            ax.annotate(name, (at, time), xytext=(3, 3), textcoords="offset points", fontsize=6.5)
            seen.append((at, time))
    ax.set(xlabel="R² at this cut or behind it", ylabel="round time (s, simulated)", xlim=(None, 1.02), yscale="log")
    plain_ticks(ax, y=[factor * 10**power for power in range(-6, 4) for factor in (1, 2, 3, 5)])
    ax.legend()
    return ax


def plot_defences(data: pd.DataFrame, *, ax: Axes) -> Axes:
    """Draw accuracy against R² of every defence: once sent, and with the attacker's average of several sendings.

    Args:
        data: a row per defence: "defence", "accuracy_percent", "r2_once", "r2_averaged"; the spread of accuracy and of
            one sending's R², "accuracy_percent_sd" and "r2_once_sd", is drawn if it is there.
        ax: axes to draw on.

    Returns:
        `ax`, with its labels.
    """
    colours = sns.color_palette("colorblind", len(data)).as_hex()
    markers = "osD^vPX*hd"
    for k, row in enumerate(data.to_dict("records")):
        y: float = row["accuracy_percent"]
        style: dict[str, Any] = {"color": colours[k], "marker": markers[k % len(markers)]}
        ax.plot([row["r2_once"], row["r2_averaged"]], [y, y], color=colours[k], linewidth=0.8)
        spread = {axis: row.get(f"{name}_sd") for axis, name in (("xerr", "r2_once"), ("yerr", "accuracy_percent"))}
        ax.errorbar(row["r2_once"], y, **spread, linestyle="none", elinewidth=0.6, label=row["defence"], **style)
        ax.plot(row["r2_averaged"], y, linestyle="none", fillstyle="none", **style)
    ax.set(xlabel="R² (filled: one sending; hollow: average)", ylabel="test accuracy (%)")
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return ax


def plot_label_leakage(panels: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Draw how often a label is named rightly, with the chance of it, in one panel per quantity that is swept.

    Args:
        panels: label of the horizontal axis, and a table with "x", "curve", "accuracy", "chance".

    Returns:
        The figure.
    """
    fig, axes = plt.subplots(1, len(panels), figsize=(PAGE, 2.4), sharey=True, squeeze=False)
    shown: dict[str, Any] = {
        "x": "x",
        "y": "accuracy",
        "hue": "curve",
        "style": "curve",
        "markers": True,
        "dashes": True,
    }
    for ax, (label, data) in zip(axes[0], panels, strict=True):
        sns.lineplot(data, **shown, errorbar=("pi", 100), palette="colorblind", ax=ax)
        chance = data.groupby("x", as_index=False).agg({"chance": "mean"})
        ax.plot(chance["x"], chance["chance"], color=INK, linestyle=":", label="by chance")
        ax.set(xlabel=label, ylabel="slots named rightly", ylim=(0, 1.04))
        ax.legend(title=None)
    return fig


def plot_estimates(data: pd.DataFrame) -> Figure:
    """Draw the biased and the unbiased distance correlation of independent data against the number of samples.

    Args:
        data: a row per draw: "n", "estimate", "value".

    Returns:
        The figure.
    """
    fig, ax = plt.subplots(figsize=(COLUMN, 2.3))
    sns.lineplot(data, x="n", y="value", hue="estimate", style="estimate", markers=True, errorbar=("pi", 100), ax=ax)
    ax.axhline(0, color=INK, linewidth=0.8)
    ax.set(xlabel="samples n", ylabel="estimate for independent data", xscale="log")
    plain_ticks(ax, x=sorted({float(n) for n in data["n"]}))
    ax.legend(title=None)
    return fig
