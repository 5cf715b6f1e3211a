"""Execute a notebook with papermill and note which figures it wrote.

Usage: python tools/execute.py SIGNATURE_FILE FIGURES_FOLDER [NAME=VALUE ...]

The notebook is the one that the signature file is named after. What it prints and draws goes beside the signature, into
a file that ends in .ipynb; the names of its figures into one that ends in .figures. Checkpoints and finished runs of a
study are kept for this very signature, so that an interrupted notebook goes on where it was.
"""

import os
import shutil
import sys
import time
from pathlib import Path

from papermill import execute_notebook
from papermill.exceptions import PapermillExecutionError

ROOT = Path(__file__).resolve().parent.parent


def execute(signature: Path, figures: Path, parameters: dict[str, str]) -> None:
    """Execute a notebook; ends the process if one of its cells raises."""
    name, begun = signature.stem, time.monotonic()
    print(f"{name}: begins", flush=True)
    cache = signature.parent / "cache" / f"{name}-{signature.read_text()[:12]}"
    for old in cache.parent.glob(f"{name}-*"):
        if old != cache:
            shutil.rmtree(old)
    cache.mkdir(parents=True, exist_ok=True)
    values = {key: value if key == "DATASET" else value != "0" for key, value in parameters.items()}
    part = signature.with_suffix(".part.ipynb")
    # Each process computes with one thread: sums then have one order, whatever the number of cores.
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        execute_notebook(
            ROOT / "notebooks" / f"{name}.ipynb",
            part,
            values | {"FIGURES": str(figures), "CACHE": str(cache)},
            cwd=str(ROOT / "notebooks"),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel: errors of cells come by another way
        )
    except PapermillExecutionError as error:
        sys.exit(f"{error}\n{name}: a cell raised; what ran before it is in {part.relative_to(ROOT)}")
    written = sorted(str(path.relative_to(ROOT)) for path in figures.glob(f"{name[:3]}*"))
    signature.with_suffix(".figures").write_text("".join(f"{path}\n" for path in written))
    part.replace(signature.with_suffix(".ipynb"))
    shutil.rmtree(cache)
    print(f"{name}: done in {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    file, folder, *settings = sys.argv[1:]
    execute(Path(file).resolve(), Path(folder).resolve(), dict(setting.split("=", 1) for setting in settings))
