"""Round latency of EPSL and of the frameworks it is compared with, term by term."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from psl import html
from psl.errors import check_choice, check_count
from psl.gradient_aggregation import sampled_rows
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile
from psl.records import Record
from psl.schedulers.checks import seconds
from psl.schedulers.epsl.checks import (
    check_assignment,
    check_batch,
    check_cut,
    check_linearise,
    check_power,
    check_profile,
)
from psl.schedulers.epsl.terms import CutTerms, client_seconds
from psl.schedulers.epsl.water_filling import most_rate, with_floor

FRAMEWORKS = ("epsl", "psl", "sfl", "sl", "fedavg", "centralised")

#: What each term of RoundLatency holds, in the order of a round.
TERMS = {
    "uplink": "client forward and upload of smashed data",
    "server_forward": "server forward",
    "second_forward": "server forward of the rows that are drawn, or after the server's own steps",
    "server_backward": "server backward",
    "broadcast": "broadcast of aggregated gradients",
    "downlink": "unicast of the other gradients and client backward",
    "optimizer": "optimizer steps of the server and of the clients",
    "local_training": "training of the whole model on one machine",
    "model_exchange": "upload, broadcast or hand-over of models",
    "overhead": "what a round and its messages take whatever they carry",
}
_RARE = ("second_forward", "overhead")  # terms that tables show only where they take time


@dataclass(frozen=True, repr=False, eq=False)
class RoundLatency(Record):
    """Seconds of one round, by term; `total` is their sum. Terms a framework does not have are 0.

    Args:
        framework: one of `FRAMEWORKS`.
        uplink: max_i (b ρ_j / s_i + b ψ_j / r_i); for sequential SL the sum over clients.
        server_forward: N b (ρ_L − ρ_j) / s.
        second_forward: d (ρ_L − ρ_j) / s if d of N b rows are drawn, or n_A in place of d in the rule "mean".
        server_backward: [(n_A + N (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + N b ϖ_last] / s; d (ϖ_L − ϖ_j) / s if d are drawn.
        broadcast: n_A χ_j / r_bc.
        downlink: max_i ((b − n_A) χ_j / r_dl,i + b ϖ_j / s_i); max_i (d_i χ_j / r_dl,i + d_i ϖ_j / s_i) if d_i rows
            of client i are drawn; for sequential SL the sum over clients.
        optimizer: (σ_L − σ_j) / s, before the gradients go down, and what the clients' own steps, σ_j / s_i, add to
            the downlink's maximum; 0 for a profile without `step_cost`.
        local_training: of FedAvg's clients or of the centralised server.
        model_exchange: time for whole or client-side models to travel.
        overhead: t_0 + t_m × the messages that follow one another + t_c × the server's calls.
        uplink_of, downlink_of: (N,) the same two terms of every client, before the maximum or sum; the downlink with
            the client's own optimizer step.

    Source: reconstruction [R] of the EPSL round (arXiv 2303.15991); drawn rows and overhead [B].
    """

    framework: str
    uplink: float = 0.0
    server_forward: float = 0.0
    second_forward: float = field(default=0.0, kw_only=True)
    server_backward: float = 0.0
    broadcast: float = 0.0
    downlink: float = 0.0
    optimizer: float = 0.0
    local_training: float = 0.0
    model_exchange: float = 0.0
    overhead: float = field(default=0.0, kw_only=True)
    uplink_of: np.ndarray | None = None
    downlink_of: np.ndarray | None = None

    @property
    def total(self) -> float:
        """Seconds of the whole round."""
        return sum(getattr(self, term) for term in TERMS)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per term: seconds, share of the total, and what it is."""
        terms = {term: meaning for term, meaning in TERMS.items() if term not in _RARE or getattr(self, term)}
        values = [getattr(self, term) for term in terms]
        with np.errstate(invalid="ignore"):
            share = np.array(values) / self.total
        frame = pd.DataFrame({"seconds": values, "share": share, "meaning": list(terms.values())}, index=list(terms))
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
    linearise: str = "representative",
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

    Every round but a centralised one takes the cell's `round_overhead` more, and its `message_overhead` for each of the
    messages that follow one another: up, broadcast, down; of N clients in turn N times as many; and its `call_overhead`
    for each forward and backward pass of the server, of PSL one, of SL one per client [B].

    Aggregating and averaging, drawing rows, and labels, are free. A client with a measured profile of its own
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
        linearise: "representative": gradients are aggregated as in the paper; "sampled": as many rows are drawn,
            d_i of client i (`psl.gradient_aggregation.sampled_rows`), go forward a second time, and nothing is
            broadcast [B]. The formula lets a client go back through its d_i rows alone; with BatchNorm before the cut
            an exact backward pass takes all b (used by "epsl" alone).

    Raises:
        ScenarioError: an argument is out of range or of the wrong shape, or power exceeds a limit.

    Source: reconstruction [R] of EPSL (arXiv 2303.15991) and of the frameworks it compares with.
    """
    check_profile(profile, cell)
    batch_size, phi = check_batch(batch_size, phi)
    cut = check_cut(profile, cut)
    client = check_assignment(cell, assignment)
    density = check_power(cell, client, power)
    rule = check_linearise(linearise)
    return round_latency(profile, cell, cut, client, density, batch_size, phi, framework, local_steps, rule)


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
    linearise: str = "representative",
    *,
    rows: np.ndarray | None = None,
    samples: np.ndarray | None = None,
    server_steps: int = 0,
) -> RoundLatency:
    """Return `latency` for what a plan holds, which is checked already; checks the framework and its local steps.

    Args:
        linearise: rule of "epsl", one of those of `psl.train`.
        rows: (N,) rows that "epsl" drew, in place of `sampled_rows`.
        samples: (N,) samples of each client's mini-batch in "psl" with global sampling.
        server_steps: of "psl": the server steps so often on resampled activations, and then goes forward and back once
            more for the clients; that backward pass is counted in full [R].
    """
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
        fixed = overhead(cell, 2 * int(bits > 0))
        return RoundLatency(
            framework, local_training=training, optimizer=stepping, model_exchange=exchange, overhead=fixed
        )

    if framework == "epsl" and linearise == "sampled" and rows is None:
        rows = sampled_rows(phi, batch_size, cell.n_clients)
    drawn = {"rows": rows if framework == "epsl" else None, "samples": samples if framework == "psl" else None}
    terms = CutTerms.of(profile, cell, batch_size, phi if framework == "epsl" else 0.0, linearise=linearise, **drawn)
    uplink_of = terms.client_forward[cut] + seconds(terms.upload_bits[cut], up)
    passes = terms.client_backward[cut] + seconds(terms.unicast_bits[cut], down)
    downlink_of = passes + terms.client_step[cut]
    stepping = float(terms.server_step[cut] * max(server_steps, 1) + (downlink_of.max() - passes.max()))
    exchange, messages = 0.0, steps * int(terms.messages[cut])
    if framework == "sfl":
        model = profile.param_bits[cut]
        exchange = float((downlink_of + seconds(model, up)).max() - downlink_of.max() + seconds(model, common))
        messages += 2 * int(model > 0)
    forward, again = float(terms.server_forward[cut]), float(terms.second_forward[cut])
    return RoundLatency(
        framework,
        uplink=steps * float(uplink_of.max()),
        server_forward=steps * forward,
        second_forward=steps * (forward if server_steps else again),
        server_backward=steps * float(terms.server_backward[cut]) * (2 if server_steps else 1),
        broadcast=steps * float(seconds(terms.broadcast_bits[cut], common)),
        downlink=steps * float(passes.max()),
        optimizer=steps * stepping,
        model_exchange=exchange,
        overhead=overhead(cell, messages, steps * (1 + server_steps)),
        uplink_of=uplink_of,
        downlink_of=downlink_of,
    )


def overhead(cell: WirelessCell, messages: int, calls: int = 0) -> float:
    """Return t_0 + t_m × messages + t_c × calls, of messages that follow one another and calls of the server."""
    return cell.round_overhead + cell.message_overhead * messages + cell.call_overhead * calls


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
        overhead=overhead(cell, n_clients * int(terms.messages[cut] + 2 * (model > 0)), n_clients),
        uplink_of=uplink_of,
        downlink_of=passes + terms.client_step[cut],
    )
