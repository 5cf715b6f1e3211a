"""Samples, labels, losses and metrics of all kinds: converted where the meaning is plain, in every framework alike."""

import random
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import psl
from psl.training.scores import accuracy, cross_entropy, row_loss

FRAMEWORKS = {
    "centralised": {},
    "fedavg": {},
    "sl": {"cut": 2},
    "sfl": {"cut": 2},
    "psl": {"cut": 2},
    "epsl": {"cut": 2},
    "edgesplit": {"cut": 2},
    "pipeline": {"cut": [2]},
}


def net(n_out=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, n_out))


def points(n=60):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


def train(framework, model, data, **options):
    given = {"n_clients": 2, "rounds": 3, "batch_size": 10, "lr": 0.3, "progress": False, **FRAMEWORKS[framework]}
    return psl.train(framework, model, data, **(given | options))


def pair(*tensors):
    return (TensorDataset(*tensors),) * 2


class Listed(Dataset):
    """Samples made one by one, with no list of labels."""

    def __init__(self, make, n=60):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, k):
        return self.make(k)


# --- conversions ---


def as_pairs(x, y):
    return Listed(lambda k: (x[k], int(y[k])))


def as_triples(x, y):
    return Listed(lambda k: (x[k, :2], x[k, 2:], y[k]))


def as_dicts(x, y):
    return Listed(lambda k: {"x": x[k], "label": y[k].to(torch.uint8)})


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, a, b):
        return self.layers(torch.cat([a, b], 1))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = net()

    def forward(self, x):
        return self.layers(x)


LABELS = {
    "int32": lambda y: y.int(),
    "uint8": lambda y: y.to(torch.uint8),
    "float": lambda y: y.float(),
    "column": lambda y: y[:, None],
    "float column": lambda y: y[:, None].double(),
    "one-hot": lambda y: F.one_hot(y, 3),
    "one-hot floats": lambda y: F.one_hot(y, 3).float(),
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_other_forms_are_class_numbers(kind):
    x, y = points()
    want = train("psl", net(), pair(x, y))
    got = train("psl", net(), pair(x, LABELS[kind](y)))
    np.testing.assert_array_equal(got.train_loss, want.train_loss)
    np.testing.assert_array_equal(got.test_accuracy, want.test_accuracy)
    np.testing.assert_array_equal(got.uplink_bits, want.uplink_bits)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_samples_may_be_pairs_triples_or_dicts_in_every_framework(framework):
    x, y = points()
    want = train(framework, net(), pair(x, y))
    cuts = dict.fromkeys(("sl", "sfl", "psl", "epsl", "edgesplit"), "layers.1") | {"pipeline": ["layers.1"]}
    options = {"cut": cuts[framework]} if framework in cuts else {}
    for model, make in ((net(), as_pairs), (TwoInputs(), as_triples), (Named(), as_dicts)):
        given = {} if make is as_pairs else options
        got = train(framework, model, (make(x, y),) * 2, **given)
        np.testing.assert_array_equal(got.train_loss, want.train_loss)
        np.testing.assert_array_equal(got.test_accuracy, want.test_accuracy)


def test_soft_labels_train_with_a_metric_of_their_own():
    x, y = points()
    soft = F.one_hot(y, 3) * 0.8 + 0.2 / 3
    run = train("psl", net(), pair(x, soft), metric=lambda o, t: (o.argmax(1) == t.argmax(1)).float(), rounds=60)
    assert 0.8 < run.final_accuracy <= 1


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_pil_are_what_totensor_makes_of_them(mode):
    from torchvision.transforms.functional import to_tensor

    rng = np.random.default_rng(0)
    shape = (8, 8) if mode == "L" else (8, 8, 3)
    images = [Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode) for _ in range(20)]
    torch.manual_seed(0)
    channels = 1 if mode == "L" else 3
    model = nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    options = {"n_clients": 2, "rounds": 2, "batch_size": 5, "cut": 1, "progress": False}
    plain = (Listed(lambda k: (images[k], k % 2), 20),) * 2
    tensors = (Listed(lambda k: (to_tensor(images[k]), k % 2), 20),) * 2
    got, want = psl.train("psl", model, plain, **options), psl.train("psl", model, tensors, **options)
    np.testing.assert_array_equal(got.train_loss, want.train_loss)


def test_masks_of_pil_are_class_numbers():
    masks = [Image.fromarray((np.arange(64).reshape(8, 8) % 3).astype(np.uint8), "L") for _ in range(12)]
    data = (Listed(lambda k: (torch.randn(1, 8, 8), masks[k]), 12),) * 2
    run = psl.train("fedavg", nn.Conv2d(1, 3, 1), data, n_clients=2, rounds=1, batch_size=4, progress=False)
    assert 0 <= run.final_accuracy <= 1


# --- losses and metrics, one line each ---


def test_binary():
    x, _ = points(200)
    y = (x.sum(1) > 0).float()[:, None]
    hit = lambda o, t: ((o > 0) == (t > 0.5)).float().mean(1)  # noqa: E731
    run = train("psl", net(1), pair(x, y), loss=nn.BCEWithLogitsLoss(), metric=hit, rounds=100, lr=0.5)
    true = ((run.models[0](x) > 0) == (y > 0.5)).float().mean()
    assert run.client_accuracy[0] == pytest.approx(float(true))
    assert run.final_accuracy > 0.9
    assert run.settings["loss"] == "BCEWithLogitsLoss"


def test_multi_label():
    x, _ = points(200)
    y = (x[:, :3] > 0).float()
    hit = lambda o, t: ((o > 0) == (t > 0.5)).float().mean(1)  # noqa: E731
    run = train("psl", net(), pair(x, y), loss=nn.BCEWithLogitsLoss(), metric=hit, rounds=200, lr=0.5)
    assert 0.85 < run.final_accuracy <= 1


def test_segmentation():
    torch.manual_seed(0)
    images = torch.randn(32, 1, 8, 8)
    masks = (images[:, 0] > 0).long() + (images[:, 0] > 1).long()
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 1))
    run = psl.train("fedavg", model, pair(images, masks), n_clients=2, rounds=30, batch_size=8, lr=0.5, progress=False)
    true = (run.models[0](images).argmax(1) == masks).float().mean()
    assert run.final_accuracy == pytest.approx(float(true))


def test_next_token_with_padding():
    torch.manual_seed(0)
    tokens = torch.randint(0, 5, (24, 7))
    labels = torch.where(torch.arange(7) < 5, tokens, -100)
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))
    run = psl.train(
        "psl", model, pair(tokens, labels), n_clients=2, rounds=100, batch_size=6, cut=1, lr=0.5, progress=False
    )
    assert run.final_accuracy == 1
    outputs = model(tokens)
    want = torch.stack([F.cross_entropy(o[:5], t[:5]) for o, t in zip(outputs, tokens, strict=True)])
    torch.testing.assert_close(cross_entropy(outputs, labels), want)
    nothing = accuracy(outputs[:1], torch.full((1, 7), -100))
    assert nothing.isnan().all()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_loss_module_is_used_unreduced_in_every_framework(framework):
    x, y = points()
    want = train(framework, net(), pair(x, y))
    for loss in (nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")):
        np.testing.assert_array_equal(train(framework, net(), pair(x, y), loss=loss).train_loss, want.train_loss)


def test_an_unreduced_loss_has_the_module_s_mean():
    outputs, labels = torch.randn(6, 3), torch.rand(6, 3)
    for module in (nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.SmoothL1Loss(), nn.L1Loss()):
        rows = row_loss(module)(outputs, labels)
        assert rows.shape == (6,)
        torch.testing.assert_close(rows.mean(), module(outputs, labels))
        assert module.reduction == "mean"


def test_a_metric_that_is_no_share_is_not_printed_as_one():
    x, _ = points()
    run = train("psl", net(1), pair(x, x.sum(1, keepdim=True)), loss=nn.MSELoss(), metric=squared_error, rounds=1)
    assert run.final_accuracy > 1
    assert "%" not in repr(run)
    assert "test squared_error" in repr(run)
    assert run.settings["metric"] == "squared_error"


def squared_error(outputs, labels):
    return ((outputs - labels) ** 2).mean(1) + 1


# --- labels that come later ---


def test_labels_that_cannot_be_listed_are_checked_when_they_come():
    x, y = points()
    late = y.clone()
    late[40:] = 3
    with pytest.raises(psl.errors.DataError, match=r"class numbers 0..2.*got 3.*subtract 1"):
        train("fedavg", net(), (as_pairs(x, late),) * 2, rounds=30)
    with pytest.raises(psl.errors.DataError, match="class numbers"):  # a list of labels is checked before round 1
        train("fedavg", net(), pair(x, late), rounds=1)


# --- random transforms ---


def augmented(x, y):
    """Samples transformed with numbers from the global generators of torch, NumPy and Python."""

    def make(k):
        noise = torch.randn(()) + float(np.random.normal()) + random.random()  # noqa: NPY002
        return x[k] + 0.1 * noise, y[k]

    return Listed(make)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_random_transforms_are_seeded_and_the_generators_given_back(framework, tmp_path):
    x, y = points()
    data = (augmented(x, y),) * 2
    runs = []
    model = net()
    for seed in (1, 2):  # the caller's own generators do not matter, and are left alone
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)  # noqa: NPY002
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        runs.append(train(framework, model, data, rounds=4, eval_every=2))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
        assert random.getstate() == before[2]
    file = tmp_path / "run.pt"
    train(framework, net(), data, rounds=1, eval_every=2, checkpoint=file)
    np.random.seed(3)  # noqa: NPY002
    resumed = train(framework, net(), data, rounds=4, eval_every=2, checkpoint=file)
    for run in (runs[1], resumed):
        np.testing.assert_array_equal(run.train_loss, runs[0].train_loss)
        np.testing.assert_array_equal(run.test_accuracy, runs[0].test_accuracy)
        for a, b in zip(run.models[0].state_dict().values(), runs[0].models[0].state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert len(set(runs[0].train_loss)) == 4


def test_a_generator_of_the_data_set_s_own_is_warned_of():
    x, y = points()
    rng = np.random.default_rng(0)
    own = Listed(lambda k: (x[k] + float(rng.normal()), y[k]))
    with pytest.warns(UserWarning, match="a random generator of their own"):
        train("fedavg", net(), (own, pair(x, y)[1]), rounds=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("fedavg", net(), (augmented(x, y), pair(x, y)[1]), rounds=1)


# --- BatchNorm and one row ---


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_row_per_client_and_batchnorm(framework):
    x, y = points()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    if framework in ("centralised", "psl", "sfl", "pipeline", "epsl"):  # there it meets the rows of all clients
        assert np.isfinite(train(framework, model, pair(x, y), batch_size=1, rounds=1).train_loss).all()
        return
    with pytest.raises(psl.errors.ScenarioError, match=r"batch_size: expected 2 rows or more .*BatchNorm, got 1"):
        train(framework, model, pair(x, y), batch_size=1, rounds=1)
