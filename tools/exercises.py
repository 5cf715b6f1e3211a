"""Run every solution, and show every check its wrong answers; print how many there are.

Usage: python tools/exercises.py [PYTEST_OPTION ...]
"""

import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent


def counted(path: Path) -> tuple[int, int, int]:
    """Return a notebook's numbers of exercises, of assertions in its checks, and of wrong answers."""
    cells = nbformat.read(path, 4).cells
    answers = [cell for cell in cells if "answer" in cell.metadata.get("tags", [])]
    checks = [cell for cell in cells if "check" in cell.metadata.get("tags", [])]
    assertions = sum(line.lstrip().startswith("assert ") for cell in checks for line in cell.source.splitlines())
    return len(answers), assertions, sum(len(cell.metadata["psl"]["wrong"]) for cell in answers)


if __name__ == "__main__":
    code = pytest.main(["-q", "-s", "-n", "0", str(ROOT / "tests" / "test_exercises.py"), *sys.argv[1:]])
    if code == 0:
        notebooks = sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
        exercises, assertions, wrong = (sum(numbers) for numbers in zip(*map(counted, notebooks), strict=True))
        print(f"{len(notebooks)} notebooks, {exercises} exercises: every solution passes its check", end=" ")
        print(f"({assertions} assertions), and every one of {wrong} wrong answers got a hint")
    sys.exit(code)
