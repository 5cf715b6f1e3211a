"""Write the numbers of docs/which_method.md from the files in figures/.

Usage: python tools/which_method.py [--check]

A number stands in the page between ``<!-- name -->`` and ``<!-- / -->``, where name is a key of `numbers`. With --check
nothing is written, and the exit status is 1 if the page is out of date.
"""

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from psl.networks import BOARDS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "which_method.md"
FIGURES = ROOT / "figures"
MARKED = re.compile(r"<!-- (\w+) -->.*?<!-- / -->")
SMALL, HALF, ONE = "psl-small 1", "psl-small 0.5", ("epsl", 1.0)


def table(name):
    """Return a CSV file of figures/, by its name without the ending."""
    return pd.read_csv(FIGURES / f"{name}.csv")


def training(rule="representative", target=0.95):
    """Return s (simulated) to the target for the seeds' mean, and its last accuracy, by (network, framework, φ)."""
    runs = table("03_runs").dropna(subset=["test_accuracy"])
    runs = runs[runs.linearise == rule]
    keys = ["network", "framework", "phi"]
    curve = runs.groupby([*keys, "round"])[["simulated_time_s", "test_accuracy"]].mean().reset_index()
    reached = curve[curve.test_accuracy >= target].groupby(keys).simulated_time_s.min()
    return reached, 100 * curve.groupby(keys).test_accuracy.last()


def clients(framework, n):
    """Return the median round (s) of a framework with n clients."""
    found = table("04_latency_by_clients")
    if f"{framework}_q50_s" in found:
        return found.set_index("clients")[f"{framework}_q50_s"][n]
    column = next(name for name in ("framework", "method") if name in found)
    mine = found[(found[column].str.lower() == framework) & (found.clients == n)]
    return mine[next(name for name in ("round_s", "time_s", "seconds") if name in found)].median()


def numbers():
    """Return every number of the page, as floats by name."""
    reached, last = training()
    found = {
        "cnn_psl": reached["CNN", "psl", 0.0],
        "cnn_epsl": reached["CNN", "epsl", 0.5],
        "cnn_half": reached["CNN", HALF, 0.0],
        "cnn_small": reached["CNN", SMALL, 0.0],
        "cnn_sl": reached["CNN", "sl", 0.0],
        "cnn_fedavg": reached["CNN", "fedavg", 0.0],
        "res_psl": reached["thin ResNet", "psl", 0.0],
        "res_epsl": reached["thin ResNet", "epsl", 0.5],
        "res_small": reached["thin ResNet", SMALL, 0.0],
        "last_epsl": last["CNN", "epsl", 1.0],
        "last_small": last["CNN", SMALL, 0.0],
        "last_psl": last["CNN", "psl", 0.0],
    }
    drawn, last_drawn = training("sampled")
    found |= {"cnn_drawn": drawn["CNN", "epsl", 1.0], "res_drawn": drawn["thin ResNet", "epsl", 1.0]}
    found["last_drawn"] = last_drawn["CNN", "epsl", 1.0]
    for name, n in (("few", 2), ("many", 16)):
        found |= {f"{name}_{who}": clients(who, n) for who in ("sl", "psl", "epsl", "fedavg")}
    by_phi = table("04_latency_by_phi").pivot(index="seed", columns="phi", values="round_s")
    found["round_phi_1"] = 100 * (1 - (by_phi[1.0] / by_phi[0.0]).median())
    plans = table("04_baselines").set_index("seed")
    over = 100 * (plans.div(plans["lower bound"], axis=0) - 1).median()
    found |= {"plan_random": over["random"], "plan_single": over["channels-only"], "plan_bcd": over["bcd"]}
    speeds = [board.peak_flops for board in BOARDS]
    found["boards"] = max(speeds) / min(speeds)
    found["boards_root"] = found["boards"] ** 0.5
    return found | _edgesplit() | _pipeline() | _measured()


def _edgesplit():
    rounds = table("05_round_time_by_method").set_index(["model", "side", "seed"])
    ratios = rounds.div(rounds.alternating, axis=0).groupby(["model", "side"]).median()
    large, small = ratios.loc["ResNet-50", 224], ratios.loc["ResNet-50", 32]
    sweep = table("05_headline").set_index(["heterogeneity", "bandwidth_mhz"])
    found = {"es_own": large["common-optimal"], "es_sfl": large["sfl"], "es_fedavg": large["fedavg"]}
    found |= {"es_small_own": small["common-optimal"], "es_small_sfl": small["sfl"]}
    for name, h in (("equal", 0.0), ("root", 0.5), ("boards", 1.0), ("twice", 2.0)):
        sfl = sweep.loc[h].sfl
        found |= {f"es_{name}_least": sfl.min(), f"es_{name}_most": sfl.max()}
    return found


def _pipeline():
    plans = table("06_baselines").set_index(["links", "model", "seed"])
    ratios = plans.div(plans.exact, axis=0).groupby(["links", "model"]).median()
    found = {}
    for short, links in (("slow", "50 Mbit/s to 1 Gbit/s"), ("fast", "1 to 10 Gbit/s")):
        for name, model in (("vgg", "VGG-16"), ("res", "ResNet-18")):
            found[f"{short}_{name}"] = ratios.loc[links, model]["two-tier"]
            found[f"{short}_{name}_none"] = ratios.loc[links, model]["no-pipeline"]
    sweeps = table("06_sweeps")
    memory = sweeps[sweeps.quantity.str.startswith("memory")]
    counts = memory.groupby(["method", "value"]).time_s.count()
    fits = counts["two-tier"] == counts["exact"]
    found["memory_none"] = 100 * max(value for value, ok in fits.items() if not ok)
    found["memory_some"] = 100 * min(value for value, ok in fits.items() if ok)
    both = memory[np.isclose(memory.value, found["memory_some"] / 100)].pivot(
        index="seed", columns="method", values="time_s"
    )
    found["memory_gain"] = (both["two-tier"] / both.exact).median()
    return found


def _measured():
    found = table("07_measured_against_predicted")
    rounds = found[(found.term == "round") & found.method.isin(["search", "exact"])]
    size = 100 * rounds.error.abs().groupby(rounds.scheduler).median()
    return {f"error_{name}": size[name] for name in ("epsl", "edgesplit", "pipeline")}


def conditions(n):
    """Return what the advice rests on: sentences of the page, and whether the numbers support them."""
    most = [n[f"es_{name}_most"] for name in ("equal", "root", "boards", "twice")]
    return {
        "PSL on a small batch is sooner than PSL and than EPSL": n["cnn_small"] < min(n["cnn_psl"], n["cnn_epsl"])
        and n["res_small"] < min(n["res_psl"], n["res_epsl"]),
        "EPSL is not sooner than PSL on the CNN": n["cnn_epsl"] >= n["cnn_psl"],
        "devices that differ about fivefold": n["boards_root"] > 4,
        "at φ = 1 EPSL ends lower than PSL on a small batch": n["last_epsl"] < n["last_small"],
        "SL is sooner than PSL, and PSL on the smallest batch sooner than SL": n["cnn_small"]
        < n["cnn_sl"]
        < n["cnn_psl"],
        "drawn rows are sooner than PSL, and later than PSL on the smallest batch": n["cnn_small"]
        < n["cnn_drawn"]
        < n["cnn_psl"]
        and n["res_small"] < n["res_drawn"] < n["res_psl"],
        "drawn rows end level with PSL": abs(n["last_drawn"] - n["last_psl"]) < 0.5,
        "FedAvg is later than PSL in a cell": n["cnn_fedavg"] > n["cnn_psl"],
        "SL's round grows faster with clients than PSL's": n["many_sl"] / n["few_sl"]
        > 2 * n["many_psl"] / n["few_psl"],
        "no single decision is enough": n["plan_single"] > 10 * n["plan_bcd"],
        "EdgeSplit gains more where devices differ more": most == sorted(most),
        "own cuts bring something at 224 × 224, nothing at 32 × 32": n["es_own"] > 1.5 > 1.05 > n["es_small_own"],
        "slow links: two tiers are within 5 %": max(n["slow_vgg"], n["slow_res"]) < 1.05,
        "fast links: VGG-16 gains from more stages, ResNet-18 does not": n["fast_vgg"] > 1.2 > 1.05 > n["fast_res"],
        "little memory: two tiers do not fit": n["memory_none"] < n["memory_some"],
    }


def shown(value):
    """Return a number with three digits, as in the page."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.{2 if abs(value) < 10 else 1}f}"


def filled(text):
    """Return the page with its numbers written anew."""
    found = numbers()
    return MARKED.sub(lambda m: f"<!-- {m[1]} -->{shown(found[m[1]])}<!-- / -->", text)


def main(arguments):
    """Write the page, or check it."""
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if "--check" not in arguments:
        PAGE.write_text(new, encoding="utf-8")
    for sentence, holds in conditions(numbers()).items():
        if not holds:
            print(f"{PAGE.name}: the numbers no longer support: {sentence}. Fix: rewrite the page", file=sys.stderr)
            return 1
    return int("--check" in arguments and new != old)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
