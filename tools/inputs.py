"""Write signatures of everything that notebooks' figures depend on; touch only those whose figures are stale.

Usage: python tools/inputs.py SIGNATURE_FILE ... [NAME=VALUE ...]

A signature file is named after its notebook. The inputs are the notebook's cells (not its outputs), the library's
sources, the pins, the files of the data set, and the parameters on the command line. Figures are stale, too, if one
that the last run wrote (listed beside the signature in a file that ends in .figures) is gone. Plain Python: it runs
before the environment exists.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Where each data set lies under PSL_DATA; the digits come with a pinned package.
FOLDERS = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "cifar-10-batches-py", "ham10000": "HAM10000"}


def digest(*parts):
    """Return a hash of texts and bytes, one after another."""
    found = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.encode()
        found.update(f"{len(content)}\0".encode() + content)
    return found.hexdigest()


def common(parameters):
    """Return a hash of what all notebooks depend on."""
    parts = []
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "notebooks").glob("*.py")]):
        parts += [str(path.relative_to(ROOT)), path.read_bytes()]
    parts += ["pins", (ROOT / "requirements.txt").read_bytes(), *sorted(parameters)]
    dataset = dict(parameter.split("=", 1) for parameter in parameters).get("DATASET", "digits")
    if dataset in FOLDERS:
        folder = Path(os.environ.get("PSL_DATA") or ROOT / "data") / FOLDERS[dataset]
        for path in sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("resized-")):
            status = path.stat()
            parts.append(f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}")
    return digest(*parts)


def cells(notebook):
    """Return a hash of a notebook's cells, without their outputs."""
    found = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return digest(*(text for cell in found for text in (cell["cell_type"], "".join(cell["source"]))))


def main(arguments):
    """Rewrite the signatures whose inputs changed or whose figures are gone."""
    parameters = [argument for argument in arguments if "=" in argument]
    shared = common(parameters)
    for target in (Path(argument) for argument in arguments if "=" not in argument):
        now = digest(shared, cells(ROOT / "notebooks" / f"{target.stem}.ipynb"))
        figures = target.with_suffix(".figures")
        missing = figures.exists() and not all((ROOT / name).exists() for name in figures.read_text().split("\n"))
        if missing or not target.exists() or target.read_text().strip() != now:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(now + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
