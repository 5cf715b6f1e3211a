"""Checks of what `solve`, `latency` and a plan are given. What they return needs no second check."""

import numpy as np
from numpy.typing import ArrayLike

from psl.errors import check_array, check_choice, check_count, check_number, expected
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.schedulers.checks import check_own_profiles, check_scenario, check_speeds

#: "representative" aggregates last-layer gradients, "sampled" draws rows.
RULES = ("representative", "sampled")
_ROUNDING = 1e-9  # relative; a limit may be missed by so much


def check_profile(profile: Profile, cell: WirelessCell) -> None:
    """Raise `ScenarioError` unless both are of their class, and the cell's speeds and own profiles fit the profile."""
    check_scenario(profile, "cell", cell, WirelessCell, "make one: WirelessCell(...) or WirelessCell.sample()")
    measured = cell.profiles or (None,) * cell.n_clients
    check_own_profiles(profile, measured, lambda i: f"WirelessCell.profiles[{i}]")
    by_speed = [speed for speed, own in zip(cell.client_speed, measured, strict=True) if own is None]
    fix = "WirelessCell(client_speed=[... relative ...], server_speed=...)"
    check_speeds(profile, "cell", [cell.server_speed, *by_speed], fix)


def check_batch(batch_size: int, phi: float) -> tuple[int, float]:
    """Return the checked mini-batch size b and share φ."""
    batch_size = check_count("batch_size", batch_size, fix="give the samples per client and round, at least 1")
    phi = check_number(
        "phi", phi, minimum=0, maximum=1, fix="φ is the share of slots whose gradients are aggregated, 0 to 1"
    )
    return batch_size, phi


def check_linearise(linearise: str) -> str:
    """Return what a round does with last-layer gradients: a key of `RULES`."""
    fix = "the other readings of psl.train take the time of 'representative'"
    return check_choice("linearise", linearise, RULES, fix)


def check_micro_batched(phi: float, linearise: str) -> None:
    """Raise `ScenarioError` for what micro-batches are not modelled with."""
    if 0 < phi < 1:
        fix = "give phi=0 (PSL) or phi=1, or micro_batches=None"
        got = f"{phi:g}: the aggregated slots would wait for all clients, the others for none, in one server queue"
        raise expected("phi", "0 or 1 with micro-batches", got, fix)
    if linearise == "sampled":
        fix = "give linearise='representative', or micro_batches=None"
        got = "'sampled', which draws rows from the losses of the whole mini-batch"
        raise expected("linearise", "'representative' with micro-batches", got, fix)


def check_cut(profile: Profile, cut: int | str) -> int:
    """Return the number of a cut a plan may use, 1..L-1, given by number or name."""
    index = profile.cut_index(cut)
    if not 1 <= index <= profile.n_units - 1:
        want = f"1..{profile.n_units - 1}, so that raw data stay on the clients and the last layer on the server"
        raise expected("cut", want, f"{index} ({profile.names[index]!r})", "choose a cut in between")
    return index


def check_assignment(cell: WirelessCell, assignment: ArrayLike) -> np.ndarray:
    """Return (K,) client numbers after checking that they exist and that every client holds a subchannel."""
    fix = f"give the client, 0..{cell.n_clients - 1}, of each of the {cell.n_subchannels} subchannels"
    values = check_array("assignment", assignment, shape=(cell.n_subchannels,), fix=fix)
    wrong = np.flatnonzero((values < 0) | (values >= cell.n_clients) | (values != np.floor(values)))
    if wrong.size:
        got = f"{values[wrong[0]]:g} for subchannel {wrong[0]}"
        raise expected("assignment", f"whole client numbers 0..{cell.n_clients - 1}", got, fix)
    client = values.astype(int)
    idle = np.flatnonzero(np.bincount(client, minlength=cell.n_clients) == 0)
    if idle.size:
        want, got = "at least one subchannel for every client", f"none for client {idle[0]}"
        raise expected("assignment", want, got, "every client sends each round: assign it a subchannel")
    client.setflags(write=False)
    return client


def check_power(cell: WirelessCell, assignment: np.ndarray, power: ArrayLike) -> np.ndarray:
    """Return (K,) power densities after checking them against the limits of the clients and the cell."""
    fix = "give W/Hz per subchannel within the cell's limits"
    density = check_array("power", power, shape=(cell.n_subchannels,), minimum=0, fix=fix)
    spent = np.bincount(assignment, density * cell.bandwidth, cell.n_clients)
    over = np.flatnonzero(spent > cell.client_power * (1 + _ROUNDING))
    if over.size:
        i = int(over[0])
        raise expected("power", f"at most {cell.client_power[i]:.6g} W of client {i}", f"{spent[i]:.6g} W", fix)
    if spent.sum() > cell.total_power * (1 + _ROUNDING):
        raise expected("power", f"at most {cell.total_power:.6g} W in total", f"{spent.sum():.6g} W", fix)
    return density
