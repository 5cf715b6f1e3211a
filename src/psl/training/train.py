"""`psl.train`: one loop for every framework."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from psl.plans import Plan
from psl.training.batchnorm import one_row_refused
from psl.training.checkpoint import Checkpoint, deferred_interrupt
from psl.training.defences import Defence
from psl.training.evaluation import evaluate
from psl.training.fingerprint import fingerprint, settings_of
from psl.training.first_batch import checked_samples
from psl.training.frameworks import Framework, build_framework, framework_class
from psl.training.frameworks.base import Batch
from psl.training.history import History
from psl.training.model_preparation import check_model, prepare_model, verify_cuts
from psl.training.participation import Participation
from psl.training.partition import partition as divide
from psl.training.recorder import Recorder
from psl.training.resolve import check_plan_fits, resolve
from psl.training.sampling import PartSampler, Sampler, Samples, open_dataset, samplers_of
from psl.training.seeds import Party, own_random_state, seed_computation, seed_evaluation, seed_round


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
    linearise: str | None = None,
    rows: str = "fixed",
    sampling: str = "own",
    server_steps: int = 0,
    partition: str | float | Sequence[Any] = "iid",
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
    lr: float | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    checkpoint: str | Path | None = None,
    device: torch.device | str | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
    metric: str | Callable[..., torch.Tensor] = "accuracy",
    eval_every: int = 1,
    verify: bool = True,
    progress: bool = True,
    micro_batch: int | None = None,
    participation: Participation | None = None,
    defence: Defence | None = None,
) -> History:
    """Train a model with a framework of split or federated learning and return its history.

    A round is one mini-batch per client; for centralised and pipeline one batch of n_clients ×
    batch_size; for fedavg, sfl and edgesplit local_steps mini-batches per client, then the average. Equal
    arguments give identical results. Neither the model nor the random state of torch, NumPy or Python is modified: what
    samples are transformed with at random is drawn from these, anew for every client and step. Models are trained in
    train mode from the weights they come with; images are processed in channels_last layout where that is safe.

    Args:
        framework: ``"centralised"``, ``"fedavg"``, ``"sl"``, ``"sfl"``, ``"psl"``, ``"epsl"``,
            ``"edgesplit"`` or ``"pipeline"``.
        model: any module; frameworks that split need one that `psl.cuts` can cut.
        dataset: name for `psl.data.load`, or a pair (train, test) of torch data sets. Their samples are pairs (input,
            label), longer tuples whose last entry is the label, or dicts with ``label`` or ``labels`` and the model's
            inputs by name. Inputs are tensors, arrays, numbers, or images of PIL, which become numbers in [0, 1].
            Labels of any whole-number type become int64; for the cross entropy also whole numbers given as floats, one
            in a column per row, and one-hot rows.
        n_clients: N; default the plan's, else 5.
        rounds: rounds to train, including those of a checkpoint.
        batch_size: b, mini-batch of each client; default the plan's, else 64.
        local_steps: mini-batches per round of fedavg, sfl and edgesplit, default the plan's, else 1;
            the others take one.
        cut: number or name of the cut, or what `psl.cuts` returned, for sl, sfl, psl, epsl; for sl, sfl, psl also two
            of them, (first, second), for a U-shaped split: the server computes between them, labels stay on the
            clients; for edgesplit a list of N, one per client, or one for all, where the last cut leaves the whole
            model on the device; for pipeline the increasing list of boundaries between the stages, ``[]`` for one
            stage. Default the plan's.
        phi: φ in [0, 1], share of the mini-batch's rows whose last-layer gradients epsl aggregates; default the
            plan's, else 0.5.
        linearise: how epsl sends aggregated gradients through the server: ``"representative"``, ``"mean"``, ``"each"``
            or ``"cut"`` (`psl.training.frameworks.epsl`); or ``"sampled"``, which draws as many rows by importance
            instead (`psl.training.frameworks.drawn_rows`). Default the plan's, else ``"representative"``.
        rows: with ``linearise="sampled"``: ``"fixed"``, as many as φ says, or ``"adaptive"``, at most so many.
        sampling: of psl: ``"own"``, b samples of every client, or ``"global"``, N b of all clients' data together.
        server_steps: of psl: steps of the server on resampled activations before it answers the clients; 0 for one
            step together with the clients.
        partition: ``"iid"``, a Dirichlet α, or a list of N disjoint index arrays.
        optimizer: ``"sgd"``, ``"adam"``, or a function from parameters (and ``lr=``, if `lr` is
            given) to a `torch.optim.Optimizer`; every client and the server make their own.
        lr: learning rate; default 0.05 for sgd, 0.001 for adam.
        seed: draws partition, mini-batches, representatives, dropout, and who misses a round.
        plan: a scheduler's plan for this model; supplies defaults and the simulated time of a round.
        checkpoint: file to which the run is saved about every 10 s, at the end, and at Ctrl-C; a
            run whose file exists continues from it, bit for bit as if never interrupted.
        device: where to train; default the CPU.
        loss: maps what the model returns and labels to one loss per row; or a loss module of torch, which is used
            unreduced. Default the cross entropy.
        metric: what is reported on test data: "accuracy", for outputs (rows, classes) and whole labels (rows,); or a
            function of what the model returns and labels that gives one value per row. The mean is `test_accuracy`.
        verify: compare the model with its parts on the first mini-batch before round 1 (`psl.verify`); frameworks that
            do not split have nothing to compare.
        eval_every: evaluate on the test data after every so many rounds, and after the last.
        progress: show a progress bar.
        micro_batch: samples at a time in a pipeline, or of a client's mini-batch in psl, epsl (φ 0 or 1), edgesplit;
            default the plan's, else the whole mini-batch. BatchNorm normalises every micro-batch by itself.
        participation: `Participation`, stragglers and dropouts of fedavg and edgesplit; default none.
        defence: what clients of sl, sfl, psl and epsl do to their smashed data before they send them:
            `psl.privacy.Noise`, `Quantise` or `NoPeek`; default nothing. Test accuracy is with it, too.

    Returns:
        History with one row per round and the trained models.

    Raises:
        ScenarioError: an argument out of range, or an unknown name.
        CutError: the cut is missing or does not exist, or the model's parts would not do what the model does.
        DataError: data is missing, corrupt, or too little for the batch size; the model does not take the samples, or
            the loss the labels.
        CheckpointError: the checkpoint is truncated, belongs to another run, or cannot be written.

    Source: EPSL (arXiv 2303.15991) [P: parallel split training with last-layer aggregation; R: the rest]; EdgeSplit
    (arXiv 2403.15815) and pipelined split learning (arXiv 2505.04368), see their classes.
    """
    kind = framework_class(framework)
    config = resolve(
        kind,
        rounds=rounds,
        n_clients=n_clients,
        batch_size=batch_size,
        local_steps=local_steps,
        cut=cut,
        phi=phi,
        linearise=linearise,
        rows=rows,
        sampling=sampling,
        server_steps=server_steps,
        micro_batch=micro_batch,
        partition=partition,
        participation=participation,
        defence=defence,
        optimizer=optimizer,
        lr=lr,
        loss=loss,
        metric=metric,
        seed=seed,
        eval_every=eval_every,
        plan=plan,
    )
    check_model(model)
    where = torch.device(device or "cpu")
    with own_random_state(where):  # a data set may draw transforms
        samples, tests = checked_samples(model, open_dataset(dataset), where, config)
        shares = divide(
            config.partition,
            len(samples),
            config.n_clients,
            labels=samples.labels,
            minimum=config.batch_size,
            seed=config.seed,
        )
        sizes = np.array([len(share) for share in shares])
        prepared = prepare_model(model, where, samples.layout)
        if kind.splits:
            inputs = samples.fetch(Sampler(shares[0], config.batch_size, config.seed, 0).batch(0))[0]
            config = replace(config, example=inputs)
            if plan is not None:
                config = replace(config, tensors=check_plan_fits(plan, prepared, inputs))
            if verify:
                verify_cuts(prepared, config)
    run = build_framework(prepared, config, sizes / sizes.sum())

    training = _Training(run, samples, tests, shares)
    if checkpoint is not None:
        training.continue_from(checkpoint)
    training.train_rounds(progress)
    return training.finished_history()


class _Training:
    """A run of `psl.train`: the framework, its data, and the history while it grows.

    Args:
        run: the framework before its first round.
        samples, tests: the data.
        shares: N index arrays, the samples of each client.
    """

    def __init__(self, run: Framework, samples: Samples, tests: Samples, shares: list[np.ndarray]):
        self.run, self.config = run, run.config
        self.samples, self.tests, self.shares = samples, tests, shares
        how = {"sampling": self.config.sampling, "together": run.pooled}
        self.samplers = samplers_of(shares, self.config.batch_size, self.config.seed, **how)
        self.settings = settings_of(run)
        self.recorder = Recorder(self.config, run.bits, lambda index: evaluate(run, tests, index), depth=5)
        self.file: Checkpoint | None = None

    def continue_from(self, path: str | Path) -> None:
        """Save the run to a file from now on; if the file exists, continue from it first.

        Raises:
            CheckpointError: it cannot be written, is broken, of another run, or has more rounds than asked for.
        """
        with own_random_state(self.samples.device):  # a data set may draw transforms
            seed_evaluation(self.config.seed, 0, self.samples.device)
            identity = fingerprint(self.run, self.samples, self.tests, self.shares)
        self.file = Checkpoint(path, self.settings | identity)
        state = self.file.load()
        if state is None:
            return
        self.recorder.restore(state, str(path))
        self.run.load_state_dict(state["framework"])

    def train_rounds(self, progress: bool) -> None:
        """Train the rounds that are left; with a checkpoint, save at times and at the end.

        Args:
            progress: whether to show a progress bar.

        Raises:
            KeyboardInterrupt: Ctrl-C; with a checkpoint after the round under way was saved.
        """
        rounds, device = self.config.rounds, self.samples.device
        start = self.recorder.rounds
        bar = tqdm(total=rounds, initial=start, desc=self.run.name, unit="round", disable=not progress)
        with bar, own_random_state(device), deferred_interrupt(enabled=self.file is not None) as interrupted:
            for index in range(start, rounds):
                self._train_round(index)
                bar.set_postfix(self.recorder.curves.shown(), refresh=False)
                bar.update()
                if self.file is None:
                    continue
                if interrupted():
                    self._save(self.file)
                    raise KeyboardInterrupt(f"stopped after round {index + 1}, saved to {self.file.path}")
                if self.file.due or index + 1 == rounds:
                    self._save(self.file)
            self.recorder.finish()  # a checkpoint may be from an interrupt in a round without evaluation

    def finished_history(self) -> History:
        """Return the history with the trained models."""
        history = self.recorder.history(self.run.name, self.settings)
        history.models.extend(model.eval() for model in self.run.full_models())
        return history

    def _train_round(self, index: int) -> None:
        run, config, device = self.run, self.config, self.samples.device

        def draw(client: int, k: int) -> Batch:
            return self.samples.fetch(self.samplers[client].batch(index * run.steps + k))

        def sizes(k: int) -> np.ndarray:
            sampler = self.samplers[0]
            assert isinstance(sampler, PartSampler)
            return sampler.pool.sizes(index * run.steps + k)

        def seed_for(party: Party, client: int, step: int) -> None:
            seed_computation(config.seed, index, device, party, client, step)

        rng = seed_round(config.seed, index, device)
        attendance = None
        if config.participation is not None:
            attendance = config.participation.attendance(index, config.seed, config.n_clients, run.steps)
        fix = "take a larger batch_size (or micro_batch), or a norm that takes single rows, such as GroupNorm"
        with one_row_refused("batch_size", "2 rows or more for this model's BatchNorm", fix):
            loss = float(run.round(draw, rng, attendance, seed_for, sizes if config.sampling == "global" else None))
        self.recorder.enter(loss, attendance, rows=run.rows)

    def _save(self, file: Checkpoint) -> None:
        file.save(self.recorder.state() | {"framework": self.run.state_dict()})
