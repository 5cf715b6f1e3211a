"""The server's step: every rule against a row-by-row reference, BatchNorm in groups, and the rows that have a graph."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from psl.errors import ScenarioError
from psl.gradient_aggregation import aggregated_rows
from psl.training.batchnorm import GroupStatistics
from psl.training.config import AGGREGATION_RULES, cross_entropy
from psl.training.frameworks.epsl import aggregated_backward
from psl.training.frameworks.split_step import server_backward

WEIGHTS = np.array([0.5, 0.3, 0.2])
C, B, N_AGG = 3, 4, 3


@pytest.fixture
def problem():
    """A small server in float64, and the smashed data and labels of three clients."""
    torch.manual_seed(1)
    server = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    smashed = [torch.randn(B, 6, dtype=torch.float64) for _ in range(C)]
    labels = [torch.randint(0, 3, (B,)) for _ in range(C)]
    return server, smashed, labels


class Drawn:
    """Stands for the random generator: hands out a given choice of representatives."""

    def __init__(self, clients):
        self.clients = np.array(clients)

    def choice(self, n, size, p):
        assert size == len(self.clients)
        return self.clients


def pull_back(server, row, vector):
    """vectorᵀ·Jacobian of the server at one row: gradients of all parameters, and of the row."""
    row = row.clone().requires_grad_()
    parameters = list(server.parameters())
    found = torch.autograd.grad(server(row[None])[0], [*parameters, row], vector)
    return list(found[:-1]), found[-1]


def reference(server, smashed, labels, rule, chosen=None, n_agg=N_AGG):
    """The same step, one sample at a time from the definition."""
    z = torch.stack([torch.stack([output_gradient(server, s, y) for s, y in zip(*pair, strict=True)])
                     for pair in zip(smashed, labels, strict=True)])  # (C, b, K)  # fmt: skip
    zbar = sum(w * z[i] for i, w in enumerate(WEIGHTS))  # (b, K)
    total = [torch.zeros_like(p) for p in server.parameters()]
    shared, own = [], [[] for _ in smashed]

    def add(weight, gradients):
        for t, g in zip(total, gradients, strict=True):
            t += weight / B * g

    for j in range(B):
        if j >= n_agg:
            for i, w in enumerate(WEIGHTS):
                theta, s = pull_back(server, smashed[i][j], z[i, j])
                add(w, theta)
                own[i].append(s / B)
        elif rule == "representative":
            theta, s = pull_back(server, smashed[chosen[j]][j], zbar[j])
            add(1, theta)
            shared.append(s / B)
        elif rule == "mean":
            theta, s = pull_back(server, sum(w * smashed[i][j] for i, w in enumerate(WEIGHTS)), zbar[j])
            add(1, theta)
            shared.append(s / B)
        else:
            slot = torch.zeros_like(smashed[0][j])
            for i, w in enumerate(WEIGHTS):
                theta, s = pull_back(server, smashed[i][j], zbar[j] if rule == "each" else z[i, j])
                add(w, theta)
                slot += w * s / B
            shared.append(slot)
    return total, shared, own


def output_gradient(server, row, label):
    o = server(row[None]).detach().requires_grad_()
    return torch.autograd.grad(nn.functional.cross_entropy(o, label[None]), o)[0][0]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
@pytest.mark.parametrize("n_agg", [1, N_AGG, B])
def test_every_rule_matches_the_definition_row_by_row(problem, rule, n_agg):
    server, smashed, labels = problem
    chosen = [2, 0, 1, 0][:n_agg]
    want, want_shared, want_own = reference(server, smashed, labels, rule, chosen, n_agg)
    found = aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=n_agg, rule=rule, rng=Drawn(chosen))
    for p, gradient in zip(server.parameters(), want, strict=True):
        close(p.grad, gradient)
    close(found.shared, torch.stack(want_shared))
    for got, rows in zip(found.own, want_own, strict=True):
        assert got.shape == (B - n_agg, 6)
        if rows:
            close(got, torch.stack(rows))
    losses = [cross_entropy(server(s), y).mean() for s, y in zip(smashed, labels, strict=True)]
    close(found.loss, sum(w * value for w, value in zip(WEIGHTS, losses, strict=True)).detach())


def test_without_aggregation_it_is_the_weighted_loss_and_each_clients_own_gradient(problem):
    server, smashed, labels = problem
    leaves = [s.clone().requires_grad_() for s in smashed]
    losses = [nn.functional.cross_entropy(server(s), y) for s, y in zip(leaves, labels, strict=True)]
    own = [torch.autograd.grad(value, s, retain_graph=True)[0] for value, s in zip(losses, leaves, strict=True)]
    objective = sum(w * value for w, value in zip(WEIGHTS, losses, strict=True))
    want = torch.autograd.grad(objective, list(server.parameters()))
    found = server_backward(server, smashed, labels, WEIGHTS)
    assert found.shared is None
    for p, gradient in zip(server.parameters(), want, strict=True):
        close(p.grad, gradient)
    for got, gradient in zip(found.own, own, strict=True):
        close(got, gradient)


def test_expectation_of_representative_is_each(problem):
    server, smashed, labels = problem
    n_agg = 2
    total, shared = [0] * 4, 0
    for chosen in itertools.product(range(C), repeat=n_agg):
        probability = float(np.prod(WEIGHTS[list(chosen)]))
        server.zero_grad()
        found = aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=n_agg, rng=Drawn(chosen))
        total = [t + probability * p.grad for t, p in zip(total, server.parameters(), strict=True)]
        shared = shared + probability * found.shared
    server.zero_grad()
    each = aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=n_agg, rule="each")
    for mean, p in zip(total, server.parameters(), strict=True):
        close(mean, p.grad)
    close(shared, each.shared)


def test_mean_over_seeded_draws_converges_to_each(problem):
    server, smashed, labels = problem
    seed, draws = 5, 1500
    rng = np.random.default_rng(seed)
    samples = torch.stack([
        aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=2, rng=rng).shared for _ in range(draws)
    ])  # fmt: skip
    each = aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=2, rule="each").shared
    error = (samples.mean(0) - each).abs() / (samples.std(0) / draws**0.5 + 1e-15)
    assert error.max() < 4.5, f"seed {seed}: {error.max():.2f} standard errors away"


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_equal_clients_make_every_phi_equal_to_psl(problem, rule):
    server, smashed, labels = problem
    smashed, labels = [smashed[0]] * C, [labels[0]] * C
    plain = server_backward(server, smashed, labels, WEIGHTS)
    want = [p.grad.clone() for p in server.parameters()]
    for n_agg in range(1, B + 1):
        server.zero_grad()
        found = aggregated_backward(
            server, smashed, labels, WEIGHTS, n_agg=n_agg, rule=rule, rng=np.random.default_rng(0)
        )
        for p, gradient in zip(server.parameters(), want, strict=True):
            close(p.grad, gradient)
        for own, gradient in zip(found.own, plain.own, strict=True):
            close(torch.cat([found.shared, own]), gradient)


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_one_client_is_plain_split_training_bit_for_bit(problem, rule):
    server, smashed, labels = problem
    leaf = smashed[0].clone().requires_grad_()
    nn.functional.cross_entropy(server(leaf), labels[0]).backward()
    want = [p.grad.clone() for p in server.parameters()]
    for n_agg in (0, 2, B):
        server.zero_grad()
        found = aggregated_backward(server, smashed[:1], labels[:1], np.ones(1), n_agg=n_agg, rule=rule)
        assert found.shared is None
        assert torch.equal(found.own[0], leaf.grad)
        assert all(torch.equal(p.grad, g) for p, g in zip(server.parameters(), want, strict=True))


class Rows(nn.Module):
    """Passes its input on and notes how many rows came with a graph, and without."""

    def __init__(self):
        super().__init__()
        self.graph = self.plain = 0

    def forward(self, x):
        if torch.is_grad_enabled():
            self.graph += len(x)
        else:
            self.plain += len(x)
        return x


@pytest.mark.parametrize(
    ("rule", "graph", "plain"),
    [("representative", N_AGG + C * (B - N_AGG), (C - 1) * N_AGG), ("mean", N_AGG + C * (B - N_AGG), C * N_AGG),
     ("each", C * B, 0), ("cut", C * B, 0)],
)  # fmt: skip
def test_only_rows_that_are_propagated_back_have_a_graph(problem, rule, graph, plain):
    server, smashed, labels = problem
    rows = Rows()
    aggregated_backward(
        nn.Sequential(rows, server), smashed, labels, WEIGHTS, n_agg=N_AGG, rule=rule, rng=np.random.default_rng(0)
    )
    assert (rows.graph, rows.plain) == (graph, plain)


@pytest.mark.parametrize(
    ("phi", "b", "want"), [(0.3, 10, 3), (0.07, 100, 7), (0.5, 5, 3), (0, 8, 0), (1, 8, 8), (0.01, 64, 1)]
)
def test_number_of_aggregated_slots_ignores_float_noise(phi, b, want):
    assert aggregated_rows(phi, b) == want


def running_after(before, momentum, groups):
    """(1 - m)·running + m·(row-weighted mean of the groups' own statistics), in NumPy."""
    n = sum(map(len, groups))
    mean = sum(len(g) / n * g.mean(0) for g in groups)
    var = sum(len(g) / n * g.var(0, ddof=1) for g in groups)
    return (1 - momentum) * before[0] + momentum * mean, (1 - momentum) * before[1] + momentum * var


@pytest.mark.parametrize("momentum", [0.1, 0.7, 1.0, None])
def test_running_statistics_see_every_row_once(momentum):
    torch.manual_seed(3)
    bn = nn.BatchNorm1d(4, momentum=momentum).double()
    bn(torch.randn(8, 4, dtype=torch.float64))
    before = (bn.running_mean.numpy().copy(), bn.running_var.numpy().copy())
    groups = [torch.randn(n, 4, dtype=torch.float64) * n for n in (5, 2, 9)]
    statistics = GroupStatistics(bn, 16)
    for rows in groups:
        with statistics.group(len(rows)):
            bn(rows)
    with statistics.unseen():
        bn(torch.full((3, 4), 1e6, dtype=torch.float64))
    mean, var = running_after(before, momentum or 1 / 2, [g.numpy() for g in groups])
    np.testing.assert_allclose(bn.running_mean.numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(bn.running_var.numpy(), var, rtol=1e-12)
    assert int(bn.num_batches_tracked) == 2
    assert bn.momentum == momentum
    assert bn.track_running_stats


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_batchnorm_of_the_server_under_every_rule(rule):
    torch.manual_seed(4)
    seed, n_agg = 9, 2
    server = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    before = (server[0].running_mean.numpy().copy(), server[0].running_var.numpy().copy())
    smashed = [torch.randn(B, 6, dtype=torch.float64) + i for i in range(C)]
    labels = [torch.randint(0, 3, (B,)) for _ in range(C)]
    aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=n_agg, rule=rule, rng=np.random.default_rng(seed))
    rows = torch.stack(smashed).numpy()  # (C, b, 6)
    own = rows[:, n_agg:].reshape(-1, 6)
    if rule == "representative":
        chosen = np.random.default_rng(seed).choice(C, size=n_agg, p=WEIGHTS)
        graph = np.concatenate([rows[chosen, range(n_agg)], own])
        plain = np.stack([rows[i, j] for i in range(C) for j in range(n_agg) if i != chosen[j]])
        groups = [graph, plain]
    elif rule == "mean":
        groups = [rows[:, :n_agg].reshape(-1, 6), own]
    else:
        groups = [rows.reshape(-1, 6)]
    mean, var = running_after(before, 0.1, groups)
    np.testing.assert_allclose(server[0].running_mean.numpy(), mean, rtol=1e-12, err_msg=f"seed {seed}")
    np.testing.assert_allclose(server[0].running_var.numpy(), var, rtol=1e-12, err_msg=f"seed {seed}")
    assert int(server[0].num_batches_tracked) == 1


def test_a_single_row_without_graph_joins_the_others():
    """Two clients, one aggregated slot: a lone row has no variance to normalise by."""
    torch.manual_seed(5)
    server = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    whole = copy.deepcopy(server)
    smashed = [torch.randn(B, 6, dtype=torch.float64) for _ in range(2)]
    labels = [torch.randint(0, 3, (B,)) for _ in range(2)]
    found = aggregated_backward(server, smashed, labels, np.array([0.4, 0.6]), n_agg=1, rng=Drawn([0]))
    whole(torch.cat(smashed))
    close(server[0].running_mean, whole[0].running_mean)
    close(server[0].running_var, whole[0].running_var)
    assert found.shared.shape == (1, 6)
    assert [len(rows) for rows in found.own] == [B - 1, B - 1]


def test_a_single_row_with_graph_joins_the_others():
    """Mini-batches of one sample, all aggregated: one batch for BatchNorm, z̄ sent back at the representative only."""
    torch.manual_seed(6)
    server = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3)).double()
    whole = copy.deepcopy(server)
    smashed = [torch.randn(1, 6, dtype=torch.float64) for _ in range(C)]
    labels = [torch.randint(0, 3, (1,)) for _ in range(C)]
    found = aggregated_backward(server, smashed, labels, WEIGHTS, n_agg=1, rng=Drawn([1]))
    leaf = torch.cat(smashed).requires_grad_()
    outputs = whole(leaf)
    (z,) = torch.autograd.grad(cross_entropy(outputs, torch.cat(labels)).sum(), outputs, retain_graph=True)
    outputs[1].backward(torch.from_numpy(WEIGHTS) @ z)
    close(found.shared, leaf.grad[1:2])
    close(server[1].weight.grad, whole[1].weight.grad)
    close(server[0].running_var, whole[0].running_var)
    assert [rows.shape for rows in found.own] == [(0, 6)] * C


def test_one_mean_row_cannot_be_normalised_alone():
    """BatchNorm over images still has pixels to normalise by; over vectors it has nothing."""
    torch.manual_seed(7)
    labels = [torch.randint(0, 3, (B,)) for _ in range(C)]
    vectors, images = ([torch.randn(B, 6, *size) for _ in range(C)] for size in ((), (2, 2)))
    server = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(ScenarioError, match='linearise="mean": expected n_A of at least 2 .*larger phi'):
        aggregated_backward(server, vectors, labels, WEIGHTS, n_agg=1, rule="mean")
    server = nn.Sequential(nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(24, 3))
    assert aggregated_backward(server, images, labels, WEIGHTS, n_agg=1, rule="mean").shared.shape == (1, 6, 2, 2)
