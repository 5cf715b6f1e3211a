"""What the searches return: a placement with a micro-batch size, and a value below which there is nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from psl.schedulers.pipeline.latency import Hops, Stages
from psl.schedulers.pipeline.placement import Placement

#: Told of every step of a search: "block" ("placement" or "micro-batch"), "micro_batch", "value" in seconds.
Report = Callable[[dict], None]


@dataclass(frozen=True)
class Choice:
    """A placement with its micro-batch size, and a lower bound."""

    stages: Stages
    hops: Hops
    micro_batch: int  # b
    value: float  # s, T or T_i
    lower_bound: float  # s, of the same; over all micro-batch sizes where the size was free; 0 if nothing is known
    solved: int = 1  # placement problems on the way

    @classmethod
    def of(cls, placement: Placement) -> "Choice":
        """Return a placement as the choice for its own micro-batch size."""
        bound = placement.value if placement.exact else placement.lower_bound
        return cls(placement.stages, placement.hops, placement.micro_batch, placement.value, bound)
