"""The result of the scheduler: every device's cut and bandwidth, with the scenario and the bound of the round time."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from psl import html
from psl.errors import check_choice
from psl.networks.edge_cluster import EdgeCluster
from psl.plans import Bounded, facts_table, held_bound
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import price, priced
from psl.schedulers.edgesplit.baselines import baseline
from psl.schedulers.edgesplit.checks import check_bandwidth, check_cuts, check_min_cut, deepest_cuts, does_not_fit
from psl.schedulers.edgesplit.latency import RoundCosts, RoundLatency
from psl.schedulers.edgesplit.micro_batches import MicroBatchedDevices
from psl.schedulers.edgesplit.problem import EdgeSplitProblem
from psl.schedulers.micro_batches import micro_batch_sizes

_SUBOPTIMAL = 1e-6  # relative gap from which on the alternation has missed the optimum: far more than rounding
FRAMEWORKS = ("edgesplit", "fedavg", "sfl", "centralised")


@dataclass(frozen=True, repr=False, eq=False)
class EdgeSplitPlan(Bounded, Record):
    """Where every device cuts the model, and how the band is shared; with the scenario it was made for.

    Args:
        profile, cluster, batch_size, local_steps: the scenario, as given to `solve`.
        method: what made the plan.
        cuts: (N,) j_i, the number of each device's cut, 1..L.
        bandwidth: (N,) w_i, Hz.
        lower_bound: s, the optimal round time of the scenario: no plan is shorter; NaN if it was not computed. A copy
            with another profile, cluster, batch size, number of local steps, `micro_batches` or `min_cut` has none.
        history: one dict per step of the method: "round_time", and what changed.
        micro_batches: M, the number of micro-batches in which a mini-batch goes through a device's band and its share
            of the server; None for the whole mini-batch at a time.
        min_cut: the shallowest cut that was allowed, for all or (N,) per device.
        free_time: s, the optimal round time without `min_cut`; NaN if it was not computed.
        proven_for: what the bound was computed for; filled in.

    Raises:
        ScenarioError: cuts or bandwidths are out of range or of the wrong shape, or the bound is above the round time.
        InfeasibleError: a device has too little memory for its cut.

    Attributes:
        device_times: (N,) T_i, s.
        lags: (N,) in micro-batches: a device's band carries download k after upload k + lag − 1; else None.
        round_time: s, the largest of them.
    """

    scheduler: ClassVar[str] = "edgesplit"

    profile: Profile
    cluster: EdgeCluster
    batch_size: int
    local_steps: int
    method: str
    cuts: np.ndarray
    bandwidth: np.ndarray
    lower_bound: float = float("nan")
    history: tuple[dict[str, Any], ...] = ()
    micro_batches: int | None = field(default=None, kw_only=True)
    min_cut: int | np.ndarray = 1
    free_time: float = float("nan")
    proven_for: str = field(default="", kw_only=True, repr=False)
    device_times: np.ndarray = field(init=False)
    lags: np.ndarray | None = field(init=False)
    round_time: float = field(init=False)

    def __post_init__(self) -> None:
        profile, cluster = self.profile, self.cluster
        costs = RoundCosts(profile, cluster, self.batch_size, self.local_steps)
        cuts, bandwidth = check_cuts(profile, cluster, self.cuts), check_bandwidth(cluster, self.bandwidth)
        deepest = deepest_cuts(profile, cluster, costs.batch_size)
        if (small := np.flatnonzero(cuts > deepest)).size:
            device, why = int(small[0]), "the plan's cut of this device"
            advice = ["a shallower cut"] if deepest[device] >= 1 else []
            raise does_not_fit(profile, cluster, costs.batch_size, device, int(cuts[device]), why, *advice)
        times, lags = costs.times(cuts, bandwidth), None
        if self.micro_batches is not None:
            sizes = micro_batch_sizes(costs.batch_size, self.micro_batches)
            times, lags = MicroBatchedDevices(costs, sizes).served(cuts, bandwidth)
        times.setflags(write=False)
        self._set(
            batch_size=costs.batch_size,
            local_steps=costs.local_steps,
            cuts=cuts,
            bandwidth=bandwidth,
            history=tuple(self.history),
            min_cut=check_min_cut(profile, self.min_cut, cluster.n_devices),
            device_times=times,
            lags=lags,
            round_time=float(times.max()),
        )
        scenario: tuple[Any, ...] = (profile, cluster, self.batch_size, self.local_steps, self.min_cut)
        scenario += () if self.micro_batches is None else (self.micro_batches,)
        self._set(**held_bound("EdgeSplitPlan", self.lower_bound, self.proven_for, scenario, self.round_time))
        self._set(free_time=self.free_time if self.proven_for else float("nan"))

    @property
    def n_clients(self) -> int:
        """N, the number of devices."""
        return self.cluster.n_devices

    def _values(self) -> dict[str, Any]:
        """Return the fields; without micro-batches not the one about them: files of such plans stay as they were."""
        return {k: v for k, v in super()._values().items() if k != "micro_batches" or v is not None}

    @property
    def micro_batch_sizes(self) -> np.ndarray | None:
        """(M,) samples of each micro-batch; None for the whole mini-batch."""
        return None if self.micro_batches is None else micro_batch_sizes(self.batch_size, self.micro_batches)

    @property
    def bottleneck(self) -> tuple[str, float]:
        """(name, s) of the machine of the slowest device that works longest: itself, its band or its server share."""
        i, costs = int(self.device_times.argmax()), self._costs()
        sizes = np.array([1]) if self.micro_batch_sizes is None else self.micro_batch_sizes
        busy = MicroBatchedDevices(costs, sizes).busy(self.cuts, self.bandwidth)
        kind = max(busy, key=lambda name: float(busy[name][i]))
        return f"{kind} {i}", float(busy[kind][i])

    def _costs(self, local_steps: int | None = None) -> RoundCosts:
        steps = self.local_steps if local_steps is None else local_steps
        return RoundCosts(self.profile, self.cluster, self.batch_size, steps)

    @property
    def cut(self) -> int | None:
        """The cut that all devices have in common; None if they differ."""
        return int(self.cuts[0]) if (self.cuts == self.cuts[0]).all() else None

    @property
    def cut_name(self) -> str | None:
        """Name of the common cut; None if cuts differ."""
        return None if self.cut is None else self.profile.names[self.cut]

    @property
    def cut_names(self) -> tuple[str, ...]:
        """Name of every device's cut."""
        return tuple(self.profile.names[j] for j in self.cuts.tolist())

    @property
    def price(self) -> float:
        """How many times the optimal round without `min_cut` the plan's round takes; NaN if not known."""
        return price(self.round_time, self.free_time)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size, local_steps, cut (one per device).

        In micro-batches also micro_batch.
        """
        sizes = self.micro_batch_sizes
        micro = {} if sizes is None else {"micro_batch": int(sizes[0])}
        return micro | {
            "n_clients": self.n_clients,
            "batch_size": self.batch_size,
            "local_steps": self.local_steps,
            "cut": self.cuts.tolist(),
        }

    def framework_round_time(self, framework: str, local_steps: int | None = None) -> float:
        """Return the seconds of one round of a framework on this plan's cluster.

        "edgesplit" uses the plan's cuts and bandwidths; "fedavg" and "sfl" share the band equally, as the baselines of
        these names in `solve` do, "sfl" at its own best common cut; "centralised" trains one batch of N b samples on
        the server, to which sending the data is not counted [R].

        Args:
            framework: one of the four.
            local_steps: H, mini-batches between two averages; default the plan's. Centralised training has none.

        Raises:
            ScenarioError: another framework.
            InfeasibleError: "fedavg" where a device does not hold the whole model.
        """
        check_choice("framework", framework, FRAMEWORKS, fix="others need a plan of their own")
        steps = self.local_steps if local_steps is None else local_steps
        if framework == "edgesplit":
            return dataclasses.replace(self, local_steps=steps).round_time
        if framework == "centralised":
            everything = self.profile.fwd_cost[-1] + self.profile.bwd_cost[-1]
            work = self.n_clients * self.batch_size * everything + self.profile.steps[-1]
            return float(work / self.cluster.server_speed)
        problem = EdgeSplitProblem(self.profile, self.cluster, self.batch_size, steps, self.min_cut)
        return float(problem.times(*baseline(problem, framework)).max())

    def latency(self) -> RoundLatency:
        """Return the terms of every device's time."""
        found = self._costs().latency(self.cuts, self.bandwidth)
        if self.micro_batch_sizes is None:
            return found
        overhead = MicroBatchedDevices(self._costs(), self.micro_batch_sizes).overhead(self.cuts)
        found = dataclasses.replace(found, device_times=self.device_times, overhead=overhead)
        return dataclasses.replace(found, overlap=sum(found.terms().values()) - self.device_times)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per device: cut, bandwidth, the terms of its time, and the bits it sends; see `latency`."""
        return self.latency().to_frame()

    def __repr__(self) -> str:
        proof = "no lower bound"
        if self.exact:
            proof = "optimal"
        elif not np.isnan(self.gap):
            proof = f"optimum {self.lower_bound:.6g} s, gap {100 * self.gap:.3g} %"
        if self.method == "alternating" and self.gap > _SUBOPTIMAL:
            proof += ", closed by method='exact'"
        low, high = int(self.cuts.min()), int(self.cuts.max())
        cuts = f"cut {low} {self.cut_name!r}" if low == high else f"cuts {low}..{high}"
        return (
            f"EdgeSplitPlan({self.method}: {cuts} of {self.profile.n_units}, round {self.round_time:.6g} s, {proof}; "
            f"{self.n_clients} devices, b={self.batch_size}, H={self.local_steps}"
            f"{self._micro}{priced(self.round_time, self.free_time)})"
        )

    @property
    def _micro(self) -> str:
        if self.micro_batches is None:
            return ""
        name, seconds = self.bottleneck
        return f", M={self.micro_batches}, {name} {100 * seconds / self.round_time:.3g} % busy"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the plan's main facts, and where the time of some devices goes."""
        names, low, high = self.profile.names, int(self.cuts.min()), int(self.cuts.max())
        cuts = f"{low}: {names[low]}" if low == high else f"{low}: {names[low]} to {high}: {names[high]}"
        facts = {"cuts": f"{cuts}, of {self.profile.n_units}", "devices": self.n_clients}
        facts |= {"b": self.batch_size, "H": self.local_steps}
        if self.micro_batches is not None:
            facts |= {"M": self.micro_batches, "bottleneck": self.bottleneck[0]}
        if self.free_time > 0:
            facts |= {"over the free optimum": html.number(self.price, "×")}
        return facts_table(self, f"EdgeSplitPlan, {self.method}", facts) + self.latency()._repr_html_()
