"""Devices that are known by a measured profile of their own instead of a speed."""

from psl.errors import expected
from psl.profiles import Profile


def check_profiles(field: str, profiles, n_devices: int, device: str) -> tuple[Profile | None, ...]:
    """Return one measured profile or None per device.

    Args:
        field: what is checked, for the message, for example ``"EdgeCluster.profiles"``.
        profiles: list or tuple.
        n_devices: its length.
        device: what the devices are called.

    Raises:
        ScenarioError: the length is another, or an entry is no measured profile.
    """
    fix = f"give one Profile.measured(...) per {device}, or None for a {device} known by its speed"
    if not isinstance(profiles, list | tuple) or len(profiles) != n_devices:
        got = f"{len(profiles)} entries" if isinstance(profiles, list | tuple) else type(profiles).__name__
        raise expected(field, f"a tuple of {n_devices} entries", got, fix)
    for i, own in enumerate(profiles):
        check_measured(f"{field}[{i}]", own, fix)
    return tuple(profiles)


def check_measured(what: str, own, fix: str) -> Profile | None:
    """Return a profile measured in seconds, or None; raises `ScenarioError` for anything else."""
    if own is not None and not (isinstance(own, Profile) and own.unit == "s"):
        got = f"a profile in {own.unit}" if isinstance(own, Profile) else type(own).__name__
        raise expected(what, "a profile measured in seconds, or None", got, fix)
    return own
