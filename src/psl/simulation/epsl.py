"""One round of EPSL: clients in parallel, the server between them, barriers where it needs everybody."""

import numpy as np

from psl.aggregation import aggregated_rows
from psl.simulation.timeline import Recorder


def epsl_jobs(plan) -> Recorder:
    """Return the jobs of one round of a plan of `epsl.solve`.

    Each client computes forward and uploads over its own subchannels; when all have arrived, the server computes
    forward, then backward; aggregated gradients are broadcast over all subchannels, the others then sent to each
    client over its own; each client ends with its backward.

    Source: EPSL (arXiv 2303.15991): the round [P], its costs [R]; its simulation [B].
    """
    profile, cell, j, b = plan.profile, plan.cell, plan.cut, plan.batch_size
    n_clients, n_units = cell.n_clients, profile.n_units
    n_a = aggregated_rows(plan.phi, b)
    subchannel = np.arange(cell.n_subchannels)
    snr = cell.uplink_gain[plan.assignment, subchannel] / cell.noise_psd  # (M,) per W/Hz, each at its owner
    up = np.bincount(plan.assignment, cell.bandwidth * np.log1p(plan.power * snr) / np.log(2), n_clients)
    down = np.bincount(plan.assignment, cell.bandwidth * np.log1p(cell.downlink_psd * snr) / np.log(2), n_clients)
    everywhere = cell.bandwidth * np.log2(1 + cell.downlink_psd * cell.uplink_gain / cell.noise_psd)  # (C, M)
    common = everywhere.sum(axis=1).min()

    jobs = Recorder()
    machine = [jobs.resource(f"client {i}") for i in range(n_clients)]
    band = [jobs.resource(f"subchannels of client {i}", fifo=True) for i in range(n_clients)]
    whole_band = jobs.resource("all subchannels", fifo=True)
    server = jobs.resource("server")
    part = [jobs.stage(machine[i], profile, 0, j) for i in range(n_clients)]
    rest = jobs.stage(server, profile, j, n_units)

    arrived, tables = [], []
    for i in range(n_clients):
        own = None if cell.profiles is None else cell.profiles[i]
        table, speed = (profile, cell.client_speed[i]) if own is None else (own, 1.0)
        tables.append((table, speed))
        computed = jobs.event("forward", machine[i], b * table.fwd_cost[j] / speed, stage=part[i], samples=b)
        seconds = transfer(b * profile.act_bits[j], up[i])
        arrived.append(jobs.event("activation", band[i], seconds, (computed,), stage=i, samples=b))
    rows = n_clients * b
    forward = rows * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / cell.server_speed
    last = jobs.event("forward", server, forward, arrived, stage=rest, samples=rows)
    # All rows go back through the last layer, and fewer through the rest: n_A stand for C n_A.
    kept = n_a + n_clients * (b - n_a)
    before_last = max(profile.bwd_cost[-1] - profile.bwd_cost[j] - profile.last_bwd_cost, 0.0)
    backward = (kept * before_last + rows * profile.last_bwd_cost) / cell.server_speed
    last = jobs.event("backward", server, backward, (last,), stage=rest, samples=rows)
    if n_a > 0:
        seconds = transfer(n_a * profile.grad_bits[j], common)
        last = jobs.event("broadcast", whole_band, seconds, (last,), samples=n_a)
    for i, (table, speed) in enumerate(tables):
        ready = last
        if b > n_a:
            seconds = transfer((b - n_a) * profile.grad_bits[j], down[i])
            ready = jobs.event("gradient", band[i], seconds, (last,), stage=i, samples=b - n_a)
        jobs.event("backward", machine[i], b * table.bwd_cost[j] / speed, (ready,), stage=part[i], samples=b)
    return jobs


def transfer(bits: float, rate: float) -> float:
    """Return the seconds that bits take at a rate; nothing to send takes no time, no rate for ever."""
    if bits == 0:
        return 0.0
    return bits / rate if rate > 0 else float("inf")
