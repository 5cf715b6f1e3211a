"""Independent answers for EdgeSplit: its formulas in plain loops, brute force, CVXPY. Shares no code with it."""

import itertools
import math

import cvxpy as cp
import numpy as np
from scipy.optimize import brentq


def compute_seconds(profile, cluster, i, j, b, h):
    """Return c_i(j)."""
    f, w, n = profile.fwd_cost, profile.bwd_cost, cluster.n_devices
    own = cluster.profiles[i] if cluster.profiles else None
    if own is None:
        device = h * b * (f[j] + w[j]) / cluster.device_speed[i]
    else:
        device = h * b * (own.fwd_cost[j] + own.bwd_cost[j])
    server = h * b * ((f[-1] - f[j]) + (w[-1] - w[j])) / (cluster.server_speed / n)
    messages = 2 if profile.param_bits[j] > 0 else 0
    if j < len(profile.names) - 1:
        messages += h * (int(profile.act_bits[j] > 0) + int(profile.grad_bits[j] > 0))
    return device + server + cluster.round_overhead + messages * cluster.message_overhead


def bits(profile, j, b, h):
    """Return D(j)."""
    last = j == len(profile.names) - 1
    return (0.0 if last else h * b * (profile.act_bits[j] + profile.grad_bits[j])) + 2 * profile.param_bits[j]


def cuts_that_fit(profile, cluster, i, b, min_cut=1):
    """Return the cuts that device i may use."""
    weights = [3 * bits / 8 for bits in profile.param_bits] if profile.param_memory is None else profile.param_memory
    return [
        j
        for j in range(min_cut, len(profile.names))
        if weights[j] + b * profile.act_memory[j] <= cluster.device_memory[i]
    ]


def fixed_cuts(compute, load, total):
    """Return the least T with Σ load / (T − compute) ≤ total, by Brent's method."""
    sends = load > 0
    if not sends.any():
        return compute.max()
    c, q = compute[sends], load[sends]
    top = c.max()
    need = lambda tau: math.fsum(q / (tau + (top - c))) / total - 1  # noqa: E731
    low = high = float(q.sum() / total)
    while need(low) < 0:
        low /= 2
    while need(high) > 0:
        high *= 2
    tau = low if low == high else brentq(need, low, high, xtol=1e-300, rtol=8.9e-16)
    return max(compute.max(), top + tau)


def exhaustive(profile, cluster, b, h, min_cut=1):
    """Return the optimal round time over every vector of cuts, each with optimal bandwidth."""
    devices = range(cluster.n_devices)
    choices = [cuts_that_fit(profile, cluster, i, b, min_cut) for i in devices]
    c = [{j: compute_seconds(profile, cluster, i, j, b, h) for j in choices[i]} for i in devices]
    q = [{j: bits(profile, j, b, h) / cluster.spectral_efficiency[i] for j in choices[i]} for i in devices]
    return min(
        fixed_cuts(
            np.array([c[i][j] for i, j in enumerate(cuts)]),
            np.array([q[i][j] for i, j in enumerate(cuts)]),
            cluster.bandwidth,
        )
        for cuts in itertools.product(*choices)
    )


def exhaustive_blocks(profile, cluster, b, h, n_blocks):
    """Return the optimal round time over every vector of cuts and every way to deal all blocks, at least one each."""
    n, width = cluster.n_devices, cluster.resource_block
    choices = [cuts_that_fit(profile, cluster, i, b) for i in range(n)]
    best = math.inf
    for bars in itertools.combinations(range(1, n_blocks), n - 1):
        counts = np.diff([0, *bars, n_blocks])
        for cuts in itertools.product(*choices):
            times = [
                compute_seconds(profile, cluster, i, j, b, h)
                + bits(profile, j, b, h) / (cluster.spectral_efficiency[i] * counts[i] * width)
                for i, j in enumerate(cuts)
            ]
            best = min(best, max(times))
    return best


def cvxpy_bandwidth(compute, load, total):
    """Return the optimal T for fixed cuts as a convex programme, in units of the loads and their time together."""
    scale = load.sum() / total
    time, pace = cp.Variable(), cp.Variable(len(load), pos=True)  # after the slowest computation; w_i / load_i
    limits = [cp.inv_pos(pace) <= time + (compute.max() - compute) / scale, load / load.sum() @ pace <= 1]
    problem = cp.Problem(cp.Minimize(time), limits)
    problem.solve(solver=cp.CLARABEL)
    return compute.max() + float(time.value) * scale
