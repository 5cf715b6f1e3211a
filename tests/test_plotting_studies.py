"""Drawings of the notebooks: each shows the numbers that it is given, and says what the table cannot."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from psl import plotting
from psl.errors import PSLError
from psl.plotting import edgesplit, edgesplit_studies, epsl, pipeline, training

LOOKS = {"EPSL": "epsl", "PSL": "psl"}


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def texts(ax):
    """What is written into a panel."""
    return " | ".join(text.get_text() for text in ax.texts)


@pytest.mark.parametrize(("averaged", "rows"), [(0, 12), (1, 10), (4, 4)])
def test_slots_count_the_rows_of_the_server_s_backward_pass(averaged, rows):
    ax = training.plot_slots(3, 4, averaged)
    assert f"= {rows} rows instead of 12" in ax.get_title()
    assert len(ax.collections) == (2 if averaged else 1), "no row of averages where nothing is averaged"


def test_slots_refuse_more_averages_than_slots():
    with pytest.raises(PSLError, match="n_aggregated: expected 0 to 4, got 5"):
        training.plot_slots(3, 4, 5)


def test_a_seed_that_never_reaches_the_target_is_drawn_at_never():
    rows = [("CNN", "EPSL", 1.0), ("CNN", "EPSL", np.inf), ("CNN", "EPSL", 2.0), ("CNN", "PSL", 4.0)]
    fig = training.plot_target_times(pd.DataFrame(rows, columns=["network", "method", "seconds"]), LOOKS)
    (ax,) = fig.axes
    (never,) = (text.get_position()[0] for text in ax.texts if text.get_text() == "never")
    dots = [line for line in ax.lines if line.get_marker() == plotting.LOOKS["epsl"]["marker"]]
    assert sorted(dots[0].get_xdata()) == [1, 2, never]
    assert never > 4
    (middle,) = (line for line in ax.lines if line.get_marker() == "|" and line.get_ydata()[0] == 0)
    assert middle.get_xdata()[0] == 2, "never counts in the median"


def test_ratios_have_a_median_per_scenario():
    rows = [("CNN", s, "EPSL", r) for s, ratios in {"a": (1, 2, 3), "b": (0.5, 0.5, np.inf)}.items() for r in ratios]
    data = pd.DataFrame(rows, columns=["network", "scenario", "method", "ratio"])
    (ax,) = training.plot_ratios(data, {"EPSL": "epsl"}, ["a", "b"]).axes
    middles = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == plotting.LOOKS["epsl"]["marker"]]
    assert middles == [2, 0.5]


def test_one_legend_for_all_panels():
    fig, panels = training.new_panels(2)
    for ax, labels in zip(panels, (("a", "b"), ("b", "c")), strict=True):
        for label in labels:
            ax.plot([0, 1], label=label)
        ax.legend()
    training.shared_legend(fig, panels)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["a", "b", "c"]
    assert not any(ax.get_legend() for ax in panels)


def test_a_legend_is_never_wider_than_its_figure():
    fig, panels = training.new_panels(1)
    for k in range(6):
        panels[0].plot([0, 1], label=f"a rather long title {k}")
    training.shared_legend(fig, panels, ncols=5)
    (legend,) = fig.legends
    assert legend.get_window_extent().width <= fig.bbox.width and len(legend.get_texts()) == 6


def test_accuracy_over_time_has_a_logarithmic_axis():
    data = pd.DataFrame(
        [("EPSL", s, t, 50 + t + s) for s in (0, 1) for t in (1, 10)],
        columns=["method", "seed", "simulated_time_s", "accuracy_percent"],
    )
    ax = training.plot_accuracy(data, "simulated_time_s", {"EPSL": "epsl"}, ax=plt.subplots()[1])
    assert ax.get_xscale() == "log"
    assert tuple(next(line for line in ax.lines if len(line.get_ydata())).get_ydata()) == (51.5, 60.5)


def test_rounds_by_cut_mark_the_shortest():
    terms = pd.DataFrame({"up": [1.0, 0.2, 0.1], "server": [1.0, 0.5, 2.0]}, index=["a", "b", "c"])
    (ax,) = epsl.plot_rounds_by_cut(terms, "c", longest=3, title="t").axes
    assert "0.700 s\nshortest" in texts(ax)
    assert "2.100 s" in texts(ax)
    assert sum(bar.get_height() for bars in ax.containers for bar in bars) == pytest.approx(4.8)


def test_the_certificate_shows_a_share_per_gap():
    path = pd.DataFrame({"block": ["start", "power", "cut"], "cut": [1, 1, 2], "round_time": [3.0, 2.0, 1.5]})
    gaps = pd.DataFrame({"search": [0.1, 0.2], "BCD": [1.0, 5.0]})
    left, right = epsl.plot_certificate(path, gaps, search=1.4, bound=1.3, title="t").axes
    assert {1.3, 1.4} <= {line.get_ydata()[0] for line in left.lines}
    assert max(line.get_xdata().max() for line in right.lines) >= 5


def test_a_deadline_says_what_is_missing():
    devices = pd.DataFrame({"name": ["a", "a", "b"], "cut": [1, 2, 2], "mhz": [30.0, 40.0, 50.0]})
    needs = pd.DataFrame({"frugal": [200.0, 90.0, 50.0]}, index=[300.0, 500.0, 1000.0])
    fig = edgesplit.plot_deadline(devices, needs, deadline=400, band=100)
    assert "needs 120 MHz of W = 100 MHz: 20 MHz too much" in fig.get_suptitle()
    fig = edgesplit.plot_deadline(devices, needs, deadline=400, band=130)
    assert "met, 10 MHz are left" in fig.get_suptitle()


def test_a_device_s_best_cut_is_named():
    terms = pd.DataFrame({"compute": [1.0, 2.0, 9.0], "send": [9.0, 1.0, 0.5]}, index=[1, 2, 3])
    curve = pd.DataFrame({"this_cut": [9.0, 10.0], "best_cut": [3.0, 2.0]}, index=[1.0, 5.0])
    left, _ = edgesplit.plot_device_round(terms, 1, curve, 2.0, title="t").axes
    assert "best cut: 2" in [text.get_text() for text in left.get_legend().get_texts()]


def test_the_excess_counts_clusters_above_the_optimum():
    excess = pd.DataFrame({"one": [0.0, 1e-12, 0.1, 0.2], "none": [0.0] * 4})
    left, right = edgesplit_studies.plot_excess(excess, {"one": "One", "none": "None"}).axes
    assert "50 %" in texts(left)
    assert "no cluster" in texts(right)
    dots = next(line for line in right.lines if line.get_marker() == "o")
    assert sorted(dots.get_xdata()) == pytest.approx([10, 20])


def test_the_headline_frames_what_reaches_the_claim():
    index = pd.MultiIndex.from_product([[0, 1], [10, 100]], names=["heterogeneity", "bandwidth_mhz"])
    cells = pd.DataFrame({"sfl": [1.0, 2.0, 6.0, 5.5]}, index=index)
    ax = edgesplit_studies.plot_headline(cells, {"sfl": "SFL"}, claimed=5.5).axes[0]
    assert sorted(patch.get_xy() for patch in ax.patches) == [(0, 0), (1, 0)], "the upper row, h = 1"


def test_micro_batches_show_their_parts_and_the_choice():
    table = pd.DataFrame({"fill_time_s": [0.1, 0.2, 0.4], "total_s": [1.0, 0.6, 0.4]}, index=[1, 2, 4])
    ax = pipeline.plot_micro_batch_curve(table, {"search": 4})
    assert any("$m$ = 4, 0.4 s" in text.get_text() for text in ax.get_legend().get_texts())
    parts = next(line for line in ax.lines if "T_i" in str(line.get_label()))
    assert tuple(parts.get_ydata()) == pytest.approx((0.9, 0.4)), "total less fill, where there is any"


def test_sweeps_draw_a_point_only_where_every_network_has_a_plan():
    rows = [("memory", v, s, m, 1.0 + v) for v in (1.0, 2.0) for s in (0, 1) for m in LOOKS]
    swept = pd.DataFrame(rows, columns=["quantity", "value", "seed", "method", "time_s"])
    swept.loc[0, "time_s"] = np.nan  # EPSL, 1.0, seed 0
    (ax,) = pipeline.plot_plan_sweeps(swept, LOOKS, {"memory": "memory"}).axes
    lengths = {line.get_color(): len(line.get_xdata()) for line in ax.lines if len(line.get_xdata())}
    assert lengths == {plotting.LOOKS["epsl"]["color"]: 1, plotting.LOOKS["psl"]["color"]: 2}


def test_the_methods_of_one_paper_have_colours_of_their_own():
    in_cell = ["epsl", "epsl-1", "epsl-cut", "epsl-sampled", "psl", "psl-small", "psl-small-1", "sfl", "sl", "fedavg"]
    pipelined = ["pipeline", "alternating", "two-tier", "no-pipeline", "random-cuts", "random-placement"]
    devices = ["edgesplit", "adaptive-equal", "common-optimal", "sfl", "fedavg", "psl"]
    for group in (in_cell, pipelined, devices):
        assert len({plotting.LOOKS[name]["color"] for name in group}) == len(group)
