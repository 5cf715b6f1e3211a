"""What a plan says of the optimum must be possible."""

from psl.errors import expected

_ROUNDING = 1e-9  # relative


def check_lower_bound(name: str, lower_bound: float, round_time: float) -> float:
    """Return the bound of a plan as a float; refuse one that the plan itself beats. NaN is no bound.

    Args:
        name: of the plan's class, for the message.
        lower_bound: s.
        round_time: of the plan, s.

    Raises:
        ScenarioError: the bound is no number, or above the round time: it is of another scenario.
    """
    fix = "solve again, or replace lower_bound=nan too"
    try:
        value = float(lower_bound)
    except (TypeError, ValueError) as cause:
        raise expected(f"{name}.lower_bound", "seconds, or NaN for none", repr(lower_bound)[:80], fix) from cause
    if value > round_time * (1 + _ROUNDING):
        want = f"at most the plan's own round time, {round_time:.9g} s"
        raise expected(f"{name}.lower_bound", want, f"{value:.9g} s, the bound of another scenario", fix)
    return value
