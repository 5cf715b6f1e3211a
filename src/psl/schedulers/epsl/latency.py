"""Round latency of EPSL and of the frameworks it is compared with, term by term."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from psl.errors import check_array, check_choice, check_count, expected
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.problem import (
    CutTerms,
    broadcast_rate,
    check_batch,
    check_cut,
    check_profile,
    client_seconds,
    whole_band_rates,
)
from psl.schedulers.epsl.water_filling import most_rate

FRAMEWORKS = ("epsl", "psl", "sfl", "sl", "fedavg", "centralised")

#: What each term of RoundLatency holds, in the order of a round.
TERMS = {
    "uplink": "client forward and upload of smashed data",
    "server_forward": "server forward",
    "server_backward": "server backward",
    "broadcast": "broadcast of aggregated gradients",
    "downlink": "unicast of the other gradients and client backward",
    "local_training": "training of the whole model on one machine",
    "model_exchange": "upload, broadcast or hand-over of models",
}


@dataclass(frozen=True, repr=False, eq=False)
class RoundLatency(Record):
    """Seconds of one round, by term; `total` is their sum. Terms a framework does not have are 0.

    Args:
        framework: one of `FRAMEWORKS`.
        uplink: max_i (b ρ_j / s_i + b ψ_j / R_i); for sequential SL the sum over clients.
        server_forward: C b (ρ_L − ρ_j) / s_srv.
        server_backward: [(n_A + C (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + C b ϖ_last] / s_srv.
        broadcast: n_A χ_j / R_bc.
        downlink: max_i ((b − n_A) χ_j / R_dl,i + b ϖ_j / s_i); for sequential SL the sum over clients.
        local_training: of FedAvg's clients or of the centralised server.
        model_exchange: time for whole or client-side models to travel.
        uplink_of, downlink_of: (C,) the same two terms of every client, before the maximum or sum.

    Source: reconstruction [R] of the EPSL round (arXiv 2303.15991).
    """

    framework: str
    uplink: float = 0.0
    server_forward: float = 0.0
    server_backward: float = 0.0
    broadcast: float = 0.0
    downlink: float = 0.0
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

    def __repr__(self):
        shown = ", ".join(f"{term} {getattr(self, term):.4g}" for term in TERMS if getattr(self, term))
        return f"RoundLatency({self.framework}: {self.total:.6g} s = {shown})"


def latency(
    profile: Profile,
    cell: WirelessCell,
    *,
    cut: int | str,
    assignment,
    power,
    batch_size: int,
    phi: float,
    framework: str = "epsl",
    local_steps: int = 1,
) -> RoundLatency:
    """Return the time of one round of a framework with given cut, subchannels and power.

    Client i has uplink rate R_i = Σ_k r_ik B_k log2(1 + p_k g_ik/σ²) and downlink rate R_dl,i = Σ_k r_ik B_k
    log2(1 + p_dl g_ik/σ²); a broadcast goes over all subchannels at the rate R_bc of the worst client.

    ===========  ====================================================================================================
    epsl         uplink + server forward + server backward + broadcast + downlink, as in `RoundLatency` [R]
    psl          the same with φ = 0: nothing aggregated, nothing broadcast [R]
    sfl          `local_steps` PSL steps; then the client-side models travel: a client uploads its δ_j bits at R_i
                 as soon as its own backward is done, and the average is broadcast at R_bc [R]
    sl           vanilla split learning: one client after another. The active client has *all* subchannels, water-filled
                 power within min(P_i, P_total), and the server to itself:
                 Σ_i (b ρ_j/s_i + b ψ_j/R*_i + b (ρ_L−ρ_j + ϖ_L−ϖ_j)/s_srv + b χ_j/R*_dl,i + b ϖ_j/s_i);
                 then it hands its client-side model over through the base station: Σ_i (δ_j/R*_i + δ_j/R*_dl,i),
                 nothing for a single client. It takes C optimiser steps of b samples, PSL one of C b [R]
    fedavg       broadcast of the model, δ_L/R_bc; `local_steps` mini-batches on each device and upload of the result,
                 max_i (H b (ρ_L + ϖ_L)/s_i + δ_L/R_i) [R]
    centralised  C b (ρ_L + ϖ_L)/s_srv. The data are taken to be at the server already: sending them is not counted [R]
    ===========  ====================================================================================================

    Aggregating and averaging themselves, and labels, are taken as free. A client with a measured profile of its own
    takes that profile's seconds in place of ρ/s_i and ϖ/s_i. All frameworks are given the *same* cut, subchannels and
    power; a comparison at each one's best cut calls this once per cut.

    Args:
        profile: costs of the model's cuts.
        cell: the wireless cell.
        cut: number or name of the cut, 1..L-1.
        assignment: (M,) client of each subchannel; every client holds at least one.
        power: (M,) transmit power density on each subchannel, W/Hz, within the cell's limits.
        batch_size: b, samples per client and mini-batch.
        phi: φ, share of the slots whose gradients are aggregated, 0..1 (used by "epsl" alone).
        framework: one of "epsl", "psl", "sfl", "sl", "fedavg", "centralised".
        local_steps: H, mini-batches between two averages (used by "sfl" and "fedavg" alone: a round of the others has
            one mini-batch per client).

    Raises:
        ScenarioError: an argument is out of range or of the wrong shape, or power exceeds a limit.

    Source: reconstruction [R] of EPSL (arXiv 2303.15991) and of the frameworks it compares with.
    """
    check_choice("framework", framework, FRAMEWORKS)
    batch_size, phi = check_batch(batch_size, phi)
    steps = check_count("local_steps", local_steps) if framework in ("sfl", "fedavg") else 1
    check_profile(profile, cell)
    j = check_cut(profile, cut)
    owner = check_assignment(cell, assignment)
    density = check_power(cell, owner, power)

    own_snr = cell.snr_per_psd[owner, np.arange(len(owner))]
    rate = np.bincount(owner, cell.bandwidth * np.log1p(density * own_snr) / np.log(2), cell.n_clients)
    down = cell.bandwidth * np.log2(1 + cell.downlink_psd * own_snr)
    down_rate = np.bincount(owner, down, cell.n_clients)
    common_rate = broadcast_rate(cell)
    everything = profile.fwd_cost[-1] + profile.bwd_cost[-1]

    if framework == "centralised":
        return RoundLatency(
            framework, local_training=float(cell.n_clients * batch_size * everything / cell.server_speed)
        )
    if framework == "fedavg":
        compute = steps * batch_size * sum(client_seconds(profile, cell))[-1]  # (C,)
        bits = profile.param_bits[-1]
        done = float((compute + seconds(bits, rate)).max())
        exchange = done - float(compute.max()) + float(seconds(bits, common_rate))
        return RoundLatency(framework, local_training=float(compute.max()), model_exchange=exchange)
    if framework == "sl":
        return _sequential(profile, cell, j, batch_size)

    terms = CutTerms.of(profile, cell, batch_size, phi if framework == "epsl" else 0.0)
    uplink_of = terms.client_forward[j] + seconds(terms.upload_bits[j], rate)
    downlink_of = terms.client_backward[j] + seconds(terms.unicast_bits[j], down_rate)
    exchange = 0.0
    if framework == "sfl":
        model = profile.param_bits[j]
        exchange = float((downlink_of + seconds(model, rate)).max() - downlink_of.max() + seconds(model, common_rate))
    return RoundLatency(
        framework,
        uplink=steps * float(uplink_of.max()),
        server_forward=steps * float(terms.server_forward[j]),
        server_backward=steps * float(terms.server_backward[j]),
        broadcast=steps * float(seconds(terms.broadcast_bits[j], common_rate)),
        downlink=steps * float(downlink_of.max()),
        model_exchange=exchange,
        uplink_of=uplink_of,
        downlink_of=downlink_of,
    )


def _sequential(profile: Profile, cell: WirelessCell, j: int, b: int) -> RoundLatency:
    n, m = cell.n_clients, cell.n_subchannels
    limit = np.minimum(cell.client_power, cell.total_power)
    rate = most_rate(limit, np.repeat(np.arange(n), m), cell.snr_per_psd.ravel(), np.tile(cell.bandwidth, n))
    down_rate = whole_band_rates(cell)
    terms = CutTerms.of(profile, cell, b, 0.0)
    uplink_of = terms.client_forward[j] + seconds(terms.upload_bits[j], rate)
    downlink_of = terms.client_backward[j] + seconds(terms.unicast_bits[j], down_rate)
    model = profile.param_bits[j] if n > 1 else 0.0
    return RoundLatency(
        "sl",
        uplink=float(uplink_of.sum()),
        server_forward=float(terms.server_forward[j]),
        server_backward=float(terms.server_backward[j]),
        downlink=float(downlink_of.sum()),
        model_exchange=float((seconds(model, rate) + seconds(model, down_rate)).sum()),
        uplink_of=uplink_of,
        downlink_of=downlink_of,
    )


def check_assignment(cell: WirelessCell, assignment) -> np.ndarray:
    """Return (M,) client numbers after checking that they exist and that every client holds a subchannel."""
    fix = f"give the client, 0..{cell.n_clients - 1}, of each of the {cell.n_subchannels} subchannels"
    values = check_array("assignment", assignment, shape=(cell.n_subchannels,), fix=fix)
    wrong = np.flatnonzero((values < 0) | (values >= cell.n_clients) | (values != np.floor(values)))
    if wrong.size:
        got = f"{values[wrong[0]]:g} for subchannel {wrong[0]}"
        raise expected("assignment", f"whole client numbers 0..{cell.n_clients - 1}", got, fix)
    owner = values.astype(int)
    idle = np.flatnonzero(np.bincount(owner, minlength=cell.n_clients) == 0)
    if idle.size:
        raise expected(
            "assignment", "at least one subchannel for every client", f"none for client {idle[0]}",
            "every client sends each round: assign it a subchannel",
        )  # fmt: skip
    owner.setflags(write=False)
    return owner


def check_power(cell: WirelessCell, owner: np.ndarray, power) -> np.ndarray:
    """Return (M,) power densities after checking them against the limits of the clients and the cell."""
    fix = "give W/Hz per subchannel within the cell's limits"
    density = check_array("power", power, shape=(cell.n_subchannels,), minimum=0, fix=fix)
    spent = np.bincount(owner, density * cell.bandwidth, cell.n_clients)
    over = np.flatnonzero(spent > cell.client_power * (1 + 1e-9))
    if over.size:
        i = int(over[0])
        raise expected("power", f"at most {cell.client_power[i]:.6g} W of client {i}", f"{spent[i]:.6g} W", fix)
    if spent.sum() > cell.total_power * (1 + 1e-9):
        raise expected("power", f"at most {cell.total_power:.6g} W in total", f"{spent.sum():.6g} W", fix)
    return density
