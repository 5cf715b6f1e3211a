"""What drawing rows costs in accuracy, against PSL, averaging, small mini-batches and rivals: seeds in pairs.

    python benchmarks/epsl_accuracy.py                   # digits, both networks, IID and Dirichlet(0.5)
    python benchmarks/epsl_accuracy.py --dataset mnist   # MNIST, the CNN
    python benchmarks/epsl_accuracy.py --again           # the table anew, from the courses that are there

The committed tables are of four runs: --networks CNN, and --networks "thin ResNet" --name epsl_accuracy_resnet;
and the same with --dataset mnist, where the thin ResNet has --rounds 60 --name epsl_accuracy_mnist_resnet.

N = 5 clients with b = 64, cuts after the first pooling and the first residual block, plain SGD. Every method takes the
learning rate that was best for it in its setting on seeds that are not used afterwards. All methods of a seed start
from the same weights, and those that draw from every client's own data see the same mini-batches, if these have the
same size. Accuracy is the mean of the evaluations in the last ten rounds; differences are to PSL with b = 64, seed by
seed, with their standard error. Writes benchmarks/results/epsl_accuracy.csv, or epsl_accuracy_mnist.csv, and the
course of every run beside it (…_runs.csv).
"""

import argparse
import functools

import numpy as np
import pandas as pd
import torch

import psl
from psl.training.partition import partition as divide
from training_common import RESULTS

N, B, EVERY = 5, 64, 5
NETWORKS = {"CNN": (psl.models.cnn, "pool1"), "thin ResNet": (psl.models.thin_resnet, "block1")}
METHODS = {
    "PSL": ("psl", {}),
    "PSL, b = 13": ("psl", {"batch_size": 13}),
    "EPSL, averaged, φ = 1": ("epsl", {"phi": 1.0}),
    "EPSL, sampled, φ = 1": ("epsl", {"phi": 1.0, "linearise": "sampled"}),
    "EPSL, sampled, adaptive": ("epsl", {"phi": 0.0, "linearise": "sampled", "rows": "adaptive"}),
    "SFL-GA's idea: cut, φ = 1": ("epsl", {"phi": 1.0, "linearise": "cut"}),
    "GPSL's idea: global sampling": ("psl", {"sampling": "global"}),
    "GPSL's idea, b = 13": ("psl", {"sampling": "global", "batch_size": 13}),
    "CycleSL's idea: 5 server steps": ("psl", {"server_steps": 5}),
}
#: The method that sends least: what it sends in all rounds is the budget at equal bits.
FEWEST_BITS = "PSL, b = 13"
#: Learning rates that are tried, and on how many seeds: fewer where runs are long.
TRIED = {
    ("digits", "CNN"): ((0.05, 0.1, 0.2, 0.3, 0.5), 2),
    ("digits", "thin ResNet"): ((0.1, 0.2, 0.3), 1),
    ("mnist", "CNN"): ((0.1, 0.2), 1),
    ("mnist", "thin ResNet"): ((0.1, 0.2), 1),
}


def run(dataset, network, partition, method, lr, seed, rounds, n_test):
    """Train once; return its history, and the rows that the server goes back through in each round."""
    framework, options = METHODS[method]
    build, cut = NETWORKS[network]
    train_set, test_set = psl.data.load(dataset)
    images, labels = train_set[:]
    tests = torch.utils.data.Subset(test_set, range(min(n_test, len(test_set))))
    torch.manual_seed(seed)
    model = build(images.shape[1], int(labels.max()) + 1)
    given = {"batch_size": B, "n_clients": N, "rounds": rounds, "eval_every": EVERY} | options
    if partition != "iid":  # the same division for every size of a mini-batch
        sizes = {"labels": lambda: labels.numpy(), "minimum": B, "seed": seed}
        partition = divide(partition, len(labels), N, **sizes)
    history = psl.train(
        framework, model, (train_set, tests), cut=cut, partition=partition, lr=lr, seed=seed, progress=False, **given
    )
    rows = np.full(rounds, N * given["batch_size"]) if history.server_rows is None else history.server_rows
    if method.startswith("EPSL, averaged"):
        rows = np.full(rounds, B)
    if given.get("server_steps"):
        rows = 2 * rows  # once to step, once to answer
    return history, rows


def train(**setting):
    """Return the course of one run: round, test accuracy, rows that the server went back through so far."""
    history, rows = run(**setting)
    frame = history.to_frame()[["round", "test_accuracy"]].assign(server_rows=np.cumsum(rows))
    return frame[frame["round"] % EVERY == 0]


@functools.cache  # for all divisions
def bits(dataset, network, method):
    """Return what crosses the links in a round, up and down, in bits: a part per round and a part per server row.

    They depend neither on the seed nor on what is learned, so a short run tells them. Only where the rows of a round
    vary (adaptive) is there a part per row.
    """
    history, rows = run(dataset, network, "iid", method, 0.1, 0, rounds=10, n_test=100)
    sent = np.diff(history.uplink_bits + history.downlink_bits, prepend=0)
    terms = np.stack([np.ones(len(rows)), rows if np.ptp(rows) else np.zeros(len(rows))], axis=1)
    found = np.linalg.lstsq(terms, sent)[0]
    if not np.allclose(terms @ found, sent, rtol=1e-9):
        raise AssertionError(f"{method}: the bits of a round are not a sum of parts per round and per row")
    return found


def last(course: pd.DataFrame) -> float:
    """Return the mean accuracy in the last ten rounds, per cent."""
    return 100 * float(course.test_accuracy[course["round"] > course["round"].max() - 10].mean())


def first_round(course: pd.DataFrame, target: float) -> float:
    """Return the first evaluated round in which a target accuracy is met; infinite if there is none."""
    met = course["round"][course.test_accuracy >= target]
    return float(met.min()) if len(met) else np.inf


def at(course: pd.DataFrame, what: str, budget: float) -> float:
    """Return the accuracy, per cent, when so many server rows or bits are spent; the last one if they never are."""
    known = course[course[what] >= budget]
    return 100 * float((known if len(known) else course.tail(1)).test_accuracy.iloc[0])


def courses_of(arguments: argparse.Namespace, network: str, division: str) -> pd.DataFrame:
    """Choose the learning rate of every method on seeds of its own; return the courses of all methods and seeds."""
    rates, n_seeds = TRIED.get((arguments.dataset, network), ((0.1, 0.3), 1))
    partition = division if division == "iid" else float(division)
    setting = {"dataset": arguments.dataset, "network": network, "partition": partition}
    setting |= {"rounds": arguments.rounds, "n_test": 1000}
    options = {"n_jobs": arguments.jobs, "cache": arguments.cache, "progress": False}
    tried = [(m, lr, 100 + s) for m in arguments.methods for lr in arguments.lrs or rates for s in range(n_seeds)]
    runs = psl.run_study(train, [setting | {"method": m, "lr": lr, "seed": seed} for m, lr, seed in tried], **options)
    tuned = pd.DataFrame(tried, columns=["method", "lr", "seed"]).assign(accuracy=[*map(last, runs)])
    best = tuned.groupby(["method", "lr"]).accuracy.mean().unstack().idxmax(axis=1)
    done = [{"method": m, "lr": float(best[m]), "seed": s} for m in arguments.methods for s in range(arguments.seeds)]
    runs = psl.run_study(train, [setting | one for one in done], **options)
    where = {"network": network, "partition": division}
    return pd.concat([course.assign(**where, **one) for one, course in zip(done, runs, strict=True)])


def summary(dataset: str, courses: pd.DataFrame) -> pd.DataFrame:
    """Return a row for every network, division and method: accuracy, difference to PSL, costs, rounds to targets."""
    table = []
    for (network, division), setting in courses.groupby(["network", "partition"], sort=False):
        psl_runs = setting[setting.method == "PSL"].groupby("seed")
        rounds = setting["round"].max()
        bit_budget = rounds * bits(dataset, network, FEWEST_BITS)[0]
        for method in setting.method.unique():
            per_round, per_row = bits(dataset, network, method)
            mine = setting[setting.method == method]
            mine = mine.assign(bits=per_round * mine["round"] + per_row * mine.server_rows)
            runs = dict(iter(mine.groupby("seed")))
            accuracy = np.array([*map(last, runs.values())])
            difference = accuracy - np.array([last(psl_runs.get_group(seed)) for seed in runs])
            row = {
                "dataset": dataset, "network": network, "partition": division, "method": method,
                "lr": mine.lr.iloc[0], "seeds": len(runs), "accuracy": accuracy.mean(), "sd": accuracy.std(ddof=1),
                "minus_psl": difference.mean(), "se": difference.std(ddof=1) / len(runs) ** 0.5,
                "rows_per_round": np.mean([r.server_rows.iloc[-1] for r in runs.values()]) / rounds,
                "Mbit_per_round": np.mean([r.bits.iloc[-1] for r in runs.values()]) / rounds / 1e6,
                "accuracy_at_equal_rows": np.mean([at(r, "server_rows", rounds * B) for r in runs.values()]),
                "accuracy_at_equal_bits": np.mean([at(r, "bits", bit_budget) for r in runs.values()]),
            }  # fmt: skip
            for target in (0.9, 0.95):
                met = [first_round(r, target) for r in runs.values()]
                row |= {f"rounds_to_{target:.0%}": np.median(met), f"never_{target:.0%}": np.isinf(met).sum()}
            table.append(row)
    return pd.DataFrame(table)


def main() -> None:
    """Tune, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--networks", nargs="+", default=None, choices=list(NETWORKS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--lrs", type=float, nargs="+", default=None)
    parser.add_argument("--partitions", nargs="+", default=["iid", "0.5"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--cache", default="build/epsl_accuracy")
    parser.add_argument("--name", default=None, help="of the CSV; default epsl_accuracy")
    parser.add_argument("--again", action="store_true", help="no training: the table of the courses that are there")
    arguments = parser.parse_args()
    digits = arguments.dataset == "digits"
    name = arguments.name or "epsl_accuracy" + ("" if digits else f"_{arguments.dataset}")
    kept = RESULTS / f"{name}_runs.csv"
    if arguments.again:
        courses = pd.read_csv(kept, dtype={"partition": str})
    else:
        networks = arguments.networks or (list(NETWORKS) if digits else ["CNN"])
        settings = [(network, division) for network in networks for division in arguments.partitions]
        courses = pd.concat([courses_of(arguments, *setting) for setting in settings])
        courses.to_csv(kept, index=False, float_format="%.5g")
    table = summary(arguments.dataset, courses)
    print(table.to_string(float_format=lambda x: f"{x:.4g}"), flush=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
