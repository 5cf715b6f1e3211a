"""What EdgeSplit refuses: scenarios that do not go together, cuts and bandwidths out of range, too little memory."""

import numpy as np
from numpy.typing import ArrayLike

from psl.errors import InfeasibleError, PSLError, check_array, check_count, expected
from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds

_ROUNDING = 1e-9  # relative; bandwidths that exceed the band by no more are taken to fill it
_WHOLE = 1e-6  # blocks; bandwidths this close to whole blocks are whole blocks, as Hz carry rounding errors


def check_profile(profile: Profile, cluster: EdgeCluster) -> None:
    """Raise `ScenarioError` unless both are what they are called, and speeds and own profiles go with the profile."""
    check_scenario(profile, "cluster", cluster, EdgeCluster, "make one: EdgeCluster(...) or EdgeCluster.sample()")
    check_own_profiles(profile, cluster.profiles or (), lambda i: f"EdgeCluster.profiles[{i}]")
    by_speed = np.array([own is None for own in cluster.profiles or (None,) * cluster.n_devices])
    fix = "EdgeCluster(device_speed=[... relative ...], server_speed=...)"
    check_speeds(profile, "cluster", np.append(cluster.device_speed[by_speed], cluster.server_speed), fix)


def check_min_cut(profile: Profile, min_cut: ArrayLike, n_devices: int) -> int | np.ndarray:
    """Return the shallowest cut allowed, 1..L, one for all or (N,) one per device; given by number or name."""
    if np.ndim(min_cut):
        entries = np.asarray(min_cut, dtype=object)
        if entries.shape != (n_devices,):
            fix = "give one floor for all, or one per device"
            raise expected("min_cut", f"{n_devices} floors, one per device", f"shape {entries.shape}", fix)
        floors = np.array([check_min_cut(profile, entry, 1) for entry in entries], dtype=int)
        floors.setflags(write=False)
        return floors
    number = profile.cut_index(min_cut) if isinstance(min_cut, str) else min_cut
    number = check_count("min_cut", number, fix="give the shallowest cut allowed; 1 keeps raw data at home")
    if number > profile.n_units:
        raise expected("min_cut", f"at most {profile.n_units}, the output", f"{number}", "see profile.names")
    return number


def check_cuts(profile: Profile, cluster: EdgeCluster, cuts: ArrayLike) -> np.ndarray:
    """Return (N,) numbers of cuts 1..L given by number or name, one for all or one per device, in any sequence."""
    fix = f"give a cut 1..{profile.n_units}, by number or name, for each of the {cluster.n_devices} devices"
    if getattr(getattr(cuts, "dtype", None), "kind", "O") not in "biuf":  # may have names: not an array of numbers
        entries = np.asarray(cuts, dtype=object)
        if any(isinstance(cut, str) for cut in entries.flat):
            cuts = np.reshape([profile.cut_index(cut) for cut in entries.flat], entries.shape)
    values = check_array("cuts", cuts, shape=(cluster.n_devices,), fix=fix)
    wrong = np.flatnonzero((values < 1) | (values > profile.n_units) | (values != np.floor(values)))
    if wrong.size:
        got = f"{values[wrong[0]]:g} for device {cluster.describe(int(wrong[0]))}"
        raise expected("cuts", f"whole numbers 1..{profile.n_units}", got, fix)
    numbers = values.astype(int)
    numbers.setflags(write=False)
    return numbers


def check_bandwidth(cluster: EdgeCluster, bandwidth: ArrayLike) -> np.ndarray:
    """Return (N,) Hz after checking that they fit in the band and, with resource blocks, are whole blocks."""
    total, block = cluster.bandwidth, cluster.resource_block
    fix = f"share {total:g} Hz among {cluster.n_devices} devices"
    values = check_array("bandwidth", bandwidth, shape=(cluster.n_devices,), minimum=0, fix=fix)
    if values.sum() > total * (1 + _ROUNDING):
        raise expected("bandwidth", f"at most {total:.9g} Hz together", f"{values.sum():.9g} Hz", fix)
    if block is not None:
        odd = np.flatnonzero(np.abs(values / block - np.rint(values / block)) > _WHOLE)
        if odd.size:
            got = f"{values[odd[0]]:g} Hz for device {cluster.describe(int(odd[0]))}"
            raise expected("bandwidth", f"whole blocks of {block:g} Hz", got, fix)
    return values


def check_blocks(cluster: EdgeCluster) -> None:
    """Raise `InfeasibleError` if the band has fewer resource blocks than there are devices."""
    if cluster.resource_block is not None and cluster.n_blocks < cluster.n_devices:
        want = f"at least one block for each of {cluster.n_devices} devices"
        got = f"{cluster.n_blocks} blocks of {cluster.resource_block:g} Hz in {cluster.bandwidth:g} Hz"
        fix = "use narrower blocks, more bandwidth or fewer devices"
        raise expected("EdgeCluster.resource_block", want, got, fix, InfeasibleError)


def deepest_cuts(profile: Profile, cluster: EdgeCluster, batch_size: int) -> np.ndarray:
    """Return (N,) the deepest cut that each device holds in memory; shallower ones need no more."""
    return np.searchsorted(profile.training_memory(batch_size), cluster.device_memory, side="right") - 1


def does_not_fit(
    profile: Profile, cluster: EdgeCluster, batch_size: int, device: int, cut: int, why: str, *instead: str
) -> PSLError:
    """Return (not raise) the error of a device without the memory that a cut needs; `instead` is advice."""
    need, have = profile.training_memory(batch_size)[cut], cluster.device_memory[device]
    if profile.training_memory(1)[cut] <= have:
        instead = ("a smaller batch_size", *instead)
    use = f"use {' or '.join(instead)}, or " if instead else ""
    want = f"memory of at least {need:.6g} bytes for cut {cut} ({profile.names[cut]!r}), {why}"
    fix = f"{use}leave the device out"
    return expected(f"device {cluster.describe(device)}", want, f"{have:.6g} bytes", fix, InfeasibleError)
