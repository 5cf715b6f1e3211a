"""Where frameworks must agree, they do: bit for bit if the same operations run, else to float64 precision."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psl.models import split
from psl.training import train
from psl.training.config import AGGREGATION_RULES, LINEARISE_RULES, TrainingConfig, cross_entropy
from psl.training.frameworks import build_framework
from psl.training.model_preparation import image_layout
from psl.training.sampling import Sampler

CUT = 3


def tiny_data(n=96, n_test=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n + n_test, 1, 8, 8, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, 4, (n + n_test,), generator=generator)
    return TensorDataset(images[:n], labels[:n]), TensorDataset(images[n:], labels[n:])


def run(framework, model, **options):
    options = {"n_clients": 3, "rounds": 3, "batch_size": 8, "cut": CUT, "lr": 0.1, "progress": False} | options
    return train(framework, model, tiny_data(), **options)


def tensors(history):
    return [list(model.state_dict().values()) for model in history.models]


def assert_same(a, b):
    """Bit for bit, losses and models."""
    assert np.array_equal(a.train_loss, b.train_loss)
    assert np.array_equal(a.test_accuracy, b.test_accuracy)
    for model, other in zip(tensors(a), tensors(b), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(model, other, strict=True))


def assert_close(model, other, atol=1e-11):
    for (name, x), y in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def build(framework, model, weights, batch_size=8, momentum=0, **options):
    def make(p):
        return torch.optim.SGD(p, lr=0.1, momentum=momentum)

    config = TrainingConfig(
        framework=framework, n_clients=len(weights), batch_size=batch_size, optimizer=make, cut=CUT,
        example=(1, 8, 8), **options,
    )  # fmt: skip
    return build_framework(copy.deepcopy(model), config, np.array(weights))


def batches(n_clients, n_rounds, batch_size=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (n_rounds, n_clients, batch_size)
    return (
        torch.randn(*shape, 1, 8, 8, dtype=torch.float64, generator=generator),
        torch.randint(0, 4, shape, generator=generator),
    )


def test_phi_zero_is_psl(norm):
    for rule in LINEARISE_RULES:
        assert_same(run("psl", norm), run("epsl", norm, phi=0.0, linearise=rule))


@pytest.mark.parametrize("rule", LINEARISE_RULES)
def test_one_client_is_split_training(norm, rule):
    want = run("psl", norm, n_clients=1)
    for phi in (0.3, 1.0):
        assert_same(want, run("epsl", norm, n_clients=1, phi=phi, linearise=rule))


def test_split_training_of_one_client_is_training(norm):
    """PSL, SL, SFL and FedAvg of one client, and centralised training, against a plain loop over the whole model."""
    layout = image_layout(norm, torch.device("cpu"))
    model = copy.deepcopy(norm).to(memory_format=layout).train()
    data, _ = tiny_data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampler = Sampler(np.arange(len(data)), 8, seed=0, client=0)
    for step in range(3):
        x, y = data[torch.from_numpy(sampler.batch(step))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.to(memory_format=layout)), y).backward()
        optimizer.step()
    want = list(model.state_dict().values())
    for framework in ("psl", "sl", "sfl", "fedavg", "centralised"):
        (found,) = tensors(run(framework, norm, n_clients=1))
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True)), framework


def test_fedavg_of_one_client_is_centralised(norm):
    assert_same(run("centralised", norm, n_clients=1), run("fedavg", norm, n_clients=1))


@pytest.mark.parametrize("rule", AGGREGATION_RULES)
def test_equal_clients_make_every_phi_equal_to_psl(plain, rule):
    images, labels = batches(1, 4)
    models = {}
    for phi in (0.0, 0.5, 1.0):
        training = build("epsl", plain, [0.5, 0.3, 0.2], phi=phi, linearise=rule)
        for r in range(4):
            training.round(lambda i, k, r=r: (images[r, 0], labels[r, 0]), np.random.default_rng(r))
        models[phi] = training.full_models()
    for phi in (0.5, 1.0):
        for model, other in zip(models[phi], models[0.0], strict=True):
            assert_close(model, other)


def weighted_centralised(model, images, labels, weights, momentum=0.0):
    """Plain SGD on Σ_i λ_i ℓ̄_i of the concatenated batch."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
    for x, y in zip(images, labels, strict=True):
        optimizer.zero_grad()
        losses = cross_entropy(model(x.flatten(0, 1)), y.flatten()).view(len(weights), -1).mean(1)
        (losses @ torch.tensor(weights, dtype=torch.float64)).backward()
        optimizer.step()
    return model


def test_weighted_psl_gradients_are_the_centralised_ones(plain):
    weights = [0.6, 0.3, 0.1]
    images, labels = batches(3, 1)
    want = weighted_centralised(plain, images, labels, weights)
    training = build("psl", plain, weights)
    training.round(lambda i, k: (images[0, i], labels[0, i]), None)
    start, models = plain.state_dict(), training.full_models()
    server = set(split(plain, CUT, (1, 8, 8)).server.state_dict())
    for name, target in want.state_dict().items():
        if name in server:
            found = models[0].state_dict()[name]
        else:  # each client stepped with its own gradient: λ-averaged they give the centralised one
            found = sum(w * m.state_dict()[name] for w, m in zip(weights, models, strict=True))
        torch.testing.assert_close(found - start[name], target - start[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]])
def test_sfl_of_one_local_step_is_centralised_sgd(plain, weights, momentum):
    images, labels = batches(3, 5)
    want = weighted_centralised(plain, images, labels, weights, momentum)
    training = build("sfl", plain, weights, momentum=momentum)
    for r in range(5):
        training.round(lambda i, k, r=r: (images[r, i], labels[r, i]), None)
    (model,) = training.full_models()
    assert_close(model, want)


def test_sfl_averages_batchnorm_and_leaves_all_clients_equal(norm):
    training = build("sfl", norm, [0.7, 0.3], local_steps=2)
    images, labels = batches(2, 2)
    training.round(lambda i, k: (images[k, i], labels[k, i]), None)
    assert_close(training.clients[0], training.clients[1], atol=0)
    counters = [b for name, b in training.clients[0].named_buffers() if name.endswith("num_batches_tracked")]
    assert [int(c) for c in counters] == [2] * len(counters)


def test_fedavg_averages_local_training(norm):
    weights, images, labels = [0.7, 0.3], *batches(2, 2)
    training = build("fedavg", norm, weights, local_steps=2)
    training.round(lambda i, k: (images[k, i], labels[k, i]), None)
    local = []
    for i in range(2):
        model = copy.deepcopy(norm)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for k in range(2):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[k, i]), labels[k, i]).backward()
            optimizer.step()
        local.append(model.state_dict())
    for name, tensor in training.full_models()[0].state_dict().items():
        want = sum(w * s[name] for w, s in zip(weights, local, strict=True)) if tensor.is_floating_point() else None
        torch.testing.assert_close(tensor, local[0][name] if want is None else want, rtol=1e-10, atol=1e-13)


def test_sl_hands_the_client_model_on(norm):
    """Vanilla split learning is training one model on the clients' batches in turn."""
    images, labels = batches(3, 1)
    training = build("sl", norm, [0.5, 0.3, 0.2])
    training.round(lambda i, k: (images[0, i], labels[0, i]), None)
    model = copy.deepcopy(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for i in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[0, i]), labels[0, i]).backward()
        optimizer.step()
    assert_close(training.full_models()[0], model)
