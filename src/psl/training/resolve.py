"""From the arguments of `psl.train` and a plan to the configuration of a run."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import CutError, PSLError, check_choice, check_count, check_number, expected
from psl.models.splitting import Cut
from psl.models.tracing import trace
from psl.plans import Plan, PlanOfRows
from psl.training.config import (
    LINEARISE_RULES,
    ROW_RULES,
    SAMPLING_RULES,
    TrainingConfig,
    check_cut,
    check_cuts,
    optimizer_factory,
)
from psl.training.defences import Defence, Quantise, check_defence
from psl.training.frameworks.base import Framework
from psl.training.frameworks.micro_batched import check_micro_batch
from psl.training.participation import Participation
from psl.training.partition import check_rule
from psl.training.scores import check_metric, row_loss


def resolve(
    kind: type[Framework],
    *,
    rounds: int,
    n_clients: int | None = None,
    batch_size: int | None = None,
    local_steps: int | None = None,
    cut: int | str | Sequence[int | str] | None = None,
    phi: float | None = None,
    linearise: str | None = None,
    rows: str = "fixed",
    sampling: str = "own",
    server_steps: int = 0,
    micro_batch: int | None = None,
    partition: str | float | Sequence[Any] = "iid",
    participation: Participation | None = None,
    defence: Defence | None = None,
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd",
    lr: float | None = None,
    loss: Callable[..., torch.Tensor] | None = None,
    metric: str | Callable[..., torch.Tensor] = "accuracy",
    seed: int = 0,
    eval_every: int = 1,
    plan: Plan | None = None,
) -> TrainingConfig:
    """Return the configuration of a run: each argument as given, else the plan's, else the library's default.

    Args:
        kind: the framework's class.
        plan: a plan or None; the others are as in `psl.train`.

    Raises:
        ScenarioError: an argument is out of range, unknown, or contradicts the plan.
        CutError: the cut is missing.
        DataError: the rule of the partition is none.
    """
    if plan is not None and not isinstance(plan, Plan):
        want = "a plan of epsl.solve, edgesplit.solve or pipeline.solve"
        raise expected("plan", want, type(plan).__name__, "pass what solve returned, or read a file: EPSLPlan.load")
    planned = {} if plan is None else plan.training_arguments()

    def choose(name: str, value: Any, otherwise: Any) -> Any:
        if value is None:
            return planned.get(name, otherwise)
        if name in planned and value != planned[name]:  # the plan's simulated time would be wrong
            raise _contradiction(name, planned[name], value)
        return value

    rounds = check_count("rounds", rounds)
    local_steps = check_count("local_steps", choose("local_steps", local_steps, 1))
    n_clients = check_count("n_clients", choose("n_clients", n_clients, 5))
    batch_size = check_count("batch_size", choose("batch_size", batch_size, 64))
    phi = check_number("phi", choose("phi", phi, 0.5), minimum=0, maximum=1, fix="pass a share in [0, 1]")
    linearise = _linearise(kind, linearise, plan, planned.get("linearise", "representative"))
    check_choice("rows", rows, ROW_RULES)
    check_choice("sampling", sampling, SAMPLING_RULES)
    server_steps = check_count("server_steps", server_steps, minimum=0)
    _check_options(kind, linearise, rows, sampling, server_steps)
    micro_batch = choose("micro_batch", micro_batch, None)
    round_time = float("nan")
    if plan is not None:
        if server_steps:
            round_time = _of_rows(plan, "server_steps").round_time_of(kind.name, server_steps=server_steps)
        elif kind.name == "epsl" and linearise in ("mean", "each", "cut") and isinstance(plan, PlanOfRows):
            round_time = plan.round_time_of(kind.name, linearise=linearise)
        else:
            round_time = plan.framework_round_time(kind.name, local_steps=local_steps if kind.averages else 1)
    cuts = _choose_cut(kind, cut, plan, n_clients)
    if (two := isinstance(cuts, list) and kind.u_shaped) and server_steps:
        raise expected("server_steps", "0 with a U-shaped split", server_steps, "leave one of the two out")
    if (defence := check_defence(defence)) is not None:
        if not kind.defends:
            fix = "leave it out, or train sl, sfl, psl or epsl"
            raise expected("defence", "none for this framework", f"{defence} for {kind.name}", fix)
        if isinstance(defence, Quantise) and plan is not None:
            _check_quantised(plan, defence)
    micro_batch = None if micro_batch is None else check_count("micro_batch", micro_batch)
    if micro_batch is not None and kind.micro_batched:
        refused = {
            "linearise='sampled'": kind.name == "epsl" and linearise == "sampled",
            "sampling='global'": sampling == "global",
            "server_steps": server_steps > 0,
            "a U-shaped split": two,
            f"defence={defence}": defence is not None and defence.penalises,
        }
        check_micro_batch(micro_batch, batch_size, framework=kind.name, phi=phi, refused=refused)
    if participation is not None:
        if not isinstance(participation, Participation):
            got = type(participation).__name__
            raise expected("participation", "psl.training.Participation", got, "pass Participation(device_times, …)")
        kind.check_participation(participation)
        participation = participation.for_run(kind.name, plan, n_clients, round_time)
    return TrainingConfig(
        framework=kind.name,
        n_clients=n_clients,
        batch_size=batch_size,
        optimizer=optimizer_factory(optimizer, lr),
        rounds=rounds,
        loss=row_loss(loss),
        metric=check_metric(metric),
        local_steps=local_steps,
        cut=cuts,
        phi=phi,
        linearise=linearise,
        rows=rows,
        sampling=sampling,
        server_steps=server_steps,
        micro_batch=micro_batch,
        partition=check_rule(partition, n_clients),
        participation=participation,
        defence=defence,
        seed=check_count("seed", seed, minimum=0),
        eval_every=check_count("eval_every", eval_every),
        round_time=round_time,
        drawn_time=drawn_time(plan, kind.name, rows, sampling, server_steps),
    )


def _linearise(kind: type[Framework], given: str | None, plan: Plan | None, planned: str) -> str:
    """Return the rule of the last-layer gradients: as given, else the plan's.

    Raises:
        ScenarioError: unknown, or rows are drawn and the plan's round aggregates, or the other way round.
    """
    if given is None:
        return planned
    check_choice("linearise", given, LINEARISE_RULES)
    if plan is not None and kind.name == "epsl" and (given == "sampled") != (planned == "sampled"):
        want, fix = f"the plan's {planned!r}", f"leave it out, or solve a plan: epsl.solve(…, linearise={given!r})"
        if given != "sampled":
            fix = "leave it out, or solve a plan without linearise='sampled'"
        raise expected("linearise", want, repr(given), fix)
    return given


def _check_options(kind: type[Framework], linearise: str, rows: str, sampling: str, server_steps: int) -> None:
    """Refuse options of one framework in another.

    Raises:
        ScenarioError: with the framework that takes the option.
    """
    if rows != "fixed" and (kind.name != "epsl" or linearise != "sampled"):
        fix = "train epsl with linearise='sampled', or leave it out"
        raise expected("rows", "'fixed' where no rows are drawn", repr(rows), fix)
    for name, value, usual in (("sampling", sampling, "own"), ("server_steps", server_steps, 0)):
        if value != usual and kind.name != "psl":
            fix = "train psl, or leave it out"
            raise expected(name, f"{usual!r} for the framework {kind.name!r}", repr(value), fix)


def _of_rows(plan: Any, name: str) -> PlanOfRows:
    """Return a plan that knows the seconds of such a round.

    Raises:
        ScenarioError: it does not.
    """
    if isinstance(plan, PlanOfRows):
        return plan
    raise expected("plan", f"a plan of epsl.solve with {name}=", type(plan).__name__, "leave the plan out")


def drawn_time(
    plan: Plan | None, framework: str, rows: str, sampling: str, server_steps: int
) -> Callable[[np.ndarray], float] | None:
    """Return what tells the seconds of a round from the (N,) rows or samples drawn in it; None if none are drawn."""
    if plan is None:
        return None
    if sampling == "global":
        known = _of_rows(plan, "sampling")
        return lambda drawn: known.round_time_of(framework, samples=drawn, server_steps=server_steps)
    if rows == "adaptive":
        known = _of_rows(plan, "rows")
        return lambda drawn: known.round_time_of(framework, rows=drawn)
    return None


def _check_quantised(plan: Plan, defence: Quantise) -> None:
    """Refuse a plan whose profile counts other bits per activation than the defence sends, by those of gradients."""
    if is_u_shaped(plan):
        raise expected("defence", "none that quantises, with a U-shaped plan", str(defence), "leave one of the two out")
    up, down = plan.profile.act_bits, plan.profile.grad_bits
    for j in range(1, plan.profile.n_units):
        if down[j] > 0 and abs(up[j] / down[j] * 32 / defence.bits - 1) > 1e-6:
            want = f"one for a profile with {defence.bits} bits per activation and 32 per gradient"
            got = f"{32 * up[j] / down[j]:.4g} bits to 32 at cut {j}: its simulated time would be wrong"
            raise expected("plan", want, got, "solve it for defence.profile(profile), or leave plan= out")


def _choose_cut(
    kind: type[Framework], cut: object, plan: Plan | None, n_clients: int
) -> int | str | Cut | list[int | str | Cut] | None:
    """Return the cut or the list of cuts that a framework takes, else the plan's; None if it does not split."""
    if not kind.splits:
        return None
    if kind.u_shaped and (is_u_shaped(plan) or isinstance(cut, list | tuple)):
        return _two_cuts(cut, plan)
    planned = None if plan is None else _planned_cuts(plan)
    if planned is not None and not kind.several_cuts:  # a plan with a cut per client may decide one for all
        planned = planned[:1] if len(set(planned)) == 1 else None
    if cut is None and planned is not None:
        return [*planned] if kind.several_cuts else planned[0]
    chosen = check_cuts(cut, None if kind.pooled else n_clients) if kind.several_cuts else check_cut(cut)
    if plan is not None and planned is not None:
        cuts, names = chosen if isinstance(chosen, list) else [chosen], plan.profile.names
        if len(cuts) != len(planned) or any(c not in (j, names[j]) for c, j in zip(cuts, planned, strict=True)):
            raise _contradiction("cut", planned if kind.several_cuts else planned[0], chosen)
    return chosen


def is_u_shaped(plan: Plan | None) -> bool:
    """Return whether a plan has two cuts, between which the server computes."""
    return plan is not None and plan.scheduler == "epsl" and len(_planned_cuts(plan) or ()) == 2


def _two_cuts(cut: object, plan: Plan | None) -> list[int | str | Cut]:
    """Return the cuts of a U-shaped split: behind the first the server computes, behind the second the client again."""
    planned = None if plan is None else _planned_cuts(plan)
    if plan is not None and not is_u_shaped(plan):
        fix = "leave plan= out, or plan the round with epsl.solve_u_shaped"
        raise expected("plan", "one for a U-shaped split", type(plan).__name__, fix)
    if planned and cut is None:
        return [*planned]
    if not isinstance(cut, list | tuple) or len(cut) != 2:
        fix = "pass cut=(first, second), between which the server computes, or one cut and no U-shaped plan"
        raise expected("cut", "two cuts for a U-shaped split", repr(cut)[:60], fix, CutError)
    chosen = check_cuts(cut)
    if plan and planned and any(c not in (j, plan.profile.names[j]) for c, j in zip(chosen, planned, strict=True)):
        raise _contradiction("cut", planned, chosen)
    return chosen


def _contradiction(name: str, planned: object, got: object) -> PSLError:
    return expected(name, f"the plan's {planned!r}", repr(got), "leave it out, or solve a plan for it")


def _planned_cuts(plan: Plan) -> list[int] | None:
    """Return the numbers of all cuts that a plan decides, one per client or stage boundary; None if it decides none."""
    cut = plan.training_arguments().get("cut")
    if cut is None:
        return None
    return [int(number) for number in (cut if isinstance(cut, list | tuple) else [cut])]


def check_plan_fits(plan: Plan, model: nn.Module, example: Any = None) -> int:
    """Refuse a plan that was solved for another model or other samples, whose simulated time would be wrong.

    Compared are the number of units, the names of the plan's cuts, and what crosses at every cut. As a profile may
    count with any number of bits per element, only the ratios are compared.

    Args:
        plan: its profile is compared.
        model: the model to train.
        example: inputs of the model, with a batch first; None if the model was traced before.

    Returns:
        How many tensors may cross at the cuts that the plan numbers.

    Raises:
        ScenarioError: they differ.
    """
    traced = trace(model, example)
    fix = "solve a plan with this model's profile, or pass its numbers as n_clients=, batch_size=, cut= and so on"
    n_units = plan.profile.n_units
    fitting = [k for k in range(1, 9) if len(traced.places(k)) == n_units + 1]
    if not fitting:
        got = f"one for {n_units} units"
        raise expected("plan", f"one for a model of {len(traced.places()) - 1} units", got, fix)
    places = traced.places(fitting[0])
    cuts = _planned_cuts(plan) or []
    for cut in cuts:
        if cut >= len(places):
            raise expected("plan", f"one whose cuts are in 0..{len(places) - 1}", cut, fix)
        name = plan.profile.names[cut]
        if name != places[cut].name:
            raise expected("plan", f"one whose cut {cut} is {places[cut].name!r}, as in the model", repr(name), fix)
    width: dict[int, float] = {}  # bits per float at each cut
    crossing = [traced.sample_crossing(place) for place in places]
    for j, (floats, others) in enumerate(crossing):
        if floats and plan.profile.act_bits[j]:
            width[j] = (plan.profile.act_bits[j] - others) / floats
    usual = width[max(width)] if width else 0.0  # the output's: it rarely depends on the size of the samples
    wrong = [j for j, found in width.items() if abs(found - usual) > 1e-6 * usual]
    if wrong:
        j = wrong[0]
        want = f"one for a model and samples that send {crossing[j][0]:g} floats at cut {j} ({places[j].name!r})"
        got = f"{plan.profile.act_bits[j]:g} bits there, with {usual:g} bits per float at the last cut"
        raise expected("plan", want, got, fix)
    return fitting[0]
