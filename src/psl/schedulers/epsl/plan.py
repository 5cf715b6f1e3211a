"""The result of the scheduler: a cut, subchannels and power, with what they were made for and how good they are."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from psl.networks.wireless_cell import WirelessCell
from psl.plans import check_lower_bound
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.epsl.latency import RoundLatency, check_assignment, check_power, latency
from psl.schedulers.epsl.problem import check_batch, check_cut


@dataclass(frozen=True, repr=False, eq=False)
class EPSLPlan(Record):
    """Where to cut the model and how to share the cell, with the scenario it was made for.

    Args:
        profile, cell, batch_size, phi: the scenario, as given to `solve`.
        method: what made the plan.
        cut: j, the number of the cut, 1..L-1.
        assignment: (M,) client of each subchannel.
        power: (M,) uplink transmit power density on each subchannel, W/Hz.
        lower_bound: s, no plan for this scenario has a shorter round (with a cut given by the caller: none with
            that cut); NaN if it was not computed.
        history: one dict per improvement or block: "block", "cut", "round_time".

    Raises:
        ScenarioError: a field is out of range or of the wrong shape, or the bound is above the round time, as happens
            to a plan moved to another scenario.

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
    round_time: float = field(init=False)

    def __post_init__(self):
        batch_size, phi = check_batch(self.batch_size, self.phi)
        owner = check_assignment(self.cell, self.assignment)
        values = {
            "batch_size": batch_size,
            "phi": phi,
            "cut": check_cut(self.profile, self.cut),
            "assignment": owner,
            "power": check_power(self.cell, owner, self.power),
            "history": tuple(self.history),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        round_time = self.latency().total
        object.__setattr__(self, "round_time", round_time)
        object.__setattr__(self, "lower_bound", check_lower_bound("EPSLPlan", self.lower_bound, round_time))

    @property
    def n_clients(self) -> int:
        """C, the number of clients of the cell."""
        return self.cell.n_clients

    @property
    def cut_name(self) -> str:
        """Name of the cut in the profile."""
        return self.profile.names[self.cut]

    @property
    def gap(self) -> float:
        """Certified relative distance from the optimum at most: round_time / lower_bound − 1; NaN without a bound."""
        return max(self.round_time / self.lower_bound - 1.0, 0.0) if self.lower_bound > 0 else float("nan")

    @property
    def exact(self) -> bool:
        """Whether the plan is proven optimal: its round is as short as the lower bound."""
        return self.round_time <= self.lower_bound * (1 + 1e-12)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size, phi and cut."""
        return {"n_clients": self.n_clients, "batch_size": self.batch_size, "phi": self.phi, "cut": self.cut}

    def latency(self, framework: str = "epsl", local_steps: int = 1) -> RoundLatency:
        """Return the terms of one round of any framework with this plan's cut, subchannels and power."""
        return latency(
            self.profile, self.cell, cut=self.cut, assignment=self.assignment, power=self.power,
            batch_size=self.batch_size, phi=self.phi, framework=framework, local_steps=local_steps,
        )  # fmt: skip

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        """Return the seconds of one round of a framework with this plan's cut and resources; see `latency`."""
        return self.latency(framework, local_steps).total

    def to_frame(self) -> pd.DataFrame:
        """Return one row per client: subchannels, power, rates, and when it is done with uplink and downlink."""
        cell, owner, terms = self.cell, self.assignment, self.latency()
        snr = cell.snr_per_psd[owner, np.arange(len(owner))]
        per_client = lambda values: np.bincount(owner, values, cell.n_clients)  # noqa: E731
        return pd.DataFrame(
            {
                "subchannels": np.bincount(owner, minlength=cell.n_clients),
                "power_w": per_client(cell.bandwidth * self.power),
                "uplink_bit_s": per_client(cell.bandwidth * np.log2(1 + self.power * snr)),
                "downlink_bit_s": per_client(cell.bandwidth * np.log2(1 + cell.downlink_psd * snr)),
                "uplink_s": terms.uplink_of,
                "downlink_s": terms.downlink_of,
            }
        ).rename_axis("client")

    def __repr__(self):
        if self.lower_bound > 0:
            proof = f"lower bound {self.lower_bound:.6g} s, gap {100 * self.gap:.3g} %"
        else:
            proof = "no lower bound"
        return (
            f"EPSLPlan({self.method}: cut {self.cut} {self.cut_name!r}, round {self.round_time:.6g} s, {proof}; "
            f"{self.cell.n_clients} clients, {self.cell.n_subchannels} subchannels, b={self.batch_size}, "
            f"φ={self.phi:g})"
        )
