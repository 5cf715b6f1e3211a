"""The documentation agrees with the code: files and names in the table of equations exist, links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def rows() -> list[tuple[str, str, list[str]]]:
    """Return (equation, file, names) of every row of the table of equations."""
    found = []
    for line in (ROOT / "docs" / "equations.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 4 and (file := re.fullmatch(r"\[?`(src/psl/\S+\.py)`.*", cells[1])):
            found.append((cells[0], file.group(1), re.findall(r"`([\w.]+)`", cells[2])))
    return found


def defined(path: Path) -> set[str]:
    """Return the functions and classes of a file, and their methods and fields with the class in front."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    names.add(f"{node.name}.{inner.name}")
                elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                    names.add(f"{node.name}.{inner.target.id}")
    return names


def test_the_table_of_equations_is_complete():
    assert len(rows()) >= 24
    assert all(names for _, _, names in rows()), "every equation has a symbol"


@pytest.mark.parametrize(("equation", "file", "names"), rows(), ids=[row[0][:40] for row in rows()])
def test_every_equation_is_where_the_table_says(equation, file, names):
    assert (ROOT / file).is_file(), f"{equation}: there is no {file}"
    missing = set(names) - defined(ROOT / file)
    assert not missing, f"{equation}: {file} does not define {sorted(missing)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
        assert link.startswith("http") or (document.parent / link).exists(), link


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
