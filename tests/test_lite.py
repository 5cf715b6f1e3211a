"""Planning in the browser: the notebook runs without torch, and the site has what it needs.

The browser's Python (Pyodide) comes from the internet, so no test runs it.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

import psl

ROOT = Path(__file__).parent.parent
LITE = ROOT / "notebooks" / "lite"
# Runs the notebook's cells where what the browser lacks cannot be imported.
RUN = """
import json, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "sionna", "sklearn"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Missing())
import matplotlib
matplotlib.use("Agg")
scope = {"__name__": "__main__"}
for cell in json.load(open("planning.ipynb"))["cells"]:
    if cell["cell_type"] == "code" and "piplite" not in "".join(cell["source"]):
        exec("".join(cell["source"]), scope)
"""


@pytest.mark.slow
def test_planning_runs_without_torch():
    done = subprocess.run([sys.executable, "-c", RUN], cwd=LITE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "EPSLPlan" in done.stdout


def test_its_profile_is_that_of_the_library():
    with torch.device("meta"):
        model = torchvision.models.resnet50(num_classes=10)
    assert psl.Profile.load(LITE / "resnet50.json") == psl.profile(model, (3, 224, 224))


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("jupyterlite_core"), reason="make lite installs what builds the site")
def test_the_site_has_the_notebook_and_the_library(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools" / "lite.py", tmp_path / "lite"], check=True, capture_output=True)
    assert {path.name for path in (tmp_path / "lite" / "files").iterdir()} == {"planning.ipynb", "resnet50.json"}
    listed = json.loads((tmp_path / "lite" / "pypi" / "all.json").read_text())
    assert list(listed) == ["parallel-split-learning"]
    assert (tmp_path / "lite" / "lab" / "index.html").exists()
