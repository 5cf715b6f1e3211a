"""Efficient parallel split learning: the server sends aggregated last-layer gradients back once for all clients.

Row (i, q) is slot q of client i, of N clients with b slots each; ℓ_iq is its loss, o_iq the output of the server's last
layer, z_iq = ∂ℓ_iq/∂o_iq. The objective is Σ_i λ_i ℓ̄_i with ℓ̄_i = (1/b) Σ_q ℓ_iq. EPSL aggregates the first n_A slots,
z̄_q = Σ_i λ_i z_iq (`aggregate`), and sends z̄_q back through the server once instead of N times. The other slots are
treated as in PSL. `linearise` says at whose activations the server's Jacobian is taken for z̄_q:

* ``"representative"``: at one client's, drawn with probability λ_i for every slot before the
  server's forward pass. Only the n_A representatives and the N (b - n_A) other rows get an autograd
  graph; the rest run without one. So backward really is n_A + N (b - n_A) rows.
* ``"mean"``: at the λ-mean of the clients' smashed data, one extra forward pass of n_A rows.
* ``"each"``: at every client's, the results λ-averaged: the expectation of ``"representative"``.
  Backward is N·b rows: no saving.
* ``"cut"``: nothing is aggregated at the last layer; exact gradients are λ-averaged at the cut.
  Backward is N·b rows; only the downlink shrinks. With φ = 1 this is the idea of SFL-GA (arXiv 2501.01078): one
  aggregated gradient of the smashed data for all clients [R].

``"sampled"`` aggregates nothing: it draws as many rows as the server would have gone back through, see
`psl.training.frameworks.drawn_rows` [B].

With one client every choice aggregates one gradient into itself: plain split training.

BatchNorm in train mode: ``"each"`` and ``"cut"`` normalise all N·b rows as one batch, like PSL. In
``"representative"`` and ``"mean"`` the rows with and those without a graph are two groups, each
normalised by its own batch statistics; the running statistics see every row once, with equal weight
(`GroupStatistics`). The extra rows of ``"mean"`` are a third group that they do not see. A group of
one row has no variance: in ``"representative"`` a single row of either kind makes both groups one,
with a graph; in ``"mean"`` n_A = 1 is refused where BatchNorm sees nothing but that row.

Source: EPSL (arXiv 2303.15991): last-layer aggregation [P], where to linearise [R].
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import expected
from psl.gradient_aggregation import aggregated_rows, sampled_rows
from psl.training.batchnorm import GroupStatistics, one_row_refused
from psl.training.frameworks.drawn_rows import sampled_backward
from psl.training.frameworks.psl import PSL
from psl.training.frameworks.split_step import (
    ServerGradients,
    own_gradients,
    server_backward,
    weighted_sum,
)
from psl.training.messages import Gradients, each, flat, joined, leaves, rows_of
from psl.training.messages import rows as some_rows
from psl.training.scores import cross_entropy
from psl.training.stage import output_gradients

Seed = Callable[[torch.Tensor], torch.Tensor]  # from z_iq (N, b, …) to the gradients of some rows


class EPSL(PSL):
    """PSL that aggregates the last-layer gradients of n_A = ⌈φ b⌉ slots, z̄_q = Σ_i λ_i z_iq; or that draws rows.

    Source: EPSL (arXiv 2303.15991): aggregation [P], where to linearise [R]; drawing rows [B].
    """

    name = "epsl"
    u_shaped = False  # it aggregates gradients of the last layer, which the server would not have

    @property
    def slots(self) -> bool:
        """Whether the server waits for micro-batch k of all clients: it does to aggregate."""
        return self.config.phi > 0

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        found = super().settings() | {"phi": self.config.phi, "linearise": self.config.linearise}
        return found | ({"rows": self.config.rows} if self.config.linearise == "sampled" else {})

    def server_gradients(
        self,
        smashed: list[Any],
        labels: list[torch.Tensor],
        weights: np.ndarray,
        rng: np.random.Generator,
        loss: Callable[..., torch.Tensor] | None = None,
    ) -> ServerGradients:
        """Run the server forward, aggregate or draw, and run it backward; see `aggregated_backward`, `drawn_rows`."""
        rule, loss = self.config.linearise, loss or self.config.loss
        if rule == "sampled":
            rows = sampled_rows(self.config.phi, self.config.batch_size, len(labels))
            options = {"rows": rows, "rng": rng, "adaptive": self.config.rows == "adaptive", "loss": loss}
            found = sampled_backward(self.server, smashed, labels, weights, **options)
            self.rows = rows if found.rows is None else np.array([int(mask.sum()) for mask in found.rows])
            return found
        n_agg = aggregated_rows(self.config.phi, len(labels[0]))  # of a micro-batch, or of all b
        return aggregated_backward(self.server, smashed, labels, weights, n_agg=n_agg, rule=rule, rng=rng, loss=loss)


def aggregate(gradients: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return z̄_q = Σ_i λ_i z_iq, the aggregated last-layer gradient of every slot.

    Args:
        gradients: (N, n_A, …) z_iq, with respect to the outputs of the server's last layer.
        weights: (N,) λ_i, summing to 1.

    Source: EPSL (arXiv 2303.15991) [P].
    """
    return weighted_sum(weights, gradients)


def aggregated_backward(
    server: nn.Module,
    smashed: list[Any],
    labels: list[torch.Tensor],
    weights: np.ndarray,
    *,
    n_agg: int,
    rule: str = "representative",
    rng: np.random.Generator | None = None,
    loss: Callable[..., torch.Tensor] = cross_entropy,
) -> ServerGradients:
    """Run the server forward and backward on the smashed data of N clients, the first slots aggregated.

    Gradients add to the ``.grad`` of the server's parameters. Of the slots that are not aggregated each client gets
    the gradients of its own mean loss, as from `server_backward`.

    Args:
        server: the server-side model.
        smashed: N tensors (b, …).
        labels: N tensors (b,).
        weights: (N,) λ_i, summing to 1.
        n_agg: n_A, the number of aggregated slots, 0..b; 0 is PSL.
        rule: where the server's Jacobian is taken, one of `psl.training.config.AGGREGATION_RULES`.
        rng: draws the representatives; needed for "representative".
        loss: maps outputs and labels to one loss per row.

    Raises:
        ScenarioError: BatchNorm would have to normalise the one mean row of ``"mean"`` with n_A = 1; no `rng`.

    Source: EPSL (arXiv 2303.15991): last-layer aggregation [P], where to linearise [R].
    """
    if len(smashed) == 1 or n_agg == 0:
        return server_backward(server, smashed, labels, weights, loss)
    rows = _Rows(smashed, labels, weights, n_agg)
    if rule == "representative":
        if rng is None:
            raise expected("rng", "a generator that draws the representatives", "none", "pass a numpy Generator")
        return _at_representatives(server, rows, loss, rng)
    if rule == "mean":
        return _at_mean(server, rows, loss)
    return _at_every_row(server, rows, loss, aggregated=rule == "each")


class _Rows:
    """The smashed data of all clients as one batch; row (i, q) stands at i·b + q.

    Attributes:
        smashed, labels: (N·b, …) and (N·b,).
        weights: (N,) λ_i, float64.
        aggregated: (N, n_A) numbers of the rows of aggregated slots.
        own: (N·(b - n_A),) numbers of the others.
        slots: (n_A,) 0..n_A-1.
    """

    def __init__(self, smashed: list[Any], labels: list[torch.Tensor], weights: np.ndarray, n_agg: int):
        self.smashed, self.labels = joined(smashed), torch.cat(labels)
        device = self.labels.device
        self.weights = torch.as_tensor(weights, device=device)
        self.n_clients, self.batch_size, self.n_agg = len(labels), len(labels[0]), n_agg
        numbers = torch.arange(len(self.labels), device=device).view(self.n_clients, self.batch_size)
        self.aggregated, self.own = numbers[:, :n_agg], numbers[:, n_agg:].flatten()
        self.slots = torch.arange(n_agg, device=device)

    def output_gradients(self, outputs: Any, loss: Callable) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Return the objective Σ_i λ_i ℓ̄_i, and z_iq / b of all rows, (N, b, …), of every output."""
        given = leaves(outputs)
        losses = loss(given, self.labels)
        found = flat(output_gradients(losses.sum(), given))
        client_means = losses.detach().view(self.n_clients, self.batch_size).mean(dim=1)  # (N,)
        objective = weighted_sum(self.weights, client_means)
        sizes = self.n_clients, self.batch_size
        return objective, [None if z is None else z.view(*sizes, *z.shape[1:]) / self.batch_size for z in found]

    def aggregated_of(self, z: torch.Tensor) -> torch.Tensor:
        """Return z̄_q of z_iq (N, b, …), (n_A, …)."""
        return aggregate(z[:, : self.n_agg], self.weights)

    def own_of(self, z: torch.Tensor) -> torch.Tensor:
        """Return λ_i z_iq of the slots that are not aggregated, (N·(b - n_A), …)."""
        return self.times_weights(z[:, self.n_agg :])

    def mean_of(self, values: torch.Tensor) -> torch.Tensor:
        """Return Σ_i λ_i values_i of (N, n, …) values; of whole numbers, such as a mask, the first client's."""
        return weighted_sum(self.weights, values) if values.is_floating_point() else values[0]

    def times_weights(self, values: torch.Tensor) -> torch.Tensor:
        """Return λ_i times client i's values (N, n, …), as (N·n, …)."""
        return (values * self.weights.to(values.dtype).view(-1, *[1] * (values.ndim - 1))).flatten(0, 1)


def _at_representatives(server: nn.Module, rows: _Rows, loss: Callable, rng: np.random.Generator) -> ServerGradients:
    drawn = rng.choice(rows.n_clients, size=rows.n_agg, p=rows.weights.cpu().numpy())
    chosen = torch.as_tensor(drawn, device=rows.labels.device)  # (n_A,) client of each slot
    others = torch.ones_like(rows.aggregated, dtype=torch.bool)
    others[chosen, rows.slots] = False
    plain = rows.aggregated[others]  # ((N - 1)·n_A,)
    graph = torch.cat([rows.aggregated[chosen, rows.slots], rows.own])
    if min(len(plain), len(graph)) == 1:  # BatchNorm cannot normalise a group of one row
        graph, plain = torch.cat([graph, plain]), plain[:0]

    groups = GroupStatistics(server, len(rows.labels))
    arrived = leaves(some_rows(rows.smashed, graph))
    gradients = Gradients(arrived)
    graph_outputs = _forward(server, arrived, groups)
    found = [(graph, graph_outputs)]
    if len(plain):
        found.append((plain, _forward_plain(server, some_rows(rows.smashed, plain), groups)))

    objective, z = rows.output_gradients(_in_order(found), loss)
    extra = len(graph) - rows.n_agg - len(rows.own)  # rows without a gradient that joined the group

    def seed(z: torch.Tensor) -> torch.Tensor:
        return torch.cat([rows.aggregated_of(z), rows.own_of(z), z.new_zeros(extra, *z.shape[2:])])

    _backward([(graph_outputs, seed)], z)
    gradient = gradients.message
    shared, own = some_rows(gradient, slice(rows.n_agg)), some_rows(gradient, slice(rows.n_agg, len(graph) - extra))
    return ServerGradients(objective, shared, own_gradients(own, rows.weights))


def _at_mean(server: nn.Module, rows: _Rows, loss: Callable) -> ServerGradients:
    groups = GroupStatistics(server, len(rows.labels))
    plain = rows.aggregated.flatten()
    found = [(plain, _forward_plain(server, some_rows(rows.smashed, plain), groups))]
    arrived = leaves(some_rows(rows.smashed, rows.own))
    gradients = Gradients(arrived)
    if len(rows.own):
        found.append((rows.own, _forward(server, arrived, groups)))
    mean_leaf = leaves(each(lambda t: rows.mean_of(t[rows.aggregated]), rows.smashed))  # (n_A, …)
    mean_gradients = Gradients(mean_leaf)
    want, fix = "n_A of at least 2 for this model's BatchNorm", "take a larger phi or batch_size, or another linearise="
    with groups.unseen(), one_row_refused('linearise="mean"', want, fix):
        mean_outputs = server(mean_leaf)

    objective, z = rows.output_gradients(_in_order(found), loss)
    tops: list[tuple[Any, Seed]] = [(mean_outputs, rows.aggregated_of)]
    if len(rows.own):
        tops.append((found[1][1], rows.own_of))
    _backward(tops, z)
    return ServerGradients(objective, mean_gradients.message, own_gradients(gradients.message, rows.weights))


def _at_every_row(server: nn.Module, rows: _Rows, loss: Callable, aggregated: bool) -> ServerGradients:
    arrived = leaves(rows.smashed)
    gradients = Gradients(arrived)
    outputs = server(arrived)
    objective, z = rows.output_gradients(outputs, loss)

    def seed(z: torch.Tensor) -> torch.Tensor:
        if aggregated:
            same_for_all = rows.aggregated_of(z).expand_as(z[:, : rows.n_agg])
            z = torch.cat([same_for_all, z[:, rows.n_agg :]], dim=1)
        return rows.times_weights(z)

    _backward([(outputs, seed)], z)
    gradient = gradients.message
    shared = each(lambda g: g[rows.aggregated].sum(dim=0), gradient)  # rows carry their λ_i already
    return ServerGradients(objective, shared, own_gradients(some_rows(gradient, rows.own), rows.weights))


def _backward(tops: list[tuple[Any, Seed]], gradients: list[torch.Tensor | None]) -> None:
    """Send z_iq, of every output that has any, backward from the outputs of some rows."""
    pairs = [
        (x, seed(z))
        for outputs, seed in tops
        for x, z in zip(flat(outputs), gradients, strict=True)
        if z is not None and x.requires_grad
    ]
    torch.autograd.backward([x for x, _ in pairs], [seed for _, seed in pairs])


def _forward(server: nn.Module, inputs: Any, groups: GroupStatistics) -> Any:
    with groups.group(rows_of(inputs)):
        return server(inputs)


def _forward_plain(server: nn.Module, inputs: Any, groups: GroupStatistics) -> Any:
    with torch.no_grad():
        return _forward(server, inputs, groups)


def _in_order(found: list[tuple[torch.Tensor, Any]]) -> Any:
    """Return the outputs of all rows in their order, detached, from pairs of row numbers and outputs."""
    order = torch.argsort(torch.cat([numbers for numbers, _ in found]))
    return each(lambda *parts: torch.cat([part.detach() for part in parts])[order], *[outputs for _, outputs in found])
