"""The plan that the scheduler makes: a cut, subchannels and power, with its scenario and its lower bound."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from psl import html
from psl.gradient_aggregation import sampled_rows
from psl.networks.wireless_cell import WirelessCell
from psl.plans import facts_table, gap_to_bound, held_bound, meets_bound
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import check_min_cut, price, priced
from psl.schedulers.epsl.checks import (
    check_assignment,
    check_batch,
    check_cut,
    check_linearise,
    check_power,
    check_profile,
)
from psl.schedulers.epsl.latency import RoundLatency, round_latency


@dataclass(frozen=True, repr=False, eq=False)
class EPSLPlan(Record):
    """Where to cut the model and how to share the cell, with the scenario it was made for.

    Args:
        profile, cell, batch_size, phi: the scenario, as given to `solve`.
        method: what made the plan.
        cut: j, the number of the cut, 1..L-1.
        assignment: (K,) client of each subchannel.
        power: (K,) uplink transmit power density on each subchannel, W/Hz.
        lower_bound: s, no plan for this scenario has a shorter round (with a cut given by the caller: none with
            that cut); NaN if it was not computed. A copy with another profile, cell, batch size, φ, cut or `linearise`
            has none.
        history: one dict per improvement or block: "block", "cut", "round_time".
        linearise: what the round does with last-layer gradients, as given to `solve`: "representative" or "sampled".
        min_cut: the shallowest cut that was allowed; a copy with another one has no bound.
        free_time: s, the shortest round known without `min_cut`; NaN if it was not computed.
        proven_for: what the bound was computed for; filled in.

    Raises:
        ScenarioError: a field is out of range or of the wrong shape, or the bound is above the round time.

    Attributes:
        round_time: s, the round latency of EPSL under this plan.
    """

    scheduler: ClassVar[str] = "epsl"

    profile: Profile
    cell: WirelessCell
    batch_size: int
    phi: float
    method: str
    cut: int
    assignment: np.ndarray
    power: np.ndarray
    lower_bound: float = float("nan")
    history: tuple[dict[str, Any], ...] = ()
    linearise: str = field(default="representative", kw_only=True)
    min_cut: int = 1
    free_time: float = float("nan")
    proven_for: str = field(default="", kw_only=True, repr=False)
    round_time: float = field(init=False)

    def __post_init__(self) -> None:
        check_profile(self.profile, self.cell)
        batch_size, phi = check_batch(self.batch_size, self.phi)
        assignment = check_assignment(self.cell, self.assignment)
        self._set(
            batch_size=batch_size,
            phi=phi,
            cut=check_cut(self.profile, self.cut),
            assignment=assignment,
            power=check_power(self.cell, assignment, self.power),
            history=tuple(self.history),
            linearise=check_linearise(self.linearise),
        )
        time = self.latency().total
        floor = check_min_cut(self.profile, self.min_cut, self.cut, "the plan's cut")
        scenario: tuple[Any, ...] = (self.profile, self.cell, batch_size, phi, self.cut)
        scenario += (floor,) if floor > 1 else ()
        scenario += (self.linearise,) if self.linearise != "representative" else ()
        self._set(round_time=time, **held_bound("EPSLPlan", self.lower_bound, self.proven_for, scenario, time))
        self._set(min_cut=floor, free_time=self.free_time if self.proven_for else float("nan"))

    @property
    def n_clients(self) -> int:
        """N, the number of clients of the cell."""
        return self.cell.n_clients

    @property
    def rows(self) -> np.ndarray:
        """(N,) rows of each client that get a gradient: d_i if rows are drawn, else b."""
        if self.linearise == "sampled":
            return sampled_rows(self.phi, self.batch_size, self.n_clients)
        return np.full(self.n_clients, self.batch_size)

    @property
    def cut_name(self) -> str:
        """Name of the cut in the profile."""
        return self.profile.names[self.cut]

    @property
    def gap(self) -> float:
        """Upper bound on the relative distance from the optimum, round_time / lower_bound − 1; NaN without one."""
        return gap_to_bound(self.round_time, self.lower_bound)

    @property
    def exact(self) -> bool:
        """Whether the plan is proven optimal: its round is as short as the lower bound."""
        return meets_bound(self.round_time, self.lower_bound)

    @property
    def price(self) -> float:
        """How many times the shortest known round without `min_cut` the plan's round takes; NaN if not known."""
        return price(self.round_time, self.free_time)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size, phi, cut; also that rows are drawn."""
        decided = {"n_clients": self.n_clients, "batch_size": self.batch_size, "phi": self.phi, "cut": self.cut}
        return decided | ({"linearise": self.linearise} if self.linearise == "sampled" else {})

    def latency(
        self, framework: str = "epsl", local_steps: int = 1, linearise: str | None = None, **drawn: Any
    ) -> RoundLatency:
        """Return the terms of one round of any framework with this plan's cut, subchannels and power.

        Args:
            framework, local_steps: as in `psl.schedulers.epsl.latency`.
            linearise, drawn: rule; rows, samples or server_steps: as in `round_time_of`.
        """
        return round_latency(
            self.profile,
            self.cell,
            self.cut,
            self.assignment,
            self.power,
            self.batch_size,
            self.phi,
            framework,
            local_steps,
            linearise or self.linearise,
            **drawn,
        )

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        """Return the seconds of one round of a framework with this plan's cut and resources; see `latency`."""
        return self.latency(framework, local_steps).total

    def round_time_of(
        self,
        framework: str,
        *,
        rows: np.ndarray | None = None,
        samples: np.ndarray | None = None,
        server_steps: int = 0,
        linearise: str | None = None,
    ) -> float:
        """Return the seconds of one round whose rows were drawn, whose server steps more than once, or of another rule.

        Args:
            framework: "epsl" or "psl".
            rows: (N,) d_i, rows of each client that "epsl" drew.
            samples: (N,) samples of each client's mini-batch in "psl" with global sampling.
            server_steps: of "psl" on resampled activations.
            linearise: rule of "epsl" in `psl.train`; None for the plan's. The server goes back through all rows in
                "each" and "cut", and forward through n_A more in "mean".
        """
        drawn = {"rows": rows, "samples": samples, "server_steps": server_steps}
        return self.latency(framework, linearise=linearise, **drawn).total

    def to_frame(self) -> pd.DataFrame:
        """Return one row per client: subchannels, power, rates, and when it is done with uplink and downlink."""
        cell, assignment, terms = self.cell, self.assignment, self.latency()
        return pd.DataFrame(
            {
                "subchannels": np.bincount(assignment, minlength=cell.n_clients),
                "power_w": np.bincount(assignment, cell.bandwidth * self.power, cell.n_clients),
                "uplink_bit_s": cell.uplink_rate(assignment, self.power),
                "downlink_bit_s": cell.downlink_rate(assignment),
                "uplink_s": terms.uplink_of,
                "downlink_s": terms.downlink_of,
            }
        ).rename_axis("client")

    def __repr__(self) -> str:
        if self.exact:
            proof = "optimal"
        elif self.lower_bound > 0:
            proof = f"lower bound {self.lower_bound:.6g} s, gap {100 * self.gap:.3g} %"
        else:
            proof = "no lower bound"
        return (
            f"EPSLPlan({self.method}: cut {self.cut} {self.cut_name!r}, round {self.round_time:.6g} s, {proof}; "
            f"{self.cell.n_clients} clients, {self.cell.n_subchannels} subchannels, b={self.batch_size}, "
            f"φ={self.phi:g}{self._drawn}{priced(self.round_time, self.free_time)})"
        )

    @property
    def _drawn(self) -> str:
        return f", {self.rows.sum()} rows drawn" if self.linearise == "sampled" else ""

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the plan's main facts, and where the time of a round goes."""
        clients = f"{self.n_clients} on {self.cell.n_subchannels} subchannels"
        facts = {"cut": f"{self.cut} of {self.profile.n_units}: {self.cut_name}", "clients": clients}
        facts |= {"b": self.batch_size, "φ": self.phi}
        facts |= {"rows drawn": int(self.rows.sum())} if self.linearise == "sampled" else {}
        if self.min_cut > 1:
            facts |= {"cuts allowed from": self.min_cut, "over the free optimum": html.number(self.price, "×")}
        return facts_table(self, f"EPSLPlan, {self.method}", facts) + self.latency()._repr_html_()
