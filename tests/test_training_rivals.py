"""Ideas of later papers as options of PSL: mini-batches of all data together, and a server that steps first."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import psl
from psl.training.frameworks.resampled_server import resampled_step
from psl.training.frameworks.split_step import server_backward
from psl.training.sampling import PooledSampler, Sampler
from test_training_drawn_rows import WEIGHTS, C, problem, run


def test_a_pooled_mini_batch_is_the_centralised_one_divided_by_owner():
    rng = np.random.default_rng(0)
    shares = np.split(rng.permutation(60), [5, 30])
    pooled, together = PooledSampler(shares, 12, 7), Sampler(np.concatenate(shares), 12, 7, 0)
    for step in range(9):
        parts = [pooled.batch(step, client) for client in range(3)]
        assert sorted(np.concatenate(parts)) == sorted(together.batch(step))
        assert [len(part) for part in parts] == pooled.sizes(step).tolist()
        assert all(set(part) <= set(share) for part, share in zip(parts, shares, strict=True))


def test_global_sampling_is_the_centralised_gradient_of_the_same_mini_batch():
    # One round of PSL from equal client models: the server's part has moved as that of centralised training.
    options = {"rounds": 1, "partition": 0.3, "batch_size": 8, "optimizer": "sgd", "seed": 3}
    mine, whole = run("psl", sampling="global", **options), run("centralised", **options)
    assert mine.train_loss == pytest.approx(whole.train_loss, rel=1e-5)
    server = [name for name in whole.models[0].state_dict() if name.startswith("linear")]
    for name in server:
        found, want = mine.models[0].state_dict()[name], whole.models[0].state_dict()[name]
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    assert mine.settings["sampling"] == "global" and "sampling" not in run("psl", rounds=1).settings


def test_a_client_without_samples_in_the_mini_batch_stays_as_it_is():
    shares = [np.arange(0, 150), np.arange(150, 160)]
    history = run("psl", sampling="global", n_clients=2, batch_size=2, rounds=1, partition=shares, seed=1)
    sizes = PooledSampler(shares, 4, 1).sizes(0)
    assert sizes.tolist() == [4, 0], "this seed leaves the small client out"
    torch.manual_seed(0)
    start = psl.models.cnn(n_classes=4, width=4).state_dict()
    for name in ("conv1.weight", "conv1.bias"):
        assert torch.equal(history.models[1].state_dict()[name], start[name])
        assert not torch.equal(history.models[0].state_dict()[name], start[name])


@pytest.mark.parametrize("steps", [1, 3, 100])
def test_the_server_steps_on_every_row_once_then_answers_with_its_new_weights(steps):
    server, smashed, labels = problem()
    mine, other = copy.deepcopy(server), copy.deepcopy(server)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    options = {"steps": steps, "rng": np.random.default_rng(2)}
    found = resampled_step(mine, optimizer, smashed, labels, WEIGHTS, **options)
    # By hand, in the same order.
    rows, targets = torch.cat(smashed), torch.cat(labels)
    weight = torch.tensor(WEIGHTS * C).repeat_interleave(len(labels[0]))
    plain = torch.optim.SGD(other.parameters(), lr=0.1)
    order = np.random.default_rng(2).permutation(len(targets))
    parts = np.array_split(order, min(steps, len(targets)))
    assert sorted(np.concatenate(parts)) == list(range(len(targets)))
    for part in parts:
        plain.zero_grad()
        losses = nn.functional.cross_entropy(other(rows[part]), targets[part], reduction="none")
        (losses * weight[part]).mean().backward()
        plain.step()
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q)
        assert p.grad is None
    want = server_backward(other, smashed, labels, WEIGHTS)
    for mine_own, own in zip(found.own, want.own, strict=True):
        torch.testing.assert_close(mine_own, own)


def test_one_server_step_trains_the_server_as_psl_does():
    # The weights of a row add up: one mini-batch of all rows is PSL's own step of the server.
    options = {"rounds": 1, "lr": 0.1}
    first, plain = run("psl", server_steps=1, **options), run("psl", **options)
    for name, tensor in first.models[0].state_dict().items():
        if name.startswith("linear"):
            torch.testing.assert_close(tensor, plain.models[0].state_dict()[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"sampling": "global"}, {"server_steps": 4}, {"sampling": "global", "server_steps": 2}]
)
def test_both_learn_and_repeat(options):
    first, again = (run("psl", rounds=25, lr=0.3, build=psl.models.thin_resnet, **options) for _ in range(2))
    assert first.to_frame().equals(again.to_frame())
    assert first.train_loss[-5:].mean() < 0.8 * first.train_loss[:3].mean()
