"""What a plan promises, what its simulation says, and what real processes measure: term by term."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from psl.distributed.launch import run
from psl.distributed.measure import measured_profile
from psl.distributed.nursery import Nursery
from psl.distributed.pipeline import run_pipeline
from psl.distributed.scenarios import BATCHES, MODEL, sample_network
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
        "device_compute": "computing of the slowest device",
        "server_compute": "computing for it at the server",
        "activation_exchange": "its activations and gradients on the way",
        "model_exchange": "its part of the model on the way",
        "round": "the round",
    },
    "pipeline": {
        "stages": "a micro-batch's computing at all stages, forward and backward",
        "hops": "a micro-batch on its way over all hops, there and back",
        "round": "the mini-batch",
    },
}


_WARM_UP = 2  # rounds, in which processes fetch memory from the system that they keep afterwards


def compare(
    plan,
    *,
    model: str | None = None,
    dataset: str = "digits",
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
        dataset: name for `psl.data.load`.
        rounds: rounds that count.
        links: who keeps the rates: "kernel", "pacing" or "none"; "auto": the kernel where it may.
        schedule: of a pipeline, see `run_pipeline`; the simulation follows: "eager" as published, "gpipe" as flush,
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
    model, simulation = model or MODEL, {}
    if scheduler == "pipeline":
        done = run_pipeline(model, dataset, schedule=schedule, **options)
        if schedule != "eager":
            simulation = {"gpipe": {"order": "flush"}, "1f1b": {"max_in_flight": len(plan.hops) + 1}}[schedule]
    else:
        done = run(scheduler, model, dataset, **options)
    timeline = simulate(plan, **simulation)
    events = done.events[done.events["round"] >= _WARM_UP]
    measure, predict = _MEASURE[scheduler], _PREDICT[scheduler]
    measured = pd.DataFrame([measure(plan, part) for _, part in events.groupby("round")]).median()
    predicted, simulated = predict(plan), measure(plan, timeline.to_frame().assign(round=0))
    rows = []
    for term in TERMS[scheduler]:
        values = predicted[term], simulated[term], measured[term]
        errors = [values[2] / known - 1 if known > 0 else np.nan for known in values[:2]]
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
        profile = measured_profile(MODEL, batch_size=BATCHES[name], nursery=nursery)
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
        "pipeline": {"mini_batch": 8 * b, "micro_batch": b, "seed": seed},
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


def _edgesplit_predicted(plan) -> dict[str, float]:
    frame = plan.to_frame()
    slowest = frame.loc[frame["total"].idxmax()]
    terms = {term: float(slowest[term]) for term in TERMS["edgesplit"] if term != "round"}
    return terms | {"round": float(slowest["total"])}


def _edgesplit_measured(plan, events: pd.DataFrame) -> dict[str, float]:
    device = int(plan.to_frame()["total"].to_numpy().argmax())
    kinds, computing = events["kind"].astype(str), ["forward", "backward"]
    seconds = events["end_s"] - events["start_s"]
    resource = events["resource"].astype(str)
    at_server = resource.str.startswith("server")
    names = {f"client {device}", f"device {device}"}
    if plan.cluster.device_names is not None:
        names.add(plan.cluster.device_names[device])
    mine = resource.isin(names)
    for_it = resource.isin([f"server for {name}" for name in names])
    carried = resource.isin([f"{way} {name}" for way in ("uplink of", "downlink of", "band of") for name in names])
    return {
        "device_compute": seconds[mine & kinds.isin(computing)].sum(),
        "server_compute": seconds[at_server & for_it & kinds.isin(computing)].sum(),
        "activation_exchange": seconds[carried & kinds.isin(["activation", "gradient"])].sum(),
        "model_exchange": seconds[carried & (kinds == "model")].sum(),
        "round": events["end_s"].max() - events["start_s"].min(),
    }


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


_PREDICT: dict[str, Callable] = {
    "epsl": _epsl_predicted, "edgesplit": _edgesplit_predicted, "pipeline": _pipeline_predicted,
}  # fmt: skip
_MEASURE: dict[str, Callable] = {
    "epsl": _epsl_measured, "edgesplit": _edgesplit_measured, "pipeline": _pipeline_measured,
}  # fmt: skip
