"""Write a signature of everything that a notebook's figures depend on; touch the file only if it changed.

Usage: python tools/inputs.py NOTEBOOK SIGNATURE_FILE [NAME=VALUE ...]

The inputs are the notebook's cells (not its outputs), the library's sources, the pins, the files of the data set,
the parameters on the command line, and which of the notebook's figures exist (so that a deleted one comes back).
Plain Python: it runs before the environment exists.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


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
    if "DATASET=digits" not in parameters:  # the digits come with a pinned package
        folder = Path(os.environ.get("PSL_DATA") or ROOT / "data")
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            status = path.stat()
            add("data", f"{path.relative_to(folder)} {status.st_size} {status.st_mtime_ns}".encode())
    figures = dict(p.split("=", 1) for p in parameters).get("FIGURES", "figures")
    for path in sorted((ROOT / figures).glob(f"{notebook.name[:2]}_*")):
        add("figure", path.name.encode())
    return digest.hexdigest()


def main(notebook, target, *parameters):
    target, now = Path(target), signature(Path(notebook), list(parameters))
    if not target.exists() or target.read_text().strip() != now:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(now + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
