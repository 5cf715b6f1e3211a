"""`label_leakage`: labels that gradients give away, to the server of a U-shaped split or to EPSL's other clients."""

import copy
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from psl import html
from psl.errors import DataError, check_choice, check_count, check_number, expected
from psl.gradient_aggregation import aggregated_rows
from psl.models import split
from psl.records import Record
from psl.training.config import AGGREGATION_RULES
from psl.training.frameworks.epsl import aggregated_backward
from psl.training.frameworks.split_step import server_backward
from psl.training.history import History
from psl.training.sampling import Sampler, Samples, open_dataset

VIEWS = ("gradients", "broadcast")
_FIT_STEPS = 300  # of the logistic regression
_STARTS: Any = 10  # of k-means


@dataclass(frozen=True, repr=False, eq=False)
class LabelLeakage(Record):
    """How often an attacker names a label rightly from the gradients at the cut; arrays have one entry per seed.

    Args:
        view: "gradients" or "broadcast".
        accuracy: share of rows (of slots) whose label (a label of another client there) is named.
        chance: the same for a guess that knows the attacker's own data alone.
        auc: area under the ROC curve of the attacker's scores for "this label is there"; NaN for clusters.
        shuffled_auc: the control: the same with the true labels shuffled; .5 but for chance.
        n_rows: rows (slots) that were attacked.
        cut: number of the cut.
        phi, n_clients, linearise: of the broadcast; φ = 0 for "gradients".
    """

    view: str
    accuracy: np.ndarray
    chance: np.ndarray
    auc: np.ndarray
    shuffled_auc: np.ndarray
    n_rows: int
    cut: int
    phi: float
    n_clients: int
    linearise: str

    def to_frame(self) -> pd.DataFrame:
        """Return a row per seed."""
        columns = {name: getattr(self, name) for name in ("accuracy", "chance", "auc", "shuffled_auc")}
        return pd.DataFrame(columns).rename_axis("seed").assign(n_rows=self.n_rows)

    def __repr__(self) -> str:
        what = f", φ={self.phi:g}, {self.n_clients} clients, {self.linearise}" if self.view == "broadcast" else ""
        return (
            f"LabelLeakage({self.view} at cut {self.cut}{what}: {self.accuracy.mean():.1%} named rightly, by chance "
            f"{self.chance.mean():.1%})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: accuracy beside chance, by seed."""
        rows = [
            [k, html.percent(a), html.Bar([float(a)]), html.percent(c), float(auc), float(other)]
            for k, (a, c, auc, other) in enumerate(
                zip(self.accuracy, self.chance, self.auc, self.shuffled_auc, strict=True)
            )
        ]
        header = ["seed", "named rightly", "", "by chance", "AUC", "AUC, labels shuffled"]
        return html.table(repr(self), header, rows, note=f"At least this much leaks: {self.n_rows} rows attacked.")


def label_leakage(
    history: History,
    *,
    view: str = "gradients",
    data: Any = "digits",
    cut: int | str | None = None,
    phi: float | None = None,
    linearise: str | None = None,
    n_clients: int | None = None,
    rounds: int = 40,
    batch_size: int | None = None,
    seeds: int = 3,
) -> LabelLeakage:
    """Attack the labels through the gradients at the cut of a trained model, without training it further.

    ============  ====================================================================================================
    "gradients"   who sees the gradient of every row, such as the server of a U-shaped split, sorts their directions
                  into as many clusters as there are classes (k-means); clusters are named in the attacker's favour
    "broadcast"   a curious client of EPSL fits a logistic regression from the broadcast gradient of a slot to its
                  *own* label there, and names the most probable other label: does another client have it in this slot?
                  Slots in which nobody has another label do not count
    ============  ====================================================================================================

    Gradients are those of the trained weights in eval mode [R]; during training they are larger.

    Args:
        history: with its models; for "broadcast" of epsl, with a model per client.
        view: see the table.
        data: as in `psl.train`; its training part is used.
        cut: where the gradients cross; default the history's (of a U-shaped split the second, where labels matter).
        phi, linearise, n_clients, batch_size: default the history's; others show what changes. `n_clients` at most the
            history's.
        rounds: mini-batches per client that the attacker sees.
        seeds: number of repetitions, with other mini-batches.

    Raises:
        ScenarioError: an argument is out of range; nothing is broadcast (psl, φ = 0, sampled rows, one client).
        DataError: labels are no classes.

    Source: label leakage in two-party split learning (Li et al., arXiv 2102.08504) [the question]; the attack on
    EPSL's broadcast ours [B].
    """
    check_choice("view", view, VIEWS)
    seeds, rounds = check_count("seeds", seeds), check_count("rounds", rounds)
    if not history.models:
        raise expected(
            "history", "one with its trained models", "none, as after load()", "attack right after psl.train"
        )
    settings = history.settings
    n = len(history.models) if n_clients is None else check_count("n_clients", n_clients)
    b = check_count("batch_size", settings["batch_size"] if batch_size is None else batch_size)
    phi = check_number("phi", settings.get("phi", 0.0) if phi is None else phi, minimum=0, maximum=1)
    rule = str(settings.get("linearise", "cut") if linearise is None else linearise)
    n_agg = aggregated_rows(phi, b)
    if view == "broadcast":
        check_choice("linearise", rule, AGGREGATION_RULES, fix="other rules send other clients nothing")
        if n < 2 or n > len(history.models) or n_agg == 0 or history.framework != "epsl":
            got = f"{history.framework} with φ = {phi:g} and {n} of {len(history.models)} client models"
            fix = "train epsl with phi above 0; psl sends every client its own gradients alone"
            raise expected("view='broadcast'", "gradients that all clients receive", got, fix)
    samples = Samples(open_dataset(data)[0], layout=torch.contiguous_format)
    place = settings.get("cut") if cut is None else cut
    if isinstance(place, list | tuple):
        place = place[-1]
    if place is None:
        fix = "pass cut=, or the history of a framework that splits"
        raise expected("cut", "a cut", f"none, as {history.framework} has none", fix)
    example = samples.fetch([0, 1])[0]
    parts = [split(_evaluated(model), place, example) for model in history.models[: n if view == "broadcast" else 1]]
    results = []
    for seed in range(seeds):
        if view == "gradients":
            results.append(_clusters(parts[0], samples, rounds * b, seed))
        else:
            results.append(_broadcast(parts, samples, b, n_agg, rule, rounds, seed))
    accuracy, chance, auc, shuffled, rows = (np.array(column) for column in zip(*results, strict=True))
    sent = (phi, n, rule) if view == "broadcast" else (0.0, 1, "none")
    return LabelLeakage(view, accuracy, chance, auc, shuffled, int(rows[0]), int(parts[0].cut), *sent)


def _evaluated(model: torch.nn.Module) -> torch.nn.Module:
    model = copy.deepcopy(model).eval()
    return model.requires_grad_(False)


def _classes(labels: torch.Tensor) -> np.ndarray:
    if labels.ndim != 1 or labels.is_floating_point():
        got, fix = f"{labels.dtype} of {labels.ndim} dimensions", "attack a classifier"
        raise expected("data", "labels that are classes", got, fix, DataError)
    return labels.numpy()


def _clusters(parts: Any, samples: Samples, n_rows: int, seed: int) -> tuple[float, float, float, float, int]:
    """Cluster the directions of the gradients of single rows; each cluster takes one label, all differ."""
    rows = np.random.default_rng([seed, 181]).permutation(len(samples))[:n_rows]
    inputs, labels = samples.fetch(rows)
    classes = _classes(labels)
    smashed = parts.client(inputs).detach()
    gradient = server_backward(parts.server, [smashed], [labels], np.ones(1)).own[0].flatten(1).double()
    direction = torch.nn.functional.normalize(gradient, dim=1, eps=1e-30).numpy()
    names = np.unique(classes)
    cluster = KMeans(len(names), n_init=_STARTS, random_state=seed).fit_predict(direction)
    count = np.array([[np.sum((cluster == k) & (classes == name)) for name in names] for k in range(len(names))])
    named = count[linear_sum_assignment(-count)].sum()
    most = float(np.bincount(classes).max() / len(classes))
    return named / len(classes), most, float("nan"), float("nan"), len(classes)


def _rounds(samples: Samples, n: int, b: int, rounds: int, seed: int) -> Iterator[list[tuple[torch.Tensor, Any]]]:
    """Yield a mini-batch per client; their samples are disjoint."""
    shares = np.array_split(np.random.default_rng([seed, 182]).permutation(len(samples)), n)
    if min(map(len, shares)) < b:
        fix = "pass a smaller batch_size= or n_clients="
        raise expected("data", f"{n} × {b} samples or more", len(samples), fix, DataError)
    samplers = [Sampler(share, b, seed, client) for client, share in enumerate(shares)]
    for k in range(rounds):
        yield [samples.fetch(sampler.batch(k)) for sampler in samplers]


def _broadcast(
    parts: list[Any], samples: Samples, b: int, n_agg: int, rule: str, rounds: int, seed: int
) -> tuple[float, float, float, float, int]:
    """Name labels of the other clients from the broadcast gradients; the curious client is number 0."""
    weights, rng = np.full(len(parts), 1 / len(parts)), np.random.default_rng([seed, 183])
    seen, own, others = [], [], []
    for batches in _rounds(samples, len(parts), b, rounds, seed):
        smashed = [part.client(inputs).detach() for part, (inputs, _) in zip(parts, batches, strict=True)]
        labels = [targets for _, targets in batches]
        found = aggregated_backward(parts[0].server, smashed, labels, weights, n_agg=n_agg, rule=rule, rng=rng)
        seen.append(found.shared.flatten(1).numpy())
        classes = np.stack([_classes(targets) for targets in labels])[:, :n_agg]
        own.append(classes[0])
        others.append(classes[1:].T)
    x, mine, theirs = np.concatenate(seen).astype(float), np.concatenate(own), np.concatenate(others)
    x = x / max(np.sqrt((x * x).mean()), 1e-300)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fit that is stopped early is still an attack
        model = LogisticRegression(max_iter=_FIT_STEPS).fit(x, mine)
    score = model.decision_function(x)  # (slots, classes)
    names = model.classes_
    there = (theirs[:, :, None] == names).any(axis=1)  # (slots, classes)
    not_mine = names != mine[:, None]
    score = np.where(not_mine, score, -np.inf)
    other = (there & not_mine).any(axis=1)  # elsewhere all clients have the curious one's label: nothing to name
    accuracy = there[np.arange(len(x)), score.argmax(axis=1)][other].mean()
    chance = (there & not_mine)[other].sum() / not_mine[other].sum()
    shuffled = there[rng.permutation(len(there))]
    aucs = [roc_auc_score(truth[not_mine], score[not_mine]) for truth in (there, shuffled)]
    return float(accuracy), float(chance), float(aucs[0]), float(aucs[1]), int(other.sum())
