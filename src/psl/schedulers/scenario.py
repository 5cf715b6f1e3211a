"""What the schedulers ask of any scenario: seconds per bit, and speeds that go with the profile."""

from collections.abc import Callable, Sequence

import numpy as np

from psl.errors import expected
from psl.profiles import Profile

_FASTEST = 1e6  # times the reference device: nobody is; a larger speed must be meant in FLOP/s


def seconds(bits, rate):
    """Return bits / rate; nothing to send takes no time, even without a rate."""
    bits, rate = np.broadcast_arrays(np.asarray(bits, dtype=float), rate)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(bits > 0, bits / rate, 0.0)


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
    """Raise `ScenarioError` if the profile is in seconds and a speed cannot be relative to its reference device.

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


def _ends(names) -> str:
    first = ", ".join(map(repr, names[:3]))
    return f"{first}, ... {names[-1]!r}" if len(names) > 3 else first
