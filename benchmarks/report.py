"""Write results/README.md from the CSV files beside it: the main figures of every benchmark in one table."""

from collections.abc import Iterator

import pandas as pd

from solver_common import RESULTS

#: Of each benchmark with rows (part, figure, value): what is shown, where it stands, and its format.
SHOWN = {
    "import_time": [
        ("time of import psl", "imports", "import psl", "{:.0f} ms"),
        ("time of importing what planning and simulation need", "imports", "planning and simulation", "{:.0f} ms"),
    ],
    "epsl_solver": [
        ("certified gap of search, N = 5, K = 20, mean", "N = 5, K = 20", "certified gap of search, mean", "{:.2f} %"),
        ("the same at N = 50, K = 200", "growth", "N = 50, K = 200: certified gap, mean", "{:.2f} %"),
        (
            "time of search with its bound, N = 5, K = 20",
            "N = 5, K = 20",
            "time of search with bound, median",
            "{:.0f} ms",
        ),
        ("time of the alternation with CVXPY inside", "N = 5, K = 20", "time of bcd with CVXPY, median", "{:.0f} ms"),
        ("search above the exhaustive optimum, p99", "exhaustive", "search above optimum, p99", "{:.2g} %"),
        ("alternation above the exhaustive optimum, p99", "exhaustive", "bcd above optimum, p99", "{:.0f} %"),
    ],
    "epsl_micro_batches": [
        (
            f"{what}, M = 8, over the best PSL round with barriers, median",
            part,
            "shorter, median",
            "{:.2f} ×",
        )
        for what, part in (
            ("micro-batches in default cells", "default cells, planned anew"),
            ("the same with φ = 1", "default cells, φ = 1"),
            ("a server a quarter as fast", "server ÷ 4, planned anew"),
            ("a server four times as fast", "server × 4, planned anew"),
        )
    ]
    + [
        (
            "largest certified gap there, default cells",
            "default cells, planned anew",
            "gap, largest",
            "{:.1f} %",
        )
    ],
    "edgesplit_solver": [
        (
            "alternation against the optimum, 2,000 clusters, largest relative difference",
            "continuous",
            "alternating against exact, largest relative difference",
            "{:.1g}",
        ),
        (
            "alternation stopped after one step, mean loss",
            "continuous",
            "loss of stopping after one step, mean",
            "{:.2g} %",
        ),
        ("the same, largest loss", "continuous", "loss of stopping after one step, max", "{:.3g} %"),
        ("exact optimum for 100,000 devices and 50 cuts", "growth", "N=100000: exact", "{:.0f} ms"),
        (
            "time of bisection with enumeration over the exact optimum's",
            "growth",
            "N=100000: bisection to 1e-9, trying every cut / exact, median",
            "{:.0f} ×",
        ),
        (
            "the exact optimum's time over that of evaluating every device and cut once",
            "growth",
            "N=100000: exact / one pass",
            "{:.1f} ×",
        ),
    ],
    "pipeline_search": [
        (
            "placement search, N = L = 20, with tables",
            "N=L=20, networkx",
            "our search with tables, median",
            "{:.1f} ms",
        ),
    ],
    "pipeline_joint": [
        (
            "alternation of placement and micro-batch size above the joint optimum, fast links, largest",
            "alternation",
            "fast links, from b = 32, b by scan: above the optimum, max",
            "{:.1f} %",
        )
    ],
    "simulation_closed_form": [
        (
            f"simulated over predicted time, 3,000 random chains, {which}",
            "random chains",
            f"simulated / predicted, {name}",
            "{:.2f}",
        )
        for which, name in (("least", "min"), ("largest", "max"))
    ],
    "distributed_overhead": [
        (
            f"a step in real processes over one in a single process, activations of {size}",
            size,
            "distributed over one process",
            "{:.2f} ×",
        )
        for size in ("0.1 MB", "1 MB", "10 MB")
    ]
    + [
        (
            f"60 clients as processes, {what}: until the first round has ended",
            f"60 clients, {what}",
            "start, until the first round has ended",
            "{:.0f} s",
        )
        for what in ("the program's first run", "a later run of another model")
    ],
}


def training() -> Iterator[tuple[str, str, str]]:
    """Yield (benchmark, what, value) of the benchmarks whose CSV files have columns of their own."""
    name = "training_throughput"
    for row in pd.read_csv(RESULTS / f"{name}.csv").to_dict("records"):
        what = f"PSL's step over a centralised one, N = {row['clients']}, b = {row['batch_size']}"
        yield name, what, f"{row['ratio']:.2f} ×"
    name = "training_server_backward"
    found = pd.read_csv(RESULTS / f"{name}.csv").set_index("phi").loc[1.0]
    yield name, "EPSL's server backward pass at φ = 1, N = 5, share of PSL's time", f"{100 * found.measured:.0f} %"
    yield name, "the same by operator counts", f"{100 * found.promised:.0f} %"
    name = "training_drawn_rows"
    found = pd.read_csv(RESULTS / f"{name}.csv").set_index(["rule", "phi"]).loc[("drawn", 1.0)]
    what = "the server's backward pass with drawn rows at φ = 1, N = 5, share of PSL's time"
    yield name, what, f"{100 * found.backward_over_psl:.0f} %"
    what = "the server's whole step, second forward pass included, share of PSL's time"
    yield name, what, f"{100 * found.server_step_over_psl:.0f} %"
    name, table = "epsl_accuracy", accuracies()
    shown = ("EPSL, sampled, φ = 1", "EPSL, averaged, φ = 1", "PSL, b = 13")
    for row in table[(table.partition == "iid") & table.method.isin(shown)].to_dict("records"):
        where = f"{row['network']} on {row['dataset']}, IID, {row['seeds']} seeds"
        what = f"accuracy minus PSL's, {where}: {row['method']}"
        yield name, what, f"{row['minus_psl']:.1f} ± {row['se']:.1f} points"
    name = "epsl_seconds_to_target"
    table = pd.read_csv(RESULTS / f"{name}.csv").query("target == 0.95")
    best = table.loc[table.groupby(["cell", "method"], sort=False)["median"].idxmin()]
    for row in best[best.method.isin(["PSL", "EPSL, sampled, φ = 1"])].to_dict("records"):
        what = f"simulated s to 95 %, best b of 8 to 64, {row['cell']}: {row['method']}, b = {row['batch_size']}"
        yield name, what, f"{row['median']:.3g} s ({row['low']:.3g} to {row['high']:.3g})"
    name = "measured_micro_batches"
    for scheduler, rows in pd.read_csv(RESULTS / f"{name}.csv").groupby("scheduler"):
        what = f"error of a predicted round in micro-batches, {scheduler}, {len(rows)} scenarios, median"
        yield name, what, f"{100 * rows.error.abs().median():.0f} %"
    name = "training_scaling"
    table = pd.read_csv(RESULTS / f"{name}.csv")
    for row in table[table.clients == table.clients.max()].to_dict("records"):
        what = f"a step of {row['framework']} training, N = {row['clients']}, b = {row['batch_size']}"
        yield name, what, f"{row['step_s']:.2f} s, at most {row['peak_MB']:,.0f} MB of memory"


def accuracies() -> pd.DataFrame:
    """Return the tables of epsl_accuracy.py, of all data sets, networks and divisions."""
    parts = ("", "_resnet", "_mnist", "_mnist_resnet")
    return pd.concat([pd.read_csv(RESULTS / f"epsl_accuracy{part}.csv") for part in parts], ignore_index=True)


def accuracy_table() -> list[str]:
    """Return the lines of a table of accuracies: every method in every setting, seeds in pairs."""
    head = (
        "setting",
        "method",
        "learning rate",
        "accuracy, %",
        "minus PSL's",
        "server rows per round",
        "Mbit per round",
        "at equal rows, %",
        "at equal bits, %",
    )
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in accuracies().to_dict("records"):
        division = "IID" if row["partition"] == "iid" else f"Dirichlet({row['partition']})"
        values = [
            f"{row['dataset']}, {row['network']}, {division}", row["method"], f"{row['lr']:g}",
            f"{row['accuracy']:.1f} ± {row['sd']:.1f}", f"{row['minus_psl']:+.1f} ± {row['se']:.1f}",
            f"{row['rows_per_round']:.0f}", f"{row['Mbit_per_round']:.1f}",
            f"{row['accuracy_at_equal_rows']:.1f}", f"{row['accuracy_at_equal_bits']:.1f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(values) + " |")
    return lines


def solvers() -> Iterator[tuple[str, str, str]]:
    """Yield (benchmark, what, value) of the benchmarks in `SHOWN`."""
    for name, figures in SHOWN.items():
        found = pd.read_csv(RESULTS / f"{name}.csv").set_index(["part", "figure"])["value"]
        for what, part, figure, form in figures:
            yield name, what, form.format(found[part, figure])


def main() -> None:
    """Write the table."""
    lines = [
        "# Results of the benchmarks",
        "",
        "Written by `make benchmarks-report` from the CSV files in this folder, which have all figures. Each file is",
        "written by the benchmark of its name. Times were measured on 2 CPU cores. How psl compares with other",
        "software, from peers_*.csv, is in [docs/peers.md](../../docs/peers.md).",
        "",
        "| file | figure | value |",
        "| --- | --- | --- |",
    ]
    lines += [f"| [{name}]({name}.csv) | {what} | {value} |" for name, what, value in (*solvers(), *training())]
    lines += [
        "",
        "## Drawing rows, averaging, rivals",
        "",
        "Test accuracy after 100 rounds (thin ResNet on MNIST: 60, too few to learn the task with plain SGD), with",
        "5 clients, b = 64 unless said: mean and standard deviation of 5 seeds, and the mean of the paired",
        "differences to PSL with its standard error. Each method has the learning rate that was best for it on",
        "other seeds. Equal rows: when as many rows have gone back through the server as φ = 1 takes in all rounds,",
        "64 in each. Equal bits: when as many bits have crossed the links, up and down, as PSL with b = 13 sends in",
        "all rounds. Written by `epsl_accuracy.py`; `epsl_seconds_to_target.py` compares seconds.",
        "",
        *accuracy_table(),
    ]
    (RESULTS / "README.md").write_text("\n".join(lines) + "\n")
    print(f"wrote {RESULTS / 'README.md'}")


if __name__ == "__main__":
    main()
