"""What a plan promises, what its simulation says, and what real processes measure: term by term."""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from psl.distributed.launch import run
from psl.distributed.measure import measured_profile
from psl.distributed.nursery import Nursery
from psl.distributed.scenarios import BATCHES, DATA, MODEL, sample_network
from psl.errors import check_choice, check_count
from psl.simulation import simulate
from psl.simulation.timeline import KINDS

#: What the rows of `compare` are, by scheduler; "round" is the whole.
TERMS = {
    "epsl": {
        "uplink": "slowest client's forward and upload",
        "server": "server forward and backward",
        "downlink": "broadcast, then the slowest client's download and backward",
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
_PASSES = 15  # that measure a profile
_WARM_UP = 2  # rounds, in which processes fetch memory from the system that they keep afterwards


def compare(
    plan,
    *,
    model: str | None = None,
    dataset: str = DATA,
    rounds: int = 3,
    links: str = "auto",
    schedule: str = "eager",
    timeout: float = 60.0,
    nursery: Nursery | None = None,
) -> pd.DataFrame:
    """Run a plan's scenario in real processes and put the measured times beside the predicted and simulated ones.

    The plan's profile must have been measured on this machine (`measured_profile`), with speeds relative to it. The
    first two rounds warm up; of the others the median counts. Nothing is fitted: the prediction knows the profile and
    the scenario, the emulation the scenario alone.

    Args:
        plan: of `epsl.solve`, `edgesplit.solve` or `pipeline.solve`.
        model: factory "module:function"; default that of `psl.distributed.scenarios`.
        dataset: name for `psl.data.load`, or "module:function"; default the digits.
        rounds: rounds that count.
        links: who keeps the rates: "kernel", "pacing" or "none"; "auto": the kernel where it may.
        schedule: of a pipeline, see `run`; the simulation follows: "eager" as published, "gpipe" as flush,
            "1f1b" with as many micro-batches in flight as processes.
        timeout: s that a process waits for another.
        nursery: what starts the processes, to start it once for several runs.

    Returns:
        One row per term of `TERMS`: scheduler, term, predicted_s, simulated_s, measured_s, error (measured over
        predicted − 1), simulated_error, overrun_s (computing that found no core in time, of all rounds), emulation.

    Source: ours [B]; the closed forms are EPSL's (arXiv 2303.15991), EdgeSplit's (arXiv 2403.15815) and pipelined
        split learning's (arXiv 2505.04368).
    """
    check_count("rounds", rounds)
    scheduler = check_choice("plan.scheduler", getattr(plan, "scheduler", None), TERMS)
    options = {"plan": plan, "emulate": links, "rounds": rounds + _WARM_UP, "lr": 0.01}
    options["eval_every"] = rounds + _WARM_UP
    options |= {"timeout": timeout, "progress": False, "nursery": nursery}
    simulation = {}
    if scheduler == "pipeline":
        options["schedule"] = schedule
        if schedule != "eager":
            simulation = {"gpipe": {"order": "flush"}, "1f1b": {"max_in_flight": len(plan.hops) + 1}}[schedule]
    done = run(scheduler, model or MODEL, dataset, **options)
    timeline = simulate(plan, **simulation).to_frame().assign(round=0)
    events = done.events[done.events["round"] >= _WARM_UP]
    predict, measure = _terms_of(scheduler, plan, events)
    measured = pd.DataFrame([measure(part) for _, part in events.groupby("round")]).median()
    predicted, simulated = predict(), measure(timeline)
    rows = []
    for term in TERMS[scheduler]:
        values = predicted[term], simulated[term], measured[term]
        errors = [values[2] / known - 1 if known > 1e-9 else np.nan for known in values[:2]]
        rows.append((scheduler, term, *values, *errors, done.overrun, done.emulation))
    columns = ["scheduler", "term", "predicted_s", "simulated_s", "measured_s", "error", "simulated_error"]
    return pd.DataFrame(rows, columns=[*columns, "overrun_s", "emulation"])


def experiment(
    scheduler,
    seeds: Iterable[int],
    *,
    links: str = "auto",
    rounds: int = 3,
    methods: Iterable[str] = (),
    progress: bool = True,
    nursery: Nursery | None = None,
    **options,
) -> pd.DataFrame:
    """Compare prediction, simulation and measurement on seeded scenarios, one after the other.

    Every scenario is drawn by its seed (`sample_network`) and planned with a profile that is measured just before it
    runs, as other work on a machine comes and goes.

    Args:
        scheduler: the module: ``psl.schedulers.epsl``, ``edgesplit`` or ``pipeline``.
        seeds: one scenario each.
        methods: of the scheduler's `solve` besides its default; each is run too, to see whether methods rank as
            predicted.
        links, rounds: as in `compare`.
        progress: show a progress bar.
        nursery: what starts the processes; default one of its own.
        options: for `compare`.

    Returns:
        The rows of `compare` with seed and method in front.
    """
    name = name_of(scheduler)
    if nursery is None:
        with Nursery() as nursery:
            return experiment(
                scheduler,
                seeds,
                links=links,
                rounds=rounds,
                methods=methods,
                progress=progress,
                nursery=nursery,
                **options,
            )
    frames = []
    for seed in tqdm(list(seeds), desc=f"{name}, scenarios", disable=not progress):
        network = sample_network(name, seed)
        profile = measured_profile(MODEL, batch_size=BATCHES[name], repeats=_PASSES, nursery=nursery)
        for method in (None, *methods):
            plan = make_plan(scheduler, profile, network, method, seed)
            frame = compare(plan, links=links, rounds=rounds, nursery=nursery, **options)
            frame.insert(0, "method", plan.method)
            frame.insert(0, "seed", seed)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def make_plan(scheduler, profile, network, method: str | None = None, seed: int = 0):
    """Return the plan of an experiment's scenario by a method of its scheduler, None for its default.

    Args:
        scheduler, seed: as in `experiment`.
        profile: measured with the batch size `BATCHES` names.
        network: from `sample_network`.
        method: see the scheduler's `solve`.
    """
    name, method = name_of(scheduler), {} if method is None else {"method": method}
    b = BATCHES[name]
    how = {
        "epsl": {"batch_size": b, "phi": 0.5, "seed": seed},
        "edgesplit": {"batch_size": b, "local_steps": 2},
        "pipeline": {"mini_batch": 6 * b, "micro_batch": b, "seed": seed},
    }
    return scheduler.solve(profile, network, **how[name], **method)


def name_of(scheduler) -> str:
    """Return the name of a scheduler's module; raises `ScenarioError` if it is none."""
    name = getattr(scheduler, "__name__", repr(scheduler)).rpartition(".")[2]
    return check_choice("scheduler", name, TERMS, "pass the module, such as psl.schedulers.epsl")


def _epsl_predicted(plan) -> dict[str, float]:
    terms = plan.latency()
    return {
        "uplink": terms.uplink,
        "server": terms.server_forward + terms.server_backward,
        "downlink": terms.broadcast + terms.downlink,
        "round": terms.total,
    }


def _epsl_measured(plan, events: pd.DataFrame) -> dict[str, float]:
    at_server = _at(events, "server").loc[lambda e: e["kind"].isin(["forward", "backward"])]
    clients = events[events["resource"].astype(str).str.match(r"client \d+$")]
    clients = clients[clients["kind"].isin(["forward", "backward"])]
    start, end = clients["start_s"].min(), clients["end_s"].max()
    first, last = at_server["start_s"].min(), at_server["end_s"].max()
    return {"uplink": first - start, "server": last - first, "downlink": end - last, "round": end - start}


def _edgesplit_predicted(plan, device: int) -> dict[str, float]:
    frame = plan.to_frame()
    terms = {term: float(frame.loc[device, term]) for term in _OF_ONE_DEVICE}
    return terms | {"rest": 0.0, "round": float(frame["total"].max())}


def _edgesplit_measured(plan, events: pd.DataFrame, device: int) -> dict[str, float]:
    kinds, computing = events["kind"].astype(str), ["forward", "backward"]
    seconds = events["end_s"] - events["start_s"]
    resource = events["resource"].astype(str)
    names = {f"client {device}", f"device {device}"}
    if plan.cluster.device_names is not None:
        names.add(plan.cluster.device_names[device])
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


def _slowest_device(plan, events: pd.DataFrame) -> int:
    """The device whose own terms add up to most, over all rounds measured: in an optimum all are predicted equal."""
    totals = [_edgesplit_measured(plan, events, i) for i in range(plan.cluster.n_devices)]
    return int(np.argmax([sum(terms[term] for term in _OF_ONE_DEVICE) for terms in totals]))


def _pipeline_predicted(plan) -> dict[str, float]:
    terms = plan.latency().to_frame()
    linear = terms.groupby("kind")["linear_s"].sum()
    return {"stages": linear["stage"], "hops": linear.get("hop", 0.0), "round": plan.total_time}


def _pipeline_measured(plan, events: pd.DataFrame) -> dict[str, float]:
    seconds = (events["end_s"] - events["start_s"]).groupby([events["resource"], events["kind"]], observed=True).mean()
    kinds = seconds.index.get_level_values("kind").astype(str)
    inner = events[events["kind"].isin(KINDS)]
    delays = 0.0
    if "cpu_s" not in events:  # the simulation counts propagation as no event
        graph = plan.network.graph
        delays = sum(graph.edges[u, v]["latency"] + graph.edges[v, u]["latency"] for _, u, v in plan.hops)
    return {
        "stages": seconds[np.isin(kinds, ["forward", "backward"])].sum(),
        "hops": seconds[np.isin(kinds, ["activation", "gradient"])].sum() + delays,
        "round": inner["end_s"].max() - inner["start_s"].min(),
    }


def _at(events: pd.DataFrame, resource: str) -> pd.DataFrame:
    return events[events["resource"].astype(str) == resource]


def _terms_of(scheduler: str, plan, events: pd.DataFrame) -> tuple[Callable, Callable]:
    """Return what predicts the terms of a plan, and what measures them in the events of one round."""
    if scheduler == "edgesplit":
        device = _slowest_device(plan, events)
        return partial(_edgesplit_predicted, plan, device), partial(_edgesplit_measured, plan, device=device)
    predict, measure = {
        "epsl": (_epsl_predicted, _epsl_measured), "pipeline": (_pipeline_predicted, _pipeline_measured),
    }[scheduler]  # fmt: skip
    return partial(predict, plan), partial(measure, plan)
