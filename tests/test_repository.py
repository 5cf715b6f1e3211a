"""The repository agrees with itself: pins, environment file, README."""

import itertools
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"torch": "pytorch"}


def pins():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_and_every_pin_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    names = {normal(re.split(r"[<>=!~\[ ]", line)[0]) for line in declared} | {"setuptools"}
    assert {normal(name) for name in pins()} == names


def test_pins_are_plain():
    assert all(
        re.fullmatch(r"[\w.-]+==[\w.]+|#.*|", line) for line in (ROOT / "requirements.txt").read_text().splitlines()
    )


def test_environment_yml_has_the_same_versions():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [
        line for line in environment["dependencies"] if isinstance(line, str) and not line.startswith(("python", "pip"))
    ]
    (by_pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    found = dict(line.split("==") if "==" in line else line.split("=") for line in conda)
    found |= dict(line.split("==") for line in by_pip if "==" in line)
    assert found == {CONDA_NAMES.get(name, name): version for name, version in pins().items()}


def test_every_figure_has_its_four_files_and_names_its_notebook():
    captions = sorted((ROOT / "figures").glob("*.txt"))
    assert captions
    for caption in captions:
        assert all(caption.with_suffix(suffix).exists() for suffix in (".svg", ".png", ".csv")), caption.name
        notebook = re.search(r"Made by notebooks/(\S+\.ipynb)\.", caption.read_text()).group(1)
        assert (ROOT / "notebooks" / notebook).exists()


def test_readme_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text()):
        assert link.startswith("http") or (ROOT / link).exists(), link
