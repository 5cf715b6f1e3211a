"""What the schedulers ask of any scenario: seconds per bit, and speeds that go with the profile."""

from collections.abc import Callable, Sequence

import numpy as np

from psl.errors import expected
from psl.profiles import Profile

_FASTEST = 1e6  # times the reference device: nobody is; a larger speed must be meant in FLOP/s
_SLOWEST = 1e3  # FLOP/s: where nobody is faster and a sample takes over an hour, speeds must be meant as relative


def seconds(bits, rate):
    """Return bits / rate; nothing to send takes no time, even without a rate."""
    bits, rate = np.broadcast_arrays(np.asarray(bits, dtype=float), rate)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(bits > 0, bits / rate, 0.0)


def check_scenario(profile, what: str, scenario, kind: type, fix: str) -> None:
    """Raise `ScenarioError` unless a scheduler's first two arguments are a profile and the scenario it plans for.

    Args:
        profile: should be a `Profile`.
        what: what the scheduler calls its scenario, for the message.
        scenario: should be a
        kind: its class.
        fix: how to make one.
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
        tables: a device's own profile or None, by number.
        name: from a device's number to what messages call its profile.
    """
    fits = set()  # very many devices may share few profiles
    for i, own in enumerate(tables):
        if own is None or id(own) in fits:
            continue
        if own.names != profile.names:
            raise expected(
                name(i), f"the {len(profile.names)} cuts of the profile, {_ends(profile.names)}",
                f"{len(own.names)} cuts, {_ends(own.names)}", "measure the same model everywhere",
            )  # fmt: skip
        fits.add(id(own))


def check_speeds(profile: Profile, what: str, speeds, fix: str) -> None:
    """Raise `ScenarioError` if speeds are plainly in FLOP/s for a profile in seconds, or relative for one in FLOP.

    Args:
        profile: the profile that is planned with.
        what: the scenario, for the message.
        speeds: of whatever has no measured profile of its own.
        fix: how to give relative speeds.
    """
    fastest = float(np.max(speeds, initial=0.0))
    if profile.unit == "s" and fastest > _FASTEST:
        want = "speeds relative to the reference device, e.g. 1.0, as the profile is in seconds"
        raise expected(what, want, f"{fastest:g}", fix)
    per_sample = float(profile.fwd_cost[-1] + profile.bwd_cost[-1])
    if profile.unit == "FLOP" and 0 < fastest < _SLOWEST and per_sample > 3600 * fastest:
        got = f"{fastest:g} for the fastest, {per_sample / fastest:.3g} s per sample"
        make = "give FLOP/s, e.g. 1e12, or plan with a measured profile (unit 's')"
        raise expected(what, f"speeds in FLOP/s, as the profile counts {per_sample:.3g} FLOP per sample", got, make)


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _ends(names) -> str:
    first = ", ".join(map(repr, names[:3]))
    return f"{first}, ... {names[-1]!r}" if len(names) > 3 else first
