"""Rows drawn by importance: unbiased, as many as asked for, and PSL where all rows are drawn."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import psl
from psl.errors import ScenarioError
from psl.gradient_aggregation import sampled_rows, server_rows
from psl.training.devices import among_zeros
from psl.training.frameworks.drawn_rows import (
    adaptive_rows,
    inclusion_probabilities,
    sampled_backward,
    systematic,
)
from psl.training.frameworks.split_step import server_backward
from test_training_linearise import Rows

WEIGHTS = np.array([0.5, 0.3, 0.2])
C, B = 3, 8


def problem(seed=0, norm=False):
    """A small server in float64, and the smashed data and labels of three clients; some rows matter more."""
    torch.manual_seed(seed)
    layers = [nn.Linear(6, 5), *([nn.BatchNorm1d(5)] if norm else []), nn.Tanh(), nn.Linear(5, 3)]
    server = nn.Sequential(*layers).double()
    smashed = [torch.randn(B, 6, dtype=torch.float64) * torch.rand(B, 1, dtype=torch.float64) * 4 for _ in range(C)]
    return server, smashed, [torch.randint(0, 3, (B,)) for _ in range(C)]


def gradients(server, found):
    """All gradients of a step as one vector: the server's, then every client's, with zeros for rows not drawn."""
    own = found.own if found.rows is None else [among_zeros(g, m) for g, m in zip(found.own, found.rows, strict=True)]
    parts = [p.grad for p in server.parameters()] + own
    return torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize(("rows", "adaptive"), [([1, 1, 1], False), ([2, 3, 2], False), ([8, 8, 7], True)])
def test_the_expectation_is_the_full_gradient(rows, adaptive):
    server, smashed, labels = problem()
    want = gradients(server, server_backward(server, smashed, labels, WEIGHTS))
    rng, draws, found = np.random.default_rng(1), 3000, []
    for _ in range(draws):
        server.zero_grad()
        step = sampled_backward(server, smashed, labels, WEIGHTS, rows=np.array(rows), rng=rng, adaptive=adaptive)
        found.append(gradients(server, step))
    found = torch.stack(found)
    error = (found.mean(0) - want).abs() / (found.std(0) / draws**0.5 + 1e-12)
    assert error.max() < 4.5, f"{error.max():.2f} standard errors away"
    assert found.std(0).max() > 0, "something was drawn"


def test_the_loss_is_that_of_all_rows():
    server, smashed, labels = problem()
    want = server_backward(server, smashed, labels, WEIGHTS).loss
    rows, rng = np.array([2, 2, 2]), np.random.default_rng(0)
    assert sampled_backward(server, smashed, labels, WEIGHTS, rows=rows, rng=rng).loss == pytest.approx(float(want))


def test_all_rows_are_psl_bit_for_bit():
    server, smashed, labels = problem(norm=True)
    other = copy.deepcopy(server)
    server_backward(other, smashed, labels, WEIGHTS)
    sampled_backward(server, smashed, labels, WEIGHTS, rows=np.full(C, B), rng=np.random.default_rng(0))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(server.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(server.buffers(), other.buffers(), strict=True))


def test_the_same_seed_draws_the_same_rows():
    server, smashed, labels = problem()
    steps = []
    for seed in (3, 3, 4):
        server.zero_grad()
        step = sampled_backward(
            server, smashed, labels, WEIGHTS, rows=np.array([2, 2, 1]), rng=np.random.default_rng(seed)
        )
        steps.append(gradients(server, step))
        assert [int(mask.sum()) for mask in step.rows] == [2, 2, 1]
        assert [len(own) for own in step.own] == [2, 2, 1]
    assert torch.equal(steps[0], steps[1]) and not torch.equal(steps[0], steps[2])


def test_only_drawn_rows_have_a_graph():
    server, smashed, labels = problem()
    rows = Rows()
    model = nn.Sequential(rows, server)
    sampled_backward(model, smashed, labels, WEIGHTS, rows=np.array([2, 1, 3]), rng=np.random.default_rng(0))
    assert (rows.graph, rows.plain) == (6, C * B)


def test_batchnorm_sees_every_row_once_and_normalises_the_drawn_ones_by_themselves():
    server, smashed, labels = problem(norm=True)
    other = copy.deepcopy(server)
    other(torch.cat(smashed))
    seen = []
    server[1].register_forward_hook(lambda module, args, out: seen.append(out.detach()))
    sampled_backward(server, smashed, labels, WEIGHTS, rows=np.array([3, 3, 3]), rng=np.random.default_rng(0))
    assert [len(out) for out in seen] == [C * B, 9]
    torch.testing.assert_close(seen[1].mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0)
    for name, buffer in other.named_buffers():
        torch.testing.assert_close(dict(server.named_buffers())[name], buffer)


def test_chances_add_up_and_rows_are_drawn_with_them():
    rng = np.random.default_rng(5)
    for _ in range(200):
        size = int(rng.integers(1, 30))
        count = int(rng.integers(1, size + 1))
        scores = rng.exponential(size=size) ** rng.choice([0.5, 1, 8]) * rng.choice([0, 1], size, p=[0.3, 0.7])
        chances = inclusion_probabilities(scores, count)
        assert chances.sum() == pytest.approx(count) and chances.min() > 0 and chances.max() <= 1
        assert systematic(chances, rng).sum() == count
    chances = inclusion_probabilities(np.array([9.0, 1, 1, 2, 0]), 3)
    drawn = np.mean([systematic(chances, rng) for _ in range(20_000)], axis=0)
    assert drawn == pytest.approx(chances, abs=0.015)
    assert drawn[0] == chances[0] == 1, "a row of a large score is always drawn"


def test_scores_that_say_nothing_draw_evenly():
    for scores in (np.zeros(4), np.full(4, np.nan), np.array([1, np.inf, 2, 3.0])):
        assert inclusion_probabilities(scores, 2) == pytest.approx(np.full(4, 0.5))


def test_adaptive_numbers_of_rows():
    even = np.ones((4, 10))  # an effective number of 40
    assert adaptive_rows(even, np.full(4, 10)).tolist() == [5, 5, 5, 5]
    assert adaptive_rows(even, np.array([3, 3, 2, 2])).sum() == 10, "never more than φ says"
    one = np.zeros((4, 10))
    one[2, 3] = 1
    assert adaptive_rows(one, np.full(4, 10)).tolist() == [1, 1, 1, 1], "never fewer than one per client"
    assert adaptive_rows(np.zeros((4, 10)), np.full(4, 10)).sum() == 4


@pytest.mark.parametrize(("phi", "b", "n"), [(0.0, 8, 3), (0.5, 64, 5), (1.0, 64, 5), (1.0, 2, 5), (0.3, 7, 1)])
def test_as_many_rows_as_aggregation_leaves(phi, b, n):
    rows = sampled_rows(phi, b, n)
    assert rows.sum() == max(server_rows(phi, b, n), n)
    assert np.ptp(rows) <= 1 and rows.min() >= 1 and rows.max() <= b


# --- psl.train ---


def tiny_data(n=160):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n + 40, 1, 8, 8, generator=generator)
    labels = (images.mean((1, 2, 3)) > 0).long() + 2 * (images[:, 0, 0, 0] > 0).long()
    return TensorDataset(images[:n], labels[:n]), TensorDataset(images[n:], labels[n:])


def run(framework="epsl", build=psl.models.cnn, **options):
    torch.manual_seed(0)
    options = {"n_clients": 3, "rounds": 4, "batch_size": 16, "cut": 3, "lr": 0.1, "progress": False} | options
    return psl.train(framework, build(n_classes=4, width=4), tiny_data(), **options)


@pytest.mark.parametrize("build", [psl.models.cnn, psl.models.thin_resnet])
def test_training_draws_rows_and_counts_their_bits(build):
    history = run(build=build, linearise="sampled", phi=1.0)
    plain = run("psl", build=build)
    assert history.server_rows.tolist() == [16] * 4 and plain.server_rows is None
    assert history.settings["rows"] == "fixed"
    assert "server_rows" in history.to_frame() and "server_rows" not in plain.to_frame()
    gradients = plain.downlink_bits * 16 / 48
    assert history.downlink_bits == pytest.approx(gradients + np.arange(1, 5) * 48 * 8), "rows, and a mask of bytes"
    assert run(build=build, linearise="sampled", phi=1.0).to_frame().equals(history.to_frame())


def test_adaptive_training_needs_fewer_rows_when_it_has_learned():
    torch.manual_seed(0)
    options = {"n_clients": 3, "rounds": 40, "batch_size": 16, "cut": 3, "lr": 0.3, "eval_every": 40}
    options |= {"linearise": "sampled", "rows": "adaptive", "phi": 0.0, "progress": False}
    rows = psl.train("epsl", psl.models.cnn(), "digits", **options).server_rows
    assert rows[-5:].mean() < 0.7 * rows[:5].mean()
    assert rows.max() <= 48 and rows.min() >= 3


def test_an_interrupted_run_continues_with_the_same_rows(tmp_path):
    options = {"linearise": "sampled", "rows": "adaptive", "phi": 0.5}
    run(rounds=2, checkpoint=tmp_path / "run.pt", **options)
    assert run(checkpoint=tmp_path / "run.pt", **options).to_frame().equals(run(**options).to_frame())


@pytest.mark.parametrize(
    ("framework", "options", "message"),
    [
        ("epsl", {"rows": "adaptive"}, "rows: expected 'fixed' where no rows are drawn, got 'adaptive'"),
        ("psl", {"rows": "adaptive", "linearise": "sampled"}, "rows: expected 'fixed' where no rows are drawn"),
        ("epsl", {"linearise": "sampled", "rows": 3}, "rows: expected one of 'fixed', 'adaptive'"),
        ("epsl", {"sampling": "global"}, "sampling: expected 'own' for the framework 'epsl', got 'global'"),
        ("psl", {"sampling": "all"}, "sampling: expected one of 'own', 'global'"),
        ("sfl", {"server_steps": 3}, "server_steps: expected 0 for the framework 'sfl', got 3"),
        ("psl", {"server_steps": -1}, "server_steps: expected at least 0"),
    ],
)
def test_options_of_other_frameworks_are_refused(framework, options, message):
    with pytest.raises(ScenarioError, match=message):
        run(framework, **options)
