"""The results that a notebook has to report, as a fragment of Markdown beside its figures."""

import os
from pathlib import Path

import pandas as pd

from psl.errors import PSLError, expected

# File to the sections that this process wrote into it: a notebook that runs again starts a new file, a cell that runs
# again replaces its own section.
_WRITTEN: dict[Path, dict[str, str]] = {}
_CLAIMS: dict[Path, dict[tuple[str, str], dict[str, str]]] = {}


def save_results(
    title: str,
    *parts: pd.DataFrame | str,
    notebook: str,
    folder: str | os.PathLike[str] = "figures",
) -> None:
    """Write a section of ``NN_results.md``, where NN is the notebook's number; sections stand in the order of writing.

    Args:
        title: heading of the section.
        parts: paragraphs of text (Markdown) and tables, in the order in which they shall stand. A table is written
            with its index if that has a name; numbers with four digits. Give text for another format.
        notebook: file name of the notebook, which starts with its number.
        folder: created if missing.

    Raises:
        PSLError: the notebook's name does not start with two digits, or there is nothing to write.
    """
    if not notebook[:2].isdigit():
        fix = "pass the notebook's file name, such as 04_figures.ipynb"
        raise expected("notebook", "a name that starts with two digits", repr(notebook), fix, PSLError)
    if not parts:
        raise expected("parts", "at least one table or text", "nothing", "pass what the section shall show", PSLError)
    file = (Path(folder) / f"{notebook[:2]}_results.md").resolve()
    sections = _WRITTEN.setdefault(file, {})
    shown = [markdown_table(part) if isinstance(part, pd.DataFrame) else part.strip() for part in parts]
    sections[title] = "\n\n".join([f"## {title}", *shown, f"Made by notebooks/{notebook}."])
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n\n".join(sections.values()) + "\n")


#: What can be said about a paper's claim.
VERDICTS = ("reproduced", "in kind", "not here")


def save_claim(
    paper: str,
    claim: str,
    *,
    scenario: str,
    number: str,
    verdict: str,
    why: str,
    notebook: str,
    folder: str | os.PathLike[str] = "figures",
) -> None:
    """Write one row of ``NN_claims.csv``: a paper's claim, and what this notebook found; a cell run again replaces it.

    Args:
        paper: for example ``"EPSL"``.
        claim: what the paper says, in short; the key of the row, together with `paper`.
        scenario: where we looked.
        number: what we found, formatted, computed by the notebook.
        verdict: one of `VERDICTS`: "reproduced", "in kind" (the effect is there, of another size), "not here".
        why: one sentence.
        notebook: file name of the notebook, which starts with its number.
        folder: created if missing.

    Raises:
        PSLError: another verdict.
    """
    if verdict not in VERDICTS:
        raise expected("verdict", "one of " + ", ".join(VERDICTS), repr(verdict), "choose one of these", PSLError)
    file = (Path(folder) / f"{notebook[:2]}_claims.csv").resolve()
    rows = _CLAIMS.setdefault(file, {})
    row = {"paper": paper, "claim": claim, "our scenario": scenario, "our number": number, "verdict": verdict}
    rows[paper, claim] = row | {"why": why, "notebook": notebook}
    file.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(list(rows.values())).to_csv(file, index=False)


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table as Markdown, with its index if any level of it has a name; numbers with four digits."""
    if any(level is not None for level in table.index.names):
        table = table.reset_index()
    header = [" ".join(map(_cell, name)) if isinstance(name, tuple) else _cell(name) for name in table.columns]
    rows = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])


def _cell(value: object) -> str:
    """Return a value as text that cannot break its row."""
    if isinstance(value, float):
        text = "" if value != value else f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    else:
        text = str(value)
    return " ".join(text.split()).replace("|", "\\|")
