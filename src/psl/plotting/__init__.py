"""Figures: one style, one way to save them, and the drawings that notebooks share."""

from psl.plotting.cell import plot_cell
from psl.plotting.gantt import GANTT_LOOKS, plot_gantt
from psl.plotting.network import plot_network, plot_state_graph, state_graph
from psl.plotting.style import LOOKS, bar_looks, look, save_figure, use_style

__all__ = [
    "GANTT_LOOKS",
    "LOOKS",
    "bar_looks",
    "look",
    "plot_cell",
    "plot_gantt",
    "plot_network",
    "plot_state_graph",
    "save_figure",
    "state_graph",
    "use_style",
]
