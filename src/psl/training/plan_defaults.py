"""What a scheduler's plan decides for training, and what must agree with it."""

from typing import Any

from torch import nn

from psl.errors import PSLError, expected
from psl.models.tracing import trace
from psl.plans import Plan


def check_plan(plan: object) -> None:
    """Refuse what is neither a plan nor None.

    Raises:
        ScenarioError: not a plan.
    """
    if plan is not None and not isinstance(plan, Plan):
        want = "a plan with framework_round_time and the rest of psl.plans.Plan"
        raise expected("plan", want, type(plan).__name__, "pass what a scheduler's solve returns")


def planned_arguments(plan: Plan | None) -> dict[str, Any]:
    """Return the arguments of `psl.train` that a plan decides, by name; none without a plan."""
    return {} if plan is None else plan.training_arguments()


def argument_or_planned(name: str, value: Any, planned: dict[str, Any], otherwise: Any) -> Any:
    """Return an argument, else the plan's, else the library's default.

    Args:
        name: of the argument.
        value: as given, None if it was not.
        planned: from `planned_arguments`.
        otherwise: the default.

    Raises:
        ScenarioError: the argument contradicts the plan, whose simulated time would then be wrong.
    """
    if value is None:
        return planned.get(name, otherwise)
    if name in planned and value != planned[name]:
        raise contradiction(name, planned[name], repr(value))
    return value


def contradiction(name: str, planned: object, got: object) -> PSLError:
    """Return the error of an argument that is not what the plan was solved for."""
    return expected(name, f"the plan's {planned!r}", got, "leave it out, or solve a plan for it")


def planned_cuts(plan: Plan | None) -> list[int] | None:
    """Return the numbers of all cuts that a plan decides, one per client or stage boundary; None without a plan."""
    cut = planned_arguments(plan).get("cut")
    if cut is None:
        return None
    return [int(number) for number in (cut if isinstance(cut, list | tuple) else [cut])]


def is_planned_cut(plan: Plan, number: int, cut: int | str) -> bool:
    """Whether a cut, by number or name, is the plan's cut of this number."""
    return cut in (number, plan.profile.names[number])


def check_plan_fits(plan: Plan, model: nn.Module) -> None:
    """Refuse a plan that was solved for another model, whose simulated time would be wrong.

    Args:
        plan: its number of units and the names of its cuts are compared.
        model: the model to train.

    Raises:
        ScenarioError: they differ.
    """
    names = trace(model).cut_names
    fix = "solve a plan with this model's profile, or pass its numbers as n_clients=, batch_size=, cut= and so on"
    if plan.profile.n_units != len(names) - 1:
        raise expected("plan", f"one of a model of {len(names) - 1} units", plan.profile.n_units, fix)
    for cut in planned_cuts(plan) or []:
        if cut >= len(names):
            raise expected("plan", f"one whose cuts are in 0..{len(names) - 1}", cut, fix)
        name = plan.profile.names[cut]
        if name != names[cut]:
            raise expected("plan", f"one whose cut {cut} is {names[cut]!r}, as in the model", repr(name), fix)
