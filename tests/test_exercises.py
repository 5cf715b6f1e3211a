"""Every exercise's solution passes its check, and every check catches a wrong answer with a hint.

The notebooks in ``notebooks/solutions`` carry nbgrader's marks. An exercise is: a text, a cell with the tag ``answer``
whose solution stands between ``### BEGIN SOLUTION`` and ``### END SOLUTION``, and a cell of assertions with the tag
``check``. Wrong answers stand in the answer cell's metadata: ``psl: {"wrong": ["code", ...]}``.
"""

import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import nbformat
import pytest

matplotlib.use("Agg")
ROOT = Path(__file__).parent.parent
SOLUTIONS = sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb"))
MARKED = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION", re.S | re.M)
LEVELS = ("easy", "work", "research")


def answered(source, answer):
    """Return an answer cell's source with another answer in place of the solution."""
    indented = lambda found: "\n".join(found[1] + line for line in answer.splitlines())  # noqa: E731
    changed, count = MARKED.subn(indented, source)
    assert count == 1, "one marked solution per answer cell"
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_solutions_pass_and_wrong_answers_get_a_hint(path, monkeypatch):
    monkeypatch.chdir(ROOT / "notebooks" / "solutions")
    scope, wrong, tried = {"__name__": "__main__", "display": lambda *_, **__: None}, [], 0
    for cell in nbformat.read(path, 4).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code":
            continue
        if "answer" in tags:
            answer, wrong = cell.source, cell.metadata["psl"]["wrong"]
            assert wrong, f"no wrong answer is given for\n{answer}"
        elif "check" in tags:
            check = compile(cell.source, f"{path.name}: check", "exec")
            for other in wrong:
                tried += 1
                exec(answered(answer, other), scope)
                with pytest.raises(AssertionError) as caught:
                    exec(check, scope)
                assert len(str(caught.value)) > 20, f"a hint for\n{other}"
            exec(answer, scope)
            exec(check, scope)
        else:
            exec(compile(cell.source, f"{path.name}", "exec"), scope)
    print(f"{path.stem}: {tried} wrong answers caught")


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_exercises_are_marked_as_nbgrader_expects(path):
    cells = nbformat.read(path, 4).cells
    titles = [
        c.source.splitlines()[0] for c in cells if c.cell_type == "markdown" and c.source.startswith("## Exercise")
    ]
    levels = [re.fullmatch(r"## Exercise \d\d[b]?\.\d+ · .+ \((easy|work|research)\)", title) for title in titles]
    assert len(titles) >= 5
    assert all(levels), titles
    assert {level[1] for level in levels} == set(LEVELS)
    kinds = [next((t for t in c.metadata.get("tags", []) if t in ("answer", "check")), None) for c in cells]
    assert kinds.count("answer") == kinds.count("check") == len(titles)
    for cell, kind in zip(cells, kinds, strict=True):
        if kind:
            grading = cell.metadata["nbgrader"]
            assert grading["solution"] is (kind == "answer")
            assert grading["grade"] is (kind == "check")
            assert grading["schema_version"] == 3
        assert not cell.get("outputs"), "solutions are kept without outputs: the test runs them"


@pytest.mark.slow
def test_students_get_stubs_and_no_solutions(tmp_path):
    command = [sys.executable, ROOT / "tools" / "student.py", tmp_path / "student"]
    subprocess.run(command, check=True, capture_output=True)
    handed_out = sorted((tmp_path / "student" / "notebooks" / "solutions").glob("*.ipynb"))
    assert [path.name for path in handed_out] == [path.name for path in SOLUTIONS]
    for path in handed_out:
        assert "SOLUTION" not in path.read_text()
        for cell in nbformat.read(path, 4).cells:
            assert "psl" not in cell.metadata
            if "answer" in cell.metadata.get("tags", []):
                assert "raise NotImplementedError" in cell.source
            if "check" in cell.metadata.get("tags", []):
                assert cell.metadata["editable"] is False
