"""Seconds to a target accuracy: methods × mini-batches × φ × seeds, with runs that never get there marked as such."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from psl import html
from psl.errors import check_choice, check_number, expected
from psl.plans import Plan
from psl.studies import run_study
from psl.training.frameworks import framework_class
from psl.training.train import train

_GROUP = ["target", "method", "batch_size", "phi"]


@dataclass(frozen=True, repr=False)
class TargetTimes:
    """When each run of a study met each target.

    Args:
        runs: one row per run and target: target, method, batch_size, phi, seed, lr where it was given, reached; rounds,
            seconds (simulated), uplink_bits, downlink_bits and server_rows up to the first evaluated round in which
            the target was met. Of a run that never met it (reached is False: it is *censored*) they are those of its
            end, so that the true values are larger.
    """

    runs: pd.DataFrame

    def to_frame(self, of: str = "seconds") -> pd.DataFrame:
        """Return one row per target, method, mini-batch and φ: the spread over the seeds of what it takes.

        Columns: median, low and high (quartiles, each the value of a run), runs, never (how many runs never met the
        target), at_least (the shortest of these, NaN without any). A run that never met the target counts as infinite:
        a median of infinity says that more than half of the runs did not.

        Args:
            of: "seconds", "rounds", "uplink_bits", "downlink_bits" or "server_rows".
        """
        measured = ("seconds", "rounds", "uplink_bits", "downlink_bits", "server_rows")
        check_choice("of", of, measured)
        rows = []
        settings = pd.DataFrame(self.runs[_GROUP]).drop_duplicates().to_dict("records")
        for setting in settings:
            mine = np.logical_and.reduce([self.runs[name] == value for name, value in setting.items()])
            taken, reached = self.runs[of].to_numpy()[mine], self.runs["reached"].to_numpy(dtype=bool)[mine]
            value = np.sort(np.where(reached, taken, np.inf))
            low, median, high = (float(value[round(share * (len(value) - 1))]) for share in (0.25, 0.5, 0.75))
            spread = {"median": median, "low": low, "high": high, "runs": len(value), "never": int((~reached).sum())}
            rows.append(setting | spread | {"at_least": float(taken[~reached].min(initial=np.inf))})
        table = pd.DataFrame(rows).set_index(_GROUP)
        return table.assign(at_least=table["at_least"].where(table["never"] > 0))

    def best(self, of: str = "seconds") -> pd.DataFrame:
        """Return for each target and method the mini-batch and φ with the least median; arguments as `to_frame`."""
        table = self.to_frame(of).reset_index()
        order = table.sort_values("median", kind="stable").drop_duplicates(["target", "method"])
        return order.sort_values(["target", "median"]).set_index(["target", "method"])

    def __repr__(self) -> str:
        count = len(self.runs.drop_duplicates(["method", "batch_size", "phi", "seed"]))
        never = int(np.count_nonzero(~self.runs["reached"].to_numpy(dtype=bool)))
        return f"TargetTimes({count} runs, {self.runs['target'].nunique()} targets, {never} times never met)"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: medians with quartiles, and how many runs never met the target."""
        rows = []
        for row in self.to_frame().reset_index().to_dict("records"):
            spread = f"{html.number(row['low'])} to {html.number(row['high'])}"
            if np.isinf(row["median"]):
                shown, spread = f"more than {html.number(row['at_least'])}", ""
            else:
                shown = html.number(row["median"])
            never = f"{row['never']:.0f} of {row['runs']:.0f}" if row["never"] else ""
            setting = [html.percent(row["target"]), row["method"], row["batch_size"], row["phi"]]
            rows.append([*setting, shown, spread, never])
        header = ["target", "method", "b", "φ", "seconds, median", "quartiles", "never met"]
        return html.table("Simulated seconds to a target", header, rows)


def seconds_to_target(
    model: Callable[[], nn.Module],
    dataset: Any,
    methods: Mapping[str, Mapping[str, Any]],
    *,
    plan: Callable[..., Plan],
    targets: Iterable[float] = (0.9, 0.95),
    batch_sizes: Iterable[int] = (64,),
    phis: Iterable[float] = (0.5, 1.0),
    seeds: Iterable[int] = range(3),
    rounds: int | Callable[[int], int] = 100,
    eval_every: int = 1,
    n_jobs: int = -1,
    cache: str | None = None,
    progress: bool = True,
    **options: Any,
) -> TargetTimes:
    """Train methods at several mini-batches, φ and seeds, and return the simulated seconds to target accuracies.

    All methods of a seed start from the same weights. A plan gives the time of a round: with a cell that has neither a
    `round_overhead` nor a `message_overhead` every term is proportional to b, and the smallest mini-batch looks best
    for no other reason. How many rounds a method needs is trained, never predicted.

    Args:
        model: builds the model; torch is seeded with the run's seed before.
        dataset: as for `psl.train`.
        methods: arguments of `psl.train` by the method's name, with ``framework``; such as
            ``{"PSL": {"framework": "psl"}, "drawn": {"framework": "epsl", "linearise": "sampled"}}``. Learning rates
            of their own stand there. A method may fix its ``phi`` or ``batch_size``.
        plan: ``plan(batch_size=…, phi=…, linearise=…)`` returns the plan for a setting, such as
            ``functools.partial(epsl.solve, profile, cell, bound=False)``; linearise is "representative" or "sampled".
        targets: test accuracies in (0, 1].
        batch_sizes: b, mini-batches of every client.
        phis: φ of the methods whose framework is "epsl"; of others there is one run.
        seeds: of the runs.
        rounds: of a run, or a function of b: smaller mini-batches need more.
        eval_every: evaluate after so many rounds; a target met in between is seen at the next.
        n_jobs, cache, progress: as in `psl.run_study`.
        options: further arguments of `psl.train`, for all methods.

    Raises:
        ScenarioError: a target is out of range, there is nothing to run, or what `psl.train` refuses.

    Source: ours [B]; the question, time to a target accuracy, is EPSL's (arXiv 2303.15991) [P].
    """
    goals = [check_number("targets", t, minimum=0, maximum=1, strict=True) for t in targets]
    cases: list[dict[str, Any]] = []
    for (name, method), size, seed in itertools.product(methods.items(), batch_sizes, seeds):
        if "framework" not in method:
            raise expected(f"methods[{name!r}]", "a framework", "none", "add 'framework': 'psl' or another")
        averages = framework_class(method["framework"]).name == "epsl"
        size = method.get("batch_size", size)
        for phi in [method["phi"]] if "phi" in method else phis if averages else [0.0]:
            case = {"method": name, "batch_size": int(size), "phi": float(phi), "seed": int(seed)}
            cases += [case] if case not in cases else []
    if not cases or not goals:
        want, fix = "at least one method, mini-batch, φ, seed and target", "give some of each"
        raise expected("methods", want, "nothing to run", fix)
    plans: dict[tuple[int, float, str], Plan] = {}
    settings = []
    for case in cases:
        given = {**options, **methods[case["method"]]}
        rule = "sampled" if given.get("linearise") == "sampled" and given["framework"] == "epsl" else "representative"
        key = case["batch_size"], case["phi"], rule
        if key not in plans:
            plans[key] = plan(batch_size=key[0], phi=key[1], linearise=rule)
        given |= {"batch_size": case["batch_size"], "phi": case["phi"], "seed": case["seed"], "plan": plans[key]}
        given |= {"rounds": rounds(case["batch_size"]) if callable(rounds) else rounds, "eval_every": eval_every}
        settings.append({"model": model, "dataset": dataset, "given": given})
    courses = run_study(_course, settings, n_jobs=n_jobs, cache=cache, progress=progress)
    found = []
    for case, setting, course in zip(cases, settings, courses, strict=True):
        rate = {"lr": setting["given"]["lr"]} if "lr" in setting["given"] else {}
        for target in goals:
            met = np.flatnonzero(course["test_accuracy"] >= target)
            at = course.iloc[met[0] if len(met) else -1].drop(["test_accuracy", "train_loss"])
            found.append({"target": target, **case, **rate, "reached": len(met) > 0, **at.to_dict()})
    return TargetTimes(pd.DataFrame(found).rename(columns={"round": "rounds", "simulated_time_s": "seconds"}))


def _course(model: Callable[[], nn.Module], dataset: Any, given: dict[str, Any]) -> pd.DataFrame:
    """Return the course of one run, with the rows so far that the server went back through; NaN if nobody counts."""
    torch.manual_seed(given["seed"])
    table = train(model=model(), dataset=dataset, progress=False, **given).to_frame()
    rows = table["server_rows"].cumsum() if "server_rows" in table else np.nan
    return table.assign(server_rows=rows)
