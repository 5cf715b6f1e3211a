"""The server's step in parallel split learning, and EPSL's choices of where to linearise the server.

All functions here work on the C·b rows that C clients send in one round. Row (i, j) is slot j of
client i, ℓ_ij its loss, o_ij the output of the server's last layer, z_ij = ∂ℓ_ij/∂o_ij. The
objective is Σ_i λ_i ℓ̄_i with ℓ̄_i = (1/b) Σ_j ℓ_ij. EPSL aggregates the first n_A slots,
z̄_j = Σ_i λ_i z_ij, and sends z̄_j back through the server once instead of C times. At whose
activations the server's Jacobian is taken is `linearise`:

* ``"representative"``: at one client's, drawn with probability λ_i for every slot before the
  server's forward pass. Only the n_A representatives and the C (b - n_A) other rows get an autograd
  graph; the rest run without one. So backward really is n_A + C (b - n_A) rows.
* ``"mean"``: at the λ-mean of the clients' smashed data, one extra forward pass of n_A rows.
* ``"each"``: at every client's, the results λ-averaged: the expectation of ``"representative"``.
  Backward is C·b rows: no saving.
* ``"cut"``: nothing is aggregated at the last layer; exact gradients are λ-averaged at the cut.
  Backward is C·b rows; only the downlink shrinks.

With one client every choice aggregates one gradient into itself: plain split training.

BatchNorm in train mode: ``"each"`` and ``"cut"`` normalise all C·b rows as one batch, like PSL. In
``"representative"`` and ``"mean"`` the rows with and those without a graph are two groups, each
normalised by its own batch statistics; the running statistics see every row once, with equal weight
(`GroupStatistics`). The extra rows of ``"mean"`` are a third group that they do not see. A group of
one row has no variance: in ``"representative"`` a single row of either kind makes both groups one,
with a graph; in ``"mean"`` n_A = 1 is refused where BatchNorm sees nothing but that row.

Source: EPSL (arXiv 2303.15991): last-layer aggregation [P], where to linearise [R].
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from psl.training.batchnorm import GroupStatistics, one_row_refused

RULES = ("representative", "mean", "each", "cut")


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of each row, (rows,)."""
    return F.cross_entropy(outputs, labels, reduction="none")


@dataclass(frozen=True)
class ServerGradients:
    """What the server's backward pass leaves: its parameters' ``.grad``, and the gradients at the cut.

    Args:
        loss: Σ_i λ_i ℓ̄_i.
        shared: (n_A, …) gradients of the aggregated slots, for all clients, or None.
        own: C tensors (b - n_A, …), each the gradient of that client's own mean loss ℓ̄_i.
    """

    loss: torch.Tensor
    shared: torch.Tensor | None
    own: list[torch.Tensor]


def server_backward(
    server: nn.Module,
    smashed: list[torch.Tensor],
    labels: list[torch.Tensor],
    weights: np.ndarray,
    *,
    n_agg: int = 0,
    rule: str = "representative",
    rng: np.random.Generator | None = None,
    loss: Callable = cross_entropy,
) -> ServerGradients:
    """Run the server forward and backward on the smashed data of C clients.

    Gradients add to the ``.grad`` of the server's parameters. A client's gradients are those of its
    own mean loss: rows that are not aggregated are divided by λ_i again, so that a learning rate
    means the same for every C.

    Args:
        server: the server-side model.
        smashed: C tensors (b, …).
        labels: C tensors (b,).
        weights: (C,) λ_i, summing to 1.
        n_agg: n_A, the number of aggregated slots, 0..b; 0 is PSL.
        rule: one of `RULES`.
        rng: draws the representatives.
        loss: maps outputs and labels to one loss per row.

    Raises:
        ScenarioError: BatchNorm would have to normalise the one mean row of ``"mean"`` with n_A = 1.
    """
    rows = _Rows(torch.cat(smashed), torch.cat(labels), torch.as_tensor(weights, device=labels[0].device), n_agg)
    if rows.n_clients == 1 or n_agg == 0:
        return _exact(server, rows, loss)
    if rule == "representative":
        return _representative(server, rows, loss, rng)
    if rule == "mean":
        return _mean(server, rows, loss)
    return _every_row(server, rows, loss, aggregate=rule == "each")


class _Rows:
    """The smashed data of all clients as one batch; row (i, j) stands at i·b + j."""

    def __init__(self, smashed, labels, weights, n_agg):
        self.smashed, self.labels = smashed, labels  # (C·b, …), (C·b,)
        self.weights = weights  # (C,) float64
        self.n_clients, self.n_agg = len(weights), n_agg
        self.batch = len(labels) // len(weights)
        index = torch.arange(len(labels), device=labels.device).view(self.n_clients, self.batch)
        self.aggregated, self.own = index[:, :n_agg], index[:, n_agg:].flatten()  # (C, n_A), (C·(b - n_A),)
        self.slots = torch.arange(n_agg, device=labels.device)

    def client_means(self, losses):
        return losses.view(self.n_clients, self.batch).mean(dim=1)  # (C,)

    def weighted(self, values):
        """Σ_i λ_i values_i over the first dimension."""
        return torch.tensordot(self.weights.to(values.dtype), values, dims=1)

    def output_gradients(self, outputs, loss):
        """The objective, and z_ij/b for all rows: (), (C, b, …)."""
        leaf = outputs.detach().requires_grad_()
        losses = loss(leaf, self.labels)
        (z,) = torch.autograd.grad(losses.sum(), leaf)
        objective = self.weighted(self.client_means(losses.detach()))
        return objective, z.view(self.n_clients, self.batch, *z.shape[1:]) / self.batch

    def scale(self, rows):
        """λ_i times the rows (C, n, …) of every client."""
        return rows * self.weights.to(rows.dtype).view(-1, *[1] * (rows.ndim - 1))

    def split_own(self, gradients):
        """Cut gradients of the rows that are not aggregated, (C·(b - n_A), …), by client, without their factor λ_i."""
        parts = gradients.chunk(self.n_clients) if len(gradients) else [gradients] * self.n_clients
        return [part / weight for part, weight in zip(parts, self.weights.tolist(), strict=True)]


def _exact(server, rows, loss):
    leaf = rows.smashed.requires_grad_()
    objective = rows.weighted(rows.client_means(loss(server(leaf), rows.labels)))
    objective.backward()
    return ServerGradients(objective.detach(), None, rows.split_own(leaf.grad))


def _representative(server, rows, loss, rng):
    drawn = rng.choice(rows.n_clients, size=rows.n_agg, p=rows.weights.cpu().numpy())
    chosen = torch.as_tensor(drawn, device=rows.labels.device)  # (n_A,) client of each slot
    others = torch.ones_like(rows.aggregated, dtype=torch.bool)
    others[chosen, rows.slots] = False
    plain = rows.aggregated[others]  # ((C - 1)·n_A,)
    graph = torch.cat([rows.aggregated[chosen, rows.slots], rows.own])
    if min(len(plain), len(graph)) == 1:  # BatchNorm cannot normalise a group of one row
        graph, plain = torch.cat([graph, plain]), plain[:0]

    groups = GroupStatistics(server, len(rows.labels))
    leaf = rows.smashed[graph].requires_grad_()
    graph_outputs = _forward(server, leaf, groups)
    found = [(graph, graph_outputs)]
    if len(plain):
        found.append((plain, _forward_plain(server, rows.smashed[plain], groups)))

    objective, z = rows.output_gradients(_scatter(found), loss)
    seeds = [rows.weighted(z[:, : rows.n_agg]), rows.scale(z[:, rows.n_agg :]).flatten(0, 1)]
    missing = len(graph) - rows.n_agg - len(rows.own)  # joined rows, if any: they have no gradient
    seeds.append(z.new_zeros(missing, *z.shape[2:]))
    graph_outputs.backward(torch.cat(seeds))
    shared, own = leaf.grad[: rows.n_agg], leaf.grad[rows.n_agg : len(graph) - missing]
    return ServerGradients(objective, shared, rows.split_own(own))


def _mean(server, rows, loss):
    groups = GroupStatistics(server, len(rows.labels))
    plain = rows.aggregated.flatten()
    found = [(plain, _forward_plain(server, rows.smashed[plain], groups))]
    leaf = rows.smashed[rows.own].requires_grad_()
    if len(leaf):
        found.append((rows.own, _forward(server, leaf, groups)))
    mean_leaf = rows.weighted(rows.smashed[rows.aggregated]).requires_grad_()  # (n_A, …)
    with groups.unseen():
        mean_outputs = _forward_mean(server, mean_leaf)

    objective, z = rows.output_gradients(_scatter(found), loss)
    tops, seeds = [mean_outputs], [rows.weighted(z[:, : rows.n_agg])]
    if len(leaf):
        tops.append(found[1][1])
        seeds.append(rows.scale(z[:, rows.n_agg :]).flatten(0, 1))
    torch.autograd.backward(tops, seeds)
    return ServerGradients(objective, mean_leaf.grad, rows.split_own(leaf.grad if len(leaf) else leaf.detach()))


def _every_row(server, rows, loss, aggregate):
    leaf = rows.smashed.requires_grad_()
    outputs = server(leaf)
    objective, z = rows.output_gradients(outputs, loss)
    if aggregate:
        z = torch.cat([rows.weighted(z[:, : rows.n_agg]).expand_as(z[:, : rows.n_agg]), z[:, rows.n_agg :]], dim=1)
    outputs.backward(rows.scale(z).flatten(0, 1))
    shared = leaf.grad[rows.aggregated].sum(dim=0)  # rows carry their λ_i already
    return ServerGradients(objective, shared, rows.split_own(leaf.grad[rows.own]))


def _forward(server, inputs, groups):
    with groups.group(len(inputs)):
        return server(inputs)


def _forward_plain(server, inputs, groups):
    with torch.no_grad():
        return _forward(server, inputs, groups)


def _forward_mean(server, inputs):
    fix = "take a larger phi or batch_size, or another linearise="
    want = "n_A of at least 2 for this model's BatchNorm"
    with one_row_refused(len(inputs), 'linearise="mean"', want, fix):
        return server(inputs)


def _scatter(found):
    """Outputs of all rows in their order, detached, from [(row numbers, outputs)]."""
    order = torch.cat([index for index, _ in found])
    return torch.cat([outputs.detach() for _, outputs in found])[torch.argsort(order)]
