"""What all plans have in common: the protocol that simulation and training use, and the check of lower bounds."""

import hashlib
import math
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from psl import html
from psl.errors import expected
from psl.profiles import Profile
from psl.records import Record

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


@runtime_checkable
class PlanOfRows(Protocol):
    """A plan that knows the time of other rounds than its own: with drawn rows, more server steps, another rule."""

    def round_time_of(
        self,
        framework: str,
        *,
        rows: np.ndarray | None = None,
        samples: np.ndarray | None = None,
        server_steps: int = 0,
        linearise: str | None = None,
    ) -> float:
        """Return the seconds of one round of a framework.

        Args:
            framework: its name.
            rows: (N,) rows of each client that the server went back through.
            samples: (N,) samples of each client's mini-batch.
            server_steps: of the server on resampled activations.
            linearise: the rule of "epsl", if it is not the plan's.
        """
        ...


def held_bound(
    name: str, lower_bound: float, proven_for: str, scenario: tuple[Any, ...], value: float
) -> dict[str, Any]:
    """Return the fields ``lower_bound`` and ``proven_for`` of a plan: its bound, if it is one of the plan's scenario.

    A copy with another scenario (`dataclasses.replace`) or an edited file has no bound: the old one holds no longer.

    Args:
        name: of the plan's class, for the message.
        lower_bound: s, or NaN for none.
        proven_for: what the bound was computed for, as this function returned it; "" for a bound of this scenario.
        scenario: all that the bound depends on.
        value: s, what the bound is a bound of.

    Raises:
        ScenarioError: the bound is no number, or above the value although it is said to be of this scenario.
    """
    fix = "solve again, or pass lower_bound=nan"
    try:
        bound = float(lower_bound)
    except (TypeError, ValueError) as cause:
        raise expected(f"{name}.lower_bound", "seconds, or NaN for none", repr(lower_bound)[:80], fix) from cause
    here = "" if math.isnan(bound) else _digest(scenario)
    if not here or proven_for not in ("", here):
        return {"lower_bound": math.nan, "proven_for": ""}
    if bound > value * (1 + _ROUNDING):
        want = f"at most the plan's own round time, {value:.9g} s"
        raise expected(f"{name}.lower_bound", want, f"{bound:.9g} s, the bound of another scenario", fix)
    # A bound that equals the value but for rounding is the value.
    return {"lower_bound": min(bound, value), "proven_for": here}


def _digest(value: Any) -> str:
    """Return a hash of records, arrays, numbers and text, the same after a JSON round trip."""
    seen: dict[int, bytes] = {}  # very many devices may share few profiles

    def encoded(part: Any) -> bytes:
        if isinstance(part, Record):
            if id(part) not in seen:
                seen[id(part)] = hashlib.sha256(encoded(part._values())).digest()
            return seen[id(part)]
        if isinstance(part, np.ndarray):
            return f"{part.dtype}{part.shape}".encode() + part.tobytes()
        if isinstance(part, dict):
            return b"{" + b",".join(str(key).encode() + b":" + encoded(entry) for key, entry in part.items()) + b"}"
        if isinstance(part, list | tuple):
            return b"[" + b",".join(map(encoded, part)) + b"]"
        return repr(part).encode()

    return hashlib.sha256(encoded(value)).hexdigest()[:16]


def meets_bound(value: float, lower_bound: float) -> bool:
    """Tell whether a plan is proven optimal: it is as good as its lower bound, up to sums in another order."""
    return value <= lower_bound * (1 + 1e-12)


def gap_to_bound(value: float, lower_bound: float) -> float:
    """Return the most by which a plan can be longer than the optimum, value / lower_bound − 1; NaN without a bound."""
    if lower_bound == value == 0:
        return 0.0  # a round of no time is optimal
    return max(value / lower_bound - 1.0, 0.0) if lower_bound > 0 else math.nan


class Bounded:
    """Mixin of plans with a lower bound: how far they may be from the optimum."""

    round_time: float
    lower_bound: float

    @property
    def _minimised(self) -> float:
        return self.round_time

    @property
    def gap(self) -> float:
        """Upper bound on the relative distance from the optimum, objective / lower_bound − 1; NaN without one."""
        return gap_to_bound(self._minimised, self.lower_bound)

    @property
    def exact(self) -> bool:
        """Whether the plan is proven optimal: it is as good as its lower bound."""
        return meets_bound(self._minimised, self.lower_bound)


def facts_table(plan: Plan, title: str, facts: dict[str, Any], bounds: str = "round") -> str:
    """Return the main facts of a plan as HTML: its own, then what all plans have.

    Args:
        plan: the plan.
        title: above the table.
        facts: what it decides, by name.
        bounds: of what the lower bound is a bound.
    """
    proof = {
        "round": html.number(plan.round_time, "s"),
        f"lower bound of the {bounds}": html.number(plan.lower_bound, "s"),
        "gap": html.percent(plan.gap),
        "proven optimal": html.number(plan.exact),
    }
    if math.isnan(plan.lower_bound):
        proof |= {f"lower bound of the {bounds}": "not computed", "gap": "–"}
    shown = {**facts, **proof}
    return html.table(title, list(shown), [list(shown.values())])
