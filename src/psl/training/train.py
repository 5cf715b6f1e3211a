"""`psl.train`: one loop for every framework."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from psl.errors import CheckpointError, check_count, expected
from psl.training.arguments import resolve
from psl.training.checkpoint import Checkpoint, deferred_interrupt
from psl.training.communication import Link
from psl.training.config import (
    check_model,
    check_participation,
    check_plan_fits,
    image_layout,
    open_dataset,
    optimizer_factory,
    prepare_model,
)
from psl.training.curves import Curves
from psl.training.evaluation import evaluate
from psl.training.fingerprint import fingerprint, settings_of
from psl.training.frameworks import Framework, Setup
from psl.training.gradient_aggregation import cross_entropy
from psl.training.history import History
from psl.training.participation import Participation
from psl.training.partition import partition as divide
from psl.training.sampling import Sampler, Samples


def train(
    framework: str,
    model: nn.Module,
    dataset: str | tuple[Dataset, Dataset],
    *,
    n_clients: int | None = None,
    rounds: int,
    batch_size: int | None = None,
    local_steps: int | None = None,
    cut: int | str | Sequence[int | str] | None = None,
    phi: float | None = None,
    linearise: str = "representative",
    partition="iid",
    optimizer: str | Callable = "sgd",
    lr: float | None = None,
    seed: int = 0,
    plan=None,
    checkpoint=None,
    device: torch.device | str | None = None,
    loss: Callable | None = None,
    eval_every: int = 1,
    progress: bool = True,
    micro_batch: int | None = None,
    participation: Participation | None = None,
) -> History:
    """Train a model with a framework of split or federated learning and return its history.

    A round is one mini-batch per client; for centralised and pipeline one batch of n_clients ×
    batch_size; for fedavg, sfl and edgesplit local_steps mini-batches per client, then the average. Equal
    arguments give identical results. Neither the model nor torch's random state is modified. Models are trained in
    train mode from the weights they come with; images are processed in channels_last layout where that is safe.

    Args:
        framework: ``"centralised"``, ``"fedavg"``, ``"sl"``, ``"sfl"``, ``"psl"``, ``"epsl"``,
            ``"edgesplit"`` or ``"pipeline"``.
        model: single-input, single-output module; for a split one that `psl.cuts` can trace.
        dataset: name for `psl.data.load`, or a pair (train, test) of torch data sets.
        n_clients: C; default the plan's, else 5.
        rounds: rounds to train, including those of a checkpoint.
        batch_size: b, mini-batch of each client; default the plan's, else 64.
        local_steps: mini-batches per round of fedavg, sfl and edgesplit, default the plan's, else 1;
            the others take one.
        cut: number or name of the cut, for sl, sfl, psl, epsl; for edgesplit a list of C, one per client,
            or one for all, where the last cut leaves the whole model on the device; for
            pipeline the increasing list of boundaries between the stages, ``[]`` for one stage. Default the plan's.
        phi: φ in [0, 1], share of the slots whose last-layer gradients epsl aggregates; default the
            plan's, else 0.5.
        linearise: how epsl sends aggregated gradients through the server:
            ``"representative"``, ``"mean"``, ``"each"`` or ``"cut"`` (`psl.training.gradient_aggregation`).
        partition: ``"iid"``, a Dirichlet α, or a list of C disjoint index arrays.
        optimizer: ``"sgd"``, ``"adam"``, or a function from parameters (and ``lr=``, if `lr` is
            given) to a `torch.optim.Optimizer`; every client and the server make their own.
        lr: learning rate; default 0.05 for sgd, 0.001 for adam.
        seed: draws partition, mini-batches, representatives, dropout, and who misses a round.
        plan: a scheduler's plan for this model; supplies defaults and the simulated time of a round.
        checkpoint: file that the run is saved to, about every 10 s, at the end, and at Ctrl-C; a
            run whose file exists continues from it, bit for bit as if never interrupted.
        device: where to train; default the CPU.
        loss: maps outputs and labels to one loss per row; default the cross entropy.
        eval_every: evaluate on the test data after every so many rounds, and after the last.
        progress: show a progress bar.
        micro_batch: samples that go through a pipeline at a time; default the plan's, else the whole
            mini-batch. BatchNorm normalises every micro-batch by itself.
        participation: `Participation`, stragglers and dropouts of fedavg and edgesplit; default none.

    Returns:
        History with one row per round and the trained models.

    Raises:
        ScenarioError: an argument out of range, or an unknown name.
        CutError: the cut is missing or does not exist.
        DataError: data is missing, corrupt, or too little for the batch size.
        CheckpointError: the checkpoint is truncated, belongs to another run, or cannot be written.

    Source: EPSL (arXiv 2303.15991) [P: parallel split training with last-layer aggregation; R: the rest]; EdgeSplit
    (arXiv 2403.15815) and pipelined split learning (arXiv 2505.04368), see their classes.
    """
    asked = resolve(
        framework, rounds=rounds, n_clients=n_clients, batch_size=batch_size, local_steps=local_steps, cut=cut, phi=phi,
        linearise=linearise, micro_batch=micro_batch, plan=plan,
    )  # fmt: skip
    kind, rounds, n_clients, batch_size = asked.kind, asked.rounds, asked.n_clients, asked.batch_size
    eval_every, seed = check_count("eval_every", eval_every), check_count("seed", seed, minimum=0)
    check_model(model)
    if participation is not None:
        check_participation(kind, participation)
        participation = participation.for_run(framework, plan, n_clients, asked.round_time)
    if kind.splits and plan is not None:
        check_plan_fits(plan, model)

    device = torch.device(device or "cpu")
    layout = image_layout(model, device)
    samples, test_samples = (Samples(part, device, layout) for part in open_dataset(dataset))
    shares = divide(partition, len(samples), n_clients, labels=samples.labels, minimum=batch_size, seed=seed)
    sizes = np.array([len(share) for share in shares])
    setup = Setup(
        prepare_model(model, device, layout), sizes / sizes.sum(), batch_size, optimizer_factory(optimizer, lr),
        cross_entropy if loss is None else loss, asked.local_steps, asked.cut, asked.phi, asked.linearise,
        asked.micro_batch,
    )  # fmt: skip
    run = kind(setup, Link())
    samplers = _samplers(run, shares, seed)

    settings = settings_of(run, seed, partition, participation)
    curves = Curves(participation is not None)
    file = None
    if checkpoint is not None:
        with _own_random_state(device):  # a data set may draw transforms
            identity = fingerprint(run, samples, test_samples, shares)
        file = Checkpoint(checkpoint, settings | identity)
        state = file.load()
        if state is not None:
            curves.restore(state["curves"])
            run.load_state_dict(state["framework"])
            run.link.uplink_bits, run.link.downlink_bits = state["link"]
            if curves.rounds < rounds:
                curves.forget_evaluations(eval_every)
    if curves.rounds > rounds:
        fix = "ask for as many rounds or more, or give another checkpoint="
        got = f"{curves.rounds} rounds in the checkpoint"
        raise expected(str(checkpoint), f"at most rounds = {rounds}", got, fix, CheckpointError)

    def save():
        link = [run.link.uplink_bits, run.link.downlink_bits]
        file.save({"curves": curves.state(), "framework": run.state_dict(), "link": link})

    diverged = False
    bar = tqdm(total=rounds, initial=curves.rounds, desc=framework, unit="round", disable=not progress)
    with bar, _own_random_state(device), deferred_interrupt(enabled=file is not None) as interrupted:
        for index in range(curves.rounds, rounds):
            rng = _seed_round(seed, index, device)
            run.turn = partial(seed_turn, seed, index, device)
            here = None if participation is None else participation.attendance(index, seed, n_clients, run.steps)
            attendance = {} if here is None else {"attendance": here}  # not for frameworks that need everybody
            value = run.round(_draw(samples, samplers, index, run.steps), rng, **attendance)
            evaluates = (index + 1) % eval_every == 0 or index + 1 == rounds
            learned = here is None or here.participants > 0
            if learned and not diverged and not np.isfinite(float(value)):
                diverged = True
                warnings.warn(
                    f"train loss is {float(value)} in round {index + 1}: lower lr", RuntimeWarning, stacklevel=2
                )
            curves.add(float(value), evaluate(run, test_samples) if evaluates else None, run.link, here)
            bar.set_postfix(curves.shown(), refresh=False)
            bar.update()
            if interrupted():
                save()
                raise KeyboardInterrupt(f"stopped after round {index + 1}, saved to {file.path}")
            if file is not None and (file.due or index + 1 == rounds):
                save()
        if not curves.evaluated:  # a checkpoint from an interrupt in a round without evaluation
            curves.amend(evaluate(run, test_samples))

    history = curves.history(framework, settings, asked.round_time)
    history.models.extend(model.eval() for model in run.full_models())
    return history


def _samplers(run: Framework, shares, seed) -> list[Sampler]:
    """One sampler per client; frameworks that pool the data have one, of n_clients × batch_size."""
    if run.pooled:
        return [Sampler(np.concatenate(shares), run.setup.n_clients * run.setup.batch_size, seed, 0)]
    return [Sampler(share, run.setup.batch_size, seed, client) for client, share in enumerate(shares)]


def _draw(samples, samplers, index, steps):
    """How a framework fetches mini-batch k of round `index` for client i."""
    return lambda client, k: samples.fetch(samplers[client].batch(index * steps + k))


@contextmanager
def _own_random_state(device):
    """Leave torch's random state as it was found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_round(seed, index, device) -> np.random.Generator:
    """Seed torch (dropout) and return NumPy's generator (representatives) for one round."""
    rng = round_generator(seed, index)
    _seed_torch(int(rng.integers(2**63)), device)
    return rng


def round_generator(seed: int, index: int) -> np.random.Generator:
    """Return the random numbers of round `index`."""
    return np.random.default_rng([seed, 2, index])


def seed_turn(seed: int, index: int, device: torch.device, party: str, client: int, step: int) -> None:
    """Seed torch for what a party computes in round `index`; see `Framework.turn`."""
    key = [seed, 4, index, ("device", "server").index(party), client, step]
    _seed_torch(int(np.random.default_rng(key).integers(2**63)), device)


def _seed_torch(number, device):
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
