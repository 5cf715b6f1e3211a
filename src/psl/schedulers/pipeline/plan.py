"""The result of the pipeline scheduler: stages, hops and a micro-batch size, and how good they are."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pandas as pd

from psl import html
from psl.errors import check_choice, expected
from psl.networks.edge_network import EdgeNetwork
from psl.plans import Bounded, facts_table, held_bound
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import check_min_cut, price, priced
from psl.schedulers.pipeline.checks import (
    LINKS,
    OBJECTIVES,
    check_batch_size,
    check_micro_batch,
    check_path,
    check_profile,
)
from psl.schedulers.pipeline.latency import RoundLatency, ceil_div, round_latency, round_time
from psl.schedulers.pipeline.path import Hops, Path, Stages, describe


@dataclass(frozen=True, repr=False, eq=False)
class PipelinePlan(Bounded, Record):
    """Which node runs which units, over which links, in what micro-batches, with the scenario it was made for.

    Args:
        profile, network, batch_size: the scenario, as given to `solve`.
        micro_batch: m, samples per micro-batch.
        stages: (node, i, j) in the order of the path: the node runs units i+1..j.
        hops: (cut, u, v) in the order of the path.
        objective: what was minimised: "time", T, or "interval", T_i.
        links: how hops use the links: each link "once", "shared" by hops that add up, or counted "separate".
        method: what made the plan.
        lower_bound: s, no plan for this scenario has a smaller objective; NaN if it was not computed. A copy with
            another profile, network, batch size, micro-batch, objective or use of links has none.
        history: one dict per step of the search: "block" ("placement" or "micro-batch"), "micro_batch" and
            "round_time", s; for objective="interval" the interval.
        min_cut: the shallowest end of the first stage that was allowed; a copy with another one has no bound.
        free_value: s, the least objective known without `min_cut`; NaN if it was not computed.
        proven_for: what the bound was computed for; filled in.

    Attributes:
        fill_time: T_f, s, until the first micro-batch is through.
        interval: T_i, s, from one micro-batch to the next.

    Raises:
        ScenarioError: stages and hops do not lead through the model or break a limit of the network, or the bound is
            above what it is a bound of.
    """

    scheduler: ClassVar[str] = "pipeline"

    profile: Profile
    network: EdgeNetwork
    batch_size: int
    micro_batch: int
    stages: Stages
    hops: Hops
    objective: str = "time"
    links: str = "once"
    method: str = "given"
    lower_bound: float = float("nan")
    history: tuple[dict[str, Any], ...] = ()
    min_cut: int = 1
    free_value: float = float("nan")
    proven_for: str = field(default="", kw_only=True, repr=False)
    fill_time: float = field(init=False)
    interval: float = field(init=False)

    def __post_init__(self) -> None:
        check_profile(self.profile, self.network)
        check_choice("objective", self.objective, OBJECTIVES)
        check_choice("links", self.links, LINKS)
        batch_size = check_batch_size(self.batch_size)
        m = check_micro_batch(self.micro_batch, batch_size)
        path = check_path(self.profile, self.network, self.stages, self.hops, batch_size, self.links)
        stages, hops = path.named(self.network)
        terms = round_latency(self.profile, self.network, path, m, batch_size, self.links)
        self._set(batch_size=batch_size, micro_batch=m, stages=stages, hops=hops)
        self._set(history=tuple(self.history), fill_time=terms.fill_time, interval=terms.interval)
        floor = check_min_cut(self.profile, self.min_cut, stages[0][2], "the end of the plan's first stage")
        scenario = (self.profile, self.network, batch_size, m, self.objective, self.links)
        scenario += (floor,) if floor > 1 else ()
        self._set(**held_bound("PipelinePlan", self.lower_bound, self.proven_for, scenario, self.value))
        self._set(min_cut=floor, free_value=self.free_value if self.proven_for else float("nan"))

    @property
    def n_micro_batches(self) -> int:
        """M = ⌈b/m⌉."""
        return ceil_div(self.batch_size, self.micro_batch)

    @property
    def round_time(self) -> float:
        """T = T_f + (M − 1) T_i, s per mini-batch: a round of training is one mini-batch."""
        return round_time(self.fill_time, self.interval, self.n_micro_batches)

    @property
    def value(self) -> float:
        """What was minimised: T, or T_i for the objective "interval"; s."""
        return self.round_time if self.objective == "time" else self.interval

    @property
    def _minimised(self) -> float:
        return self.value

    @property
    def price(self) -> float:
        """How many times the least objective known without `min_cut` the plan takes; NaN if not known."""
        return price(self.value, self.free_value)

    @property
    def may_be_optimistic(self) -> bool:
        """Whether simulated execution can take longer than T: the closed form leaves out that passes wait.

        This was never seen with a single micro-batch, a single stage, or two stages on full-duplex links. With three
        stages or more a backward pass can hold up a forward pass. On full-duplex links that are used once this costs a
        few per cent, and less as M grows. On half-duplex links the two directions wait for each other as well: about
        20 % were seen, however large M is. With links="separate" hops wait for each other: up to twice T was seen.
        `psl.simulate` tells how much it is.
        """
        waits = len(self.stages) > 2 or (len(self.stages) == 2 and self.network.duplex == "half")
        return self.n_micro_batches > 1 and waits

    @property
    def n_clients(self) -> int:
        """1: the group of clients at the source trains as one."""
        return 1

    @property
    def cuts(self) -> tuple[int, ...]:
        """Numbers of the cuts between stages."""
        return tuple(j for _, _, j in self.stages[:-1])

    @property
    def cut_names(self) -> tuple[str, ...]:
        """Names of the cuts between stages."""
        return tuple(self.profile.names[j] for j in self.cuts)

    def latency(self) -> RoundLatency:
        """Return the terms of the closed form, stage by stage and hop by hop."""
        path = Path.of(self.network, self.stages, self.hops)
        return round_latency(self.profile, self.network, path, self.micro_batch, self.batch_size, self.links)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size, micro_batch and cut (the boundaries)."""
        return {
            "n_clients": self.n_clients,
            "batch_size": self.batch_size,
            "micro_batch": self.micro_batch,
            "cut": list(self.cuts),
        }

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        """Return T, s; a plan for a pipeline times no other framework."""
        if framework != "pipeline":
            fix = "train without plan=, or solve a plan for this framework with epsl.solve or edgesplit.solve"
            raise expected(
                "framework", "'pipeline', which is all that a plan of pipeline.solve can time", repr(framework), fix
            )
        return self.round_time

    def to_frame(self) -> pd.DataFrame:
        """Return one row per stage and hop: linear cost, occupancy, memory, and whether it is the bottleneck."""
        return self.latency().to_frame()

    def __repr__(self) -> str:
        proof = "optimal" if self.exact else f"gap {100 * self.gap:.3g} %" if self.lower_bound > 0 else "no lower bound"
        return (
            f"PipelinePlan({self.method}: {describe(self.network, self.stages)}, m={self.micro_batch}, "
            f"T={self.round_time:.6g} s = {self.fill_time:.4g} s + {self.n_micro_batches - 1} × {self.interval:.4g} s, "
            f"{proof}{', T may be optimistic' if self.may_be_optimistic else ''}{priced(self.value, self.free_value)})"
        )

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the plan's main facts, and what each stage and hop takes."""
        cuts = ", ".join(f"{j}: {name}" for j, name in zip(self.cuts, self.cut_names, strict=True))
        facts = {"cuts": cuts or "none", "stages": describe(self.network, self.stages), "b": self.batch_size}
        facts |= {"m": self.micro_batch, "M": self.n_micro_batches}
        if self.min_cut > 1:
            facts |= {"source's layers at least": self.min_cut, "over the free optimum": html.number(self.price, "×")}
        of = "round" if self.objective == "time" else "interval"
        return facts_table(self, f"PipelinePlan, {self.method}", facts, of) + self.latency()._repr_html_()
