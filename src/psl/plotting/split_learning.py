"""The picture of split learning: what stays on a device, what travels, what the server computes."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

_DEVICE, _SERVER, _UP, _DOWN, _INK = "#56b4e9", "#029e73", "#0173b2", "#d55e00", "#252525"

#: What crosses the cut in one step, in the order of the step.
MESSAGES = pd.DataFrame(
    [
        ("1 forward", "device to server", "activations at the cut, labels", "b × act_bits"),
        ("2 forward and backward", "stays on the server", "", ""),
        ("3 backward", "server to device", "gradients at the cut", "b × grad_bits"),
        ("4 step", "stays on each side", "", ""),
    ],
    columns=["step", "direction", "what", "bits"],
)


def plot_split_learning(n_devices: int = 3, ax: Axes | None = None) -> Axes:
    """Draw one step of split learning: devices with the first layers, a server with the rest, and what travels.

    Args:
        n_devices: devices drawn, 1 to 4.
        ax: matplotlib axes; a new figure of a page's width if None.

    Source: split learning (Gupta and Raskar, arXiv 1810.06060).
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(7.16, 2.5))
    height = 1.0 / n_devices
    for k in range(n_devices):
        y = 1.0 - (k + 0.5) * height
        _box(ax, 0.0, y, 0.13, 0.62 * height, "#f0f0f0", "raw data\nstay here")
        _arrow(ax, (0.133, y), (0.167, y), _INK)
        _layers(ax, 0.17, y, 0.62 * height, 2, _DEVICE, f"device {k + 1}: layers 1…j" if k == 0 else f"device {k + 1}")
        at_server = 0.5 + 0.55 * (y - 0.5)
        _arrow(ax, (0.275, y + 0.12 * height), (0.66, at_server + 0.035), _UP)
        _arrow(ax, (0.66, at_server - 0.035), (0.275, y - 0.12 * height), _DOWN)
    _layers(ax, 0.67, 0.5, 0.56, 4, _SERVER, "server: layers j+1…L")
    _box(ax, 0.91, 0.5, 0.09, 0.30, "#f0f0f0", "loss")
    _arrow(ax, (0.862, 0.5), (0.905, 0.5), _INK)
    label = {"ha": "center", "va": "center", "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 1.5}}
    ax.text(0.47, 1.04, "up: activations at cut j (and labels)", color=_UP, **label)
    ax.text(0.47, -0.04, "down: their gradients", color=_DOWN, **label)
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.1, 1.12))
    ax.set_axis_off()
    return ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, color: str, text: str = "") -> None:
    """Draw a box whose left edge is at x and whose middle is at height y."""
    style = {"boxstyle": "round,pad=0,rounding_size=0.012", "facecolor": color, "edgecolor": _INK, "linewidth": 0.8}
    ax.add_patch(FancyBboxPatch((x, y - height / 2), width, height, **style))
    if text:
        ax.text(x + width / 2, y, text, ha="center", va="center", fontsize="small")


def _layers(ax: Axes, x: float, y: float, height: float, count: int, color: str, text: str) -> None:
    """Draw layers side by side, with a name above."""
    for k in range(count):
        _box(ax, x + 0.05 * k, y, 0.038, height, color)
    ax.text(x + (0.05 * count - 0.012) / 2, y + height / 2 + 0.015, text, ha="center", va="bottom", fontsize="small")


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=1.3))
