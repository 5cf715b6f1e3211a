"""The processes of a pipeline: which only relay, in which order a stage computes, and where all can go on."""

from collections.abc import Iterator
from typing import Any

from psl.errors import CheckpointError, expected


def fixed_order(job: Any, rank: int) -> Iterator[str] | None:
    """Return the order of forward and backward passes of a process; None to compute what has arrived."""
    total = len(job.sizes)
    if job.schedule == "eager":
        return None
    ahead = total if job.schedule == "gpipe" else min(total, job.n_processes - rank)
    return iter(["forward"] * ahead + ["backward", "forward"] * (total - ahead) + ["backward"] * ahead)


def newest_common(saved: dict[str, list[int]]) -> tuple:
    """Return the newest round that all stages have saved, None if none has saved any, and what there is to say of it.

    Args:
        saved: rounds of the whole checkpoints of each stage, by its name.

    Raises:
        CheckpointError: some stages have checkpoints, but none of the same round.
    """
    if not any(saved.values()):
        return (None,)
    common = set.intersection(*map(set, saved.values()))
    if not common:
        told = ", ".join(f"{name}: {[n + 1 for n in found] or 'none'}" for name, found in sorted(saved.items()))
        fix = "bring the files of all stages, or delete the folder to start anew"
        raise expected("checkpoint", "a round that every stage has saved", told, fix, CheckpointError)
    newest, best = max(max(found) for found in saved.values() if found), max(common)
    if best == newest:
        return (best,)
    return best, f"not all stages have a whole checkpoint of round {newest + 1}: all continue from {best + 1}"


def relays(plan: Any, n_stages: int) -> list[bool]:
    """Return for each process along the path whether it only relays; without a plan none does."""
    if getattr(plan, "hops", None) is None:
        return [False] * n_stages
    hops = [sum(cut == j for cut, _, _ in plan.hops) for _, _, j in plan.stages]
    return [relay for n in hops for relay in (False, *[True] * (n - 1))]
