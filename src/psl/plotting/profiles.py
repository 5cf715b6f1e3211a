"""Drawings of profiles: the cost curves of a model's cuts, one cut looked at closely, counted and measured shares."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.plotting.style import COLUMN, INK, PAGE

# What falls to the device: colour, marker and dashes. None of these stands for a method.
_SHARES = {"computation": ("o", "-"), "parameters": ("s", "--"), "activation memory": ("^", ":")}
_COLOURS = dict(zip(_SHARES, sns.color_palette("mako", 5).as_hex()[1:4], strict=True))
_CANDIDATE = "#e3e3e3"


def cut_candidates(act_bits: np.ndarray) -> np.ndarray:
    """Return the inner cuts that send less than every cut before them: no earlier cut sends as little.

    Args:
        act_bits: (L+1,) bits of the activation at each cut; the first is the raw input.

    Returns:
        Numbers of cuts, rising; neither the input nor the output is among them.
    """
    least = np.minimum.accumulate(act_bits[1:])  # the input is no cut of the model: it does not bound the others
    inner = np.arange(2, len(act_bits) - 1)
    return inner[act_bits[inner] < least[inner - 2]]


def device_shares(costs: pd.DataFrame) -> pd.DataFrame:
    """Return what share of the whole falls to the device at each cut.

    Args:
        costs: one row per cut, as `Profile.to_frame` gives it.

    Returns:
        The columns "computation" (forward and backward), "parameters" and "activation memory", each from 0 to 1.
    """
    work = sum(costs[name] for name in costs.columns if name.startswith(("fwd_", "bwd_")))
    columns = {"computation": work, "parameters": costs.param_bits, "activation memory": costs.act_memory_bytes}
    return pd.DataFrame({name: column / column.iloc[-1] for name, column in columns.items()})


def plot_cut_costs(costs: pd.DataFrame, marks: Mapping[int, str]) -> Figure:
    """Draw what travels at each cut, and what falls to the device, side by side.

    Args:
        costs: one row per cut, as `Profile.to_frame` gives it.
        marks: names to write at some cuts, by number of the cut.

    Returns:
        A figure of a page's width. Cuts of `cut_candidates` are shaded.
    """
    fig, (size, share) = plt.subplots(1, 2, figsize=(PAGE, 2.7))
    for axes in (size, share):
        for j in cut_candidates(costs.act_bits.to_numpy()):
            axes.axvspan(j - 0.5, j + 0.5, color=_CANDIDATE, linewidth=0, zorder=0)
        top = axes.secondary_xaxis("top")
        top.set_xticks(list(marks), list(marks.values()), rotation=40, ha="left", fontsize=7)
        top.tick_params(length=2, pad=1)
        top.spines["top"].set_visible(False)
    _draw_size(size, costs)
    size.legend(loc="upper right")
    _draw_shares(share, device_shares(costs))
    share.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return fig


def plot_cut_explorer(costs: pd.DataFrame, cut: int, title: str, batch_size: int = 1) -> Figure:
    """Draw one cut: bars of what falls to the device, bars of what travels, and the cut's place in the curves.

    Args:
        costs: one row per cut, as `Profile.to_frame` gives it.
        cut: its number, 0 to L.
        title: of the whole figure.
        batch_size: samples whose activations the device keeps at a time.

    Returns:
        A figure of a page's width. In the panel on the right the grey steps are the size of the activation.
    """
    place = {"left": 0.04, "right": 0.985, "bottom": 0.18, "top": 0.9, "wspace": 0.33, "width_ratios": (1.3, 0.65, 1.3)}
    fig = plt.figure(figsize=(PAGE, 2.3), layout="none")  # placed by hand: a layout engine takes half of the time
    share, bits, curves = fig.subplots(1, 3, gridspec_kw=place)
    row, last, shares = costs.iloc[cut], costs.iloc[-1], device_shares(costs).iloc[cut]
    flops = [sum(r[name] for name in ("fwd_flops", "bwd_flops")) / 1e9 for r in (row, last)]
    texts = {
        "computation": f"{flops[0]:.3g} of {flops[1]:.3g} GFLOP",
        "parameters": f"{row.param_bits / 8e6:.3g} of {last.param_bits / 8e6:.3g} MB",
        "activation memory": " of ".join(f"{batch_size * r.act_memory_bytes / 1e6:.3g}" for r in (row, last)) + " MB",
    }
    share.barh(list(shares.index), shares.to_numpy(), height=0.36, color=[_COLOURS[name] for name in shares.index])
    for k, name in enumerate(shares.index):
        share.text(0.01, k - 0.25, f"{name}: {texts[name]}", va="bottom", fontsize=7.5)
    share.set(
        xlim=(0, 1), ylim=(2.4, -0.65), yticks=[], xlabel="share on the device", ylabel="what falls to the device"
    )
    travels = [row.act_bits / 1e6, row.grad_bits / 1e6]
    bits.bar(["up", "down"], travels, color=["0.35", "0.7"], width=0.6)
    for k, value in enumerate(travels):
        bits.text(k, value, f"{value:.3g}", ha="center", va="bottom", fontsize=7.5)
    bits.set(ylim=(0, 1.12 * costs.act_bits.max() / 1e6), xlabel="direction", ylabel="Mbit per sample")
    curves.step(costs.index, costs.act_bits / costs.act_bits.max(), where="mid", color="0.35")
    curves.plot(cut, row.act_bits / costs.act_bits.max(), "o", color="0.35")
    _draw_shares(curves, device_shares(costs), cut)
    curves.axvline(cut, color=INK, linewidth=0.8)
    curves.set(ylabel="share of the largest value")
    share.locator_params(axis="x", nbins=4)  # few ticks: each costs time in a redraw
    for axes in (bits, curves):
        axes.locator_params(axis="y", nbins=4)
    fig.suptitle(title, fontsize=8)
    return fig


def plot_counted_and_measured(stages: pd.DataFrame) -> Axes:
    """Draw each stage's share of the counted operations beside its share of the measured time.

    Args:
        stages: one row per stage of the model, in the order of the computation; the index names them, the columns
            "counted" and "measured" hold shares that sum to 1.

    Returns:
        Axes of a column's width.
    """
    _, ax = plt.subplots(figsize=(COLUMN, 2.5))
    places = np.arange(len(stages))
    ax.hlines(places, 100 * stages.counted, 100 * stages.measured, color="0.7", linewidth=1.5, zorder=1)
    looks = {"counted": ("o", "#3e356b", 4.5, "counted (FLOP)"), "measured": ("D", "#37a3aa", 6.5, "measured (s)")}
    for name, (marker, colour, size, label) in looks.items():  # diamonds are hollow: circles inside them show
        face = "none" if name == "measured" else colour
        ax.plot(100 * stages[name], places, marker, color=colour, markersize=size, markerfacecolor=face, label=label)
    ax.set_yticks(places, list(stages.index))
    ax.invert_yaxis()
    ax.set(xlabel="share of forward and backward pass (%)", ylabel="stage of the model", xlim=(-1, None))
    ax.legend(loc="upper right")
    return ax


def _draw_size(ax: Axes, costs: pd.DataFrame) -> None:
    """Draw the size of the activation at each cut, and the raw input's."""
    megabits = costs.act_bits / 1e6
    ax.step(costs.index, megabits, where="mid", color="0.35", label="activation at the cut")
    ax.axhline(megabits.iloc[0], color=INK, linestyle=":", label="raw input")
    ax.set(xlabel="cut j", ylabel="size per sample (Mbit)", ylim=(-0.03 * megabits.max(), None))


def _draw_shares(ax: Axes, shares: pd.DataFrame, cut: int | None = None) -> None:
    """Draw the three shares that fall to the device; with markers at every cut, or at one."""
    for name, (marker, dashes) in _SHARES.items():
        look: dict[str, Any] = {"marker": marker, "linestyle": dashes, "color": _COLOURS[name], "label": name}
        ax.plot(shares.index, shares[name], markevery=None if cut is None else [cut], **look)
    ax.set(xlabel="cut j", ylabel="share on the device", ylim=(-0.03, 1.03))
