"""Charts of methods, the results of notebooks, and what a figure's CSV holds."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from psl import plotting
from psl.errors import PSLError


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


@pytest.fixture
def draws():
    """Two methods, three groups, five draws each."""
    values = np.arange(30.0).reshape(2, 3, 5)
    rows = [
        {"method": method, "x": 10.0**k, "group": f"g{k}", "seed": seed, "y": values[m, k, seed]}
        for m, method in enumerate(("EPSL", "PSL"))
        for k in range(3)
        for seed in range(5)
    ]
    return pd.DataFrame(rows)


LOOKS = {"EPSL": "epsl", "PSL": "psl"}


def test_curves_go_through_the_median_with_a_band_over_the_draws(draws):
    _, ax = plt.subplots()
    assert plotting.plot_curves(draws, "x", "y", "method", LOOKS, ax=ax) is ax
    drawn = {tuple(line.get_ydata()): line.get_color() for line in ax.lines if len(line.get_ydata())}
    assert drawn == {(2, 7, 12): plotting.LOOKS["epsl"]["color"], (17, 22, 27): plotting.LOOKS["psl"]["color"]}
    heights = {tuple(sorted({y for _, y in band.get_paths()[0].vertices})) for band in ax.collections}
    assert heights == {(1, 3, 6, 8, 11, 13), (16, 18, 21, 23, 26, 28)}, "the quartiles"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["EPSL", "PSL"]


def test_points_show_every_draw(draws):
    _, ax = plt.subplots()
    plotting.plot_points(draws, "group", "y", "method", LOOKS, ax=ax)
    dots = np.concatenate([c.get_offsets() for c in ax.collections])
    assert sorted(dots[:, 1]) == list(range(30))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["EPSL", "PSL"]


def test_plain_ticks_on_a_logarithmic_axis():
    fig, ax = plt.subplots()
    ax.set(xscale="log", xlim=(0.4, 30))
    plotting.plain_ticks(ax, x=[0.5, 1, 20])
    fig.canvas.draw()
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0.5", "1", "20"]
    assert not len(ax.get_xticks(minor=True))


@pytest.mark.parametrize(
    ("index", "names"),
    [
        (pd.RangeIndex(2), []),
        (pd.Index([3, 4], name="seed"), ["seed"]),
        (pd.MultiIndex.from_tuples([(0.5, 10), (1.0, 30)], names=["h", "bandwidth_mhz"]), ["h", "bandwidth_mhz"]),
    ],
)
def test_a_figure_s_csv_has_every_named_level_of_the_index(tmp_path, index, names):
    fig, ax = plt.subplots()
    ax.set(xlabel="x", ylabel="y")
    data = pd.DataFrame({"value": [1.0, 2.0]}, index=index)
    plotting.save_figure(fig, "05_x", data, "", notebook="05_n.ipynb", folder=tmp_path)
    assert list(pd.read_csv(tmp_path / "05_x.csv").columns) == [*names, "value"]


def test_one_label_is_enough_for_panels_that_share_an_axis(tmp_path):
    fig, (left, right) = plt.subplots(1, 2, sharey=True)
    left.set(xlabel="x", ylabel="y")
    with pytest.raises(PSLError, match="labelled axes"):
        plotting.save_figure(fig, "05_x", pd.DataFrame(), "", notebook="05_n.ipynb", folder=tmp_path)
    right.set(xlabel="x")
    plotting.save_figure(fig, "05_x", pd.DataFrame(), "", notebook="05_n.ipynb", folder=tmp_path)


def test_results_of_a_notebook_stand_in_the_order_of_writing(tmp_path):
    table = pd.DataFrame({"round (s)": [1.23456, 12345.6, np.nan], "n": [1, 2, 3]}, index=["a", "b|c", "d"])
    save = {"notebook": "04_n.ipynb", "folder": tmp_path}
    plotting.save_results("First", "A sentence.", table.rename_axis("method"), **save)
    plotting.save_results("Second", "Only text.", **save)
    plotting.save_results("First", "Another sentence.", table, **save)
    assert (tmp_path / "04_results.md").read_text() == (
        "## First\n\nAnother sentence.\n\n| round (s) | n |\n| --- | --- |\n| 1.235 | 1 |\n| 12,346 | 2 |\n|  | 3 |\n\n"
        "Made by notebooks/04_n.ipynb.\n\n## Second\n\nOnly text.\n\nMade by notebooks/04_n.ipynb.\n"
    )
    assert "| b\\|c | 12,346 | 2 |" in plotting.markdown_table(table.rename_axis("method"))


def test_results_say_whose_they_are(tmp_path):
    with pytest.raises(PSLError, match="expected a name that starts with two digits, got 'n.ipynb'"):
        plotting.save_results("Title", "text", notebook="n.ipynb", folder=tmp_path)
    with pytest.raises(PSLError, match="expected at least one table or text"):
        plotting.save_results("Title", notebook="04_n.ipynb", folder=tmp_path)


def test_rounds_by_micro_batches_stand_over_their_bounds():
    table = pd.DataFrame(
        {
            "scenario": ["free"] * 3 + ["costly"] * 3,
            "micro_batches": [0, 1, 8] * 2,
            "round_time": [3.0, 2.0, 1.0, 3.0, 2.0, 2.5],
            "lower_bound": [2.9, 1.5, 1.0, 2.9, 1.5, 2.4],
        }
    )
    _, ax = plt.subplots()
    assert plotting.plot_round_by_micro_batches(table, {"free": "psl", "costly": "sfl"}, ax=ax) is ax
    drawn = [tuple(line.get_ydata()) for line in ax.lines]
    assert (3.0, 2.0, 1.0) in drawn and (2.9, 1.5, 2.4) in drawn
    assert (1.0,) in drawn and (2.0,) in drawn, "the best number has a circle"
    assert [label.get_text() for label in ax.get_xticklabels()] == ["barriers", "1", "8"]


def test_rounds_and_bounds_say_their_seconds():
    table = pd.DataFrame({"round_time": [0.5, 0.25], "lower_bound": [0.4, 0.25]}, index=["PSL", "EPSL"])
    _, ax = plt.subplots()
    plotting.plot_rounds_and_bounds(table, ax=ax)
    assert [bar.get_width() for bar in ax.patches] == [0.5, 0.25]
    assert {text.get_text() for text in ax.texts} == {"0.500", "0.250"}
    assert [tuple(line.get_xdata()) for line in ax.lines] == [(0.4, 0.4), (0.25, 0.25)]
