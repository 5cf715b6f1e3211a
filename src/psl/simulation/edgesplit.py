"""One round of EdgeSplit: every device with its own cut, its own band and its own slice of the server."""

from psl.simulation.epsl import transfer
from psl.simulation.timeline import Recorder


def edgesplit_jobs(plan) -> Recorder:
    """Return the jobs of one round of a plan of `edgesplit.solve`.

    Each of the N devices downloads its part of the model, takes H local steps (forward, upload, server forward and
    backward on an N-th of the server, download, backward) and uploads its part. Devices share nothing but the
    moment at which the models are averaged. A device that holds the whole model meets the server only for that.

    Source: EdgeSplit (arXiv 2403.15815): a depth and a band per device [P], the round's costs [R]; its simulation [B].
    """
    profile, cluster, b = plan.profile, plan.cluster, plan.batch_size
    n_devices, n_units = len(plan.cuts), profile.n_units
    jobs = Recorder()
    names = getattr(cluster, "device_names", None) or range(n_devices)
    repeated = len(set(names)) < n_devices
    for i, name in enumerate(names):
        name = f"{name} ({i})" if repeated else f"{name}" if isinstance(name, str) else f"device {name}"
        j = int(plan.cuts[i])
        own = None if getattr(cluster, "profiles", None) is None else cluster.profiles[i]
        table, speed = (profile, cluster.device_speed[i]) if own is None else (own, 1.0)
        rate = cluster.spectral_efficiency[i] * plan.bandwidth[i]
        device, band = jobs.resource(name), jobs.resource(f"band of {name}", fifo=True)
        part = jobs.stage(device, profile, 0, j)
        split = j < n_units
        if split:
            slice_speed = cluster.server_speed / n_devices
            server = jobs.resource(f"server for {name}")
            rest = jobs.stage(server, profile, j, n_units)
            up, down = transfer(b * profile.act_bits[j], rate), transfer(b * profile.grad_bits[j], rate)
            ahead = b * (profile.fwd_cost[-1] - profile.fwd_cost[j]) / slice_speed
            aback = b * (profile.bwd_cost[-1] - profile.bwd_cost[j]) / slice_speed
        model = transfer(profile.param_bits[j], rate)
        last = jobs.event("model", band, model, micro_batch=-1, stage=i)
        for step in range(plan.local_steps):
            label = {"micro_batch": step, "samples": b}
            last = jobs.event("forward", device, b * table.fwd_cost[j] / speed, (last,), stage=part, **label)
            if split:
                last = jobs.event("activation", band, up, (last,), stage=i, **label)
                last = jobs.event("forward", server, ahead, (last,), stage=rest, **label)
                last = jobs.event("backward", server, aback, (last,), stage=rest, **label)
                last = jobs.event("gradient", band, down, (last,), stage=i, **label)
            last = jobs.event("backward", device, b * table.bwd_cost[j] / speed, (last,), stage=part, **label)
        jobs.event("model", band, model, (last,), micro_batch=-1, stage=i)
    return jobs
