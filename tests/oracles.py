"""Independent answers to compare the schedulers with: brute force and CVXPY. No code shared with `psl.schedulers`."""

import itertools
import math
import warnings

import cvxpy as cp
import numpy as np


def least_total_power(deadline, compute, bits, snr, bandwidth, owner):
    """Return (N, C) least power of each client by sorted water-filling, for N assignments with N deadlines.

    Args:
        deadline: (N,); compute: (C,); snr: (C, M); bandwidth: (M,); owner: (N, M).
    """
    n_clients = len(compute)
    order = np.argsort(-snr, axis=1)  # (C, M)
    power = np.empty((len(owner), n_clients))
    for i in range(n_clients):
        gain, width = snr[i, order[i]], bandwidth[order[i]]
        held = (owner[:, order[i]] == i).astype(float)  # (N, M), best first
        rate = bits / (deadline - compute[i])
        wide = np.cumsum(held * width, axis=1)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            level = (rate[:, None] - np.cumsum(held * width * np.log2(gain), axis=1)) / wide  # with the first n in use
            useful = (held > 0) & (level + np.log2(gain) > 0)
            last = np.where(useful.any(axis=1), useful.shape[1] - 1 - np.argmax(useful[:, ::-1], axis=1), 0)
            chosen = level[np.arange(len(owner)), last]
            density = np.maximum(np.exp2(chosen)[:, None] - 1 / gain, 0.0) * held
        power[:, i] = np.where(rate > 0, (density * width).sum(axis=1), 0.0)
    return power


def uplink_deadlines(compute, bits, snr, bandwidth, limit, total, owner, steps=70):
    """Return (N,) smallest uplink deadlines of N assignments, by bisection."""
    if bits == 0:
        return np.full(len(owner), compute.max())
    n = len(owner)

    def feasible(deadline):
        with np.errstate(over="ignore", invalid="ignore"):
            power = least_total_power(deadline, compute, bits, snr, bandwidth, owner)
        return (power <= limit).all(axis=1) & (power.sum(axis=1) <= total)

    low = np.full(n, compute.max())
    gap = np.full(n, 1e-9)
    while not (ok := feasible(low + gap)).all():
        gap[~ok] *= 4
    high = low + gap
    for _ in range(steps):
        middle = 0.5 * (low + high)
        ok = feasible(np.maximum(middle, low + 1e-300))
        low, high = np.where(ok, low, middle), np.where(ok, middle, high)
    return high


def all_assignments(n_clients, n_subchannels):
    """Return (N, M) every assignment in which each client holds at least one subchannel."""
    owner = np.array(list(itertools.product(range(n_clients), repeat=n_subchannels)))
    return owner[[len(set(row)) == n_clients for row in owner.tolist()]]


def exhaustive(profile, cell, batch_size, phi, drawn=False):
    """Return (optimal round time, cut, assignment) by trying every cut and assignment with optimal power.

    With `drawn` rows are drawn in place of aggregation: as many, at least one per client, the first clients get more.
    """
    b, n_clients = batch_size, len(cell.client_speed)
    n_a = math.ceil(phi * b - 1e-9)
    back = np.full(n_clients, b)
    if drawn:
        total = max(n_a + n_clients * (b - n_a), n_clients)
        back = np.array([total // n_clients + (1 if i < total % n_clients else 0) for i in range(n_clients)])
        n_a = 0
    snr = cell.uplink_gain / cell.noise_psd
    down_rate = cell.bandwidth * np.log2(1 + cell.downlink_psd * snr)
    owner = all_assignments(n_clients, len(cell.bandwidth))
    down = np.stack([((owner == i) * down_rate[i]).sum(axis=1) for i in range(n_clients)], axis=1)  # (N, C)
    best = (np.inf, None, None)
    for j in range(1, len(profile.names) - 1):
        forward, backward = profile.fwd_cost, profile.bwd_cost
        rest = max(backward[-1] - backward[j] - profile.last_bwd_cost, 0)
        server = n_clients * b * (forward[-1] - forward[j])
        if drawn and back.sum() < n_clients * b:
            server += back.sum() * (forward[-1] - forward[j] + rest + profile.last_bwd_cost)
        else:
            server += (n_a + n_clients * (b - n_a)) * rest + n_clients * b * profile.last_bwd_cost
        fixed = server / cell.server_speed + n_a * profile.grad_bits[j] / down_rate.sum(axis=1).min()
        messages = (profile.act_bits[j] > 0) * 1
        if profile.grad_bits[j] > 0:
            messages += 1 * (n_a > 0) + 1 * (back.max() > n_a)
        fixed += cell.round_overhead + messages * cell.message_overhead
        unicast = (back - n_a) * profile.grad_bits[j] / down + back * backward[j] / cell.client_speed
        uplink = uplink_deadlines(
            b * forward[j] / cell.client_speed, b * profile.act_bits[j], snr, cell.bandwidth, cell.client_power,
            cell.total_power, owner,
        )  # fmt: skip
        time = uplink + unicast.max(axis=1) + fixed
        n = int(np.argmin(time))
        if time[n] < best[0]:
            best = (float(time[n]), j, owner[n])
    return best


def cvxpy_deadline(compute, bits, snr, bandwidth, limit, total, owner):
    """Return the smallest uplink deadline of one assignment from CVXPY, in the powers (`log1p`).

    In rate variables (`exp`) the same problem came out up to 7e-4 wrong: do not rewrite it so.
    """
    n_clients, n_subchannels = snr.shape
    own = snr[owner, np.arange(n_subchannels)]
    even = np.minimum(limit, total / n_clients) / np.bincount(owner, bandwidth)
    rates = np.bincount(owner, bandwidth * np.log2(1 + even[owner] * own))
    unit = bits / rates.min()  # s; keeps the solver's numbers near 1
    share = cp.Variable(n_subchannels, nonneg=True)  # of the total power on each subchannel
    deadline = cp.Variable()
    constraints = [cp.sum(share) <= 1]
    for i in range(n_clients):
        held = np.flatnonzero(owner == i)
        scale = total * own[held] / bandwidth[held]
        rate = cp.sum(cp.multiply(bandwidth[held] / bits * unit / np.log(2), cp.log1p(cp.multiply(scale, share[held]))))
        constraints.append(rate >= cp.inv_pos(deadline - compute[i] / unit))
        constraints.append(cp.sum(share[held]) <= limit[i] / total)
    problem = cp.Problem(cp.Minimize(deadline), constraints)
    with warnings.catch_warnings():
        # At its last digits Clarabel sometimes doubts itself; callers compare at 1e-5.
        warnings.filterwarnings("ignore", message="Solution may be inaccurate")
        problem.solve(solver=cp.CLARABEL)
    return float(deadline.value) * unit, share.value * total / bandwidth
