"""The event simulation of pipelines: `psl.simulate` against SimPy on the same jobs.

In SimPy every micro-batch is a process that asks for nodes (`PriorityResource`: backward first, then the lower
micro-batch) and links (`Resource`: first-in first-out), holds them for a `timeout`, and waits for the latency. Events
are jobs: one computation or one transfer. SimPy's own events are about four per job.
"""

import numpy as np
from benchmarks.peers.common import Table, installed, timed

import psl
from simulation_scenarios import chain, random_chain, walk_of


def simpy_makespan(plan) -> tuple[float, int]:
    """Return (makespan in s, number of jobs) of a plan that is executed without a limit in flight."""
    import simpy

    count = -(-plan.batch_size // plan.micro_batch)
    sizes = [plan.micro_batch] * (count - 1) + [plan.batch_size - (count - 1) * plan.micro_batch]
    env, resources = simpy.Environment(), {}

    def resource(kind, name):
        if (kind, name) not in resources:
            resources[kind, name] = simpy.PriorityResource(env) if kind == "compute" else simpy.Resource(env)
        return resources[kind, name]

    ways = {}
    for samples in set(sizes):
        way, turn = walk_of(plan, samples)
        ways[samples] = [(kind, resource(kind, name), took, delay) for kind, name, took, delay in way], turn

    def micro_batch(number, samples):
        way, turn = ways[samples]
        for position, (kind, machine, took, delay) in enumerate(way):
            turn_first = {"priority": (position < turn, number)} if kind == "compute" else {}
            request = machine.request(**turn_first)
            yield request
            yield env.timeout(took)
            machine.release(request)
            if delay:
                yield env.timeout(delay)

    for number, samples in enumerate(sizes):
        env.process(micro_batch(number, samples))
    env.run()
    return float(env.now), len(ways[sizes[0]][0]) * count


def eight_stages(seed: int, jobs: int):
    """Return a chain of eight stages and seven links with about so many jobs."""
    rng = np.random.default_rng(seed)
    forward, act = rng.lognormal(0, 1, 8), rng.lognormal(0, 1, 7)
    return chain(forward, 2 * forward, act, act, latency=0.1, batch_size=max(jobs // 30, 1), micro_batch=1)


def compare(table: Table, case: str, instances, repeats: int) -> None:
    """Run both on (seed, plan), in turn."""
    for seed, plan in instances:
        for repeat in range(repeats):
            name = f"{seed}.{repeat}"
            made, took = timed(lambda p=plan: psl.simulate(p))
            jobs = len(made.start)
            table.add(case, name, "psl", seconds=took, value=made.makespan, jobs=jobs, status="")
            if installed("SimPy"):
                (makespan, count), took = timed(lambda p=plan: simpy_makespan(p))
                assert count == jobs
                table.add(case, name, "SimPy", seconds=took, value=makespan, jobs=count, status="")
    table.write()


def main(effort: float) -> None:
    """Run; effort 1 takes about one minute on an idle core, most of it for the 250,000 jobs, a million SimPy events."""
    table = Table("simulation")
    few = [(seed, random_chain(np.random.default_rng(seed))) for seed in range(max(int(100 * effort), 3))]
    compare(table, "random chains, up to 40 micro-batches", few, 1)
    for jobs in (1_000, 10_000, 100_000, 250_000):
        if jobs <= 250_000 * effort or jobs <= 10_000:
            compare(table, f"8 stages, {jobs:,} jobs", [(0, eight_stages(0, jobs))], 1 if jobs == 250_000 else 3)
