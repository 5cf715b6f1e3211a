"""One look for all figures, and the one way to write them: SVG, PNG, the CSV behind it, a caption."""

from pathlib import Path

import matplotlib as mpl
import pandas as pd

from psl.errors import PSLError, expected

#: Line styles by framework or method. Colours differ in lightness, and each has its own marker and
#: dashes, so that figures read in greyscale.
LOOKS = {
    "epsl": {"color": "#08306b", "marker": "o", "linestyle": "-"},
    "psl": {"color": "#d95f0e", "marker": "s", "linestyle": "--"},
    "psl-small": {"color": "#fe9929", "marker": "D", "linestyle": "-."},
    "sfl": {"color": "#238b45", "marker": "^", "linestyle": ":"},
    "sl": {"color": "#807dba", "marker": "v", "linestyle": (0, (5, 1))},
    "fedavg": {"color": "#969696", "marker": "P", "linestyle": (0, (3, 1, 1, 1))},
    "centralised": {"color": "#252525", "marker": "x", "linestyle": (0, (1, 1))},
}

_HATCHES = ["", "///", "...", "xxx", "\\\\\\", "+++", "ooo"]
_GREYS = ["#08306b", "#4292c6", "#c6dbef", "#f0f0f0", "#bdbdbd", "#737373", "#252525"]


def use_style() -> None:
    """Set matplotlib's defaults to the project's look; call it once, at the top of a notebook."""
    mpl.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "figure.constrained_layout.use": True,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.alpha": 0.3,
            "lines.markersize": 4.5,
            "legend.frameon": False,
            "svg.hashsalt": "psl",  # the same data gives the same file
            "svg.fonttype": "none",
        }
    )


def look(name: str) -> dict:
    """Return the line style of a framework or method; raises `PSLError` for an unknown one."""
    if name not in LOOKS:
        raise expected("look", "one of " + ", ".join(LOOKS), repr(name), "add it to psl.plotting.LOOKS", PSLError)
    return dict(LOOKS[name])


def bar_looks(n: int) -> list[dict]:
    """Return `n` bar styles that differ in lightness and hatching."""
    return [
        {"facecolor": _GREYS[k % len(_GREYS)], "hatch": _HATCHES[k % len(_HATCHES)], "edgecolor": "#252525"}
        for k in range(n)
    ]


def save_figure(fig, name: str, data: pd.DataFrame, caption: str, *, notebook: str, folder="figures") -> None:
    """Write ``name.svg``, ``.png``, ``.csv`` (the numbers drawn) and ``.txt`` (the caption) to a folder.

    Args:
        fig: matplotlib figure.
        name: starts with the notebook's number, for example ``"04_latency_by_framework"``.
        data: what the figure shows; written with its index if that has a name.
        caption: what is shown and what to notice; the notebook's name is added.
        notebook: file name of the notebook that makes the figure.
        folder: created if missing.

    Raises:
        PSLError: the name does not start with the notebook's number, or an axis has no label.
    """
    if name[:3] != notebook[:2] + "_":
        raise expected("name", f"a name that starts with {notebook[:2]}_", repr(name), "rename the figure", PSLError)
    for axes in fig.axes:
        if axes.axison and axes.get_label() != "<colorbar>" and not (axes.get_xlabel() and axes.get_ylabel()):
            raise expected(
                name, "labelled axes with units", "an axis without a label", "set_xlabel, set_ylabel", PSLError
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
    fig.savefig(folder / f"{name}.png", metadata={"Software": None})
    data.to_csv(folder / f"{name}.csv", index=data.index.name is not None, float_format="%.6g")
    (folder / f"{name}.txt").write_text(f"{caption.strip()} Made by notebooks/{notebook}.\n")
