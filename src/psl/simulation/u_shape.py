"""One round of PSL with two cuts: head and tail on the clients, the server between them, barriers where it computes."""

from typing import Any

from psl.simulation.timeline import Recorder
from psl.simulation.transfers import tables_of, transfer


def u_shaped_jobs(plan: Any) -> Recorder:
    """Return the jobs of one round of a `UShapedPlan`.

    Each client computes its head forward and uploads activations. When all have arrived, the server computes forward
    and sends each client its features; the client runs the tail forward and backward and uploads their gradients. When
    all have arrived, the server computes backward and steps; gradients go down, and each client ends with its head's
    backward and its step.

    Source: reconstruction [R] of a PSL round in which the clients keep the last layers; its simulation [B].
    """
    profile, cell, b = plan.profile, plan.cell, plan.batch_size
    (j, k), n_clients, n_units = plan.cuts, cell.n_clients, profile.n_units
    up = cell.uplink_rate(plan.plan.assignment, plan.plan.power)
    down = cell.downlink_rate(plan.plan.assignment)
    jobs = Recorder()
    machine = [jobs.resource(f"client {i}") for i in range(n_clients)]
    band = [jobs.resource(f"subchannels of client {i}", fifo=True) for i in range(n_clients)]
    server = jobs.resource("server")
    head = [jobs.stage(machine[i], profile, 0, j) for i in range(n_clients)]
    tail = [jobs.stage(machine[i], profile, k, n_units) for i in range(n_clients)]
    middle = jobs.stage(server, profile, j, k)
    rows = n_clients * b

    def carried(kind: str, i: int, bits: float, rate: float, after: int) -> int:
        seconds = transfer(b * bits, rate, cell.message_overhead)
        return jobs.event(kind, band[i], seconds, (after,), stage=i, samples=b)

    begin = (jobs.add(None, cell.round_overhead),) if cell.round_overhead else ()
    arrived, tables = [], tables_of(profile, cell.client_speed, cell.profiles)
    for i, (table, speed) in enumerate(tables):
        computed = jobs.event("forward", machine[i], b * table.fwd_cost[j] / speed, begin, stage=head[i], samples=b)
        arrived.append(carried("activation", i, profile.act_bits[j], up[i], computed))
    seconds = rows * (profile.fwd_cost[k] - profile.fwd_cost[j]) / cell.server_speed + cell.call_overhead
    last = jobs.event("forward", server, seconds, arrived, stage=middle, samples=rows)
    returned = []
    for i, (table, speed) in enumerate(tables):
        ready = carried("activation", i, profile.act_bits[k], down[i], last)
        for kind, costs in (("forward", table.fwd_cost), ("backward", table.bwd_cost)):
            seconds = b * (costs[-1] - costs[k]) / speed
            ready = jobs.event(kind, machine[i], seconds, (ready,), stage=tail[i], samples=b)
        returned.append(carried("gradient", i, profile.grad_bits[k], up[i], ready))
    seconds = rows * (profile.bwd_cost[k] - profile.bwd_cost[j]) / cell.server_speed + cell.call_overhead
    last = jobs.event("backward", server, seconds, returned, stage=middle, samples=rows)
    if step := (profile.steps[k] - profile.steps[j]) / cell.server_speed:
        last = jobs.event("step", server, step, (last,), stage=middle)
    for i, (table, speed) in enumerate(tables):
        ready = carried("gradient", i, profile.grad_bits[j], down[i], last)
        done = jobs.event("backward", machine[i], b * table.bwd_cost[j] / speed, (ready,), stage=head[i], samples=b)
        if step := table.steps[j] + table.steps[-1] - table.steps[k]:
            jobs.event("step", machine[i], step / speed, (done,), stage=head[i])
    return jobs
