"""What drawing rows costs in accuracy, against PSL, averaging, small mini-batches and rivals: seeds in pairs.

    python benchmarks/epsl_accuracy.py                   # digits, both networks, IID and Dirichlet(0.5)
    python benchmarks/epsl_accuracy.py --dataset mnist   # MNIST, the CNN

The committed tables of the digits are of two runs: --networks CNN, and --networks "thin ResNet" --name
epsl_accuracy_resnet.

N = 5 clients with b = 64, cuts after the first pooling and the first residual block, plain SGD. Every method takes the
learning rate that was best for it in its setting on seeds that are not used afterwards. All methods of a seed start
from the same weights, and those that draw from every client's own data see the same mini-batches, if these have the
same size. Accuracy is the mean of the evaluations in the last ten rounds; differences are to PSL with b = 64, seed by
seed, with their standard error. Writes benchmarks/results/epsl_accuracy.csv, or epsl_accuracy_mnist.csv, and the
course of every run beside it (…_runs.csv).
"""

import argparse

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
#: Learning rates that are tried, and on how many seeds: fewer where runs are long.
TRIED = {
    ("digits", "CNN"): ((0.05, 0.1, 0.2, 0.3, 0.5), 2),
    ("digits", "thin ResNet"): ((0.1, 0.2, 0.3), 1),
    ("mnist", "CNN"): ((0.1, 0.2), 1),
}


def train(dataset, network, partition, method, lr, seed, rounds, n_test):
    """Return the course of one run: round, test accuracy, rows that the server went back through so far."""
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
    frame = history.to_frame()[["round", "test_accuracy"]].assign(server_rows=np.cumsum(rows))
    return frame[frame["round"] % EVERY == 0]


def last(course: pd.DataFrame) -> float:
    """Return the mean accuracy in the last ten rounds, per cent."""
    return 100 * float(course.test_accuracy[course["round"] > course["round"].max() - 10].mean())


def first_round(course: pd.DataFrame, target: float) -> float:
    """Return the first evaluated round in which a target accuracy is met; infinite if there is none."""
    met = course["round"][course.test_accuracy >= target]
    return float(met.min()) if len(met) else np.inf


def at_rows(course: pd.DataFrame, rows: int) -> float:
    """Return the accuracy, per cent, when so many rows have gone back; the last one if it never comes to that."""
    known = course[course.server_rows >= rows]
    return 100 * float((known if len(known) else course.tail(1)).test_accuracy.iloc[0])


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
    arguments = parser.parse_args()
    digits = arguments.dataset == "digits"
    networks = arguments.networks or (list(NETWORKS) if digits else ["CNN"])
    common = {"dataset": arguments.dataset, "rounds": arguments.rounds, "n_test": 1000}
    options = {"n_jobs": arguments.jobs, "cache": arguments.cache, "progress": False}
    name = arguments.name or "epsl_accuracy" + ("" if digits else f"_{arguments.dataset}")
    table, courses = [], []
    for network in networks:
        for division in arguments.partitions:
            rates, n_seeds = TRIED.get((arguments.dataset, network), ((0.1, 0.3), 1))
            rates, tuning = arguments.lrs or rates, range(100, 100 + n_seeds)
            setting = common | {"network": network, "partition": division if division == "iid" else float(division)}
            tried = [(m, lr, seed) for m in arguments.methods for lr in rates for seed in tuning]
            runs = psl.run_study(
                train, [setting | {"method": m, "lr": lr, "seed": seed} for m, lr, seed in tried], **options
            )
            tuned = pd.DataFrame(tried, columns=["method", "lr", "seed"]).assign(accuracy=[*map(last, runs)])
            best = tuned.groupby(["method", "lr"]).accuracy.mean().unstack().idxmax(axis=1)
            done = [(m, seed) for m in arguments.methods for seed in range(arguments.seeds)]
            runs = psl.run_study(
                train, [setting | {"method": m, "lr": float(best[m]), "seed": seed} for m, seed in done], **options
            )
            found = dict(zip(done, runs, strict=True))
            for (method, seed), course in found.items():
                where = {"network": network, "partition": division, "method": method, "seed": seed}
                courses.append(course.assign(**where, lr=best[method]))
            budget = arguments.rounds * B
            for method in arguments.methods:
                mine = [found[method, seed] for seed in range(arguments.seeds)]
                psl_runs = [found["PSL", seed] for seed in range(arguments.seeds)]
                accuracy = np.array([*map(last, mine)])
                difference = accuracy - np.array([*map(last, psl_runs)])
                row = {
                    "dataset": arguments.dataset, "network": network, "partition": division, "method": method,
                    "lr": best[method], "seeds": arguments.seeds, "accuracy": accuracy.mean(),
                    "sd": accuracy.std(ddof=1), "minus_psl": difference.mean(),
                    "se": difference.std(ddof=1) / len(difference) ** 0.5,
                    "rows_per_round": np.mean([c.server_rows.iloc[-1] for c in mine]) / arguments.rounds,
                    "accuracy_at_equal_rows": np.mean([at_rows(c, budget) for c in mine]),
                }  # fmt: skip
                for target in (0.9, 0.95):
                    rounds = [first_round(c, target) for c in mine]
                    row |= {f"rounds_to_{target:.0%}": np.median(rounds), f"never_{target:.0%}": np.isinf(rounds).sum()}
                table.append(row)
            frame = pd.DataFrame(table)
            print(frame.tail(len(arguments.methods)).to_string(float_format=lambda x: f"{x:.4g}"), flush=True)
            frame.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.5g")
            pd.concat(courses).to_csv(RESULTS / f"{name}_runs.csv", index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
