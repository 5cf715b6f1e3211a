"""Copy executed notebooks' outputs into notebooks/, write the gallery figures/README.md and README's results.

Usage: python tools/publish.py notebooks EXECUTED_FOLDER
       python tools/publish.py gallery FIGURES_FOLDER
       python tools/publish.py readme ROOT_FOLDER
"""

import re
import sys
from pathlib import Path

import nbformat
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent


def publish_notebooks(executed: Path) -> None:
    """Put the outputs of executed notebooks into the ones under version control, without run-time traces."""
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        done, kept = nbformat.read(executed / path.name, 4), nbformat.read(path, 4)
        done.cells = [c for c in done.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        count = 0
        for cell, source in zip(done.cells, kept.cells, strict=True):
            cell.source, cell.id = source.source, source.id
            cell.metadata = source.metadata
            if cell.cell_type == "code":
                count += 1
                cell.execution_count = count  # as if the injected parameters had never been there
            for output in cell.get("outputs", []):
                if "execution_count" in output:
                    output.execution_count = count
                # Widget views need a kernel to be drawn; the text beside them does not.
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
        done.metadata = {k: v for k, v in kept.metadata.items() if k in ("kernelspec", "language_info")}
        nbformat.write(done, path)
        print(f"{path.relative_to(ROOT)}: outputs refreshed")


def write_gallery(figures: Path) -> None:
    """List every figure with its caption, so that a code host shows them all on one page."""
    lines = ["# Figures", "", "Written by `make figures`. Each figure stands as SVG and PNG beside the CSV behind it."]
    for caption in sorted(figures.glob("*.txt")):
        lines += ["", f"## {caption.stem}", "", f"![{caption.stem}]({caption.stem}.png)", "", caption.read_text()]
    (figures / "README.md").write_text("\n".join(lines).rstrip() + "\n")


def results(root: Path) -> str:
    """Return the README's results as Markdown, from the CSV files of figures and benchmarks."""
    figures, bench = root / "figures", root / "benchmarks" / "results"
    baselines = pd.read_csv(figures / "04_baselines.csv", index_col="seed")
    excess = 100 * (baselines.div(baselines["lower bound"], axis=0) - 1).median()
    lines = [
        "**Plans**: median round time above the lower bound by what is optimised (ResNet-18 at 32 × 32, C = 5, M = 20,",
        f"φ = 0.5, {len(baselines)} sampled cells; simulated).",
        "",
        "| nothing | power | cut | channels | alternation (BCD) | search |",
        "| --- | --- | --- | --- | --- | --- |",
        "| " + " | ".join(
            f"{excess[name]:.3g} %" for name in ("random", "power-only", "cut-only", "channels-only", "bcd", "search")
        ) + " |",
    ]  # fmt: skip
    lines += ["", *_edgesplit(figures), "", *_pipeline(figures)]
    if (figures / "07_measured_against_predicted.csv").exists():
        lines += ["", *_measured(figures)]
    for folder in (figures, *sorted(p for p in figures.iterdir() if p.is_dir())):
        if (folder / "03_linearise.csv").exists():
            lines += ["", *_accuracy(folder, "digits" if folder == figures else folder.name)]
    solver = pd.read_csv(bench / "epsl_solver.csv").set_index(["part", "figure"]).value
    backward = pd.read_csv(bench / "training_server_backward.csv").set_index("phi")
    throughput = pd.read_csv(bench / "training_throughput.csv")
    cell, small = solver["C=5 M=20"], solver["exhaustive"]
    facts = {
        "certified gap of search, C = 5, M = 20, mean": f"{cell['certified gap of search, mean']:.2f} %",
        "the same at C = 50, M = 200": f"{solver['growth', 'C=50, M=200: certified gap, mean']:.2f} %",
        "time of search with its bound, C = 5, M = 20": f"{cell['time of search with bound, median']:.0f} ms",
        "time of the alternation with CVXPY inside": f"{cell['time of bcd with CVXPY, median']:.0f} ms",
        "search above the exhaustive optimum on small cells, p99": f"{small['search above optimum, p99']:.2g} %",
        "alternation above the exhaustive optimum, p99": f"{small['bcd above optimum, p99']:.0f} %",
        "EPSL's server backward at φ = 1, C = 5, share of PSL's time": f"{100 * backward.measured[1.0]:.0f} %",
        "the same by operator counts": f"{100 * backward.promised[1.0]:.0f} %",
    }
    facts |= _more_facts(bench)
    for row in throughput.itertuples():
        facts[f"PSL's step against a centralised one, C = {row.clients}, b = {row.batch_size}"] = f"{row.ratio:.2f} ×"
    lines += ["", "**Benchmarks** (measured on 2 CPU cores):", "", "| | |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in facts.items()]
    return "\n".join(lines)


def _edgesplit(figures: Path) -> list[str]:
    table = pd.read_csv(figures / "05_round_time_by_method.csv")
    names = {"fedavg": "FedAvg", "sfl": "SFL", "adaptive-equal": "own cuts, equal band", "common-optimal": "one cut"}
    by = table.groupby(["model", "side"], sort=False)
    medians = by[["alternating", *names]].median()
    ratio = medians.div(medians["alternating"], axis=0)
    lines = [
        f"**EdgeSplit**: its speed-up over the baselines, medians of {table.seed.nunique()} sampled clusters of 20",
        "devices (100 MHz, b = 32, H = 50; simulated).",
        "",
        "| | round | over " + " | over ".join(names.values()) + " |",
        "| --- |" + " --- |" * (len(names) + 1),
    ]
    for (model, side), row in ratio.iterrows():
        shown = " | ".join(f"{row[name]:.2f} ×" for name in names)
        seconds = medians.loc[(model, side), "alternating"]
        lines.append(f"| {model}, {side} × {side} | {seconds:,.{0 if seconds > 100 else 1}f} s | {shown} |")
    return lines


def _pipeline(figures: Path) -> list[str]:
    table = pd.read_csv(figures / "06_baselines.csv")
    names = ["two-tier", "no-pipeline", "random-cuts", "random-placement", "alternating"]
    medians = table.set_index(["links", "model"])[names].div(table["exact"].to_numpy(), axis=0)
    medians = medians.groupby(level=[0, 1], sort=False).median()
    lines = [
        f"**Pipeline**: time of a mini-batch of 512 over that of the joint optimum, medians of {table.seed.nunique()}",
        "sampled meshes of eight servers (simulated).",
        "",
        "| | two tiers | no pipelining | random cuts | random placement | alternation |",
        "| --- |" + " --- |" * len(names),
    ]
    for (links, model), row in medians.iterrows():
        lines.append(f"| {model}, {links} | " + " | ".join(f"{row[name]:.3g} ×" for name in names) + " |")
    return lines


def _measured(figures: Path) -> list[str]:
    table = pd.read_csv(figures / "07_measured_against_predicted.csv")
    baselines = {"random", "fedavg", "sfl", "random-cuts", "two-tier"}
    rounds = table[(table.term == "round") & ~table.method.isin(baselines)]
    lines = [
        "**Measured in real processes** on one machine with emulated devices and links (notebook 07): how far a",
        "measured round is from the one predicted by a profile measured before and after, of scenarios by seed; the",
        "target is a median of 10 %.",
        "",
        "| | scenarios | median | largest | median, from the event simulation |",
        "| --- | --- | --- | --- | --- |",
    ]
    for scheduler, mine in rounds.groupby("scheduler", sort=False):
        error, simulated = 100 * mine.error.abs(), 100 * mine.simulated_error.abs()
        medians = f"{error.median():.1f} % | {error.max():.0f} % | {simulated.median():.1f} %"
        lines.append(f"| {scheduler} | {len(mine)} | {medians} |")
    return lines


def _more_facts(bench: Path) -> dict[str, str]:
    """Facts of the benchmarks that came with EdgeSplit, the pipeline and real processes."""
    edgesplit, search, joint, closed = (
        pd.read_csv(bench / f"{name}.csv").set_index(["part", "figure"]).value
        for name in ("edgesplit_solver", "pipeline_search", "pipeline_joint", "simulation_closed_form")
    )
    growth, plain = edgesplit["growth"], search["N=L=20, networkx"]
    return {
        "EdgeSplit's alternation against the optimum, 2,000 clusters, largest difference":
            f"{edgesplit['continuous', 'alternating against exact, largest relative difference']:.1g}",
        "its loss when stopped after one step, mean and largest":
            f"{edgesplit['continuous', 'loss of stopping after one step, mean']:.2g} %, "
            f"{edgesplit['continuous', 'loss of stopping after one step, max']:.3g} %",
        "exact optimum for 100,000 devices and 50 cuts": f"{growth['N=100000: exact']:.0f} ms",
        "bisection with enumeration over it":
            f"{growth['N=100000: bisection to 1e-9, trying every cut / exact, median']:.0f} ×",
        "it over one pass that evaluates every device and cut": f"{growth['N=100000: exact / one pass']:.1f} ×",
        "placement search, N = L = 20, with tables": f"{plain['our search with tables, median']:.1f} ms",
        "one networkx Dijkstra per threshold over it (thresholds sampled)":
            f"{plain['speed-up, median over median']:,.0f} ×",
        "the alternation of placement and micro-batch size above the joint optimum, fast links, largest":
            f"{joint['alternation', 'fast links, from b = 32, b by scan: above the optimum, max']:.1f} %",
        "event simulation over the closed form, 3,000 random chains, least and largest":
            f"{closed['random chains', 'simulated / predicted, min']:.2f}, "
            f"{closed['random chains', 'simulated / predicted, max']:.2f}",
    }  # fmt: skip


def _accuracy(folder: Path, dataset: str) -> list[str]:
    table = pd.read_csv(folder / "03_linearise.csv")
    table["shown"] = [f"{m:.1f} ± {s:.1f}" for m, s in zip(table["mean"], table["std"], strict=True)]
    wide = table.pivot(index="method", columns=["network", "phi"], values="shown").fillna("")
    order = ["PSL", "PSL, small batch", "EPSL representative", "EPSL mean", "EPSL each", "EPSL cut"]
    columns = list(wide.columns)
    return [
        f"**Test accuracy on {dataset}**, %, mean ± sd of {int(table['count'].max())} seeds (notebook 03):",
        "",
        "| | " + " | ".join(f"{network}, φ = {phi:g}" for network, phi in columns) + " |",
        "| --- |" + " --- |" * len(columns),
        *("| " + " | ".join([method, *wide.loc[method]]) + " |" for method in order),
    ]


def write_results(root: Path) -> None:
    """Put the results between the README's markers."""
    readme = root / "README.md"
    begin, end = "<!-- results -->", "<!-- /results -->"
    pattern = re.compile(f"{begin}.*{end}", re.DOTALL)
    readme.write_text(pattern.sub(lambda _: f"{begin}\n{results(root)}\n{end}", readme.read_text()))


if __name__ == "__main__":
    work = {"notebooks": publish_notebooks, "gallery": write_gallery, "readme": write_results}
    work[sys.argv[1]](Path(sys.argv[2]))
