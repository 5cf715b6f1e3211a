"""The rooms of the house: who may import whom, how long a file may be, what must never be imported early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "psl"
FILES = sorted(SOURCE.rglob("*.py"))

# A room may import the rooms listed behind it (and itself). Nothing else.
MAY_IMPORT = {
    "errors": set(),
    "units": set(),
    "aggregation": set(),
    "studies": {"errors"},
    "records": {"errors"},
    "profile_tables": {"errors"},
    "profiles": {"errors", "records", "profile_tables"},
    "plans": {"errors", "profiles"},
    "networks": {"errors", "records", "profiles", "units"},
    "schedulers": {"errors", "aggregation", "records", "profiles", "plans", "networks"},
    "models": {"errors", "profiles"},
    "data": {"errors"},
    "training": {"errors", "aggregation", "records", "plans", "models", "data"},
    "distributed": {
        "errors", "aggregation", "records", "profiles", "plans", "networks", "models", "data", "training", "simulation",
    },
    "plotting": {"errors", "units", "networks", "plans"},
    "simulation": {"errors", "aggregation", "records", "profiles", "plans", "networks", "plotting"},  # no formulas
}  # fmt: skip
NO_TORCH = set(MAY_IMPORT) - {"models", "data", "training", "distributed"}


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import hides where it leads"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return  # the front door names every room
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("psl.")} - {room}
    assert rooms <= MAY_IMPORT[room], f"{room} may not import {sorted(rooms - MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in NO_TORCH], ids=lambda p: p.name)
def test_scenarios_profiles_and_schedulers_know_nothing_of_torch(path):
    outside = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not outside & {"torch", "torchvision", "sionna", "cvxpy"}


def test_within_a_room_imports_have_no_circle():
    graph = {}
    names = {".".join(["psl", *p.relative_to(SOURCE).with_suffix("").parts]): p for p in FILES}
    for name, path in names.items():
        graph[name] = {other for other in imports_of(path, top_level_only=True) if other in names}
    done, open_ = set(), []

    def visit(name):
        assert name not in open_, f"circle: {' -> '.join([*open_, name])}"
        if name not in done:
            open_.append(name)
            for other in graph[name]:
                visit(other)
            open_.pop()
            done.add(name)

    for name in names:
        visit(name)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_is_one_room(path):
    text = path.read_text()
    assert text.count("\n") <= 380
    assert path.name == "__init__.py" or ast.get_docstring(ast.parse(text)), "say what the file is for"


def test_public_names_have_docstrings():
    import psl

    for name in psl.__all__:
        assert getattr(psl, name).__doc__, name


def test_importing_psl_does_not_import_sionna_or_matplotlib():
    code = "import psl, sys; print([m for m in ('sionna', 'matplotlib.pyplot', 'cvxpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
