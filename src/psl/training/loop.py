"""`psl.train`: one loop for every framework."""

import warnings
from collections.abc import Callable
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from psl.errors import CheckpointError, check_choice, check_count, check_number, expected
from psl.training.batches import Sampler, Samples
from psl.training.checkpoint import Checkpoint, deferred_interrupt
from psl.training.evaluate import evaluate
from psl.training.fingerprint import fingerprint
from psl.training.frameworks import FRAMEWORKS, Framework, Setup
from psl.training.history import History
from psl.training.linearise import RULES, cross_entropy
from psl.training.link import Link
from psl.training.partition import partition as divide
from psl.training.setup import (
    check_cut,
    check_model,
    check_plan,
    check_plan_fits,
    default,
    describe_optimizers,
    image_layout,
    open_dataset,
    optimizer_factory,
    prepare_model,
)


def train(
    framework: str,
    model: nn.Module,
    dataset: str | tuple[Dataset, Dataset],
    *,
    n_clients: int | None = None,
    rounds: int,
    batch_size: int | None = None,
    local_steps: int = 1,
    cut: int | str | None = None,
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
) -> History:
    """Train a model with a framework of split or federated learning and return its history.

    A round is one mini-batch per client; for centralised one batch of n_clients × batch_size; for
    fedavg and sfl local_steps mini-batches per client, then the average. Equal arguments give
    identical results. Neither the model nor torch's random state is modified. Models are trained in
    train mode from the weights they come with; images are processed in channels_last layout where that is safe.

    Args:
        framework: ``"centralised"``, ``"fedavg"``, ``"sl"``, ``"sfl"``, ``"psl"`` or ``"epsl"``.
        model: single-input, single-output module; for a split one that `psl.cuts` can trace.
        dataset: name for `psl.data.load`, or a pair (train, test) of torch data sets.
        n_clients: C; default the plan's, else 5.
        rounds: rounds to train, including those of a checkpoint.
        batch_size: b, mini-batch of each client; default the plan's, else 64.
        local_steps: mini-batches per round of fedavg and sfl; the others take one.
        cut: number or name of the cut, for sl, sfl, psl, epsl; default the plan's.
        phi: φ in [0, 1], share of the slots whose last-layer gradients epsl aggregates; default the
            plan's, else 0.5.
        linearise: how epsl sends aggregated gradients through the server:
            ``"representative"``, ``"mean"``, ``"each"`` or ``"cut"`` (`psl.training.linearise`).
        partition: ``"iid"``, a Dirichlet α, or a list of C disjoint index arrays.
        optimizer: ``"sgd"``, ``"adam"``, or a function from parameters (and ``lr=``, if `lr` is
            given) to a `torch.optim.Optimizer`; every client and the server make their own.
        lr: learning rate; default 0.05 for sgd, 0.001 for adam.
        seed: draws partition, mini-batches, representatives and dropout.
        plan: a scheduler's plan for this model; supplies defaults and the simulated time of a round.
        checkpoint: file that the run is saved to, about every 10 s, at the end, and at Ctrl-C; a
            run whose file exists continues from it, bit for bit as if never interrupted.
        device: where to train; default the CPU.
        loss: maps outputs and labels to one loss per row; default the cross entropy.
        eval_every: evaluate on the test data after every so many rounds, and after the last.
        progress: show a progress bar.

    Returns:
        History with one row per round and the trained models.

    Raises:
        ScenarioError: an argument out of range, or an unknown name.
        CutError: the cut is missing or does not exist.
        DataError: data is missing, corrupt, or too little for the batch size.
        CheckpointError: the checkpoint is truncated, belongs to another run, or cannot be written.

    Source: EPSL (arXiv 2303.15991) [P: parallel split training with last-layer aggregation; R: the rest].
    """
    kind = FRAMEWORKS[check_choice("framework", framework, FRAMEWORKS)]
    rounds, local_steps = check_count("rounds", rounds), check_count("local_steps", local_steps)
    n_clients = check_count("n_clients", default(n_clients, plan, "n_clients", 5))
    batch_size = check_count("batch_size", default(batch_size, plan, "batch_size", 64))
    eval_every, seed = check_count("eval_every", eval_every), check_count("seed", seed, minimum=0)
    phi = check_number("phi", default(phi, plan, "phi", 0.5), minimum=0, maximum=1, fix="pass a share in [0, 1]")
    check_choice("linearise", linearise, RULES)
    check_model(model)
    if kind.splits:
        check_cut(default(None, plan, "cut", None) if cut is None else cut)
    cut = default(cut, plan, "cut", None)
    round_time = check_plan(plan, framework, local_steps)

    device = torch.device(device or "cpu")
    layout = image_layout(model, device)
    samples, test_samples = (Samples(part, device, layout) for part in open_dataset(dataset))
    shares = divide(partition, len(samples), n_clients, labels=samples.labels, minimum=batch_size, seed=seed)
    sizes = np.array([len(share) for share in shares])
    setup = Setup(
        prepare_model(model, device, layout), sizes / sizes.sum(), batch_size, optimizer_factory(optimizer, lr),
        cross_entropy if loss is None else loss, local_steps, cut, phi, linearise,
    )  # fmt: skip
    run = kind(setup, Link())
    if kind.splits and plan is not None:
        check_plan_fits(plan, model, run.cut)
    samplers = _samplers(run, shares, seed)

    settings = _settings(run, seed, partition)
    curves = _Curves()
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
            value = run.round(_draw(samples, samplers, index, run.steps), rng)
            evaluates = (index + 1) % eval_every == 0 or index + 1 == rounds
            if not diverged and not np.isfinite(float(value)):
                diverged = True
                warnings.warn(
                    f"train loss is {float(value)} in round {index + 1}: lower lr", RuntimeWarning, stacklevel=2
                )
            curves.add(float(value), evaluate(run, test_samples) if evaluates else None, run.link)
            bar.set_postfix(curves.shown(), refresh=False)
            bar.update()
            if interrupted():
                save()
                raise KeyboardInterrupt(f"stopped after round {index + 1}, saved to {file.path}")
            if file is not None and (file.due or index + 1 == rounds):
                save()
        if not curves.evaluated:  # a checkpoint from an interrupt in a round without evaluation
            curves.amend(evaluate(run, test_samples))

    history = curves.history(framework, settings, round_time)
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


def _settings(run: Framework, seed, partition) -> dict:
    """What the run was started with, as far as it bears on this framework."""
    setup = run.setup
    numeric = np.isscalar(partition) and not isinstance(partition, str)
    settings = {
        "framework": run.name, "n_clients": setup.n_clients, "batch_size": setup.batch_size, "seed": seed,
        "partition": float(partition) if numeric else partition if isinstance(partition, str) else "explicit",
        "optimizer": describe_optimizers(run.optimizers.values()),
        "loss": getattr(setup.loss, "__name__", type(setup.loss).__name__),
    }  # fmt: skip
    if run.averages:
        settings["local_steps"] = setup.local_steps
    if run.splits:
        settings["cut"] = run.cut
    if run.name == "epsl":
        settings |= {"phi": setup.phi, "linearise": setup.linearise}
    return settings


@contextmanager
def _own_random_state(device):
    """Leave torch's random state as it was found."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _seed_round(seed, index, device) -> np.random.Generator:
    """Seed torch (dropout) and return NumPy's generator (representatives) for one round."""
    rng = np.random.default_rng([seed, 2, index])
    torch_seed = int(rng.integers(2**63))
    torch.default_generator.manual_seed(torch_seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(torch_seed)
    return rng


class _Curves:
    """The rows of the history while they grow."""

    _NAMES = ("train_loss", "test_accuracy", "uplink_bits", "downlink_bits")

    def __init__(self):
        self._lists = {name: [] for name in self._NAMES}
        self._client_accuracy = []

    @property
    def rounds(self):
        return len(self._lists["train_loss"])

    @property
    def evaluated(self):
        return not np.isnan(self._lists["test_accuracy"][-1])

    def add(self, loss, accuracy, link):
        row = (loss, float("nan"), link.uplink_bits, link.downlink_bits)
        for name, value in zip(self._NAMES, row, strict=True):
            self._lists[name].append(value)
        if accuracy is not None:
            self.amend(accuracy)

    def amend(self, accuracy):
        """Fill in the accuracies (models,) of the newest round."""
        self._client_accuracy = accuracy.tolist()
        self._lists["test_accuracy"][-1] = float(accuracy.mean())

    def forget_evaluations(self, eval_every):
        """Blank the evaluations that a longer run would not have made, such as that of a former last round."""
        kept = enumerate(self._lists["test_accuracy"], 1)
        self._lists["test_accuracy"] = [value if n % eval_every == 0 else float("nan") for n, value in kept]

    def shown(self):
        shown = {"loss": f"{self._lists['train_loss'][-1]:.3f}"}
        if self._client_accuracy:
            shown["accuracy"] = f"{np.mean(self._client_accuracy):.1%}"
        return shown

    def state(self):
        return {**self._lists, "client_accuracy": self._client_accuracy}

    def restore(self, state):
        self._lists = {name: state[name] for name in self._NAMES}
        self._client_accuracy = state["client_accuracy"]

    def history(self, framework, settings, round_time):
        arrays = {name: np.array(values, dtype=float) for name, values in self._lists.items()}
        time = round_time * np.arange(1, self.rounds + 1)
        return History(framework, settings, time, client_accuracy=np.array(self._client_accuracy), **arrays)
