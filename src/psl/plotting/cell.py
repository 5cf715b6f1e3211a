"""Pictures of a wireless cell and of the subchannels' assignment."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MaxNLocator

from psl.networks import WirelessCell
from psl.units import linear_to_db


def plot_cell(cell: WirelessCell, assignment: np.ndarray | None = None):
    """Draw a cell: where the clients stand, and the gain of every subchannel.

    Args:
        cell: without `positions` only the gains are drawn; without `line_of_sight` all clients look alike.
        assignment: (M,) client of each subchannel; marked in the gain map if given.

    Returns:
        The matplotlib figure: left the map (filled markers: line of sight), right the gain in dB.
    """
    if cell.positions is None:
        fig, gains = plt.subplots(figsize=(4.9, 3.4))
    else:
        fig, (place, gains) = plt.subplots(1, 2, figsize=(8.2, 3.4), width_ratios=[1, 1.5])
        _draw_places(place, cell)
    image = gains.imshow(linear_to_db(cell.uplink_gain), aspect="auto", cmap="Greys_r", interpolation="nearest")
    gains.set(xlabel="subchannel", ylabel="client")
    if cell.n_clients <= 12:
        gains.set_yticks(range(cell.n_clients))
    gains.xaxis.set_major_locator(MaxNLocator(integer=True))
    gains.grid(False)
    fig.colorbar(image, ax=gains, label="gain (dB)")
    if assignment is not None:
        gains.plot(
            np.arange(cell.n_subchannels), assignment, "s", color="#d95f0e", markerfacecolor="none", markersize=9,
            markeredgewidth=2,
        )  # fmt: skip
    return fig


def _draw_places(place, cell: WirelessCell) -> None:
    place.plot(0, 0, marker="*", color="black", markersize=14, linestyle="none", label="base station")
    if cell.line_of_sight is None:
        groups = [(np.ones(cell.n_clients, dtype=bool), "client", "#08306b")]
    else:
        seen = cell.line_of_sight.astype(bool)
        groups = [(seen, "LOS", "#08306b"), (~seen, "NLOS", "white")]
    for mask, label, face in groups:
        x, y = cell.positions[mask].T
        place.plot(x, y, "o", color="#08306b", markerfacecolor=face, markersize=7, linestyle="none", label=label)
    if cell.n_clients <= 12:
        for i, (x, y) in enumerate(cell.positions):
            place.annotate(str(i), (x, y), xytext=(5, 4), textcoords="offset points")
    place.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    place.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=3, fontsize=8, handletextpad=0.2)
