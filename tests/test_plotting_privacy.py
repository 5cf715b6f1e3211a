"""Drawings of leakage show what they are given."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from psl import plotting


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_reconstructions_stand_in_one_row_per_title():
    images = np.random.default_rng(0).random((4, 1, 8, 8))
    fig = plotting.plot_reconstructions({"private": images, "cut": images / 2})
    assert [ax.get_ylabel() for ax in fig.axes] == ["private", "cut"]
    assert fig.axes[0].images[0].get_array().shape == (8, 4 * 9)
    colour = plotting.plot_reconstructions({"private": np.repeat(images, 3, axis=1)})
    assert colour.axes[0].images[0].get_array().shape == (8, 4 * 9, 3)


def cuts(n=3):
    value = np.linspace(1, 0.5, n)
    columns = ("r2", "reidentified", "r2_at_or_behind")
    frame = pd.DataFrame({"name": [f"cut{k}" for k in range(n)], **dict.fromkeys(columns, value)})
    return frame.assign(r2_sd=0.01, reidentified_sd=np.nan, round_time_s=[3e-3, 1e-3, 2e-3])


def test_leakage_by_cut_names_every_cut():
    _, ax = plt.subplots()
    plotting.plot_leakage_by_cut(cuts(), 0.4, ax=ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cut0", "cut1", "cut2"]
    assert len(ax.get_legend().get_texts()) == 4


@pytest.mark.parametrize(("budget", "best"), [(0.8, 1e-3), (0.6, 2e-3), (0.1, None)])
def test_a_budget_circles_the_fastest_cut_within_it(budget, best):
    _, ax = plt.subplots()
    plotting.plot_budget(cuts(), budget, ax=ax)
    circles = [float(c.get_offsets()[0][1]) for c in ax.collections if len(c.get_offsets()) == 1]
    assert circles == ([] if best is None else [best])
    assert ax.get_yscale() == "log"


def test_other_drawings_have_labels_and_every_entry():
    _, ax = plt.subplots()
    plotting.plot_knowledge(pd.DataFrame([[1, 0.5], [0.2, -3]], ["a", "b"], ["c1", "c2"]), ax=ax)
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.50", "0.20", "-3.00"]
    _, ax = plt.subplots()
    data = {
        "defence": ["none", "noise"],
        "accuracy_percent": [90, 80],
        "r2_once": [0.9, 0.5],
        "r2_averaged": [0.9, 0.8],
    }
    plotting.plot_defences(pd.DataFrame(data), ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["none", "noise"]
    swept = pd.DataFrame({"x": [0.5, 1.0] * 2, "curve": ["a", "a", "b", "b"], "accuracy": 0.9, "chance": 0.3})
    fig = plotting.plot_label_leakage([("φ", swept), ("N", swept)])
    assert [ax.get_xlabel() for ax in fig.axes] == ["φ", "N"]
    draws = pd.DataFrame({"n": [16, 64] * 2, "estimate": ["biased", "biased", "unbiased", "unbiased"], "value": 0.1})
    assert plotting.plot_estimates(draws).axes[0].get_xscale() == "log"
