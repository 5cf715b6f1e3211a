"""Write a signature of everything that a notebook's figures depend on; touch the file only if they are stale.

Usage: python tools/inputs.py NOTEBOOK SIGNATURE_FILE [NAME=VALUE ...]

The inputs are the notebook's cells (not its outputs), the library's sources, the pins, the files of the data set, and
the parameters on the command line. Figures are stale, too, if one that the last run wrote (listed beside the signature
in a file that ends in .figures) is gone. Plain Python: it runs before the environment exists.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where each data set lies under PSL_DATA; the digits come with a pinned package.
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py", "ham10000": "HAM10000"}


def signature(notebook: Path, parameters: list[str]) -> str:
    """Return a hash of the notebook's inputs."""
    digest = hashlib.sha256()

    def add(label, content):
        digest.update(f"{label}\0{len(content)}\0".encode() + content)

    for cell in json.loads(notebook.read_text())["cells"]:
        add(cell["cell_type"], "".join(cell["source"]).encode())
    for path in sorted((ROOT / "src").rglob("*.py")):
        add(str(path.relative_to(ROOT)), path.read_bytes())
    add("pins", (ROOT / "requirements.txt").read_bytes())
    for parameter in sorted(parameters):
        add("parameter", parameter.encode())
    dataset = dict(p.split("=", 1) for p in parameters).get("DATASET", "digits")
    if dataset in FOLDERS:
        folder = Path(os.environ.get("PSL_DATA") or ROOT / "data") / FOLDERS[dataset]
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("resized-")):
            status = path.stat()
            add("data", f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()


def main(notebook, target, *parameters):
    """Rewrite the signature file if the inputs changed or a figure is missing."""
    target, now = Path(target), signature(Path(notebook), list(parameters))
    figures = target.with_suffix(".figures")
    missing = figures.exists() and not all((ROOT / name).exists() for name in figures.read_text().split())
    if missing or not target.exists() or target.read_text().strip() != now:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(now + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
