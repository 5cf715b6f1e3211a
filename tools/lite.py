"""Build the site in which planning runs in the browser, with JupyterLite, into build/lite.

Usage: python tools/lite.py [FOLDER]

A browser that opens it fetches Pyodide (Python, NumPy, SciPy, pandas) from the internet; psl itself is inside.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTENSIONS = ("@jupyterlite/pyodide-kernel-extension", "@jupyter-widgets/jupyterlab-manager")


def run(command: list, **options) -> None:
    """Run a command; show what it said if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    if done.returncode:
        sys.exit(f"{done.stdout}\n{command[2:4]} failed")


def build(folder: Path) -> None:
    """Build the wheel of psl, and the site around it and notebooks/lite."""
    with tempfile.TemporaryDirectory() as work:  # JupyterLite takes its settings from the folder where it starts
        source = Path(work, "psl")  # a copy: setuptools keeps what it built before beside the source
        shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", work, source])
        extensions = Path(sys.prefix, "share", "jupyter", "labextensions")
        site = {
            "output_dir": str(folder),
            "contents": [str(ROOT / "notebooks" / "lite")],
            "apps": ["lab"],
            "ignore_sys_prefix": ["federated_extensions"],  # what else this machine's JupyterLab has stays out
            "federated_extensions": [str(extensions / name) for name in EXTENSIONS],
            "no_sourcemaps": True,
        }
        settings = {"LiteBuildConfig": site, "PipliteAddon": {"piplite_urls": [str(*Path(work).glob("*.whl"))]}}
        Path(work, "jupyter_lite_config.json").write_text(json.dumps(settings))
        run([sys.executable, "-m", "jupyter", "lite", "build", "--force"], cwd=work)
    print(f"{folder}: serve it (python -m http.server -d {folder}), then open lab/index.html?path=planning.ipynb")


if __name__ == "__main__":
    build(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT / "build" / "lite")
