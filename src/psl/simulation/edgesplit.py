"""One round of EdgeSplit: every device with its own cut, its own band and its own share of the server."""

from typing import Any

from psl.networks.edge_cluster import EdgeCluster
from psl.profiles import Profile
from psl.simulation.micro_batches import edgesplit_micro_batch_jobs
from psl.simulation.timeline import Recorder
from psl.simulation.transfers import tables_of, transfer


def edgesplit_jobs(plan: Any) -> Recorder:
    """Return the jobs of one round of an `EdgeSplitPlan`; in micro-batches of `edgesplit_micro_batch_jobs`.

    Each of the N devices downloads its part of the model, takes H local steps (forward, upload, server forward,
    backward and optimizer step on an N-th of the server, download, backward, optimizer step) and uploads its part.
    Devices share nothing but the moment at which the models are averaged. A device that holds the whole model meets the
    server only for that. What a round takes whatever it carries comes before everything; what a message takes besides
    its bits occupies the device's band.

    Source: EdgeSplit (arXiv 2403.15815): a depth and a band per device [P], the round's costs [R]; its simulation [B].
    """
    if plan.micro_batches is not None:
        return edgesplit_micro_batch_jobs(plan)
    profile: Profile = plan.profile
    cluster: EdgeCluster = plan.cluster
    b: int = plan.batch_size
    n_devices, n_units = cluster.n_devices, profile.n_units
    server_speed = cluster.server_speed / n_devices
    jobs = Recorder()
    tables = tables_of(profile, cluster.device_speed, cluster.profiles)
    for i, (name, (table, speed)) in enumerate(zip(cluster.labels, tables, strict=True)):
        j = int(plan.cuts[i])
        forward, backward = b * table.fwd_cost[j] / speed, b * table.bwd_cost[j] / speed
        rate = cluster.spectral_efficiency[i] * plan.bandwidth[i]
        device, band = jobs.resource(name), jobs.resource(f"band of {name}", fifo=True)
        device_part = jobs.stage(device, profile, 0, j)
        work = [("forward", device, forward, device_part)]  # of a local step, in order
        if j < n_units:
            server = jobs.resource(f"server for {name}")
            server_part = jobs.stage(server, profile, j, n_units)
            up = transfer(b * profile.act_bits[j], rate, cluster.message_overhead)
            down = transfer(b * profile.grad_bits[j], rate, cluster.message_overhead)
            server_forward = b * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / server_speed + cluster.call_overhead
            server_backward = b * (profile.bwd_cost[-1] - profile.bwd_cost[j]) / server_speed
            work += [
                ("activation", band, up, i),
                ("forward", server, server_forward, server_part),
                ("backward", server, server_backward, server_part),
                ("step", server, (profile.steps[-1] - profile.steps[j]) / server_speed, server_part),
                ("gradient", band, down, i),
            ]
        work.append(("backward", device, backward, device_part))
        work.append(("step", device, table.steps[j] / speed, device_part))
        work = [entry for entry in work if entry[0] != "step" or entry[2]]  # most profiles know no time of it
        model = transfer(profile.param_bits[j], rate, cluster.message_overhead)
        begin = (jobs.add(None, cluster.round_overhead),) if cluster.round_overhead else ()
        last = jobs.event("model", band, model, begin, micro_batch=-1, stage=i)
        for step in range(plan.local_steps):
            for kind, resource, seconds, stage in work:
                last = jobs.event(kind, resource, seconds, (last,), micro_batch=step, stage=stage, samples=b)
        jobs.event("model", band, model, (last,), micro_batch=-1, stage=i)
    return jobs
