"""Write every numbered notebook as slides into build/slides: a heading begins a slide, code is left out.

Usage: python tools/slides.py

Texts and figures are inside. A browser that opens them fetches reveal.js, MathJax, jQuery and RequireJS from the
internet.
"""

from pathlib import Path

import nbformat
from nbconvert import SlidesExporter

ROOT = Path(__file__).resolve().parent.parent


def slides(path: Path) -> str:
    """Return a notebook's slides as HTML; text and pictures under one heading follow each other downwards."""
    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        heading = cell.cell_type == "markdown" and cell.source.lstrip().startswith(("# ", "## "))
        shown = cell.cell_type == "markdown" or any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        kind = "slide" if heading else "subslide" if shown else "-"
        cell.metadata["slideshow"] = {"slide_type": "skip" if "parameters" in cell.metadata.get("tags", []) else kind}
    exporter = SlidesExporter(
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        reveal_scroll=True,  # a slide may be longer than the screen
        reveal_number="c/t",
    )
    return exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})[0]


if __name__ == "__main__":
    folder = ROOT / "build" / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        (folder / f"{path.stem}.slides.html").write_text(slides(path))
        print(f"build/slides/{path.stem}.slides.html")
