"""What all schedulers need: checks of a profile with its scenario, and the seconds that bits take."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from psl.errors import InfeasibleError, check_count, expected
from psl.profiles import Profile

# Relative speeds are near 1, speeds in FLOP/s are 1e9 or more.
_FASTEST = 1e6  # largest relative speed; beyond it, FLOP/s must be meant
_SLOWEST = 1e3  # FLOP/s; below it, a relative speed must be meant if, in addition, ...
_LONGEST = 3600.0  # s; ... the fastest device would need longer than this for one sample


def seconds(bits: ArrayLike, rate: ArrayLike) -> np.ndarray:
    """Return bits / rate, element by element; nothing to send takes no time, even at a rate of 0."""
    amount, speed = np.broadcast_arrays(np.asarray(bits, dtype=float), rate)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(amount > 0, amount / speed, 0.0)


def check_scenario(profile: Any, what: str, scenario: Any, kind: type, fix: str) -> None:
    """Raise `ScenarioError` unless a scheduler's first two arguments are a profile and the scenario it plans for.

    Args:
        profile: what must be a `Profile`.
        what: what the scheduler calls its scenario, for the message.
        scenario: what must be of class `kind`.
        kind: `WirelessCell`, `EdgeCluster` or `EdgeNetwork`.
        fix: how to make one, for the message.
    """
    if isinstance(profile, kind) and isinstance(scenario, Profile):
        got = f"{kind.__name__} and Profile"
        raise expected(f"profile, {what}", f"a Profile and {_a(kind)}", got, "swap the two arguments")
    if not isinstance(profile, Profile):
        make = "make one: psl.profile(model, example), Profile.measured(...) or Profile.from_table(...)"
        raise expected("profile", "a Profile", type(profile).__name__, make)
    if not isinstance(scenario, kind):
        raise expected(what, _a(kind), type(scenario).__name__, fix)


def check_own_profiles(profile: Profile, tables: Sequence[Profile | None], name: Callable[[int], str]) -> None:
    """Raise `ScenarioError` unless the devices' own profiles are of the model that is planned.

    Args:
        profile: the profile that is planned with.
        tables: own profile of each device, or None.
        name: returns what a message calls the own profile of a device, by its number.
    """
    fits = set()  # very many devices may share few profiles
    for i, own in enumerate(tables):
        if own is None or id(own) in fits:
            continue
        if own.names != profile.names:
            want = f"the {len(profile.names)} cuts of the profile, {_ends(profile.names)}"
            got = f"{len(own.names)} cuts, {_ends(own.names)}"
            raise expected(name(i), want, got, "measure the same model everywhere")
        fits.add(id(own))


def check_min_cut(profile: Profile, min_cut: int | str, deepest: int, why: str) -> int:
    """Return the number of the shallowest cut allowed, given by number or name.

    Args:
        profile: names the cuts.
        min_cut: 1 keeps raw data on the devices.
        deepest: number of the deepest cut that can be reached.
        why: it is the deepest, for the message.

    Raises:
        ScenarioError: no number of at least 1 and no name of a cut.
        InfeasibleError: it is behind the deepest.
    """
    fix = "give the shallowest cut allowed; 1 keeps raw data at home"
    number = profile.cut_index(min_cut) if isinstance(min_cut, str) else min_cut
    number = check_count("min_cut", number, fix=fix)
    if number > deepest:
        want = f"at most {deepest} ({profile.names[deepest]!r}), {why}"
        name = f" ({profile.names[number]!r})" if number <= profile.n_units else ""
        raise expected("min_cut", want, f"{number}{name}", "allow a shallower cut: a larger budget", InfeasibleError)
    return number


def price(value: float, free: float) -> float:
    """Return how many times the optimum without a floor on the cut a plan takes, value / free; NaN if not known.

    A plan with a floor is one of those without, so less than 1 is rounding.
    """
    return max(float(value / free), 1.0) if free > 0 else float("nan")


def priced(value: float, free: float) -> str:
    """Return what a plan's repr says of its price, or nothing."""
    return f", {price(value, free):.4g} × the round without min_cut" if free > 0 else ""


def check_speeds(profile: Profile, what: str, speeds: ArrayLike, fix: str) -> None:
    """Raise `ScenarioError` if speeds are clearly in FLOP/s for a profile in seconds, or relative for one in FLOP.

    Args:
        profile: the profile that is planned with.
        what: what the scheduler calls its scenario, for the message.
        speeds: of all devices and servers that have no measured profile of their own.
        fix: how to give relative speeds, for the message.
    """
    fastest = float(np.max(speeds, initial=0.0))
    if profile.unit == "s" and fastest > _FASTEST:
        want = "speeds relative to the reference device, e.g. 1.0, as the profile is in seconds"
        raise expected(what, want, f"{fastest:g}", fix)
    per_sample = float(profile.fwd_cost[-1] + profile.bwd_cost[-1])
    if profile.unit == "FLOP" and 0 < fastest < _SLOWEST and per_sample > _LONGEST * fastest:
        got = f"{fastest:g} for the fastest, {per_sample / fastest:.3g} s per sample"
        make = "give FLOP/s, e.g. 1e12, or plan with a measured profile (unit 's')"
        raise expected(what, f"speeds in FLOP/s, as the profile counts {per_sample:.3g} FLOP per sample", got, make)


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _ends(names: Sequence[str]) -> str:
    first = ", ".join(map(repr, names[:3]))
    return f"{first}, ... {names[-1]!r}" if len(names) > 3 else first
