"""What `make student` hands out: no solution, no wrong answer, stubs that say so, links that lead somewhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
MARKED = re.compile(r"^ *### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION", re.S | re.M)
LINK = re.compile(r"\]\(([^()\s]+)\)")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("student")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What students get."""
    folder = tmp_path_factory.mktemp("course") / "student"
    subprocess.run([sys.executable, ROOT / "tools" / "student.py", folder], check=True, capture_output=True)
    return folder


def pairs(folder):
    """Yield each notebook of exercises, its cells with solutions, and its cells without."""
    for path in sorted((ROOT / "notebooks" / "solutions").glob("[0-9]*.ipynb")):
        yield path.name, nbformat.read(path, 4).cells, nbformat.read(folder / path.relative_to(ROOT), 4).cells


def test_stubs_hold_nothing_of_the_solutions_and_wrong_answers(folder):
    for name, solved, handed_out in pairs(folder):
        for before, after in zip(solved, handed_out, strict=True):
            if "answer" not in before.metadata.get("tags", []):
                assert before.source == after.source, name
                continue
            marked = MARKED.search(before.source)[1]
            kept = [line.strip() for line in MARKED.sub("", before.source).splitlines()]
            secret = [*marked.splitlines(), *"\n".join(before.metadata["psl"]["wrong"]).splitlines()]
            secret = {line.strip() for line in secret} - {"", *kept}
            assert not secret & {line.strip() for line in after.source.splitlines()}, name
            assert all(line in after.source for line in kept), name
            raised = [node for node in ast.walk(ast.parse(after.source)) if isinstance(node, ast.Raise)]
            assert [ast.unparse(node) for node in raised][-1] == "raise NotImplementedError()", name


def test_links_to_files_lead_somewhere(folder):
    broken, count = [], 0
    for path in [*folder.rglob("*.md"), *folder.rglob("*.ipynb")]:
        text = path.read_text()
        if path.suffix == ".ipynb":
            cells = nbformat.reads(text, 4).cells
            text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        text = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
        for target in LINK.findall(text):
            if not re.match(r"https?:|mailto:|#", target):
                count += 1
                if not (path.parent / target.split("#")[0]).exists():
                    broken.append(f"{path.relative_to(folder)}: {target}")
    assert count > 100
    assert not broken
