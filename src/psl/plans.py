"""What all plans have in common: the protocol that simulation and training use, and the check of lower bounds."""

from typing import Any, ClassVar, Protocol, runtime_checkable

from psl.errors import expected
from psl.profiles import Profile

_ROUNDING = 1e-9  # relative; a bound and a round time add up their terms in different orders


@runtime_checkable
class Plan(Protocol):
    """What `psl.simulate`, `psl.train` and `psl.distributed` need of a plan, whichever scheduler made it.

    Attributes:
        scheduler: "epsl", "edgesplit" or "pipeline".
        profile: costs of the model that was planned.
        batch_size: samples of a mini-batch.
        round_time: s, predicted time of one round.
        lower_bound: s, no plan for the same scenario is better; NaN if it was not computed.
    """

    scheduler: ClassVar[str]

    @property
    def profile(self) -> Profile: ...

    @property
    def batch_size(self) -> int: ...

    @property
    def n_clients(self) -> int: ...

    @property
    def round_time(self) -> float: ...

    @property
    def lower_bound(self) -> float: ...

    @property
    def gap(self) -> float:
        """Relative distance from the lower bound; NaN without a bound."""
        ...

    @property
    def exact(self) -> bool:
        """Whether the plan is proven optimal."""
        ...

    def training_arguments(self) -> dict[str, Any]:
        """Return the arguments of `psl.train` that the plan decides, by name; ``cut`` holds numbers of cuts."""
        ...

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        """Return the seconds of one round of a framework in the plan's scenario."""
        ...


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


def meets_bound(value: float, lower_bound: float) -> bool:
    """Tell whether a plan is proven optimal: it is as good as its lower bound, up to sums in another order."""
    return value <= lower_bound * (1 + 1e-12)
