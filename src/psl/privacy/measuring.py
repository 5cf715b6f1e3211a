"""`measure`: attack the smashed data of every cut of a trained model, and score what comes out."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import DataError, ScenarioError, check_choice, check_count, expected
from psl.models import cuts as cuts_of
from psl.models import partition
from psl.privacy import attacks, scores
from psl.privacy.leakage import SCORES, Leakage
from psl.training.defences import Defence, check_defence
from psl.training.history import History
from psl.training.sampling import Samples, open_dataset
from psl.training.seeds import own_random_state

KNOWS = ("weights", "peer", "initial")
ATTACKS = ("ridge", "decoder", "white-box")
_FEW = 64  # images that white-box optimisation attacks at most: it takes hundreds of passes
_SHOWN = 8  # images that are kept to look at


@torch.no_grad()
def measure(
    history_or_model: History | nn.Module,
    data: Any,
    *,
    cuts: Sequence[int | str] | None = None,
    knows: str = "weights",
    attack: str = "ridge",
    defence: Defence | None = None,
    sendings: int = 1,
    seeds: int = 3,
    auxiliary: int = 1000,
    private: int = 360,
    client: int = 0,
    initial: nn.Module | None = None,
    adapts: bool = True,
) -> Leakage:
    """Attack the smashed data of every cut, and return how much of the images comes back.

    The attacker has auxiliary images of the same kind as the private ones, sends them through the layers that it knows,
    and learns the way back. At least as much as is measured leaks to this attacker on this data; another one may learn
    more. Everything runs in eval mode: BatchNorm with its running statistics, no dropout [R].

    ===========  =====================================================================================================
    "ridge"      default [B]: ridge regression from smashed data to pixels; closed form, no random part
    "decoder"    a network of two layers, trained on the auxiliary images [R]
    "white-box"  gradient descent on the pixels until their smashed data fit; of at most 64 images [R]
    ===========  =====================================================================================================

    Args:
        history_or_model: what `psl.train` returned, or a trained model. Cuts are tried on the finished model: a model
            that was trained at another cut may leak more or less there.
        data: name of a data set, or a pair (auxiliary, private) of torch data sets. Of a named one the training part is
            auxiliary and the test part private: the attacked images are none that the model was trained on.
        cuts: numbers or names; default all from the first to the output.
        knows: "weights": the attacked client's layers (the server in sl and sfl); "peer": those of another client, for
            a history with several models (psl, epsl); "initial": those from before training, see `initial`. Without
            the weights, ridge and the decoder first give what arrives the mean and spread of their own smashed data.
        attack: see the table.
        defence: what the client does to its smashed data; "Noise" and "Quantise" change them, "NoPeek" only training.
        sendings: how often each private image is sent; the attacker averages, which undoes noise that is drawn anew.
        seeds: number of repetitions; each draws the images, the noise and the decoder anew.
        auxiliary, private: most images of the attacker, and most images that are attacked.
        client: number of the attacked client in a history with several models.
        initial: the model as it was given to `psl.train`, for knows="initial".
        adapts: whether the attacker applies the same defence to its auxiliary images; False flatters the defence.

    Returns:
        The scores by cut and seed, with the baselines.

    Raises:
        ScenarioError: an argument is out of range, or the history has no such client.
        CutError: there is no such cut.
        DataError: samples are not tensors of numbers, or too few.

    Source: the question is UnSplit's (arXiv 2108.09033) and FSHA's (arXiv 2012.02670); ridge as the attack, and the
    maximum over later cuts, ours [B].
    """
    check_choice("knows", knows, KNOWS)
    check_choice("attack", attack, ATTACKS)
    defence = check_defence(defence) or Defence()
    sendings, seeds = check_count("sendings", sendings), check_count("seeds", seeds)
    victim, attacker = _models(history_or_model, knows, client, initial)
    pool = [Samples(part, layout=torch.contiguous_format) for part in open_dataset(data)]
    limit = min(private, _FEW) if attack == "white-box" else private
    sizes = [min(check_count("auxiliary", auxiliary, minimum=10), len(pool[0]))]
    sizes.append(min(check_count("private", limit, minimum=10), len(pool[1])))
    if min(sizes) < 10:
        fix = "pass more samples"
        raise expected("data", "at least 10 auxiliary and 10 private images", sizes, fix, DataError)
    example = _images(pool[0], np.arange(2))[0]
    listed = cuts_of(victim, example)
    numbers = _numbers(cuts, [cut.name for cut in listed])
    steps = {"victim": _steps(victim, numbers, len(listed) - 1, example)}
    steps["attacker"] = steps["victim"] if attacker is victim else _steps(attacker, numbers, len(listed) - 1, example)

    table: dict[str, list[list[float]]] = {name: [] for name in SCORES}  # by seed, by cut
    base: dict[str, dict[str, list[float]]] = {}
    shown: list[torch.Tensor] = []
    with own_random_state(torch.device("cpu")):
        for seed in range(seeds):
            rng = np.random.default_rng([seed, 18])
            rows = [rng.choice(len(part), size, replace=False) for part, size in zip(pool, sizes, strict=True)]
            (known, known_labels), (images, labels) = (_images(*pair) for pair in zip(pool, rows, strict=True))
            torch.manual_seed(int(rng.integers(2**62)))
            references = _references(known, known_labels, labels)
            for name, found in _baselines(images, *references).items():
                for score, value in found.items():
                    base.setdefault(name, {}).setdefault(score, []).append(value)
            flat = known.flatten(1)
            by_cut: list[dict[str, float]] = []
            aux, own = known, images
            for k, step in enumerate(steps["attacker"]):
                aux, own = step(aux), steps["victim"][k](own)
                arrived = _sent(defence, own, sendings)
                learned = _sent(defence if adapts else Defence(), aux, sendings)
                if knows != "weights" and attack != "white-box":
                    arrived = _matched(arrived, learned)
                if attack == "ridge":
                    found = attacks.ridge(learned, flat, arrived)
                elif attack == "decoder":
                    found = attacks.decoder(learned, flat, arrived, seed)
                else:
                    layers = steps["attacker"][: k + 1]
                    found = attacks.white_box(_chained(layers), flat.mean(dim=0), arrived, images.shape[1:])
                found = found.reshape(images.shape)
                by_cut.append(_scores(images, found, *references))
                by_cut[-1]["distance_correlation"] = scores.distance_correlation(images, arrived)
                if seed == 0:
                    shown.append(found[:_SHOWN])
            for name in SCORES:
                table[name].append([values[name] for values in by_cut])
            if seed == 0:
                kept, means = images[:_SHOWN], references[1][:_SHOWN]
    record = Leakage(
        cuts=tuple(numbers),
        names=tuple(listed[j].name for j in numbers),
        knows=knows,
        attack=attack,
        defence="none" if type(defence) is Defence else str(defence),
        sendings=sendings,
        n_auxiliary=sizes[0],
        n_private=sizes[1],
        scores={name: np.array(values).T for name, values in table.items()},
        baselines={name: {s: np.array(v) for s, v in found.items()} for name, found in base.items()},
    )
    record._set(images=kept.numpy(), class_means=means.numpy(), reconstructions=torch.stack(shown).numpy())
    return record


def _models(
    given: History | nn.Module, knows: str, client: int, initial: nn.Module | None
) -> tuple[nn.Module, nn.Module]:
    """Return the attacked model and the one that the attacker has."""
    if isinstance(given, History):
        models = given.models
        if not models:
            fix = "measure right after psl.train, or pass the model itself"
            raise expected("history", "one with its trained models", "none, as after load()", fix)
    elif isinstance(given, nn.Module):
        models = [given]
    else:
        want, fix = "a History or a torch.nn.Module", "pass what psl.train returned, or a trained model"
        raise expected("history_or_model", want, type(given).__name__, fix)
    if check_count("client", client, minimum=0) >= len(models):
        raise expected("client", f"a number 0..{len(models) - 1}", client, "the history has one model per such client")
    victim = _in_eval_mode(models[client])
    if knows == "weights":
        return victim, victim
    if knows == "peer":
        if len(models) < 2:
            fix = "train psl or epsl with two clients or more, or use knows='weights': the clients share one model"
            raise expected("knows='peer'", "a history with a model per client", "one model", fix)
        return victim, _in_eval_mode(models[(client + 1) % len(models)])
    if not isinstance(initial, nn.Module):
        raise expected(
            "initial", "the model before training", repr(initial)[:40], "pass the model that was given to psl.train"
        )
    return victim, _in_eval_mode(initial)


def _in_eval_mode(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval() if any(module.training for module in model.modules()) else model


def _numbers(cuts: Sequence[int | str] | None, names: list[str]) -> list[int]:
    """Return the numbers of the cuts to measure, ascending; raises `CutError` through `psl.split` later if none."""
    if cuts is None:
        return list(range(1, len(names)))
    if isinstance(cuts, str | int):
        cuts = [cuts]
    found = []
    for cut in cuts:
        if isinstance(cut, str) and names.count(cut) == 1:
            cut = names.index(cut)
        if isinstance(cut, bool) or not isinstance(cut, int | np.integer) or not 1 <= cut < len(names):
            raise expected("cuts", f"numbers 1..{len(names) - 1} or names of cuts", repr(cut), "see psl.cuts(model, …)")
        found.append(int(cut))
    if not found:
        raise expected("cuts", "at least one cut", "none", "leave it out for all", ScenarioError)
    return sorted(set(found))


def _steps(
    model: nn.Module, numbers: list[int], last: int, example: torch.Tensor
) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """Return the layers up to the first cut, from there to the next, and so on."""
    stages = partition(model, [j for j in numbers if j < last], example)
    return [stage.eval() for stage in stages[: len(numbers)]]


def _chained(steps: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> Callable[[torch.Tensor], torch.Tensor]:
    def run(x: torch.Tensor) -> torch.Tensor:
        for step in steps:
            x = step(x)
        return x.flatten(1)

    return run


def _images(samples: Samples, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = samples.fetch(rows)
    if not isinstance(inputs, torch.Tensor) or not inputs.is_floating_point():
        fix = "attack a model of images or of other numbers"
        raise expected("data", "samples that are one tensor of floats", type(inputs).__name__, fix, DataError)
    return inputs.float(), labels


def _sent(defence: Defence, smashed: torch.Tensor, sendings: int) -> torch.Tensor:
    """Return (n, d) what the server has after the sendings: their mean."""
    arrived = [defence.sent(smashed) for _ in range(sendings)]
    return torch.stack(arrived).mean(dim=0).flatten(1) if sendings > 1 else arrived[0].flatten(1)


def _matched(arrived: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
    """Return (n, d) what arrived with the mean and spread that the attacker's own smashed data have, number by number.

    An attacker with other weights sees that they differ; this is the least that it can do about it [R].
    """
    spread, own = arrived.std(dim=0), learned.std(dim=0)
    scale = torch.where(spread > 1e-6, own / spread.clamp_min(1e-6), torch.zeros_like(own))
    return (arrived - arrived.mean(dim=0)) * scale + learned.mean(dim=0)


def _references(
    known: torch.Tensor, known_labels: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean image (…), and for every private image the mean of its class (n, …)."""
    mean = known.mean(dim=0)
    if labels.ndim > 1 or labels.is_floating_point():
        return mean, mean.expand(len(labels), *mean.shape)
    classes = {int(y): known[known_labels == y].mean(dim=0) for y in known_labels.unique()}
    return mean, torch.stack([classes.get(int(y), mean) for y in labels])


def _scores(
    images: torch.Tensor, found: torch.Tensor, mean: torch.Tensor, class_mean: torch.Tensor
) -> dict[str, float]:
    return {
        "r2": scores.r2(images, found, mean),
        "within_class_r2": scores.r2(images, found, class_mean),
        "reidentified": scores.reidentified(images, found),
        "ssim": scores.ssim(images, found),
        "psnr_db": scores.psnr(images, found),
    }


def _baselines(images: torch.Tensor, mean: torch.Tensor, class_mean: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return the scores of reconstructions that use no smashed data."""
    guesses = {"mean image": mean.expand_as(images), "class mean": class_mean}
    return {
        name: _scores(images, guess, mean, class_mean)
        | {"distance_correlation": scores.distance_correlation(images, guess)}
        for name, guess in guesses.items()
    }
