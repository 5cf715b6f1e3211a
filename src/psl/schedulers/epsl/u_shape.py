"""U-shaped splits in a cell: the terms of a round with two cuts, and a plan of them with its lower bound.

Up to the second cut k the round is PSL's on a model of k units; then features go down, the clients run the tail forward
and backward, and gradients go up (`UShapedLatency.tail`). That term depends on the rates alone, not on the first cut.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl import html
from psl.errors import check_choice, expected
from psl.networks.wireless_cell import WirelessCell
from psl.plans import Bounded, facts_table
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.checks import check_assignment, check_batch, check_cut, check_power, check_profile
from psl.schedulers.epsl.latency import client_seconds, overhead, round_latency
from psl.schedulers.epsl.plan import EPSLPlan
from psl.schedulers.epsl.problem import RoundProblem

FRAMEWORKS = ("psl", "sfl", "sl")

#: What each term holds, in the order of a round.
TERMS = {
    "uplink": "head forward and upload of smashed data",
    "server_forward": "server forward",
    "tail": "features down, tail forward and backward, their gradients up",
    "server_backward": "server backward",
    "downlink": "gradients of the smashed data down and head backward",
    "optimizer": "optimizer steps of the server and of the clients",
    "model_exchange": "upload, broadcast or hand-over of heads and tails",
    "overhead": "what a round, its messages and the server's calls take whatever they carry",
}


@dataclass(frozen=True, repr=False, eq=False)
class UShapedLatency(Record):
    """Seconds of one round with two cuts j < k, by term; `total` is their sum.

    Args:
        framework: "psl", "sfl" or "sl".
        uplink: max_i (b ρ_j / s_i + b ψ_j / r_i); for sl the sum over clients, as of the other terms.
        server_forward: N b (ρ_k − ρ_j) / s.
        tail: max_i (b ψ_k / r_dl,i + b (ρ_L − ρ_k + ϖ_L − ϖ_k) / s_i + b χ_k / r_i).
        server_backward: N b (ϖ_k − ϖ_j) / s.
        downlink: max_i (b χ_j / r_dl,i + b ϖ_j / s_i).
        optimizer: (σ_k − σ_j) / s, and what the clients' own steps, (σ_j + σ_L − σ_k) / s_i, add to the downlink's
            maximum.
        model_exchange: of δ_j + δ_L − δ_k bits per client.
        overhead: t_0 + t_m × the messages that follow one another, four per step and those of models, + t_c × the
            server's calls, two per step.

    Source: reconstruction [R] of a PSL round in which the clients keep the last layers.
    """

    framework: str
    uplink: float
    server_forward: float
    tail: float
    server_backward: float
    downlink: float
    optimizer: float = 0.0
    model_exchange: float = 0.0
    overhead: float = 0.0

    @property
    def total(self) -> float:
        """Seconds of the whole round."""
        return sum(getattr(self, term) for term in TERMS)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per term: seconds, share of the total, and what it is; overhead only where there is some."""
        shown = [term for term in TERMS if term != "overhead" or self.overhead]
        values = [getattr(self, term) for term in shown]
        with np.errstate(invalid="ignore"):
            share = np.array(values) / self.total
        frame = pd.DataFrame({"seconds": values, "share": share, "meaning": [TERMS[t] for t in shown]}, index=shown)
        return frame.rename_axis("term")


def u_shaped_latency(
    profile: Profile,
    cell: WirelessCell,
    *,
    cuts: tuple[int | str, int | str],
    assignment: ArrayLike,
    power: ArrayLike,
    batch_size: int,
    framework: str = "psl",
    local_steps: int = 1,
) -> UShapedLatency:
    """Return the time of one round in which the server computes between two cuts and labels stay on the clients.

    Args:
        profile: costs of the whole model's cuts.
        cell, assignment, power, batch_size, local_steps: as in `latency`.
        cuts: (j, k), numbers or names, 1 ≤ j < k < L.
        framework: "psl", "sfl" (heads and tails travel after `local_steps`), or "sl" (one client after another).

    Raises:
        ScenarioError: an argument is out of range.

    Source: reconstruction [R].
    """
    check_choice("framework", framework, FRAMEWORKS)
    check_profile(profile, cell)
    batch_size, _ = check_batch(batch_size, 0.0)
    j, k = check_cuts(profile, cuts)
    client = check_assignment(cell, assignment)
    return _latency(profile, cell, j, k, client, check_power(cell, client, power), batch_size, framework, local_steps)


def check_cuts(profile: Profile, cuts: Any) -> tuple[int, int]:
    """Return the numbers of two cuts, 1 ≤ j < k < L."""
    fix = "pass (first, second), numbers or names"
    if not isinstance(cuts, tuple | list) or len(cuts) != 2:
        raise expected("cuts", "two cuts", repr(cuts)[:40], fix)
    j, k = (check_cut(profile, cut) for cut in cuts)
    if j >= k:
        raise expected("cuts", "a second cut behind the first", f"{j} and {k}", fix)
    return j, k


def front(profile: Profile, k: int) -> Profile:
    """Return the profile of the first k units alone: that of head and server part."""
    names = ("fwd_cost", "bwd_cost", "act_bits", "grad_bits", "param_bits", "act_memory", "param_memory", "step_cost")
    arrays = {name: getattr(profile, name) for name in names}
    cut = {name: None if array is None else array[: k + 1] for name, array in arrays.items()}
    return dataclasses.replace(profile, names=profile.names[: k + 1], last_bwd_cost=0.0, **cut)


def front_cell(cell: WirelessCell, k: int) -> WirelessCell:
    """Return the cell with the clients' own measured profiles cut to the first k units as well."""
    if not cell.profiles:
        return cell
    return dataclasses.replace(cell, profiles=tuple(None if own is None else front(own, k) for own in cell.profiles))


def _latency(
    profile: Profile,
    cell: WirelessCell,
    j: int,
    k: int,
    assignment: np.ndarray,
    power: np.ndarray,
    b: int,
    framework: str,
    local_steps: int,
) -> UShapedLatency:
    steps = local_steps if framework == "sfl" else 1
    head = round_latency(front(profile, k), front_cell(cell, k), j, assignment, power, b, 0.0, framework, 1)
    forward, backward, step = client_seconds(profile, cell)
    computing = b * (forward[-1] - forward[k] + backward[-1] - backward[k])  # (N,)
    step_tail = step[-1] - step[k]
    bits = profile.param_bits[-1] - profile.param_bits[k]
    model = profile.param_bits[j] + bits
    messages, calls = steps * _messages(profile, j, k), 2 * steps
    up, down, common = cell.uplink_rate(assignment, power), cell.downlink_rate(assignment), cell.broadcast_rate()
    if framework == "sl":  # the active client has all subchannels: the rates follow from what sending takes there
        alike = dataclasses.replace(cell, profiles=None)
        bands = round_latency(_probe(profile), alike, 1, assignment, power, 1, 0.0, "sl", 1)
        assert bands.uplink_of is not None and bands.downlink_of is not None
        up, down = 1 / bands.uplink_of, 1 / bands.downlink_of
    tail_of = seconds(b * profile.act_bits[k], down) + computing + seconds(b * profile.grad_bits[k], up)
    if framework == "sl":
        sent = bits if cell.n_clients > 1 else 0.0
        exchange = head.model_exchange + float((seconds(sent, up) + seconds(sent, down)).sum())
        tail, stepping = float(tail_of.sum()), head.optimizer + float(step_tail.sum())
        messages += 2 * int(model > 0 and cell.n_clients > 1)
        messages, calls = cell.n_clients * messages, cell.n_clients * calls
    else:
        tail = float(tail_of.max())
        done = np.asarray(head.downlink_of) + step_tail
        stepping = head.optimizer + float(done.max() - np.asarray(head.downlink_of).max())
        exchange = 0.0
        if framework == "sfl":
            messages += 2 * int(model > 0)
            exchange = float((done + seconds(model, up)).max() - done.max() + seconds(model, common))
    return UShapedLatency(
        framework,
        uplink=steps * head.uplink,
        server_forward=steps * head.server_forward,
        tail=steps * tail,
        server_backward=steps * head.server_backward,
        downlink=steps * head.downlink,
        optimizer=steps * stepping,
        model_exchange=exchange,
        overhead=overhead(cell, messages, calls),
    )


def _messages(profile: Profile, *cuts: int) -> int:
    """Return the messages of a step that cross at some cuts, there and back: those that have bits."""
    return sum(int(bits[cut] > 0) for bits in (profile.act_bits, profile.grad_bits) for cut in cuts)


def _probe(profile: Profile) -> Profile:
    """Return a profile that computes nothing and sends one bit at every cut: a round then tells the rates."""
    zeros, ones = np.zeros(3), np.ones(3)
    return Profile(("input", "cut", "output"), zeros, zeros, ones, ones, zeros, zeros, unit=profile.unit)


@dataclass(frozen=True, repr=False, eq=False)
class UShapedPlan(Bounded, Record):
    """A plan of a round with two cuts: PSL's plan up to the second, with the time of the tail.

    Args:
        profile, cell: of the whole model.
        plan: PSL's plan (φ = 0) for the first `tail_cut` units, with its lower bound.
        tail_cut: k, number of the second cut.

    Attributes:
        round_time: s, of PSL's round with both cuts.
        lower_bound: s, that of `plan` and the least tail of any subchannels and powers together; NaN without one.
    """

    scheduler: ClassVar[str] = "epsl"

    profile: Profile
    cell: WirelessCell
    plan: EPSLPlan
    tail_cut: int
    round_time: float = field(init=False)
    lower_bound: float = field(init=False)

    def __post_init__(self) -> None:
        _, k = check_cuts(self.profile, (self.plan.cut, self.tail_cut))
        want = front(self.profile, k)
        if self.plan.profile != want or self.plan.phi != 0:
            fix = "make it with epsl.solve(profile, cell, phi=0, tail_cut=...)"
            raise expected("UShapedPlan.plan", f"a plan of the first {k} units with φ = 0", repr(self.plan), fix)
        self._set(round_time=self.latency().total)
        bound = self.plan.lower_bound + least_tail(self.profile, self.cell, self.plan.batch_size, k)
        self._set(lower_bound=min(bound, self.round_time) if bound > 0 else float("nan"))

    @property
    def cuts(self) -> tuple[int, int]:
        """Numbers of both cuts."""
        return self.plan.cut, self.tail_cut

    @property
    def batch_size(self) -> int:
        """b, samples per client and round."""
        return self.plan.batch_size

    @property
    def n_clients(self) -> int:
        """N, the number of clients of the cell."""
        return self.cell.n_clients

    def with_profile(self, profile: Profile) -> "UShapedPlan":
        """Return the same decisions for another profile of the model, such as one measured anew."""
        plan = dataclasses.replace(self.plan, profile=front(profile, self.tail_cut))
        return dataclasses.replace(self, profile=profile, plan=plan)

    def training_arguments(self) -> dict[str, Any]:
        """Return what the plan decides for `psl.train`: n_clients, batch_size and both cuts."""
        return {"n_clients": self.n_clients, "batch_size": self.batch_size, "cut": self.cuts}

    def framework_round_time(self, framework: str, local_steps: int = 1) -> float:
        """Return the seconds of one round of psl, sfl or sl with this plan's cuts and resources; see `latency`."""
        return self.latency(framework, local_steps).total

    def latency(self, framework: str = "psl", local_steps: int = 1) -> UShapedLatency:
        """Return the terms of one round of a framework with this plan's cuts, subchannels and power."""
        return u_shaped_latency(
            self.profile, self.cell, cuts=self.cuts, assignment=self.plan.assignment, power=self.plan.power,
            batch_size=self.batch_size, framework=framework, local_steps=local_steps,
        )  # fmt: skip

    def __repr__(self) -> str:
        first, second = (self.profile.names[cut] for cut in self.cuts)
        proof = (
            f"lower bound {self.lower_bound:.6g} s, gap {100 * self.gap:.3g} %" if self.lower_bound > 0 else "no bound"
        )
        return f"UShapedPlan(cuts {first!r} and {second!r}, round {self.round_time:.6g} s, {proof})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: both cuts, the bound, and where the time of a round goes."""
        names = [f"{cut}: {self.profile.names[cut]}" for cut in self.cuts]
        facts = {"cuts": " and ".join(names), "clients": self.n_clients, "b": self.batch_size}
        return facts_table(self, "UShapedPlan", facts) + html.frame_table("One round", self.latency().to_frame())  # pyright: ignore


def least_tail(profile: Profile, cell: WirelessCell, batch_size: int, k: int) -> float:
    """Return a lower bound of the tail's seconds, overhead included: every client alone with its best subchannels."""
    problem = RoundProblem(profile, cell, batch_size, 0.0)
    most = problem.n_subchannels - problem.n_clients
    forward, backward, _ = client_seconds(profile, cell)
    computing = batch_size * (forward[-1] - forward[k] + backward[-1] - backward[k])
    sending = seconds(batch_size * profile.act_bits[k], problem.downlink_reach[:, most])
    back = seconds(batch_size * profile.grad_bits[k], problem.uplink_reach[:, most])
    fixed = cell.message_overhead * _messages(profile, k) + cell.call_overhead  # the server is called once more
    return float((computing + sending + back).max() + fixed)


def u_shaped(plan: EPSLPlan, profile: Profile, cell: WirelessCell, tail_cut: int) -> UShapedPlan:
    """Return the plan with both cuts; power that PSL's uplink leaves over shortens the tail.

    Args:
        plan: PSL's, for the first `tail_cut` units.
        profile, cell: of the whole model.
        tail_cut: k.
    """
    spent = np.bincount(plan.assignment, plan.power * cell.bandwidth, cell.n_clients)
    with np.errstate(divide="ignore"):
        factor = np.minimum(cell.client_power / spent, cell.total_power / spent.sum())
    more = plan.power * np.where(np.isfinite(factor), np.maximum(factor * (1 - 1e-12), 1.0), 1.0)[plan.assignment]
    return UShapedPlan(profile, cell, dataclasses.replace(plan, power=more), tail_cut)
