"""One look for all figures: seaborn's, with one colour per method; and the one way to write a figure."""

import os
from pathlib import Path
from typing import Any, cast

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from psl.errors import PSLError, expected

#: Widths of a figure in inches: one column, or the whole page, of a paper in two columns.
COLUMN, PAGE = 3.5, 7.16

#: The colour of lines that stand for no method: bounds, targets, references.
INK = "#252525"

_NAMES = ("blue", "orange", "green", "vermilion", "pink", "brown", "rose", "grey", "yellow", "sky")
_PALETTE: dict[str, str] = dict(zip(_NAMES, sns.color_palette("colorblind").as_hex(), strict=True))
_SOLID, _DASHED, _DOTTED, _DASH_DOT, _LONG, _DASH_DOT_DOT = (
    "-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1.2, 1, 1.2)), (0, (7, 2)), (0, (4, 1, 1, 1, 1, 1)),
)  # fmt: skip


def _line(colour: str, marker: str, linestyle: Any) -> dict[str, Any]:
    return {"color": _PALETTE.get(colour, colour), "marker": marker, "linestyle": linestyle}


#: Line styles by framework or method. A method has the same colour, marker and dashes in every figure. Colours are
#: those of seaborn's colour-blind palette, and a dark violet; markers and dashes tell lines apart in greyscale.
LOOKS: dict[str, dict[str, Any]] = {
    "epsl": _line("vermilion", "o", _SOLID),
    "epsl-1": _line("orange", "X", _DASH_DOT_DOT),
    "epsl-mean": _line("brown", "p", _LONG),
    "epsl-each": _line("grey", "^", _DASH_DOT),
    "epsl-cut": _line("#56108c", "P", _DASHED),
    "epsl-sampled": _line("#7a5c00", "*", _LONG),
    "psl": _line("blue", "s", _DASHED),
    "psl-small": _line("sky", "D", _DASH_DOT),
    "psl-small-1": _line("pink", "d", _DASH_DOT_DOT),
    "sfl": _line("green", "^", _DOTTED),
    "sl": _line("brown", "v", _LONG),
    "fedavg": _line("grey", "P", _DASH_DOT_DOT),
    "centralised": _line(INK, "x", _DOTTED),
    # EdgeSplit
    "edgesplit": _line("pink", "o", _DASHED),
    "adaptive-equal": _line("sky", "s", _DASH_DOT),
    "common-optimal": _line("orange", "D", _LONG),
    # pipelined split learning
    "pipeline": _line("blue", "^", _SOLID),
    "alternating": _line("sky", "v", _DASHED),
    "two-tier": _line("orange", "h", _DASHED),
    "no-pipeline": _line("grey", "D", _DOTTED),
    "random-cuts": _line("green", "P", _DASH_DOT),
    "random-placement": _line("brown", "X", _LONG),
}


def use_style() -> None:
    """Set seaborn's theme and matplotlib's defaults to the project's look; call it once, at the top of a notebook."""
    sns.set_theme(
        context="paper",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.figsize": (COLUMN, 2.4),
            "figure.dpi": 130,
            "savefig.dpi": 220,
            "figure.constrained_layout.use": True,
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same everywhere
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 7.5,
            "legend.title_fontsize": 7.5,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.linewidth": 0.5,
            "grid.alpha": 0.25,
            "lines.linewidth": 1.3,
            "lines.markersize": 3.5,
            "svg.hashsalt": "psl",  # the same data gives the same file
            "svg.fonttype": "none",
            "pdf.fonttype": 42,  # letters stay letters: journals ask for it
        },
    )


def set_up(notebook: str, folder: str | os.PathLike[str]) -> dict[str, str]:
    """Set the style, show whole texts in tables, and return ``notebook=`` and ``folder=`` of this notebook's files.

    Call it once, at the top of a notebook: ``HERE = plotting.set_up("04_figures.ipynb", FIGURES)``, and pass ``**HERE``
    to `save_figure`, `save_results` and `save_claim`.
    """
    use_style()
    pd.set_option("display.max_colwidth", None)
    return {"notebook": notebook, "folder": str(folder)}


def look(name: str) -> dict[str, Any]:
    """Return the line style of a framework or method; raises `PSLError` for an unknown one."""
    if name not in LOOKS:
        raise expected("look", "one of " + ", ".join(LOOKS), repr(name), "add it to psl.plotting.LOOKS", PSLError)
    return dict(LOOKS[name])


def bar_looks(n: int) -> list[dict[str, Any]]:
    """Return the styles of the `n` parts of stacked bars: from dark to light, so that they differ in greyscale."""
    return [
        {"facecolor": c, "hatch": "", "edgecolor": "white"} for c in sns.color_palette("mako", n + 2).as_hex()[1:-1]
    ]


def save_figure(
    fig: Figure,
    name: str,
    data: pd.DataFrame,
    caption: str,
    *,
    notebook: str,
    folder: str | os.PathLike[str] = "figures",
) -> None:
    """Write ``name.svg``, ``.pdf``, ``.png``, ``.csv`` (the numbers drawn) and ``.txt`` (the caption) to a folder.

    Args:
        fig: the figure.
        name: starts with the notebook's number, for example ``"04_latency_by_framework"``.
        data: what the figure shows; written with its index if any of the index's levels has a name.
        caption: what is shown and what to notice; the notebook's name is added.
        notebook: file name of the notebook that makes the figure.
        folder: created if missing.

    Raises:
        PSLError: the name does not start with the notebook's number, or an axis has no label.
    """
    if name[:3] != notebook[:2] + "_":
        raise expected("name", f"a name that starts with {notebook[:2]}_", repr(name), "rename the figure", PSLError)
    for axes in fig.axes:
        if axes.axison and axes.get_label() != "<colorbar>" and not _labelled(axes):
            got, fix = "an axis without a label", "set_xlabel, set_ylabel"
            raise expected(name, "labelled axes with units", got, fix, PSLError)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
    fig.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    fig.savefig(folder / f"{name}.png", metadata=cast(dict, {"Software": None}))
    indexed = any(level is not None for level in data.index.names)
    data.to_csv(folder / f"{name}.csv", index=indexed, float_format="%.6g")
    (folder / f"{name}.txt").write_text(f"{caption.strip()} Made by notebooks/{notebook}.\n")


def _labelled(axes: Axes) -> bool:
    """Return whether both axes have a label; one of the panels that share an axis is enough."""
    x = any(other.get_xlabel() for other in axes.get_shared_x_axes().get_siblings(axes))
    y = any(other.get_ylabel() for other in axes.get_shared_y_axes().get_siblings(axes))
    return x and y
