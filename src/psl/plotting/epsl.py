"""Drawings of EPSL's plans: an alternation's way beside the certified gaps, and the terms of a round by cut."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.plotting.style import INK, PAGE, bar_looks, look

#: Title of a method of the scheduler to its name in `LOOKS`.
_METHODS = {"search": "epsl", "BCD": "alternating"}
_BLOCKS = {"start": "start", "subchannels": "S", "power": "P", "cut": "C"}


def plot_certificate(path: pd.DataFrame, gaps: pd.DataFrame, *, search: float, bound: float, title: str) -> Figure:
    """Draw how BCD shortens the round block by block in one cell, and how often a method's gap is how large.

    Args:
        path: BCD's history, a row per update: block ("start", "subchannels", "power" or "cut"), cut, round_time (s).
        gaps: a row per cell; the columns "search" and "BCD" hold certified gaps in %.
        search: s, round time of the search in the cell of `path`.
        bound: s, lower bound there.
        title: of the left panel.

    Returns:
        The figure: left round time by update (S subchannels, P power, C cut), with the cut after each update that
        changed it; right the share of cells whose gap is at most x, from 0.
    """
    fig, (course, spread) = plt.subplots(1, 2, figsize=(PAGE, 2.5), width_ratios=[1.25, 1])
    _draw_path(course, path)
    course.axhline(search, color=look("epsl")["color"], label="search ends here")
    course.axhline(bound, color=INK, linestyle=":", label="lower bound")
    course.set(xlabel="update of BCD: subchannels, power or cut", ylabel="round time (s, simulated)", title=title)
    low, high = min(bound, search), float(path.round_time.max())
    course.set_ylim(low - 0.1 * (high - low), high + 0.22 * (high - low))
    course.legend()
    for name, method in _METHODS.items():
        style = look(method)
        ecdf = {"color": style["color"], "linestyle": style["linestyle"]}
        sns.ecdfplot(x=gaps[name], ax=spread, label=name, **ecdf)
    spread.set(xlabel="certified gap (%)", ylabel="share of cells", title=f"{len(gaps)} cells")
    spread.set(xlim=(-0.02 * gaps.max().max(), None), ylim=(0, 1.03))
    spread.legend(loc="lower right")
    return fig


def _draw_path(ax: Axes, path: pd.DataFrame) -> None:
    """Draw a round time per update, with the name of the block below and the cut where it changes."""
    times, cuts = path.round_time.to_numpy(), path.cut.to_numpy()
    style = look(_METHODS["BCD"])
    ax.plot(np.arange(len(path)), times, **style, label="BCD")
    ax.set_xticks(np.arange(len(path)), [_BLOCKS[block] for block in path.block])
    ax.grid(False, axis="x")
    for k in np.flatnonzero(np.diff(cuts, prepend=-1)):
        ax.annotate(f"cut {cuts[k]}", (k, times[k]), xytext=(3, 4), textcoords="offset points")


def plot_rounds_by_cut(terms: pd.DataFrame, cut: str, *, longest: float, title: str) -> Figure:
    """Draw a round's terms as stacked bars, one bar per cut; one cut is marked, and the shortest round.

    Args:
        terms: seconds; a row per cut, with the cut's name as index, and a column per term.
        cut: name of the cut that is marked.
        longest: s, where the picture ends: the same for all positions of a slider.
        title: of the figure.

    Returns:
        A figure of a page's width. It is placed by hand, because a slider redraws it.
    """
    fig = plt.figure(figsize=(PAGE, 2.5), layout="none")
    ax = fig.subplots(gridspec_kw={"left": 0.075, "right": 0.79, "bottom": 0.17, "top": 0.91})
    names, bottom = list(terms.index), np.zeros(len(terms))
    for column, style in zip(terms, bar_looks(len(terms.columns)), strict=True):
        ax.bar(names, terms[column], bottom=bottom, label=str(column).replace("_", " "), width=0.72, **style)
        bottom += terms[column].to_numpy()
    chosen, best = names.index(cut), int(np.argmin(bottom))
    for k in {chosen, best}:
        words = f"{bottom[k]:.3f} s" + ("\nshortest" if k == best else "")
        ax.text(k, min(bottom[k], 0.86 * longest) + 0.01 * longest, words, ha="center", va="bottom", fontsize=7.5)
    ax.axvspan(chosen - 0.47, chosen + 0.47, color="0.88", zorder=0)
    ax.set(xlabel="cut", ylabel="round time (s, simulated)", ylim=(0, longest))
    ax.grid(False, axis="x")
    ax.tick_params(axis="x", labelsize=7)
    ax.locator_params(axis="y", nbins=4)  # few ticks: each costs time in a redraw
    handles, labels = ax.get_legend_handles_labels()  # in the order of the stack, from top to bottom
    ax.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))
    ax.set_title(title)
    return fig
