"""Copy executed notebooks' outputs into notebooks/, and write the gallery figures/README.md.

Usage: python tools/publish.py notebooks EXECUTED_FOLDER
       python tools/publish.py gallery FIGURES_FOLDER
"""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def publish_notebooks(executed: Path) -> None:
    """Put the outputs of executed notebooks into the ones under version control, without run-time traces."""
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        done, kept = nbformat.read(executed / path.name, 4), nbformat.read(path, 4)
        done.cells = [c for c in done.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        for cell, source in zip(done.cells, kept.cells, strict=True):
            cell.source, cell.id = source.source, source.id
            cell.metadata = source.metadata
            for output in cell.get("outputs", []):
                # Widget views need a kernel to be drawn; the text beside them does not.
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        done.metadata = {k: v for k, v in kept.metadata.items() if k in ("kernelspec", "language_info")}
        nbformat.write(done, path)
        print(f"{path.relative_to(ROOT)}: outputs refreshed")


def write_gallery(figures: Path) -> None:
    """List every figure with its caption, so that a code host shows them all on one page."""
    lines = ["# Figures", "", "Written by `make figures`. Each figure stands as SVG and PNG beside the CSV behind it."]
    for caption in sorted(figures.glob("*.txt")):
        lines += ["", f"## {caption.stem}", "", f"![{caption.stem}]({caption.stem}.png)", "", caption.read_text()]
    (figures / "README.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    {"notebooks": publish_notebooks, "gallery": write_gallery}[sys.argv[1]](Path(sys.argv[2]))
