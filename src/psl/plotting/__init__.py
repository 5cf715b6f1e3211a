"""Figures: one style, one way to save them, and the drawings that notebooks share."""

from psl.plotting.cell import plot_cell
from psl.plotting.style import LOOKS, bar_looks, look, save_figure, use_style

__all__ = ["LOOKS", "bar_looks", "look", "plot_cell", "save_figure", "use_style"]
