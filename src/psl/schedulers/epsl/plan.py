"""The plan that the scheduler makes: a cut, subchannels and power, with its scenario and its lower bound."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from psl import html
from psl.errors import expected
from psl.gradient_aggregation import sampled_rows
from psl.networks.wireless_cell import WirelessCell
from psl.plans import Bounded, facts_table, held_bound
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import check_min_cut, price, priced
from psl.schedulers.epsl.checks import (
    check_assignment,
    check_batch,
    check_cut,
    check_linearise,
    check_micro_batched,
    check_power,
    check_profile,
)
from psl.schedulers.epsl.latency import RoundLatency, round_latency
from psl.schedulers.epsl.micro_latency import MicroBatchLatency
from psl.schedulers.epsl.pipelined import PipelinedRound, Served
from psl.schedulers.epsl.terms import CutTerms
from psl.schedulers.micro_batches import check_duplex, micro_batch_sizes


@dataclass(frozen=True, repr=False, eq=False)
class EPSLPlan(Bounded, Record):
    """Where to cut the model and how to share the cell, with the scenario it was made for.

    Args:
        profile, cell, batch_size, phi: the scenario, as given to `solve`.
        method: what made the plan.
        cut: j, the number of the cut, 1..L-1.
        assignment: (K,) client of each subchannel.
        power: (K,) uplink transmit power density on each subchannel, W/Hz.
        lower_bound: s, no plan for this scenario has a shorter round (with a cut given by the caller: none with
            that cut); NaN if it was not computed. A copy with another profile, cell, batch size, φ, cut, `linearise`,
            `micro_batches` or `duplex` has none.
        history: one dict per improvement or block: "block", "cut", "round_time".
        linearise: what the round does with last-layer gradients, as given to `solve`: "representative" or "sampled".
        micro_batches: M, the number of micro-batches in which a mini-batch goes through the cell without barriers
            between the phases; None for the whole mini-batch, with barriers.
        duplex: "full" or, if a client's uploads and downloads share its subchannels, "half"; of no consequence with
            barriers.
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
    micro_batches: int | None = field(default=None, kw_only=True)
    duplex: str = field(default="full", kw_only=True)
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
            duplex=check_duplex(self.duplex),
        )
        if self.micro_batches is not None:
            check_micro_batched(phi, self.linearise)
            self._set(micro_batches=len(micro_batch_sizes(batch_size, self.micro_batches)))
        time = self.latency().total
        floor = check_min_cut(self.profile, self.min_cut, self.cut, "the plan's cut")
        scenario: tuple[Any, ...] = (self.profile, self.cell, batch_size, phi, self.cut)
        scenario += (floor,) if floor > 1 else ()
        scenario += (self.linearise,) if self.linearise != "representative" else ()
        scenario += () if self.micro_batches is None else (self.micro_batches, self.duplex)
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

    def _values(self) -> dict[str, Any]:
        """Return the fields; without micro-batches not those about them: files of such plans stay as they were."""
        usual = {"micro_batches": None, "duplex": "full"}
        return {name: v for name, v in super()._values().items() if name not in usual or v != usual[name]}

    @property
    def micro_batch_sizes(self) -> np.ndarray | None:
        """(M,) samples of each micro-batch; None with barriers."""
        return None if self.micro_batches is None else micro_batch_sizes(self.batch_size, self.micro_batches)

    @cached_property
    def served(self) -> Served | None:
        """In which order the server, and on half duplex the subchannels, take micro-batches; None with barriers."""
        return None if self.micro_batches is None else self._pipelined().served()

    @property
    def cut_name(self) -> str:
        """Name of the cut in the profile."""
        return self.profile.names[self.cut]

    @property
    def price(self) -> float:
        """How many times the shortest known round without `min_cut` the plan's round takes; NaN if not known."""
        return price(self.round_time, self.free_time)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size, phi, cut; linearise and micro_batch."""
        decided = {"n_clients": self.n_clients, "batch_size": self.batch_size, "phi": self.phi, "cut": self.cut}
        if self.micro_batch_sizes is not None:
            decided["micro_batch"] = int(self.micro_batch_sizes[0])
        return decided | ({"linearise": self.linearise} if self.linearise == "sampled" else {})

    def latency(
        self, framework: str = "epsl", local_steps: int = 1, linearise: str | None = None, **drawn: Any
    ) -> RoundLatency | MicroBatchLatency:
        """Return the terms of one round of any framework with this plan's cut, subchannels and power.

        "epsl" and "psl" go in the plan's micro-batches, if it has any; then machines work side by side.

        Args:
            framework, local_steps: as in `psl.schedulers.epsl.latency`.
            linearise, drawn: rule; rows, samples or server_steps: as in `round_time_of`.
        """
        if self.micro_batches is not None and framework in ("epsl", "psl"):
            return self._in_micro_batches(framework, linearise or self.linearise, **drawn)
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

    def _in_micro_batches(self, framework: str, linearise: str, **drawn: Any) -> MicroBatchLatency:
        given = [name for name, value in drawn.items() if value is not None and np.any(value)]
        if given or linearise == "sampled":
            got, fix = ", ".join(given) or "linearise='sampled'", "plan with micro_batches=None"
            raise expected("plan", "one without micro-batches, for rounds whose rows differ", got, fix)
        plain = (framework, linearise) in ((self._framework, self.linearise), ("epsl", self.linearise))
        found = self._pipelined(framework, linearise)
        served = self.served if plain and self.served is not None else found.served()
        return MicroBatchLatency.of(framework, found, served)

    @property
    def _framework(self) -> str:
        return "psl" if self.phi == 0 else "epsl"

    def _pipelined(self, framework: str = "epsl", linearise: str = "representative") -> PipelinedRound:
        cell, phi, sizes = self.cell, self.phi if framework == "epsl" else 0.0, self.micro_batch_sizes
        assert sizes is not None
        terms = CutTerms.of(self.profile, cell, self.batch_size, phi, linearise=linearise)
        rates = cell.uplink_rate(self.assignment, self.power), cell.downlink_rate(self.assignment)
        options = {"slots": phi == 1, "duplex": self.duplex}
        return PipelinedRound.of(terms, cell, self.cut, sizes, *rates, cell.broadcast_rate(), **options)

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
        cell, assignment, terms = self.cell, self.assignment, self.latency()  # also of micro-batches
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
            f"φ={self.phi:g}{self._drawn}{self._micro}{priced(self.round_time, self.free_time)})"
        )

    @property
    def _drawn(self) -> str:
        return f", {self.rows.sum()} rows drawn" if self.linearise == "sampled" else ""

    @property
    def _micro(self) -> str:
        if self.micro_batches is None:
            return ""
        found, half = self.latency(), ", half duplex" if self.duplex == "half" else ""
        assert isinstance(found, MicroBatchLatency)
        busy = 100 * found.busy[found.bottleneck] / found.total
        return f", M={self.micro_batches}{half}, {found.bottleneck} {busy:.3g} % busy"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the plan's main facts, and where the time of a round goes."""
        clients = f"{self.n_clients} on {self.cell.n_subchannels} subchannels"
        facts = {"cut": f"{self.cut} of {self.profile.n_units}: {self.cut_name}", "clients": clients}
        facts |= {"b": self.batch_size, "φ": self.phi}
        facts |= {"rows drawn": int(self.rows.sum())} if self.linearise == "sampled" else {}
        if self.micro_batches is not None:
            facts |= {"M": self.micro_batches, "duplex": self.duplex}
        if self.min_cut > 1:
            facts |= {"cuts allowed from": self.min_cut, "over the free optimum": html.number(self.price, "×")}
        return facts_table(self, f"EPSLPlan, {self.method}", facts) + self.latency()._repr_html_()
