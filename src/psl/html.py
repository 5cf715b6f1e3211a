"""Small HTML tables with bars: how plans, profiles, networks and histories show themselves in a notebook.

All text is escaped. Styles are inline, and colours are those of the page or let it shine through, so that a table is
readable on a light and on a dark page.
"""

import math
import numbers
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

ROWS = 8  # that a table shows of many

_HUES = (200, 35, 160, 285, 10, 95)  # of the parts of a stacked bar, the first first
_WIDTH = 11  # em, of a whole bar
_CELL = "padding:.15em .6em;border:0;text-align:"
_LINE = "1px solid rgba(128,128,128,.5)"


class Bar(NamedTuple):
    """A cell with a bar: shares of its full width, one behind the other."""

    shares: Sequence[float]


class Curve(NamedTuple):
    """A cell with a small chart of columns: heights 0..1 from left to right; NaN leaves a gap."""

    heights: Sequence[float]


def table(
    title: str, header: Sequence[str], rows: Iterable[Sequence[Any]], *, parts: Sequence[str] = (), note: str = ""
) -> str:
    """Return a table as HTML.

    Args:
        title: above the table.
        header: names of the columns.
        rows: cells: text, numbers, None for nothing, or `Bar` or `Curve`.
        parts: what the parts of stacked bars are, for a legend.
        note: under the table.
    """
    cells = [list(row) for row in rows]
    right = [_is_number(value) for value in cells[0]] if cells else [False] * len(header)
    names = "".join(
        f'<th style="{_CELL}{"right" if number else "left"};border-bottom:{_LINE}">{escape(name)}</th>'
        for name, number in zip(header, right, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in cells)
    swatches = [
        f'<span style="white-space:nowrap;margin-right:1em">{_block(".8em", ".8em", _colour(k, len(parts)))} '
        f"{escape(part)}</span>"
        for k, part in enumerate(parts)
    ]
    notes = ["".join(swatches), escape(note)]
    below = "".join(f'<div style="opacity:.8;padding:.15em .6em">{text}</div>' for text in notes if text)
    return (
        f'<div style="font-size:90%;margin:.4em 0"><b>{escape(title)}</b>'
        f'<table style="border-collapse:collapse;margin:.2em 0"><thead><tr>{names}</tr></thead>'
        f"<tbody>{body}</tbody></table>{below}</div>"
    )


def frame_table(title: str, frame: pd.DataFrame) -> str:
    """Return the first rows of a table of pandas."""
    shown = frame.head(ROWS)
    columns = [shown[name].tolist() for name in shown.columns]
    rows = zip(shown.index.tolist(), *columns, strict=True)
    header = [str(frame.index.name or ""), *map(str, frame.columns)]
    return table(title, header, rows, note=left_out(len(frame), len(shown), "rows"))


def some(count: int, keep: Iterable[int] = (), limit: int = ROWS) -> list[int]:
    """Return at most `limit` of the numbers 0..count−1, ascending: those to keep, and the first others."""
    kept = list(dict.fromkeys(k for k in keep if 0 <= k < count))[:limit]
    first = (k for k in range(count) if k not in kept)
    return sorted([*kept, *(k for k, _ in zip(first, range(limit - len(kept)), strict=False))])


def left_out(count: int, shown: int, what: str) -> str:
    """Return the note that says how many are not shown, or nothing if all are."""
    return f"{count - shown} more {what} not shown" if count > shown else ""


def share(part: float, whole: float) -> float:
    """Return part / whole, for a bar; 0 where that is no number."""
    with np.errstate(all="ignore"):
        found = float(np.float64(part) / np.float64(whole))
    return found if math.isfinite(found) else 0.0


def percent(part: float) -> str:
    """Return a share in per cent."""
    return number(round(100 * part, 2), "%")


def number(value: Any, unit: str = "") -> str:
    """Return a number in at most four digits, with its unit; a dash where there is none."""
    if value is None or (isinstance(value, numbers.Real) and math.isnan(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    text = str(value) if isinstance(value, numbers.Integral) else f"{float(value):.4g}"
    return f"{text} {unit}".rstrip()


def _cell(value: Any) -> str:
    """Return a cell as HTML: a bar, a curve, a number to the right, or text."""
    if isinstance(value, Bar):
        room, parts = 1.0, []
        for k, given in enumerate(value.shares):
            width = min(max(given, 0.0), room) if math.isfinite(given) else 0.0
            room -= width
            parts.append(_block(f"{_WIDTH * width:.2f}em", ".8em", _colour(k, len(value.shares))))
        return f'<td style="{_CELL}left;white-space:nowrap;line-height:1;min-width:{_WIDTH}em">{"".join(parts)}</td>'
    if isinstance(value, Curve):
        heights = [min(max(h, 0.02), 1.0) if math.isfinite(h) else 0.0 for h in value.heights]
        columns = "".join(_block("4px", f"{2 * height:.2f}em", _colour(0, 1)) for height in heights)
        return f'<td style="{_CELL}left;white-space:nowrap;line-height:1">{columns}</td>'
    if value is None:
        return "<td></td>"
    if _is_number(value):
        return f'<td style="{_CELL}right">{number(value)}</td>'
    return f'<td style="{_CELL}left">{escape(str(value))}</td>'


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real | np.bool_)


def _block(width: str, height: str, colour: str) -> str:
    return f'<span style="display:inline-block;width:{width};height:{height};background:{colour}"></span>'


def _colour(k: int, of: int) -> str:
    """Return the colour of part k of a bar; a bar in one piece is grey, and the page shines through."""
    return f"hsla({_HUES[k % len(_HUES)]},70%,50%,.75)" if of > 1 else "rgba(128,128,128,.6)"
