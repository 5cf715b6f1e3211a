"""The figure machinery: what makes a figure stale, how it is written, and that notebooks take parameters."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import ipywidgets
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

import psl
from psl import plotting
from psl.errors import PSLError

ROOT = Path(__file__).parent.parent
publish = importlib.util.module_from_spec(
    importlib.util.spec_from_file_location("publish", ROOT / "tools" / "publish.py")
)
publish.__spec__.loader.exec_module(publish)
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture
def copy_of_inputs(tmp_path):
    """A small copy of what tools/inputs.py looks at."""
    for folder in ("tools", "src", "notebooks", "figures"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "tools" / "inputs.py", tmp_path / "tools")
    (tmp_path / "src" / "code.py").write_text("x = 1\n")
    (tmp_path / "requirements.txt").write_text("numpy==1\n")
    cell = {"cell_type": "code", "source": ["1 + 1"], "outputs": []}
    (tmp_path / "notebooks" / "01_one.ipynb").write_text(json.dumps({"cells": [cell]}))
    return tmp_path


def is_stale(folder, *parameters, data=None):
    """Run the tool as make does; True if it touched the signature."""
    target = folder / "build" / "01_one.inputs"
    before = target.read_text() if target.exists() else None
    subprocess.run(
        [sys.executable, "tools/inputs.py", str(target), *(parameters or ["DATASET=digits"])],
        cwd=folder, check=True, env=os.environ | {"PSL_DATA": str(data or folder / "data")},
    )  # fmt: skip
    return target.read_text() != before


def test_a_figure_is_stale_only_if_something_it_depends_on_changed(copy_of_inputs):
    folder = copy_of_inputs
    assert is_stale(folder)
    assert not is_stale(folder)
    notebook = folder / "notebooks" / "01_one.ipynb"
    content = json.loads(notebook.read_text())
    content["cells"][0]["outputs"] = [{"output_type": "stream", "text": "2"}]
    notebook.write_text(json.dumps(content))
    assert not is_stale(folder), "outputs are results, not inputs"
    (folder / "src" / "code.py").touch()
    assert not is_stale(folder), "touched, but unchanged"
    content["cells"][0]["source"] = ["1 + 2"]
    notebook.write_text(json.dumps(content))
    assert is_stale(folder), "the notebook"
    (folder / "src" / "code.py").write_text("x = 2\n")
    assert is_stale(folder), "the library"
    (folder / "requirements.txt").write_text("numpy==2\n")
    assert is_stale(folder), "the pins"
    assert is_stale(folder, "DATASET=mnist"), "the data set's name"
    (folder / "data" / "MNIST").mkdir(parents=True)
    (folder / "data" / "MNIST" / "images").write_text("...")
    assert is_stale(folder, "DATASET=mnist"), "the data"
    (folder / "data" / "README.md").write_text("...")
    assert not is_stale(folder, "DATASET=mnist"), "other files among the data"


def test_a_figure_that_is_gone_comes_back(copy_of_inputs):
    folder = copy_of_inputs
    assert is_stale(folder)
    signature = folder / "build" / "01_one.inputs"
    (folder / "figures" / "01_plot.png").write_text("...")
    signature.with_suffix(".figures").write_text("figures/01_plot.png\n")
    os.utime(signature, (1, 1))
    assert not is_stale(folder)
    assert signature.stat().st_mtime == 1, "untouched: make has nothing to do"
    (folder / "figures" / "01_plot.png").unlink()
    is_stale(folder)
    assert signature.stat().st_mtime > 1, "touched: make runs the notebook again"


def test_a_figure_is_written_with_its_data_and_caption_and_is_reproducible(tmp_path):
    data = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}).set_index("x")
    for folder in ("a", "b"):
        plotting.use_style()
        fig, axes = plt.subplots()
        axes.plot(data.index, data.y, **plotting.look("epsl"))
        axes.set(xlabel="x (m)", ylabel="y (s)")
        plotting.save_figure(fig, "01_line", data, "A line.", notebook="01_lines.ipynb", folder=tmp_path / folder)
        plt.close(fig)
    for suffix in ("svg", "pdf", "png", "csv", "txt"):
        first, second = (tmp_path / folder / f"01_line.{suffix}" for folder in ("a", "b"))
        assert first.read_bytes() == second.read_bytes(), suffix
    np.testing.assert_allclose(pd.read_csv(tmp_path / "a" / "01_line.csv").x, data.index)
    assert (tmp_path / "a" / "01_line.txt").read_text() == "A line. Made by notebooks/01_lines.ipynb.\n"


def test_figures_without_labels_or_with_a_strange_name_are_refused(tmp_path):
    fig, axes = plt.subplots()
    with pytest.raises(PSLError, match="expected labelled axes with units"):
        plotting.save_figure(fig, "01_x", pd.DataFrame(), "", notebook="01_n.ipynb", folder=tmp_path)
    axes.set(xlabel="x", ylabel="y")
    with pytest.raises(PSLError, match="starts with 01_"):
        plotting.save_figure(fig, "x", pd.DataFrame(), "", notebook="01_n.ipynb", folder=tmp_path)
    with pytest.raises(PSLError, match="look: expected one of epsl"):
        plotting.look("unknown")
    plt.close(fig)


def test_styles_differ_in_greyscale():
    looks = [(style["marker"], str(style["linestyle"])) for style in plotting.LOOKS.values()]
    assert len(set(looks)) == len(looks), "no two lines share marker and dashes"
    bars = [(style["facecolor"], style["hatch"]) for style in plotting.bar_looks(7)]
    assert len(set(bars)) == 7


def test_a_cell_can_be_drawn():
    cell = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance")
    fig = plotting.plot_cell(cell, np.array([0, 0, 1, 1, 2, 2]))
    assert len(fig.axes) == 3
    plt.close(fig)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_take_parameters_teach_and_close_with_a_check(path):
    notebook = nbformat.read(path, 4)
    tagged = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(name in tagged[0].source for name in ("QUICK", "DATASET", "FIGURES", "CACHE"))
    code = [c for c in notebook.cells if c.cell_type == "code"]
    assert "assert" in code[-1].source, "ends with a check"
    assert len(notebook.cells) - len(code) >= 4, "prose between the cells"
    assert "build/lab" in tagged[0].source, "a run in JupyterLab leaves the committed figures alone"
    assert not any("os.environ" in c.source for c in code), "parameters come from papermill alone"
    assert any(c.outputs for c in code), "committed with its outputs"
    assert not any(publish.is_progress(o) or "0%|" in str(o) for c in code for o in c.outputs), "no bar stays at 0 %"
    assert not any(o.output_type == "error" for c in code for o in c.outputs)


def test_outputs_are_published_without_traces_of_the_run(tmp_path):
    cell = nbformat.v4.new_code_cell("1 + 1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "kept.ipynb")
    bar = {publish.WIDGET: {"model_id": "1"}, "text/plain": "  0%|          | 0/8"}
    sliders = {publish.WIDGET: {"model_id": "2"}, "image/png": "iVBOR"}
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="a warning"),
        nbformat.v4.new_output("display_data", bar),
        nbformat.v4.new_output("display_data", sliders),
        nbformat.v4.new_output("execute_result", {"text/plain": "2"}, execution_count=5),
    ]
    injected = nbformat.v4.new_code_cell("QUICK = True", metadata={"tags": ["injected-parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[injected, cell]), tmp_path / "done.ipynb")
    publish.publish_notebook(tmp_path / "done.ipynb", tmp_path / "kept.ipynb")
    (published,) = nbformat.read(tmp_path / "kept.ipynb", 4).cells
    assert published.source == "1 + 1"
    assert [output.data for output in published.outputs] == [{"image/png": "iVBOR"}, {"text/plain": "2"}]
    assert published.execution_count == published.outputs[1].execution_count == 1


def test_results_stand_in_one_file_that_says_what_made_it(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "RESULTS.md").touch()
    (tmp_path / "02_results.md").write_text("## Second\n\nMade by notebooks/02_b.ipynb.\n")
    (tmp_path / "01_results.md").write_text("## First\n\nMade by notebooks/01_a.ipynb.\n")
    (tmp_path / "01_line.txt").write_text("A line. Made by notebooks/01_a.ipynb.\n")
    publish.write_gallery(tmp_path, "make figures FULL=1")
    results = (tmp_path / "RESULTS.md").read_text()
    assert results.index("`make figures FULL=1`") < results.index("## First") < results.index("## Second")
    assert "[mnist](mnist/RESULTS.md)" in results
    gallery = (tmp_path / "README.md").read_text()
    assert gallery.index("`make figures FULL=1`") < gallery.index("![01_line](01_line.png)")


def test_claims_stand_on_one_page_and_a_cell_run_again_replaces_its_row(tmp_path):
    here = {"notebook": "04_figures.ipynb", "folder": tmp_path}
    row = {"scenario": "digits", "number": "0.5", "verdict": "in kind", "why": "A cell."}
    plotting.save_claim("EPSL", "shorter rounds", **row, **here)
    plotting.save_claim("EPSL", "shorter rounds", **row | {"number": "0.7 | 0.8"}, **here)
    plotting.save_claim("EPSL", "sooner at 95 %", **row | {"verdict": "not here"}, **here)
    with pytest.raises(PSLError, match="verdict: expected one of reproduced, in kind, not here, got 'yes'"):
        plotting.save_claim("EPSL", "more", **row | {"verdict": "yes"}, **here)
    publish.write_gallery(tmp_path, "make figures")
    lines = (tmp_path / "CLAIMS.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| EPSL")]
    assert len(rows) == 2
    assert r"0.7 \| 0.8" in rows[0]
    assert "not here" in rows[1]


def test_sliders_start_at_the_defaults_and_leave_a_still_picture(monkeypatch):
    shown, asked, boxes = [], [], []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    monkeypatch.setattr(
        "ipywidgets.VBox", lambda children, new=ipywidgets.VBox: boxes.append(new(children)) or boxes[0]
    )

    def draw(power=2, phi=0.5):
        asked.append((power, phi))
        if power == 3:
            raise ValueError("no plan")
        axes = plt.figure(figsize=(1, 1)).add_subplot()
        axes.plot([0, power])
        return axes

    plt.close("all")  # what other tests left open
    plotting.explore(draw, power=[1, 2, 3], phi=[0.0, 0.5])
    (data,) = shown
    assert asked == [(2, 0.5)]
    assert data["image/png"].startswith("iVBOR")
    (box,) = boxes
    assert data[publish.WIDGET]["model_id"] == box.model_id
    before = box.children[2].value
    box.children[0].value = 1
    assert asked[-1] == (1, 0.5)
    assert box.children[2].value != before
    assert not plt.get_fignums(), "a redrawn figure is closed"
    for wrong in ([1, 3], [0]):
        with pytest.raises(PSLError, match=r"slider power: expected a default among"):
            plotting.explore(draw, power=wrong)
    with pytest.raises(PSLError, match=r"slider width"):
        plotting.explore(draw, width=[1])


@pytest.mark.slow
@pytest.mark.full
def test_papermill_runs_a_notebook_with_parameters(tmp_path):
    out = tmp_path / "out.ipynb"
    arguments = ["-p", "QUICK", "True", "-p", "FIGURES", str(tmp_path / "figures"), "--kernel", "python3"]
    subprocess.run(
        [sys.executable, "-m", "papermill", "00_environment.ipynb", str(out), "--no-progress-bar", *arguments],
        cwd=ROOT / "notebooks", check=True, capture_output=True,
    )  # fmt: skip
    shown = "".join(o.get("text", "") for c in nbformat.read(out, 4).cells for o in c.get("outputs", []))
    assert "[OK]" in shown
    assert "[FAIL]" not in shown
