"""Pipelined split learning in real processes: one per stage, and one per relay between them."""

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from psl.distributed.emulate import EdgeEmulation
from psl.distributed.nursery import Nursery, Worker, wait_all
from psl.distributed.pipeline_job import PipelineJob, emulation_of, relays_of, specify
from psl.errors import PSLError, expected
from psl.training.curves import Curves
from psl.training.evaluate import evaluate
from psl.training.fingerprint import settings_of
from psl.training.history import History
from psl.training.setup import check_plan, check_plan_fits


@dataclass(frozen=True)
class PipelineRun:
    """What a pipelined run in real processes returns.

    Args:
        history: as `psl.train` returns it, trained model included.
        events: one row per computation and transfer: round, resource, kind, micro_batch, stage, start_s, end_s (from
            the round's start) and cpu_s, the computing time on this machine. Arrivals are exact with the schedule
            "eager"; torch's own schedules note them when the computation begins that needs them.
        round_times: (R,) s from the first computation of a round to the end of its last, optimizer steps not counted.
        step_times: (R,) s from there to the end of the last optimizer step.
        emulation: who kept the rates of links: "kernel", "pacing" or "none".
        overrun: s that computations took longer than emulated, all processes together: 0 if there were cores enough.
    """

    history: History
    events: pd.DataFrame
    round_times: np.ndarray
    step_times: np.ndarray
    emulation: str
    overrun: float


def run_pipeline(
    model: str,
    dataset: str = "digits",
    *,
    rounds: int,
    plan=None,
    emulate: EdgeEmulation | str | None = None,
    progress: bool = True,
    nursery: Nursery | None = None,
    **options,
) -> PipelineRun:
    """Train with one process per stage on torch.distributed.pipelining, as ``psl.train("pipeline", …)`` does in one.

    Equal arguments give the result of `psl.train`, up to float summation, as long as the model has no dropout.
    Processes are ended and namespaces removed whatever happens.

    Args:
        model: factory "module:function" that every process can import, such as ``"psl.models:cnn"``; called with
            `model_options`.
        dataset: name for `psl.data.load`, or "module:function" that returns (train, test). Only the first process
            opens it, and this one, to evaluate.
        rounds: rounds to train; one mini-batch each.
        plan: of `pipeline.solve`; gives defaults as for `psl.train`, and what to emulate.
        emulate: an `EdgeEmulation`, or "kernel", "pacing", "none" or "auto" for the plan's own scenario
            (`emulation_for`); None: no emulation.
        progress: show a progress bar.
        nursery: what starts the processes, to start it once for several runs; default one of its own.
        options: n_clients, batch_size, cut, micro_batch, partition, optimizer, lr, loss, seed and eval_every as for
            `psl.train`, functions by name, "module:function"; model_options and model_seed, of torch's generator when
            the factory is called; timeout, s that a process waits for its neighbour; and schedule: "eager": what has
            arrived, backward first, as in `psl.simulate`; "gpipe" or "1f1b": torch's own.

    Raises:
        ScenarioError: an argument is out of range.
        CutError: a cut does not exist.
        PSLError: a process failed, with what it wrote.

    Source: pipelined split learning (arXiv 2505.04368): the pipeline [P]; in real processes [B].
    """
    spec = specify(model, dataset, rounds=rounds, plan=plan, **options)
    job = PipelineJob(spec)
    round_time = check_plan(plan, "pipeline", 1)
    if plan is not None:
        check_plan_fits(plan, job.run.modules["model"])
    relays = relays_of(plan, len(job.run.stages))
    if spec["schedule"] == "1f1b" and len(job.sizes) < len(relays):
        want, fix = f"one that makes {len(relays)} micro-batches or more", "take a smaller one, or schedule='eager'"
        raise expected("micro_batch", want, len(job.sizes), fix)
    emulation = emulation_of(emulate, plan, relays)
    curves, rows = Curves(), _Rows(job)
    with contextlib.ExitStack() as stack:
        if nursery is None:
            nursery = stack.enter_context(Nursery())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="psl-")))
        network = stack.enter_context(emulation.namespaces())
        interfaces = ["lo" if network is None else network.interface(rank) for rank in range(len(relays))]
        spec |= {"folder": str(folder), "emulation": emulation.to_dict(), "relays": relays, "interfaces": interfaces}
        spec["ends"] = job.ends
        (folder / "spec.json").write_text(json.dumps(spec))
        workers: list[Worker] = []
        stack.callback(_end, workers)  # before the network goes
        for rank in range(len(relays)):
            namespace = None if network is None else network.names[rank]
            arguments = [str(folder / "spec.json"), str(rank)]
            log = folder / f"log-{rank}"
            workers.append(nursery.start("psl.distributed.pipeline_worker", arguments, log, namespace))
        bar = stack.enter_context(tqdm(total=rounds, desc="pipeline", unit="round", disable=not progress))
        while True:
            over = _check(workers)
            for loss in _losses(folder)[curves.rounds :]:
                if not rows.add(curves, loss, folder):
                    break
                bar.set_postfix(curves.shown(), refresh=False)
                bar.update()
            if over:
                break
            time.sleep(0.02)
        reports = [json.loads((folder / f"events-{rank}.json").read_text()) for rank in range(len(relays))]
    history = curves.history(
        "pipeline", settings_of(job.run, spec["seed"], options.get("partition", "iid"), None), round_time
    )
    history.models.append(job.run.modules["model"].eval())
    events, round_times, step_times = collect(reports, relays)
    overrun = sum(report["overrun"] for report in reports)
    return PipelineRun(history, events, round_times, step_times, emulation.links, overrun)


def _check(workers: list[Worker]) -> bool:
    """Return whether all processes have ended, and raise `PSLError` with the words of one that failed."""
    codes = [worker.code for worker in workers]
    failed = [k for k, code in enumerate(codes) if code not in (None, 0)]
    if failed:
        wait_all(workers, 0.5)  # the one that failed first takes others with it
        words = "\n".join(f"process {k}: {workers[k].last_words() or f'exit code {workers[k].code}'}" for k in failed)
        raise PSLError(f"the pipeline stopped. {words}")
    return all(code == 0 for code in codes)


def _end(workers: list[Worker]) -> None:
    for worker in workers:
        worker.signal()
    wait_all(workers, 5.0)


def bits_per_round(job: PipelineJob) -> tuple[int, int]:
    """Return the bits that `psl.train` counts up and down: activations with the labels, once, and gradients."""
    down = 32 * job.mini_batch * sum(int(np.prod(end)) for end in job.ends[1:-1])
    return down + (64 * job.mini_batch if job.run.cut else 0), down


class _Rows:
    """Turns the rounds that the processes report into rows of a history."""

    def __init__(self, job: PipelineJob):
        self.job = job
        self.up, self.down = bits_per_round(job)

    def add(self, curves: Curves, loss: float, folder: Path) -> bool:
        index, accuracy = curves.rounds, None
        if self.job.due(index):
            files = [folder / f"weights-{index}-{place}.pt" for place in range(len(self.job.run.stages))]
            if not all(file.exists() for file in files):
                return False
            for stage, file in zip(self.job.run.stages, files, strict=True):
                stage.module.load_state_dict(torch.load(file, weights_only=True))
            accuracy = evaluate(self.job.run, self.job.test)
        self.job.run.link.uplink_bits += self.up
        self.job.run.link.downlink_bits += self.down
        curves.add(loss, accuracy, self.job.run.link)
        return True


def _losses(folder: Path) -> list[float]:
    try:
        return json.loads((folder / "progress").read_text())
    except (OSError, json.JSONDecodeError):  # not there yet, or half written
        return []


def collect(reports: list[dict], relays: list[bool]) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the events of all processes in one table, and the times of rounds and of optimizer steps.

    A transfer starts when the sender's computation has ended, or when the one before it on the same link has arrived.
    """
    rows, sent = [], {}
    n_rounds = len(reports[0]["rounds"])
    zero = [min(report["rounds"][r][0] for report in reports) for r in range(n_rounds)]
    place, here = [], -1
    for relay in relays:
        here += not relay
        place.append(here)
    names = [f"relay {k}" if relay else f"stage {place[k]}" for k, relay in enumerate(relays)]
    done, step_end = np.zeros(n_rounds), np.zeros(n_rounds)
    first = np.full(n_rounds, np.inf)
    for k, report in enumerate(reports):
        for r, kind, m, start, end, cpu in report["events"]:
            if kind in ("forward", "backward"):
                sent[r, k, kind, m] = end
                first[r], done[r] = min(first[r], start), max(done[r], end)
            if kind == "step":
                step_end[r] = max(step_end[r], end)
            if not kind.endswith("arrived"):
                rows.append((r, names[k], kind, m, place[k], start - zero[r], end - zero[r], cpu))
    before: dict[tuple, float] = {}
    for k, report in enumerate(reports):
        for r, kind, m, when, _, _ in report["events"]:
            if kind.endswith("arrived"):
                way = kind.split()[0]
                other, what = (k - 1, "activation") if way == "forward" else (k + 1, "gradient")
                link = f"link {other}→{k}"
                start = max(sent.get((r, other, way, m), when), before.get((r, link), 0.0))
                before[r, link] = when
                rows.append((r, link, what, m, min(place[k], place[other]), start - zero[r], when - zero[r], 0.0))
    columns = ["round", "resource", "kind", "micro_batch", "stage", "start_s", "end_s", "cpu_s"]
    frame = pd.DataFrame(rows, columns=columns).sort_values(["round", "start_s"], ignore_index=True)
    return frame, done - first, step_end - done
