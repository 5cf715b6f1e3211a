"""Pictures of a wireless cell and of the subchannels' assignment."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from psl.networks import WirelessCell
from psl.plotting.style import COLUMN, INK, PAGE
from psl.units import linear_to_db

_CLIENT, _ASSIGNED = "#0173b2", "#de8f05"


def plot_cell(cell: WirelessCell, assignment: np.ndarray | None = None) -> Figure:
    """Draw a cell: where the clients stand, and the gain of every subchannel.

    Args:
        cell: without `positions` only the gains are drawn; without `line_of_sight` all clients look alike.
        assignment: (M,) client of each subchannel; marked in the gain map if given.

    Returns:
        The matplotlib figure: left the map (filled markers: line of sight), right the gain in dB.
    """
    if cell.positions is None:
        fig, gains = plt.subplots(figsize=(COLUMN, 2.4))
    else:
        fig, (place, gains) = plt.subplots(1, 2, figsize=(PAGE, 2.7), width_ratios=[1, 1.6])
        _draw_places(place, cell)
    image = gains.imshow(linear_to_db(cell.uplink_gain), aspect="auto", cmap="cividis", interpolation="nearest")
    gains.set(xlabel="subchannel", ylabel="client")
    if cell.n_clients <= 12:
        gains.set_yticks(range(cell.n_clients))
    gains.xaxis.set_major_locator(MaxNLocator(integer=True))
    gains.grid(False)
    fig.colorbar(image, ax=gains, label="gain (dB)")
    if assignment is not None:
        places = np.arange(cell.n_subchannels)
        for colour, width in (("white", 2.6), (_ASSIGNED, 1.4)):  # an edge that shows on dark and on light
            style = {"color": colour, "markerfacecolor": "none", "markeredgewidth": width, "markersize": 6.5}
            gains.plot(places, assignment, marker="s", linestyle="none", **style)
    return fig


def _draw_places(place: Axes, cell: WirelessCell) -> None:
    positions = cell.positions
    assert positions is not None
    place.plot(0, 0, marker="*", color=INK, markersize=10, linestyle="none", label="base station")
    if cell.line_of_sight is None:
        groups = [(np.ones(cell.n_clients, dtype=bool), "client", _CLIENT)]
    else:
        seen = cell.line_of_sight.astype(bool)
        groups = [(seen, "LOS", _CLIENT), (~seen, "NLOS", "white")]
    for mask, label, face in groups:
        x, y = positions[mask].T
        place.plot(x, y, "o", color=_CLIENT, markerfacecolor=face, markersize=5, linestyle="none", label=label)
    if cell.n_clients <= 12:
        for i, (x, y) in enumerate(positions.tolist()):
            place.annotate(str(i), (x, y), xytext=(4, 3), textcoords="offset points")
    place.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    place.margins(0.12)
    place.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.1, columnspacing=0.8)
