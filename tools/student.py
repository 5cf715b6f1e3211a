"""Write what students get: the numbered notebooks, and the exercises without solutions, into build/student.

Usage: python tools/student.py [FOLDER]

nbgrader's own preprocessors clear the solutions and lock the checks. The wrong answers that tests use go, too.
"""

import shutil
import sys
from pathlib import Path

import nbformat
from nbconvert.preprocessors import ClearOutputPreprocessor
from nbgrader.preprocessors import ClearSolutions, LockCells

ROOT = Path(__file__).resolve().parent.parent
# What else is handed out: all that the notebooks and pages refer to, and what `make lab` needs.
OTHERS = (
    *("README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "pyproject.toml", "requirements.txt"),
    *("environment.yml", "docs", "figures", "src", "tools", "benchmarks", "data/README.md"),
)


def without_solutions(path: Path) -> nbformat.NotebookNode:
    """Return a notebook of solutions with stubs in place of what stands between nbgrader's marks."""
    notebook, resources = nbformat.read(path, 4), {}
    for preprocessor in (ClearSolutions(), LockCells(), ClearOutputPreprocessor()):
        notebook, resources = preprocessor.preprocess(notebook, resources)
    for cell in notebook.cells:
        cell.metadata.pop("psl", None)
    return notebook


def write(folder: Path) -> None:
    """Write all notebooks; links keep their meaning, as folders lie as in notebooks/."""
    shutil.rmtree(folder, ignore_errors=True)
    exercises = folder / "notebooks" / "solutions"  # the folder's name stays, so that links from the notebooks hold
    exercises.mkdir(parents=True)
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        shutil.copy2(path, folder / "notebooks")
    for path in (ROOT / "notebooks").glob("*.py"):  # what notebooks import
        shutil.copy2(path, folder / "notebooks")
    for path in sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb")):
        nbformat.write(without_solutions(path), exercises / path.name)
    for name in OTHERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(ROOT / name, folder / name)
    print(f"{folder}: {len(list(exercises.iterdir()))} notebooks of exercises without solutions")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "student")
