"""One round of EPSL: clients in parallel, the server between them, barriers where it needs everybody."""

from typing import Any

from psl.gradient_aggregation import aggregated_rows, sampled_rows, server_rows
from psl.simulation.micro_batches import micro_batch_jobs
from psl.simulation.timeline import Recorder
from psl.simulation.transfers import tables_of, transfer


def epsl_jobs(plan: Any) -> Recorder:
    """Return the jobs of one round of an `EPSLPlan`; in micro-batches they are those of `micro_batch_jobs`.

    Each client computes forward and uploads its activations over its own subchannels. When all have arrived, the server
    computes forward, then backward, and steps. It broadcasts the aggregated gradients over all subchannels, then sends
    each client the others over the client's own. Each client ends with its backward and its step.

    If rows are drawn, the server computes these forward once more; nothing is broadcast, and each client gets and goes
    back through its own drawn rows. What a round takes whatever it carries comes before everything; what a message
    takes besides its bits occupies the subchannels it travels on.

    Source: EPSL (arXiv 2303.15991): the round [P], its costs [R]; its simulation [B].
    """
    if plan.micro_batches is not None:
        return micro_batch_jobs(plan)
    profile, cell, j, b = plan.profile, plan.cell, plan.cut, plan.batch_size
    n_clients, n_units = cell.n_clients, profile.n_units
    sampled = plan.linearise == "sampled"
    n_a = 0 if sampled else aggregated_rows(plan.phi, b)
    back = sampled_rows(plan.phi, b, n_clients).tolist() if sampled else [b] * n_clients
    up, down = cell.uplink_rate(plan.assignment, plan.power), cell.downlink_rate(plan.assignment)
    common = cell.broadcast_rate()

    jobs = Recorder()
    machine = [jobs.resource(f"client {i}") for i in range(n_clients)]
    band = [jobs.resource(f"subchannels of client {i}", fifo=True) for i in range(n_clients)]
    whole_band = jobs.resource("all subchannels", fifo=True)
    server = jobs.resource("server")
    client_part = [jobs.stage(machine[i], profile, 0, j) for i in range(n_clients)]
    server_part = jobs.stage(server, profile, j, n_units)

    begin = (jobs.add(None, cell.round_overhead),) if cell.round_overhead else ()
    arrived, tables = [], tables_of(profile, cell.client_speed, cell.profiles)
    for i, (table, speed) in enumerate(tables):
        seconds = b * table.fwd_cost[j] / speed
        computed = jobs.event("forward", machine[i], seconds, begin, stage=client_part[i], samples=b)
        seconds = transfer(b * profile.act_bits[j], up[i], cell.message_overhead)
        arrived.append(jobs.event("activation", band[i], seconds, (computed,), stage=i, samples=b))
    rows = n_clients * b
    forward = rows * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / cell.server_speed + cell.call_overhead
    last = jobs.event("forward", server, forward, arrived, stage=server_part, samples=rows)
    # All rows go back through the last layer. Aggregated slots are then one row for all clients.
    before_last = max(profile.bwd_cost[-1] - profile.bwd_cost[j] - profile.last_bwd_cost, 0.0)
    through = sum(back) if sampled else server_rows(plan.phi, b, n_clients)
    if sampled and through < rows:
        rows = through
        forward = rows * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / cell.server_speed
        last = jobs.event("forward", server, forward, (last,), stage=server_part, samples=rows)
    backward = (through * before_last + rows * profile.last_bwd_cost) / cell.server_speed
    last = jobs.event("backward", server, backward, (last,), stage=server_part, samples=rows)
    if step := (profile.steps[-1] - profile.steps[j]) / cell.server_speed:
        last = jobs.event("step", server, step, (last,), stage=server_part)
    if n_a > 0:
        seconds = transfer(n_a * profile.grad_bits[j], common, cell.message_overhead)
        last = jobs.event("broadcast", whole_band, seconds, (last,), samples=n_a)
    for i, (table, speed) in enumerate(tables):
        ready = last
        if back[i] > n_a:
            seconds = transfer((back[i] - n_a) * profile.grad_bits[j], down[i], cell.message_overhead)
            ready = jobs.event("gradient", band[i], seconds, (last,), stage=i, samples=back[i] - n_a)
        seconds = back[i] * table.bwd_cost[j] / speed
        done = jobs.event("backward", machine[i], seconds, (ready,), stage=client_part[i], samples=b)
        if table.steps[j]:
            jobs.event("step", machine[i], float(table.steps[j]) / speed, (done,), stage=client_part[i])
    return jobs
