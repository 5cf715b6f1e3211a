"""The repository agrees with itself: pins, environment file, names and versions, figures, commands."""

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch"}
# Hosts of package indexes, and folders of somebody's machine; in pieces, for this file is searched, too.
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("anaconda", "org"), ("npmjs", "org"))]
HOSTS += [".".join(parts) for parts in (("pytorch", "org/whl"), ("conda-forge", "org"), ("ghcr", "io"))]
FOLDERS = r"(?<![\w.~$}-])/(?:root|work|home/\w+|Users/\w+|tmp/\w+)/\w"


def pins(file="requirements.txt"):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_every_pin_is_declared():
    extras = project()["optional-dependencies"]
    for file, declared in (
        ("requirements-book.txt", extras.pop("book")),
        ("requirements-peers.txt", extras.pop("peers")),
        ("requirements.txt", [*project()["dependencies"], *itertools.chain(*extras.values()), "setuptools"]),
    ):
        names = {normal(re.split(r"[<>=!~\[ ]", line)[0]) for line in declared}
        assert {normal(name) for name in pins(file)} == names


def test_every_dependency_says_why():
    text = (ROOT / "pyproject.toml").read_text()
    listed = re.findall(r'^    "[\w-]+>=[\d.]+",(.*)$', text, re.MULTILINE)
    every = pins() | pins("requirements-book.txt") | pins("requirements-peers.txt")
    assert len(listed) == len(every) - 1  # setuptools stands in [build-system]
    assert all(re.fullmatch(r"\s+# \S.+", reason) for reason in listed)


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-book.txt", "requirements-peers.txt"])
def test_pins_are_plain(file):
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+|#.*|", line) for line in (ROOT / file).read_text().splitlines())


def test_environment_yml_has_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [line for line in environment["dependencies"] if isinstance(line, str) and "=" in line.replace(">=", "")]
    (by_pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    found = dict(line.split("==") if "==" in line else line.split("=") for line in conda)
    found |= dict(line.split("==") for line in by_pip if "==" in line)
    assert found == {CONDA_NAMES.get(name, name): version for name, version in pins().items()}


def test_binder_installs_what_the_notebooks_need_at_the_same_versions():
    environment = yaml.safe_load((ROOT / "binder" / "environment.yml").read_text())["dependencies"]
    found = dict(line.split("=") for line in environment if isinstance(line, str) and line != "pip")
    found |= dict(line.split("==") for line in environment[-1]["pip"])
    needs = [*project()["dependencies"], *project()["optional-dependencies"]["notebooks"]]
    needs = {re.split(">=", line)[0] for line in needs} - {"papermill", "nbformat", "nbgrader"} | {"setuptools"}
    found = {re.sub(r"-(base|cpu)$", "", name): version for name, version in found.items() if name != "python"}
    assert found == {CONDA_NAMES.get(name, name): version for name, version in pins().items() if name in needs}


def test_everything_that_notebooks_import_comes_with_them():
    needs = [*project()["dependencies"], *project()["optional-dependencies"]["notebooks"]]
    needs = {normal(re.split(">=", line)[0]) for line in needs} | {"psl"}
    needs |= {path.stem for path in (ROOT / "notebooks").glob("*.py")}  # what stands beside them
    for path in sorted((ROOT / "notebooks").rglob("[0-9]*.ipynb")):
        cells = (cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code")
        used = {name for cell in cells for name in re.findall(r"^ *(?:import|from) (\w+)", cell.source, re.MULTILINE)}
        used = {{"sklearn": "scikit-learn"}.get(name, name) for name in used - set(sys.stdlib_module_names)}
        assert used <= needs, path.name


def test_one_version_and_a_name_of_its_own():
    version = project()["version"]
    assert project()["name"] == "parallel-split-learning"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    newest = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest.groups() == (version, str(citation["date-released"]))


def test_every_file_of_the_package_is_installed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    others = [path for path in (ROOT / "src").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    others = [path for path in others if ".egg-info" not in str(path)]
    assert all(any(path.match(name) for name in settings["package-data"]["psl"]) for path in others)


def test_no_file_names_a_package_index_or_a_folder_of_this_machine():
    if not (ROOT / ".git").exists():
        pytest.skip("no git here: files under version control cannot be told from others")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    forbidden = re.compile("|".join([*map(re.escape, HOSTS), FOLDERS]))
    found = []
    for name in filter(None, names):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".png", ".svg"):
            found += [f"{name}: {hit.group()}" for hit in forbidden.finditer(path.read_text(errors="replace"))]
    assert not found


def test_every_figure_has_its_four_files_and_names_its_notebook():
    captions = sorted((ROOT / "figures").glob("*.txt"))
    assert captions
    for caption in captions:
        assert all(caption.with_suffix(suffix).exists() for suffix in (".svg", ".png", ".csv")), caption.name
        notebook = re.search(r"Made by notebooks/(\S+\.ipynb)\.", caption.read_text()).group(1)
        assert (ROOT / "notebooks" / notebook).exists()


def test_continuous_integration_runs_the_commands_of_the_readme():
    commands = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"figures", "test"} <= set(commands)
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert steps.index("make lint") < steps.index("make test")


def test_make_knows_every_command_that_is_written_down():
    makefile = (ROOT / "Makefile").read_text()
    known = set(re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split())
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]
    for document in documents:
        for target in re.findall(r"(?:`|^)make ([a-z][\w-]*)", document.read_text(), re.MULTILINE):
            assert target in known, f"{document.name}: make {target}"
