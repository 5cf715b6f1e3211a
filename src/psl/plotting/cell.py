"""Pictures of a wireless cell and of a plan: who stands where, who has which subchannel, and with what power."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from psl.networks import WirelessCell
from psl.plotting.style import COLUMN, INK, PAGE
from psl.units import linear_to_db

_CLIENT, _ASSIGNED = "#0173b2", "#de8f05"
_RING = 100  # m, between two rings of the map
_NAMED = 12  # clients; with more, their numbers would overlap


def plot_cell(cell: WirelessCell, assignment: np.ndarray | None = None) -> Figure:
    """Draw a cell: where the clients stand, and how good every subchannel is for each of them.

    Args:
        cell: without `positions` only the gains are drawn; without `line_of_sight` all clients look alike.
        assignment: (K,) client of each subchannel; marked in the gain map if given.

    Returns:
        The figure: left the map (filled markers: line of sight; rings every 100 m), right each client's gain in dB
        above its own mean over the subchannels; the mean stands beside the client's number.
    """
    if cell.positions is None:
        fig, gains = plt.subplots(figsize=(COLUMN, 2.4))
    else:
        fig, (place, gains) = plt.subplots(1, 2, figsize=(PAGE, 2.7), width_ratios=[1, 1.6])
        _draw_places(place, cell, cell.positions)
    _draw_gains(gains, cell, assignment)
    gains.set_xlabel("subchannel k")
    return fig


def plot_assignment(cell: WirelessCell, assignment: np.ndarray, power: np.ndarray) -> Figure:
    """Draw who has which subchannel, over the map of gains, and the power on each subchannel.

    Args:
        cell: the wireless cell.
        assignment: (K,) client of each subchannel.
        power: (K,) transmit power density on each subchannel, W/Hz.

    Returns:
        The figure: above the gains with a square per subchannel, below the power w_k p_k in W; the numbers are clients.
    """
    fig, (gains, watts) = plt.subplots(2, 1, figsize=(PAGE, 3.5), sharex=True, height_ratios=[1.5, 1])
    _draw_gains(gains, cell, assignment)
    values = cell.bandwidth * power
    watts.bar(np.arange(cell.n_subchannels), values, color=_CLIENT, width=0.75)
    if cell.n_clients <= _NAMED:
        for k, (client, value) in enumerate(zip(assignment.tolist(), values.tolist(), strict=True)):
            watts.annotate(str(client), (k, value), xytext=(0, 1.5), textcoords="offset points", ha="center")
    watts.set(xlabel="subchannel k", ylabel="power (W)")
    watts.margins(y=0.18)
    watts.grid(False, axis="x")
    return fig


def _draw_gains(gains: Axes, cell: WirelessCell, assignment: np.ndarray | None) -> None:
    """Draw each client's gains relative to its own mean: on one scale for all, a near client would hide the others."""
    mean = linear_to_db(cell.uplink_gain.mean(axis=1))
    above = linear_to_db(cell.uplink_gain) - mean[:, None]
    image = gains.imshow(above, aspect="auto", cmap="cividis", interpolation="nearest")
    if cell.n_clients <= _NAMED:
        labels = [f"{i} ({value:.0f} dB)".replace("-", "\N{MINUS SIGN}") for i, value in enumerate(mean)]
        gains.set_yticks(range(cell.n_clients), labels)
    gains.set_ylabel("client i (mean gain)")
    gains.xaxis.set_major_locator(MaxNLocator(integer=True))
    gains.grid(False)
    gains.figure.colorbar(image, ax=gains, label="gain above the\nclient's mean (dB)")
    if assignment is not None:
        places = np.arange(cell.n_subchannels)
        for colour, width in (("white", 2.6), (_ASSIGNED, 1.4)):  # an edge that shows on dark and on light
            style = {"color": colour, "markerfacecolor": "none", "markeredgewidth": width, "markersize": 6.5}
            gains.plot(places, assignment, marker="s", linestyle="none", **style)


def _draw_places(place: Axes, cell: WirelessCell, positions: np.ndarray) -> None:
    """Draw the clients around the base station, with rings that show distances."""
    farthest = float(np.hypot(*positions.T).max())
    rings = _RING * np.arange(1, int(np.ceil(farthest / _RING)) + 1)
    angles = np.arange(0, 2 * np.pi, np.pi / 6)
    unit = np.stack([np.cos(angles), np.sin(angles)], axis=1)  # (12, 2); the rings' names go where no client is near
    near = [np.hypot(*(positions - radius * at).T).min() for at in unit for radius in rings]
    at = unit[np.reshape(near, (len(unit), len(rings))).min(axis=1).argmax()]
    if len(rings) <= 5:
        for radius in rings.tolist():
            place.add_patch(Circle((0, 0), radius, fill=False, color="0.75", linewidth=0.7, zorder=0))
            place.annotate(f"{radius} m", tuple(radius * at), ha="center", va="center", color="0.4", fontsize=6.5,
                           bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})  # fmt: skip
    place.plot(0, 0, marker="*", color=INK, markersize=10, linestyle="none", label="base station")
    if cell.line_of_sight is None:
        groups = [(np.ones(cell.n_clients, dtype=bool), "client", _CLIENT)]
    else:
        seen = cell.line_of_sight.astype(bool)
        groups = [(seen, "LOS", _CLIENT), (~seen, "no LOS", "white")]
    for mask, label, face in groups:
        x, y = positions[mask].T
        place.plot(x, y, "o", color=_CLIENT, markerfacecolor=face, markersize=5, linestyle="none", label=label)
    if cell.n_clients <= _NAMED:
        for i, (x, y) in enumerate(positions.tolist()):
            place.annotate(str(i), (x, y), xytext=(4, 3), textcoords="offset points")
    place.set(xlabel="x (m)", ylabel="y (m)", aspect="equal")
    place.grid(False)
    place.margins(0.06)
    place.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, handletextpad=0.1, columnspacing=0.8)
