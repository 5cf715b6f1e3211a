"""What a round of EPSL computes and sends at every cut, before any rate is known."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from psl.gradient_aggregation import aggregated_rows, server_rows
from psl.networks.wireless_cell import WirelessCell
from psl.profiles import Profile


@dataclass(frozen=True)
class CutTerms:
    """Seconds and bits of the parts of a round of EPSL, for every cut 0..L: all that does not depend on the rates.

    The round takes max_i (client_forward_i + upload_bits / r_i) + server_forward + second_forward + server_backward
    + server_step + broadcast_bits / r_bc + max_i (unicast_bits / r_dl,i + client_backward_i + client_step_i)
    + t_0 + t_m messages. Rows are cuts, columns clients: (L+1, N) or (L+1,).

    Source: reconstruction [R] of the EPSL round (arXiv 2303.15991); drawn rows, messages and t_0 [B].
    """

    client_forward: np.ndarray  # (L+1, N) b ρ_j / s_i, s, or b times the client's own measured seconds
    upload_bits: np.ndarray  # (L+1,) b ψ_j; (L+1, N) if clients have mini-batches of their own size
    server_forward: np.ndarray  # (L+1,) N b (ρ_L − ρ_j) / s, s
    second_forward: np.ndarray  # (L+1,) d (ρ_L − ρ_j) / s, s, or n_A in place of d ("mean"); 0 in other rules
    server_backward: (
        np.ndarray
    )  # (L+1,) [(n_A + N (b − n_A)) (ϖ_L − ϖ_j − ϖ_last) + N b ϖ_last] / s, s, or d (ϖ_L − ϖ_j) / s
    broadcast_bits: np.ndarray  # (L+1,) n_A χ_j
    unicast_bits: np.ndarray  # (L+1,) (b − n_A) χ_j; (L+1, N) d_i χ_j
    client_backward: np.ndarray  # (L+1, N) b ϖ_j / s_i, s, likewise; d_i ϖ_j / s_i
    server_step: np.ndarray  # (L+1,) (σ_L − σ_j) / s, s
    client_step: np.ndarray  # (L+1, N) σ_j / s_i, s, or the client's own measured seconds
    messages: np.ndarray  # (L+1,) messages that follow one another: up, broadcast, down, where they have bits

    @classmethod
    def of(
        cls,
        profile: Profile,
        cell: WirelessCell,
        batch_size: int,
        phi: float,
        *,
        rows: np.ndarray | None = None,
        samples: np.ndarray | None = None,
        linearise: str = "representative",
    ) -> Self:
        """Compute the terms for a profile, a cell, a mini-batch of b per client and a share φ.

        Args:
            profile, cell, batch_size, phi: as in `latency`.
            rows: (N,) d_i, rows of each client that are drawn; None if gradients are aggregated.
            samples: (N,) samples of each client where mini-batches differ; nothing is aggregated then.
            linearise: rule of the aggregation. In "each" and "cut" the server goes back through all rows, and in "mean"
                forward through n_A more.
        """
        n_clients, speed = cell.n_clients, cell.server_speed
        b = batch_size if samples is None else samples
        everyone = n_clients * batch_size if samples is None else int(samples.sum())
        n_a = 0 if rows is not None or samples is not None else aggregated_rows(phi, batch_size)
        back = b if rows is None else rows  # of each client: what the client itself goes back through
        # With only the last layer on the server there is no more to go back through: 0, also after rounding.
        before_last = np.maximum(profile.bwd_cost[-1] - profile.bwd_cost - profile.last_bwd_cost, 0.0)
        last = everyone if rows is None else int(rows.sum())
        through_all = rows is not None or samples is not None or linearise in ("each", "cut")
        total = last if through_all else server_rows(phi, batch_size, n_clients)
        again = n_a if linearise == "mean" else 0 if last == everyone else last
        behind = profile.fwd_cost[-1] - profile.fwd_cost
        forward, backward, step = client_seconds(profile, cell)
        sent, answered = profile.act_bits > 0, profile.grad_bits > 0
        return cls(
            client_forward=b * forward,
            upload_bits=_of_each(profile.act_bits, b),
            server_forward=everyone * behind / speed,
            second_forward=again * behind / speed,
            server_backward=(total * before_last + last * profile.last_bwd_cost) / speed,
            broadcast_bits=n_a * profile.grad_bits,
            unicast_bits=_of_each(profile.grad_bits, back - n_a),
            client_backward=back * backward,
            server_step=(profile.steps[-1] - profile.steps) / speed,
            client_step=step if samples is None else step * (samples > 0),
            messages=sent.astype(int) + (int(n_a > 0) + int(np.any(back > n_a))) * answered,
        )


def _of_each(bits: np.ndarray, number: int | np.ndarray) -> np.ndarray:
    """Return (L+1,) bits of so many rows, or (L+1, N) if clients have different numbers."""
    return np.outer(bits, number) if isinstance(number, np.ndarray) else number * bits


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
