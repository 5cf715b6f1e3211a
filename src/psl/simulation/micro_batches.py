"""One round of EPSL or EdgeSplit in micro-batches, without barriers between the phases."""

from typing import Any

from psl.simulation.timeline import Recorder
from psl.simulation.transfers import tables_of, transfer


def micro_batch_jobs(plan: Any) -> Recorder:
    """Return the jobs of one round of an `EPSLPlan` with micro-batches.

    A client computes forward through all its micro-batches, and uploads each as soon as it can. The server takes them
    in the plan's order, each forward and backward; each gradient goes down as soon as it can, and the client goes back
    through it once its forward passes are done. With φ = 1 the server waits for micro-batch k of everybody, aggregates
    its gradients, and broadcasts them over all subchannels. Client and server step after their last micro-batch.

    On full duplex uploads and downloads of a client do not meet; on half duplex its subchannels carry them in the
    plan's order. The overheads are those of `psl.simulation.epsl`; each micro-batch pays its own.

    Source: ours [B], for the round of EPSL (arXiv 2303.15991) [R].
    """
    profile, cell, j, slots = plan.profile, plan.cell, plan.cut, plan.phi == 1
    n_clients, n_units, sizes = cell.n_clients, profile.n_units, plan.micro_batch_sizes.tolist()
    n_micro, half = len(sizes), plan.duplex == "half"
    up_rate, down_rate = cell.uplink_rate(plan.assignment, plan.power), cell.downlink_rate(plan.assignment)
    jobs = Recorder()
    everybody = range(n_clients)
    machine = [jobs.resource(f"client {i}") for i in everybody]
    name = "subchannels of client" if half else "uplink of client"
    up_band = [jobs.resource(f"{name} {i}") for i in everybody]
    server = jobs.resource("server")
    down_band = up_band if half or slots else [jobs.resource(f"downlink of client {i}") for i in everybody]
    whole_band = jobs.resource("broadcast") if slots else -1
    client_part = [jobs.stage(machine[i], profile, 0, j) for i in everybody]
    server_part = jobs.stage(server, profile, j, n_units)
    begin = (jobs.add(None, cell.round_overhead),) if cell.round_overhead else ()

    tables = tables_of(profile, cell.client_speed, cell.profiles)
    forwards, uploads = [], []
    for i, (table, speed) in enumerate(tables):
        done, mine = -1, []
        for k, samples in enumerate(sizes):
            label = {"micro_batch": k, "samples": samples}
            seconds, after = samples * table.fwd_cost[j] / speed, (done,) if k else begin
            done = jobs.event("forward", machine[i], seconds, after, stage=client_part[i], **label)
            seconds = transfer(samples * profile.act_bits[j], up_rate[i], cell.message_overhead)
            mine.append(jobs.event("activation", up_band[i], seconds, (done,), (k,), stage=i, **label))
        forwards.append(done)
        uploads.append(mine)

    before_last = max(profile.bwd_cost[-1] - profile.bwd_cost[j] - profile.last_bwd_cost, 0.0)
    behind = profile.fwd_cost[-1] - profile.fwd_cost[j]

    def serve(k: int, arrived: list[int], last: tuple[int, ...], rows: int, back: int) -> int:
        label: dict[str, int] = {"micro_batch": k, "stage": server_part, "samples": rows}
        seconds = rows * behind / cell.server_speed + cell.call_overhead
        ready = jobs.event("forward", server, seconds, (*arrived, *last), (), **label)
        seconds = (back * before_last + rows * profile.last_bwd_cost) / cell.server_speed
        return jobs.event("backward", server, seconds, (ready,), (), **label)

    last: tuple[int, ...] = ()
    gradients: list[list[int]] = [[] for _ in everybody]
    if slots:
        for k, samples in enumerate(sizes):
            last = (serve(k, [mine[k] for mine in uploads], last, n_clients * samples, samples),)
            seconds = transfer(samples * profile.grad_bits[j], cell.broadcast_rate(), cell.message_overhead)
            sent = jobs.event("broadcast", whole_band, seconds, last, (k,), micro_batch=k, samples=samples)
            for i in everybody:
                gradients[i].append(sent)
    else:
        for i in plan.served.order.tolist():
            k = len(gradients[i])
            last = (serve(k, [uploads[i][k]], last, sizes[k], sizes[k]),)
            seconds = transfer(sizes[k] * profile.grad_bits[j], down_rate[i], cell.message_overhead)
            label = {"micro_batch": k, "stage": i, "samples": sizes[k]}
            gradients[i].append(jobs.event("gradient", down_band[i], seconds, last, (k,), **label))
    if half:
        for i in everybody:
            _take_turns(jobs, plan.served.band[0 if slots else i], uploads[i], gradients[i])
    if step := (profile.steps[-1] - profile.steps[j]) / cell.server_speed:
        jobs.event("step", server, step, last, micro_batch=n_micro - 1, stage=server_part)
    for i, (table, speed) in enumerate(tables):
        done = forwards[i]
        for k, samples in enumerate(sizes):
            seconds = samples * table.bwd_cost[j] / speed
            label = {"micro_batch": k, "stage": client_part[i], "samples": samples}
            done = jobs.event("backward", machine[i], seconds, (done, gradients[i][k]), **label)
        if table.steps[j]:
            seconds = float(table.steps[j]) / speed
            jobs.event("step", machine[i], seconds, (done,), micro_batch=n_micro - 1, stage=client_part[i])
    return jobs


def _take_turns(jobs: Recorder, band: tuple[bool, ...], uploads: list[int], gradients: list[int]) -> None:
    """Let a client's subchannels carry uploads (True) and downloads (False) one after the other."""
    ups, downs = iter(uploads), iter(gradients)
    before: int | None = None
    for upward in band:
        job = next(ups) if upward else next(downs)
        if before is not None:
            jobs.require(job, before)
        before = job


def edgesplit_micro_batch_jobs(plan: Any) -> Recorder:
    """Return the jobs of one round of an `EdgeSplitPlan` with micro-batches.

    In each local step a device goes forward through all its micro-batches, its band carries uploads and downloads in
    the plan's order (download k after upload k + lag − 1), its share of the server takes them as they come, and the
    device goes back through them. Device and server step after the last; then the next local step begins. Micro-batches
    are numbered through the round.

    Source: ours [B], for the round of EdgeSplit (arXiv 2403.15815) [R].
    """
    profile, cluster, sizes = plan.profile, plan.cluster, plan.micro_batch_sizes.tolist()
    n_units, n_micro, server_speed = profile.n_units, len(sizes), cluster.server_speed / cluster.n_devices
    jobs = Recorder()
    tables = tables_of(profile, cluster.device_speed, cluster.profiles)
    for i, (name, (table, speed)) in enumerate(zip(cluster.labels, tables, strict=True)):
        j, lag = int(plan.cuts[i]), int(plan.lags[i])
        rate = cluster.spectral_efficiency[i] * plan.bandwidth[i]
        device, band = jobs.resource(name), jobs.resource(f"band of {name}")
        server = jobs.resource(f"server for {name}") if j < n_units else -1
        device_part = jobs.stage(device, profile, 0, j)
        server_part = jobs.stage(server, profile, j, n_units) if j < n_units else -1
        after = (jobs.add(None, cluster.round_overhead),) if cluster.round_overhead else ()
        model = transfer(profile.param_bits[j], rate, cluster.message_overhead)
        after = (jobs.event("model", band, model, after, micro_batch=-1, stage=i),)
        for step in range(plan.local_steps):
            uploads, gradients, done, last = [], [], after, after
            for k, samples in enumerate(sizes):
                label = {"micro_batch": step * n_micro + k, "samples": samples}
                seconds = samples * table.fwd_cost[j] / speed
                done = (jobs.event("forward", device, seconds, done, (), stage=device_part, **label),)
                if j == n_units:
                    continue
                seconds = transfer(samples * profile.act_bits[j], rate, cluster.message_overhead)
                uploads.append(jobs.event("activation", band, seconds, done, (k,), stage=i, **label))
                behind = samples * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / server_speed
                served = (uploads[-1], *last)
                computed = jobs.event(
                    "forward", server, behind + cluster.call_overhead, served, (), stage=server_part, **label
                )
                behind = samples * (profile.bwd_cost[-1] - profile.bwd_cost[j]) / server_speed
                last = (jobs.event("backward", server, behind, (computed,), (), stage=server_part, **label),)
                seconds = transfer(samples * profile.grad_bits[j], rate, cluster.message_overhead)
                gradients.append(jobs.event("gradient", band, seconds, last, (k,), stage=i, **label))
            turns = [True] * lag
            for k in range(n_micro):
                turns += [False] + [True] * (k + lag < n_micro)
            _take_turns(jobs, tuple(turns) if j < n_units else (), uploads, gradients)
            for k, samples in enumerate(sizes):
                label = {"micro_batch": step * n_micro + k, "samples": samples}
                seconds, ready = samples * table.bwd_cost[j] / speed, tuple(gradients[k : k + 1])
                done = (jobs.event("backward", device, seconds, (*done, *ready), (), stage=device_part, **label),)
            if table.steps[j]:
                label = {"micro_batch": (step + 1) * n_micro - 1, "stage": device_part}
                done = (jobs.event("step", device, table.steps[j] / speed, done, (), **label),)
            after = done
            if j < n_units:
                seconds = (profile.steps[-1] - profile.steps[j]) / server_speed
                label = {"micro_batch": (step + 1) * n_micro - 1, "stage": server_part}
                after += (jobs.event("step", server, seconds, last, (), **label),) if seconds else last
        jobs.event("model", band, model, after, micro_batch=-1, stage=i)
    return jobs
