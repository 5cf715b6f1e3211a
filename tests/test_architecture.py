"""The parts of the library: which may import which, how long a file may be, and no private names of other libraries."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "psl"
FILES = sorted(SOURCE.rglob("*.py"))

# A part may import the parts listed behind it, and itself. The simulator knows no formulas, training knows nothing of
# networks and schedulers, and networks know nothing of plans.
MAY_IMPORT = {
    "errors": set(),
    "units": set(),
    "gradient_aggregation": set(),
    "studies": {"errors"},
    "html": set(),
    "records": {"errors", "html"},
    "profile_tables": {"errors"},
    "profiles": {"errors", "html", "records", "profile_tables"},
    "plans": {"errors", "html", "profiles", "records"},
    "networks": {"errors", "records", "profiles", "units"},
    "schedulers": {"errors", "html", "gradient_aggregation", "records", "profiles", "plans", "networks"},
    "models": {"errors", "profiles"},
    "data": {"errors"},
    "training": {
        "errors", "html", "gradient_aggregation", "records", "profiles", "plans", "models", "data", "studies",
    },
    "privacy": {"errors", "html", "gradient_aggregation", "records", "models", "training"},
    "distributed": {
        "errors", "gradient_aggregation", "records", "profiles", "plans", "networks", "models", "data", "training",
        "simulation",
    },
    "plotting": {"errors", "units", "networks", "plans"},
    "simulation": {"errors", "gradient_aggregation", "records", "profiles", "plans", "networks", "plotting"},
}  # fmt: skip
NO_TORCH = set(MAY_IMPORT) - {"models", "data", "training", "privacy", "distributed"}

# Within a scheduler a file imports only files of floors below its own: the arithmetic of a round knows no optimisation.
# Algorithms and plans share a floor; among them only circles are refused.
FLOORS = {"water_filling": 0, "envelope": 0, "path": 0, "checks": 1, "terms": 1, "latency": 2, "problem": 3, "solve": 5}
ALGORITHMS = 4


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    # What is imported for type checkers alone (under an if) ties files together as well.
    top = [*tree.body, *(inner for node in tree.body if isinstance(node, ast.If) for inner in node.body)]
    nodes = top if top_level_only else list(ast.walk(tree))
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
    if room == "__init__":  # names every part, and imports it when it is used
        assert imports_of(path, top_level_only=True) <= {
            "importlib.metadata", "importlib.metadata.PackageNotFoundError", "importlib.metadata.version",
            "lazy_loader", "typing", "typing.Any",
        }  # fmt: skip
        return
    rooms = {name.split(".")[1] for name in imports_of(path) if name.startswith("psl.")} - {room}
    assert rooms <= MAY_IMPORT[room], f"{room} may not import {sorted(rooms - MAY_IMPORT[room])}"


@pytest.mark.parametrize("path", [p for p in FILES if room_of(p) in NO_TORCH], ids=lambda p: p.name)
def test_scenarios_profiles_and_schedulers_know_nothing_of_torch(path):
    outside = {name.split(".")[0] for name in imports_of(path, top_level_only=True)}
    assert not outside & {"torch", "torchvision", "sionna", "cvxpy"}


SCHEDULERS = [path for path in FILES if room_of(path) == "schedulers" and path.parent.name != "schedulers"]


@pytest.mark.parametrize("path", SCHEDULERS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_a_scheduler_is_built_floor_by_floor(path):
    system, name = path.parent.name, path.stem
    inside = {found.split(".")[2] for found in imports_of(path) if found.startswith("psl.schedulers.")}
    assert inside <= {"checks", "micro_batches", system}, "the systems know nothing of each other"
    prefix = f"psl.schedulers.{system}."
    modules = {found.removeprefix(prefix).split(".")[0] for found in imports_of(path) if found.startswith(prefix)}
    if name != "__init__":
        own = FLOORS.get(name, ALGORITHMS)
        above = {m for m in modules if FLOORS.get(m, ALGORITHMS) + (own != ALGORITHMS) > own}
        assert not above, f"{system}/{name} may not import {sorted(above)}"


def test_imports_have_no_circle():
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
    assert text.count("\n") <= 320
    assert ast.get_docstring(ast.parse(text)), "say what the file is for"


# --- private names of other libraries ---

OWN_FILES = [path for path in FILES if room_of(path) != "distributed"]  # that one is written anew by another issue

# Private names without a public way to the same thing: file, name, reason.
UNAVOIDABLE: dict[tuple[str, str], str] = {
    ("models/graphs.py", "_schema"): "which argument an operator overwrites, and whose memory its result shares",
    ("models/kept_operators.py", "_schema"): "the signature of a recurrent layer, for what stands for it",
    ("models/flops.py", "torch.ops.aten._trilinear"): "the operator behind nn.Bilinear, to count it",
    ("training/messages.py", "_fields"): "the documented name of a namedtuple's fields",
    ("models/refusals.py", "_backward_hooks"): "whether a module or a parameter has a hook on gradients",
    ("models/refusals.py", "_backward_pre_hooks"): "the same",
    ("models/refusals.py", "_post_accumulate_grad_hooks"): "the same",
}


def is_private(name):
    return isinstance(name, str) and name.startswith("_") and not (name.startswith("__") and name.endswith("__"))


def attributes_defined_in(path):
    """Yield the methods and variables of a file's classes, and the attributes that these set on themselves."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            for inner in node.body:
                targets = inner.targets if isinstance(inner, ast.Assign) else [getattr(inner, "target", None)]
                yield from (target.id for target in targets if isinstance(target, ast.Name))
                yield getattr(inner, "name", None)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def attributes_used_in(path):
    """Yield (line, name) of private attributes, imports from elsewhere, and names given to getattr and the like."""
    tree = ast.parse(path.read_text())
    libraries = {
        (alias.asname or alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "module", "").startswith("psl")
        for alias in node.names
    }
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            owner = ast.unparse(node.value)
            if owner.split(".")[0] in libraries:  # theirs, even if a class of ours has an attribute of that name
                yield node.lineno, f"{owner}.{node.attr}"
            else:
                names = [node.attr]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.ImportFrom) and not node.module.startswith("psl."):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "delattr", "hasattr"):
            names = [getattr(node.args[1], "value", None)]
        elif isinstance(node, ast.Subscript):  # vars(module)["_buffers"]
            names = [getattr(node.slice, "value", None)]
        yield from ((node.lineno, name) for name in names if is_private(name))


OWN_NAMES = {name for path in OWN_FILES for name in attributes_defined_in(path) if is_private(name)}


@pytest.mark.parametrize("path", OWN_FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_private_names_are_our_own(path):
    allowed = OWN_NAMES | {name for file, name in UNAVOIDABLE if file == str(path.relative_to(SOURCE))}
    found = sorted((line, name) for line, name in attributes_used_in(path) if name not in allowed)
    assert not found, f"lines and private names of other libraries: {found}; use what they document"
