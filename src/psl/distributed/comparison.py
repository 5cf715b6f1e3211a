"""What a plan promises, what its simulation says, and what real processes measure: term by term."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from psl.distributed.launch import run
from psl.distributed.measure import measured_profile
from psl.errors import check_choice, check_count
from psl.profiles import Profile
from psl.simulation import simulate
from psl.simulation.timeline import KINDS
from psl.training.resolve import is_u_shaped

#: A pandas.DataFrame, whose stubs do not follow selections.
Table = Any
#: What the rows of `compare` are, by scheduler; "round" is the whole.
TERMS = {
    "epsl": {
        "forward": "computing of the client whose activations came last",
        "upload": "its activations on the way",
        "server": "server forward and backward",
        "broadcast": "gradients for all clients on the way, to the slowest",
        "download": "the other gradients on the way to the client that ended last",
        "backward": "its computing",
        "rest": "the server's optimizer step, labels, and waiting: in no formula",
        "round": "the round",
    },
    "edgesplit": {
        "device_compute": "computing of the device that was slowest",
        "server_compute": "computing for it at the server",
        "activation_exchange": "its activations and gradients on the way",
        "model_exchange": "its part of the model on the way",
        "rest": "optimizer steps, labels, averaging, and waiting: in no formula",
        "round": "the round",
    },
    "pipeline": {
        "stages": "a micro-batch's computing at all stages, forward and backward",
        "hops": "a micro-batch on its way over all hops, there and back",
        "round": "the mini-batch",
    },
}


_OF_ONE_DEVICE = ("device_compute", "server_compute", "activation_exchange", "model_exchange")
_PASSES = 10  # that measure a profile
_TINY = 1e-6  # s; of a shorter term no error is told
_WARM_UP = 2  # rounds, in which processes fetch memory from the system that they keep afterwards


def compare(
    plan,
    model: str,
    dataset: str = "digits",
    *,
    rounds: int = 3,
    links: str = "auto",
    schedule: str = "eager",
    timeout: float = 60.0,
) -> pd.DataFrame:
    """Run a plan's scenario in real processes and put the measured times beside the predicted and simulated ones.

    The plan's profile must have been measured on this machine (`measured_profile`), with speeds relative to it. After
    the run it is measured again, and prediction and simulation take the mean of both: a machine that others share
    changes its speed from one minute to the next. Where all devices cut the model at the same places, both are
    measured with these cuts. Nothing is fitted: the prediction knows the profiles and the scenario, the emulation the
    scenario alone. The first two rounds warm up; of the others the median counts.

    Args:
        plan: of `epsl.solve`, `edgesplit.solve` or `pipeline.solve`.
        model, dataset: names "module:function", as for `run`.
        rounds: that count.
        links: who keeps the rates: "kernel", "pacing", "none" or "auto", the kernel where it may.
        schedule: of a pipeline, see `run`; the simulation follows it: "eager" as published, "gpipe" as flush, "1f1b"
            with as many micro-batches in flight as processes.
        timeout: s, as for `run`.

    Returns:
        One row per term of `TERMS`, in micro-batches and of a U-shaped split the round alone: scheduler, term,
        predicted_s, simulated_s, measured_s, error (measured over predicted − 1), simulated_error, error_as_planned (by
        the plan's own profile), overrun_s (computing that found no core in time, per round), drift (the network's
        computing after the run over that before − 1), emulation. A round lasts from the first event that the formula
        covers to the last: what the formula lacks in between counts, what comes after, such as a client's report, does
        not.

    Source: ours [B]; the closed forms are EPSL's (arXiv 2303.15991), EdgeSplit's (arXiv 2403.15815) and pipelined
        split learning's (arXiv 2505.04368).
    """
    check_choice("plan.scheduler", getattr(plan, "scheduler", None), TERMS)
    if plan.scheduler == "edgesplit":  # devices of equal names are told apart by their numbers
        plan = replace(plan, cluster=replace(plan.cluster, device_names=None))
    total, simulation = check_count("rounds", rounds) + _WARM_UP, {}
    options = {"rounds": total, "eval_every": total, "lr": 0.01, "timeout": timeout}
    framework = "psl" if is_u_shaped(plan) else plan.scheduler
    if plan.scheduler == "pipeline":
        options["schedule"] = schedule
        if schedule != "eager":
            simulation = {"gpipe": {"order": "flush"}, "1f1b": {"max_in_flight": len(plan.hops) + 1}}[schedule]
    b, cuts = plan.training_arguments().get("micro_batch") or plan.batch_size, _common_cuts(plan)
    measured_now = partial(measured_profile, model, dataset, batch_size=b, repeats=_PASSES, cuts=cuts)
    before = measured_now() if cuts else plan.profile
    done = run(framework, model, dataset, plan=plan, emulate=links, progress=False, **options)
    after = measured_now()
    planned, mean = plan, _mean(before, after)
    plan = plan.with_profile(mean) if is_u_shaped(plan) else replace(plan, profile=mean)
    events = _by_round(done.events, plan.scheduler)
    events = events[events["round"].between(_WARM_UP, total - 1)]
    predict, measure = _terms_of(plan, events)
    measured = pd.DataFrame([measure(part) for _, part in events.groupby("round")]).median()
    predicted, simulated = predict(plan), measure(simulate(plan, **simulation).to_frame())
    whole = [profile.fwd_cost[-1] + profile.bwd_cost[-1] for profile in (before, after)]
    known = {"predicted_s": predicted, "simulated_s": simulated, "measured_s": measured}
    table = pd.DataFrame({name: pd.Series(values) for name, values in known.items()}).loc[
        [term for term in TERMS[plan.scheduler] if term in predicted]
    ]
    sources = {"error": predicted, "simulated_error": simulated, "error_as_planned": predict(planned)}
    for name, promised in sources.items():
        promised: Table = pd.Series(promised)[table.index]
        table[name] = table["measured_s"] / promised.where(promised > _TINY) - 1
    table = table.rename_axis("term").reset_index()
    table.insert(0, "scheduler", plan.scheduler)
    how = {"overrun_s": done.overrun / total, "drift": whole[1] / whole[0] - 1, "emulation": done.emulation}
    return table.assign(**how)


def _common_cuts(plan) -> tuple[int, ...]:
    """Return the cuts at which every pass goes on in another process: each of EdgeSplit's devices has its own."""
    if getattr(plan, "micro_batches", None) is not None or plan.scheduler == "edgesplit":
        return ()  # in micro-batches a plan has the time of a server's call instead
    return plan.cuts if plan.scheduler == "pipeline" or is_u_shaped(plan) else (plan.cut,)


def _by_round(events: Table, scheduler: str) -> Table:
    """Return events by the formula's rounds: EdgeSplit's begin with the models that the one before averaged."""
    if scheduler != "edgesplit":
        return events
    down = events["resource"].astype(str).str.startswith("downlink") & (events["kind"].astype(str) == "model")
    return events.assign(round=events["round"] + down)


def _mean(a: Profile, b: Profile) -> Profile:
    """Return the mean of two measured profiles of a model."""
    names = ("fwd_cost", "bwd_cost", "last_bwd_cost")
    return replace(a, **{name: (getattr(a, name) + getattr(b, name)) / 2 for name in names})


def _epsl_predicted(plan, first: int, last: int) -> dict[str, float]:
    """Each client's part of the closed form: the event simulation has it, and ends when the formula does."""
    terms = _epsl_measured(plan, simulate(plan).to_frame(), first, last)
    return terms | {"rest": 0.0, "round": plan.latency().total}


def _epsl_measured(plan, events: Table, first: int, last: int) -> dict[str, float]:
    kinds, seconds = events["kind"].astype(str), events["end_s"] - events["start_s"]
    at_server = events["resource"].astype(str) == "server"
    computing = kinds.isin(["forward", "backward"])
    by_client = {kind: seconds[~at_server & (kinds == kind)].groupby(events["stage"]).sum() for kind in set(kinds)}
    spans = events[~at_server & computing]
    terms = {
        "forward": by_client["forward"][first],
        "upload": by_client["activation"][first],
        "server": seconds[at_server & computing].sum(),
        "broadcast": by_client["broadcast"].max() if "broadcast" in by_client else 0.0,
        "download": by_client["gradient"].get(last, 0.0),
        "backward": by_client["backward"][last],
    }
    whole = spans["end_s"].max() - spans["start_s"].min()
    return {**terms, "rest": whole - sum(terms.values()), "round": whole}


def _slowest_clients(events: Table) -> tuple[int, int]:
    """The client whose activations come last, and the one whose backward pass ends last, by the median round."""
    clients = events[events["resource"].astype(str) != "server"]
    ends = clients.groupby(["kind", "stage", "round"])["end_s"].max() - events.groupby("round")["start_s"].min()
    late = ends.groupby(["kind", "stage"]).median()
    return int(late["activation"].idxmax()), int(late["backward"].idxmax())


def _edgesplit_predicted(plan, device: int) -> dict[str, float]:
    frame = plan.to_frame()
    terms = {term: float(frame.loc[device, term]) for term in _OF_ONE_DEVICE}
    if plan.cuts[device] < plan.profile.n_units:
        terms["server_compute"] += plan.local_steps * plan.cluster.call_overhead
    return terms | {"rest": 0.0, "round": float(frame["total"].max())}


def _edgesplit_measured(plan, events: Table, device: int) -> dict[str, float]:
    kinds, computing = events["kind"].astype(str), ["forward", "backward"]
    seconds = events["end_s"] - events["start_s"]
    resource = events["resource"].astype(str)
    names = {f"client {device}", plan.cluster.labels[device]}  # of a run, and of the simulation
    mine = resource.isin(names)
    for_it = resource.isin([f"server for {name}" for name in names])
    carried = resource.isin([f"{way} {name}" for way in ("uplink of", "downlink of", "band of") for name in names])
    terms = {
        "device_compute": seconds[mine & kinds.isin(computing)].sum(),
        "server_compute": seconds[for_it & kinds.isin(computing)].sum(),
        "activation_exchange": seconds[carried & kinds.isin(["activation", "gradient"])].sum(),
        "model_exchange": seconds[carried & (kinds == "model")].sum(),
    }
    whole = events["end_s"].max() - events["start_s"].min()
    return terms | {"rest": whole - sum(terms.values()), "round": whole}


def _slowest_device(plan, events: Table) -> int:
    """The device whose own terms add up to most, over all rounds measured: in an optimum all are predicted equal."""
    totals = [_edgesplit_measured(plan, events, i) for i in range(plan.cluster.n_devices)]
    return int(np.argmax([sum(terms[term] for term in _OF_ONE_DEVICE) for terms in totals]))


def _pipeline_predicted(plan) -> dict[str, float]:
    terms = plan.latency().to_frame()
    linear = terms.groupby("kind")["linear_s"].sum()
    return {"stages": linear["stage"], "hops": linear.get("hop", 0.0), "round": plan.round_time}


def _pipeline_measured(plan, events: Table) -> dict[str, float]:
    seconds = (events["end_s"] - events["start_s"]).groupby([events["resource"], events["kind"]], observed=True).mean()
    kinds = seconds.index.get_level_values("kind").astype(str)
    inner = events[events["kind"].isin(KINDS) & (events["kind"] != "step")]  # measured profiles have no steps
    delays = 0.0
    if "cpu_s" not in events:  # the simulation counts propagation as no event
        graph = plan.network.graph
        delays = sum(graph.edges[u, v]["latency"] + graph.edges[v, u]["latency"] for _, u, v in plan.hops)
    return {
        "stages": seconds[np.isin(kinds, ["forward", "backward", "loss"])].sum(),
        "hops": seconds[np.isin(kinds, ["activation", "gradient"])].sum() + delays,
        "round": inner["end_s"].max() - inner["start_s"].min(),
    }


def _round_measured(of_clients: bool, events: Table) -> dict[str, float]:
    """Seconds from the first event to the last, or from the clients' first computation to their last."""
    if of_clients:
        kinds = events["kind"].astype(str).isin(["forward", "backward"])
        events = events[kinds & (events["resource"].astype(str) != "server")]
    return {"round": float(events["end_s"].max() - events["start_s"].min())}


def _terms_of(plan, events: Table) -> tuple[Callable, Callable]:
    """Return what predicts the terms of a plan, and what measures them in the events of one round.

    Whose terms they are is asked of the measured events: in a good plan several clients are predicted to end at once.
    In micro-batches machines work side by side, and the round is the only term; so it is of a U-shaped split.
    """
    if getattr(plan, "micro_batches", None) is not None or is_u_shaped(plan):
        return lambda plan: {"round": plan.round_time}, partial(_round_measured, plan.scheduler == "epsl")
    if plan.scheduler == "edgesplit":
        device = _slowest_device(plan, events)
        return partial(_edgesplit_predicted, device=device), partial(_edgesplit_measured, plan, device=device)
    if plan.scheduler == "pipeline":
        return _pipeline_predicted, partial(_pipeline_measured, plan)
    first, last = _slowest_clients(events)
    return partial(_epsl_predicted, first=first, last=last), partial(_epsl_measured, plan, first=first, last=last)
