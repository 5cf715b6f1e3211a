"""Round latency of EPSL and of the frameworks it is compared with, term by term."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl import html
from psl.errors import check_choice, check_count
from psl.gradient_aggregation import aggregated_rows, server_rows
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.checks import check_assignment, check_batch, check_cut, check_power, check_profile
from psl.schedulers.epsl.water_filling import most_rate, with_floor

FRAMEWORKS = ("epsl", "psl", "sfl", "sl", "fedavg", "centralised")

#: What each term of RoundLatency holds, in the order of a round.
TERMS = {
    "uplink": "client forward and upload of smashed data",
    "server_forward": "server forward",
    "server_backward": "server backward",
    "broadcast": "broadcast of aggregated gradients",
    "downlink": "unicast of the other gradients and client backward",
    "optimizer": "optimizer steps of the server and of the clients",
    "local_training": "training of the whole model on one machine",
    "model_exchange": "upload, broadcast or hand-over of models",
}


@dataclass(frozen=True, repr=False, eq=False)
class RoundLatency(Record):
    """Seconds of one round, by term; `total` is their sum. Terms a framework does not have are 0.

    Args:
        framework: one of `FRAMEWORKS`.
        uplink: max_i (b ρ_j / s_i + b ψ_j / r_i); for sequential SL the sum over clients.
        server_forward: N b (ρ_L − ρ_j) / s.
        server_backward: [(n_A + N (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + N b ϖ_last] / s.
        broadcast: n_A χ_j / r_bc.
        downlink: max_i ((b − n_A) χ_j / r_dl,i + b ϖ_j / s_i); for sequential SL the sum over clients.
        optimizer: (σ_L − σ_j) / s, before the gradients go down, and what the clients' own steps, σ_j / s_i, add to
            the downlink's maximum; 0 for a profile without `step_cost`.
        local_training: of FedAvg's clients or of the centralised server.
        model_exchange: time for whole or client-side models to travel.
        uplink_of, downlink_of: (N,) the same two terms of every client, before the maximum or sum; the downlink with
            the client's own optimizer step.

    Source: reconstruction [R] of the EPSL round (arXiv 2303.15991).
    """

    framework: str
    uplink: float = 0.0
    server_forward: float = 0.0
    server_backward: float = 0.0
    broadcast: float = 0.0
    downlink: float = 0.0
    optimizer: float = 0.0
    local_training: float = 0.0
    model_exchange: float = 0.0
    uplink_of: np.ndarray | None = None
    downlink_of: np.ndarray | None = None

    @property
    def total(self) -> float:
        """Seconds of the whole round."""
        return sum(getattr(self, term) for term in TERMS)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per term: seconds, share of the total, and what it is."""
        values = [getattr(self, term) for term in TERMS]
        with np.errstate(invalid="ignore"):
            share = np.array(values) / self.total
        frame = pd.DataFrame({"seconds": values, "share": share, "meaning": list(TERMS.values())}, index=list(TERMS))
        return frame.rename_axis("term")

    def __repr__(self) -> str:
        shown = ", ".join(f"{term} {getattr(self, term):.4g}" for term in TERMS if getattr(self, term))
        return f"RoundLatency({self.framework}: {self.total:.6g} s = {shown})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the terms that take time, with their shares of the round."""
        rows = []
        for term, meaning in TERMS.items():
            if value := getattr(self, term):
                part = html.share(value, self.total)
                rows.append([term, value, html.percent(part), html.Bar([part]), meaning])
        title = f"One round of {self.framework}: {html.number(self.total, 's')}"
        return html.table(title, ["term", "seconds", "share", "", "meaning"], rows)


@dataclass(frozen=True)
class CutTerms:
    """Seconds and bits of the parts of a round of EPSL, for every cut 0..L: all that does not depend on the rates.

    The round takes max_i (client_forward_i + upload_bits / r_i) + server_forward + server_backward + server_step
    + broadcast_bits / r_bc + max_i (unicast_bits / r_dl,i + client_backward_i + client_step_i).
    Rows are cuts, columns clients: (L+1, N) or (L+1,).

    Source: reconstruction [R] of the EPSL round (arXiv 2303.15991).
    """

    client_forward: np.ndarray  # (L+1, N) b ρ_j / s_i, s, or b times the client's own measured seconds
    upload_bits: np.ndarray  # (L+1,) b ψ_j
    server_forward: np.ndarray  # (L+1,) N b (ρ_L − ρ_j) / s, s
    server_backward: np.ndarray  # (L+1,) [(n_A + N (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + N b ϖ_last] / s, s
    broadcast_bits: np.ndarray  # (L+1,) n_A χ_j
    unicast_bits: np.ndarray  # (L+1,) (b − n_A) χ_j
    client_backward: np.ndarray  # (L+1, N) b ϖ_j / s_i, s, likewise
    server_step: np.ndarray  # (L+1,) (σ_L − σ_j) / s, s
    client_step: np.ndarray  # (L+1, N) σ_j / s_i, s, or the client's own measured seconds

    @classmethod
    def of(cls, profile: Profile, cell: WirelessCell, batch_size: int, phi: float) -> Self:
        """Compute the terms for a profile, a cell, a mini-batch of b per client and a share φ."""
        b, n_a, n_clients = batch_size, aggregated_rows(phi, batch_size), cell.n_clients
        # With only the last layer on the server there is no more to go back through: 0, also after rounding.
        before_last = np.maximum(profile.bwd_cost[-1] - profile.bwd_cost - profile.last_bwd_cost, 0.0)
        rows = server_rows(phi, b, n_clients)
        forward, backward, step = client_seconds(profile, cell)
        return cls(
            client_forward=b * forward,
            upload_bits=b * profile.act_bits,
            server_forward=n_clients * b * (profile.fwd_cost[-1] - profile.fwd_cost) / cell.server_speed,
            server_backward=(rows * before_last + n_clients * b * profile.last_bwd_cost) / cell.server_speed,
            broadcast_bits=n_a * profile.grad_bits,
            unicast_bits=(b - n_a) * profile.grad_bits,
            client_backward=b * backward,
            server_step=(profile.steps[-1] - profile.steps) / cell.server_speed,
            client_step=step,
        )


def client_seconds(profile: Profile, cell: WirelessCell) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (L+1, N) seconds forward and backward per sample and of an optimizer step on units 1..j.

    They are those of a client's own profile, or else follow from its speed.
    """
    forward = profile.fwd_cost[:, None] / cell.client_speed
    backward = profile.bwd_cost[:, None] / cell.client_speed
    step = profile.steps[:, None] / cell.client_speed
    for i, own in enumerate(cell.profiles or ()):
        if own is not None:
            forward[:, i], backward[:, i], step[:, i] = own.fwd_cost, own.bwd_cost, own.steps
    return forward, backward, step


def latency(
    profile: Profile,
    cell: WirelessCell,
    *,
    cut: int | str,
    assignment: ArrayLike,
    power: ArrayLike,
    batch_size: int,
    phi: float,
    framework: str = "epsl",
    local_steps: int = 1,
) -> RoundLatency:
    """Return the time of one round of a framework with given cut, subchannels and power.

    Client i has uplink rate r_i = Σ_k x_ik w_k log2(1 + p_k g_ik/n_0) and downlink rate r_dl,i = Σ_k x_ik w_k
    log2(1 + p_dl g_ik/n_0); a broadcast goes over all subchannels at the rate r_bc of the worst client.

    ===========  ====================================================================================================
    epsl         uplink + server forward + server backward + broadcast + downlink, as in `RoundLatency` [R]
    psl          the same with φ = 0: nothing aggregated, nothing broadcast [R]
    sfl          `local_steps` PSL steps; then the client-side models travel: a client uploads its δ_j bits at r_i
                 as soon as its own backward is done, and the average is broadcast at r_bc [R]
    sl           vanilla split learning: one client after another. The active client has *all* subchannels, water-filled
                 power within min(P_i, P_total), and the server to itself:
                 Σ_i (b ρ_j/s_i + b ψ_j/r*_i + b (ρ_L−ρ_j + ϖ_L−ϖ_j)/s + b χ_j/r*_dl,i + b ϖ_j/s_i);
                 then it hands its client-side model over through the base station: Σ_i (δ_j/r*_i + δ_j/r*_dl,i),
                 nothing for a single client. It takes N optimiser steps of b samples, PSL one of N b [R]
    fedavg       broadcast of the model, δ_L/r_bc; `local_steps` mini-batches on each device and upload of the result,
                 max_i (H b (ρ_L + ϖ_L)/s_i + δ_L/r_i) [R]
    centralised  N b (ρ_L + ϖ_L)/s. The data are taken to be at the server already: sending them is not counted [R]
    ===========  ====================================================================================================

    Aggregating and averaging themselves, and labels, are taken as free. A client with a measured profile of its own
    takes that profile's seconds in place of ρ/s_i and ϖ/s_i. All frameworks are given the *same* cut, subchannels and
    power; a comparison at each one's best cut calls this once per cut.

    Args:
        profile: costs of the model's cuts.
        cell: the wireless cell.
        cut: number or name of the cut, 1..L-1.
        assignment: (K,) client of each subchannel; every client holds at least one.
        power: (K,) transmit power density on each subchannel, W/Hz, within the cell's limits.
        batch_size: b, samples per client and mini-batch.
        phi: φ, share of the slots whose gradients are aggregated, 0..1 (used by "epsl" alone).
        framework: one of "epsl", "psl", "sfl", "sl", "fedavg", "centralised".
        local_steps: H, mini-batches between two averages (used by "sfl" and "fedavg" alone: a round of the others has
            one mini-batch per client).

    Raises:
        ScenarioError: an argument is out of range or of the wrong shape, or power exceeds a limit.

    Source: reconstruction [R] of EPSL (arXiv 2303.15991) and of the frameworks it compares with.
    """
    check_profile(profile, cell)
    batch_size, phi = check_batch(batch_size, phi)
    cut = check_cut(profile, cut)
    client = check_assignment(cell, assignment)
    density = check_power(cell, client, power)
    return round_latency(profile, cell, cut, client, density, batch_size, phi, framework, local_steps)


def round_latency(
    profile: Profile,
    cell: WirelessCell,
    cut: int,
    assignment: np.ndarray,
    power: np.ndarray,
    batch_size: int,
    phi: float,
    framework: str,
    local_steps: int,
) -> RoundLatency:
    """Return `latency` for what a plan holds, which is checked already; checks the framework and its local steps."""
    check_choice("framework", framework, FRAMEWORKS)
    steps = check_count("local_steps", local_steps) if framework in ("sfl", "fedavg") else 1
    if framework == "centralised":
        everything = cell.n_clients * batch_size * (profile.fwd_cost[-1] + profile.bwd_cost[-1])
        step = float(profile.steps[-1] / cell.server_speed)
        return RoundLatency(framework, local_training=float(everything / cell.server_speed), optimizer=step)
    if framework == "sl":
        return _sequential(profile, cell, cut, batch_size)
    up, down, common = cell.uplink_rate(assignment, power), cell.downlink_rate(assignment), cell.broadcast_rate()
    if framework == "fedavg":
        forward, backward, step = client_seconds(profile, cell)
        passes = steps * batch_size * (forward[-1] + backward[-1])  # (N,)
        compute = passes + steps * step[-1]
        bits = profile.param_bits[-1]
        done = float((compute + seconds(bits, up)).max())
        exchange = done - float(compute.max()) + float(seconds(bits, common))
        training, stepping = float(passes.max()), float(compute.max() - passes.max())
        return RoundLatency(framework, local_training=training, optimizer=stepping, model_exchange=exchange)

    terms = CutTerms.of(profile, cell, batch_size, phi if framework == "epsl" else 0.0)
    uplink_of = terms.client_forward[cut] + seconds(terms.upload_bits[cut], up)
    passes = terms.client_backward[cut] + seconds(terms.unicast_bits[cut], down)
    downlink_of = passes + terms.client_step[cut]
    stepping = float(terms.server_step[cut] + (downlink_of.max() - passes.max()))
    exchange = 0.0
    if framework == "sfl":
        model = profile.param_bits[cut]
        exchange = float((downlink_of + seconds(model, up)).max() - downlink_of.max() + seconds(model, common))
    return RoundLatency(
        framework,
        uplink=steps * float(uplink_of.max()),
        server_forward=steps * float(terms.server_forward[cut]),
        server_backward=steps * float(terms.server_backward[cut]),
        broadcast=steps * float(seconds(terms.broadcast_bits[cut], common)),
        downlink=steps * float(passes.max()),
        optimizer=steps * stepping,
        model_exchange=exchange,
        uplink_of=uplink_of,
        downlink_of=downlink_of,
    )


def _sequential(profile: Profile, cell: WirelessCell, cut: int, batch_size: int) -> RoundLatency:
    """Return the round of vanilla split learning: the active client has all subchannels."""
    n_clients, n_subchannels = cell.n_clients, cell.n_subchannels
    limit = np.minimum(cell.client_power, cell.total_power)
    client = np.repeat(np.arange(n_clients), n_subchannels)
    rate = most_rate(limit, client, with_floor(cell.snr_per_psd).ravel(), np.tile(cell.bandwidth, n_clients))
    down_rate = cell.whole_band_downlink_rate()
    terms = CutTerms.of(profile, cell, batch_size, 0.0)
    uplink_of = terms.client_forward[cut] + seconds(terms.upload_bits[cut], rate)
    passes = terms.client_backward[cut] + seconds(terms.unicast_bits[cut], down_rate)
    model = profile.param_bits[cut] if n_clients > 1 else 0.0
    return RoundLatency(
        "sl",
        uplink=float(uplink_of.sum()),
        server_forward=float(terms.server_forward[cut]),
        server_backward=float(terms.server_backward[cut]),
        downlink=float(passes.sum()),
        optimizer=float((terms.server_step[cut] + terms.client_step[cut]).sum()),
        model_exchange=float((seconds(model, rate) + seconds(model, down_rate)).sum()),
        uplink_of=uplink_of,
        downlink_of=passes + terms.client_step[cut],
    )
