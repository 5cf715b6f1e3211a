"""Put executed notebooks' outputs into notebooks/, and write a folder of figures' README.md and RESULTS.md.

Usage: python tools/publish.py notebooks EXECUTED_NOTEBOOK ...
       python tools/publish.py gallery FIGURES_FOLDER COMMAND
"""

import sys
from pathlib import Path

import nbformat
import pandas as pd

from psl.plotting import markdown_table

ROOT = Path(__file__).resolve().parent.parent
WIDGET = "application/vnd.jupyter.widget-view+json"


def publish_notebook(executed: Path, path: Path) -> None:
    """Put the outputs of an executed notebook into the one under version control, without traces of the run."""
    done, kept = nbformat.read(executed, 4), nbformat.read(path, 4)
    done.cells = [c for c in done.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    count = 0
    for cell, source in zip(done.cells, kept.cells, strict=True):
        cell.source, cell.id = source.source, source.id
        cell.metadata = source.metadata
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count  # as if the injected parameters had never been there
            cell.outputs = [output for output in cell.outputs if not is_progress(output)]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)  # sliders leave their still picture
        for output in cell.get("outputs", []):
            if "execution_count" in output:
                output.execution_count = count
    done.metadata = {k: v for k, v in kept.metadata.items() if k in ("kernelspec", "language_info")}
    nbformat.write(done, path)


def is_progress(output: nbformat.NotebookNode) -> bool:
    """Tell a progress bar from a result: a bar is a widget without a picture, or goes to stderr."""
    data = output.get("data", {})
    return output.get("name") == "stderr" or (WIDGET in data and "image/png" not in data)


def write_gallery(figures: Path, command: str) -> None:
    """Show every figure with its caption on one page, and the notebooks' results on another."""
    lines = [
        "# Figures",
        "",
        f"Written by `{command}`. Each figure stands as SVG, PDF and PNG beside the CSV behind it.",
    ]
    for caption in sorted(figures.glob("*.txt")):
        lines += ["", f"## {caption.stem}", "", f"![{caption.stem}]({caption.stem}.png)", "", caption.read_text()]
    (figures / "README.md").write_text("\n".join(lines).rstrip() + "\n")
    lines = ["# Results", f"Written by `{command}`, every part by the notebook that it names."]
    lines += [
        f"On other data: [{other.parent.name}]({other.parent.name}/RESULTS.md)"
        for other in sorted(figures.glob("*/RESULTS.md"))
    ]
    lines += [part.read_text().strip() for part in sorted(figures.glob("[0-9][0-9]_results.md"))]
    (figures / "RESULTS.md").write_text("\n\n".join(lines) + "\n")
    claims = [pd.read_csv(file, dtype=str) for file in sorted(figures.glob("[0-9][0-9]_claims.csv"))]
    if claims:
        table = markdown_table(pd.concat(claims, ignore_index=True).fillna(""))
        said = "The papers' claims, and what we found. Times are simulated, except where a row says measured."
        (figures / "CLAIMS.md").write_text("\n\n".join(["# Claims", f"{said} Written by `{command}`.", table]) + "\n")


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "gallery":
        write_gallery(Path(arguments[0]), arguments[1])
    else:
        for name in arguments:
            publish_notebook(Path(name), ROOT / "notebooks" / Path(name).name)
            print(f"notebooks/{Path(name).name}: outputs refreshed")
