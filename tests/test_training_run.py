"""A whole run: reproducible, side-effect free, bits as computed by hand, its history, its input checks."""

import copy
import importlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from psl.data import load
from psl.errors import CutError, DataError, ScenarioError
from psl.models import cnn, split, thin_resnet
from psl.training import History, train
from psl.training.communication import BitCounter
from psl.training.frameworks import FRAMEWORKS
from psl.training.model_preparation import image_layout
from psl.training.sampling import Sampler, Samples
from psl.training.scores import cross_entropy
from psl.training.seeds import Stream, generator
from training_plans import StandInPlan, cut_names

OPTIONS = {"n_clients": 3, "rounds": 2, "batch_size": 8, "cut": 3, "lr": 0.1, "progress": False}


@pytest.fixture
def model():
    torch.manual_seed(2)
    return thin_resnet(n_classes=4, width=4)


def states(history):
    return [list(m.state_dict().values()) for m in history.models]


def same(a, b):
    return all(torch.equal(x, y) for m, o in zip(states(a), states(b), strict=True) for x, y in zip(m, o, strict=True))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_same_seed_same_result_and_nothing_else_is_touched(framework, data, model):
    model.append(nn.Dropout(0.3))
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first = train(framework, model, data, **OPTIONS)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    torch.rand(5)  # the user's random state must not matter
    second = train(framework, model, data, **OPTIONS)
    assert first == second
    assert same(first, second)
    assert not same(first, train(framework, model, data, **OPTIONS | {"seed": 1}))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_framework_learns_the_digits(framework):
    torch.manual_seed(0)
    history = train(
        framework, cnn(), "digits", n_clients=3, rounds=40, batch_size=32, cut=3, lr=0.2, eval_every=40, progress=False
    )
    assert history.final_accuracy > 0.7, history
    assert len(history.models) == (3 if framework in ("psl", "epsl") else 1)
    _, test = load("digits")
    inputs, labels = test.tensors
    accuracies = [float((m(inputs).argmax(1) == labels).double().mean()) for m in history.models]
    np.testing.assert_allclose(history.client_accuracy, accuracies, atol=3 / 360)  # layouts may differ in the last bit
    assert history.final_accuracy == pytest.approx(np.mean(history.client_accuracy))


def test_models_share_the_servers_tensors_and_keep_the_class(data, model):
    history = train("psl", model, data, **OPTIONS)
    parts = split(model, 3, (1, 8, 8))
    a, b = (dict(m.named_parameters()) for m in history.models[:2])
    assert type(history.models[0]) is type(model)
    for name in dict(parts.server.named_parameters()):
        assert a[name] is b[name]
    for name in dict(parts.client.named_parameters()):
        assert not torch.equal(a[name], b[name])


def test_layout_avoids_the_convolution_that_corrupts_memory():
    """A strided 1 × 1 convolution of 4 channels, channels_last on the CPU: oneDNN issue 6035."""
    cpu = torch.device("cpu")
    assert image_layout(thin_resnet(width=4), cpu) == torch.contiguous_format
    assert image_layout(thin_resnet(width=16), cpu) == torch.channels_last
    assert image_layout(cnn(), cpu) == torch.channels_last
    assert image_layout(thin_resnet(width=4), torch.device("cuda")) == torch.channels_last


# --- bits ---


def bits_by_hand(framework, phi=0.5):
    """Bits per round of cnn(width=4) cut after layer 1 (4 × 8 × 8), b = 8, C = 3, two local steps, float32."""
    C, b, steps = 3, 8, 2
    row, label = 4 * 8 * 8 * 32, 64
    client = (4 * 9 + 4) * 32
    whole = client + (8 * 4 * 9 + 8 + 128 * 32 + 32 + 32 * 4 + 4) * 32
    up, down = C * b * (row + label), C * b * row
    return {
        "centralised": (0, 0),
        "fedavg": (C * whole, whole),
        "sl": (up + C * client, down + C * client),
        "sfl": (steps * up + C * client, steps * down + client),
        "psl": (up, down),
        "epsl": (up, (4 + C * 4) * row),  # n_A = 4 broadcast once
        "edgesplit": (steps * up + C * client, steps * down + C * client),
        "pipeline": (up, down),
    }[framework]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_bits_are_those_computed_by_hand(framework, data, monkeypatch):
    torch.manual_seed(0)
    seen = []
    up = BitCounter.up
    monkeypatch.setattr(BitCounter, "up", lambda self, tensor, *more: seen.append(tensor) or up(self, tensor, *more))
    history = train(framework, cnn(n_classes=4, width=4), data, **OPTIONS | {"cut": 1, "local_steps": 2, "phi": 0.5})
    want = np.array(bits_by_hand(framework))
    np.testing.assert_array_equal(history.uplink_bits, want[0] * np.array([1, 2]))
    np.testing.assert_array_equal(history.downlink_bits, want[1] * np.array([1, 2]))
    assert not any(tensor.ndim == 4 and tensor.shape[1:] == (1, 8, 8) for tensor in seen), "raw images were sent"


def test_batchnorm_statistics_count_as_part_of_an_exchanged_model(data, model):
    history = train("fedavg", model, data, **OPTIONS | {"rounds": 1})
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    assert history.downlink_bits[0] == 32 * sum(t.numel() for t in floats)
    assert history.uplink_bits[0] == 3 * history.downlink_bits[0]


def test_one_client_of_sl_hands_nothing_on(data, model):
    one = OPTIONS | {"n_clients": 1}
    assert train("sl", model, data, **one).uplink_bits[-1] == train("psl", model, data, **one).uplink_bits[-1]


# --- history ---


def plan_for(names, **arguments):
    """A plan for a model with cuts of these names."""
    return StandInPlan("epsl", names, lambda name, steps: {"psl": 2.0, "sfl": 3.0 * steps}[name], **arguments)


def test_plan_supplies_defaults_and_simulated_time(data, model):
    plan = plan_for(cut_names(model), cut=3, phi=0.25, batch_size=8, n_clients=4)
    history = train("psl", model, data, rounds=3, plan=plan, progress=False)
    np.testing.assert_array_equal(history.simulated_time_s, [2, 4, 6])
    assert (history.settings["cut"], history.settings["batch_size"], history.settings["n_clients"]) == (3, 8, 4)
    sfl = train("sfl", model, data, rounds=1, local_steps=2, plan=plan, progress=False)
    assert sfl.simulated_time_s.tolist() == [6.0]


def test_history_as_frame_text_and_file(data, model, tmp_path):
    history = train("psl", model, data, **OPTIONS | {"rounds": 3, "eval_every": 2})
    frame = history.to_frame()
    assert list(frame.columns) == [
        "round", "simulated_time_s", "train_loss", "test_accuracy", "uplink_bits", "downlink_bits",
    ]  # fmt: skip
    assert frame["round"].tolist() == [1, 2, 3]
    assert frame["simulated_time_s"].isna().all()
    assert frame["test_accuracy"].isna().tolist() == [True, False, False]
    assert history.best_accuracy >= history.final_accuracy
    assert "psl: 3 rounds" in repr(history)
    assert History.load(history.save(tmp_path / "history.json")) == history
    assert History.from_dict(json.loads(json.dumps(history.to_dict()))).models == []


def test_optimizer_by_name_and_by_function(data, model):
    adam = train("psl", model, data, **OPTIONS | {"optimizer": "adam", "lr": None})
    assert adam.settings["optimizer"].startswith("Adam(lr=0.001")
    by_name = train("psl", model, data, **OPTIONS | {"lr": 0.01})
    assert same(by_name, train("psl", model, data, **OPTIONS | {"optimizer": torch.optim.SGD, "lr": 0.01}))
    factory = train("psl", model, data, **OPTIONS | {"optimizer": lambda p: torch.optim.SGD(p, lr=0.01), "lr": None})
    assert same(by_name, factory)


def test_a_client_without_parameters_and_a_frozen_model_part(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    history = train("epsl", model, data, **OPTIONS | {"cut": 1})
    assert np.isfinite(history.train_loss).all()
    model[1].requires_grad_(False)
    history = train("sfl", model, data, **OPTIONS)
    assert all(torch.equal(m[1].weight, model[1].weight) for m in history.models)
    assert not torch.equal(history.models[0][3].weight, model[3].weight)


def test_own_loss_per_row(data, model):
    def doubled(outputs, labels):
        return 2 * nn.functional.cross_entropy(outputs, labels, reduction="none")

    twice = train("psl", model, data, **OPTIONS | {"loss": doubled, "lr": 0.05, "rounds": 1})
    once = train("psl", model, data, **OPTIONS | {"rounds": 1})
    assert twice.train_loss[0] == pytest.approx(2 * once.train_loss[0], rel=1e-6)
    assert same(once, twice)


# --- data ---


class Lazy(Dataset):
    """A data set without tensors in memory."""

    def __init__(self, tensors):
        self.tensors_ = tensors

    def __len__(self):
        return len(self.tensors_)

    def __getitem__(self, index):
        x, y = self.tensors_[index]
        return x, int(y)


def test_lazy_and_nested_data_sets_give_the_same_samples(data):
    dataset, _ = data
    nested = Subset(Subset(dataset, list(range(99, -1, -1))), [3, 1, 4, 1, 5])
    want = [96, 98, 95, 98, 94]
    x, y = Samples(nested).fetch(np.array([0, 2, 4]))
    assert torch.equal(x, dataset.tensors[0][[96, 95, 94]])
    assert y.tolist() == dataset.tensors[1][[96, 95, 94]].tolist()
    assert Samples(nested).labels().tolist() == dataset.tensors[1][want].tolist()
    lazy = Samples(Subset(Lazy(dataset), [7, 8]))
    assert torch.equal(lazy.fetch([1])[0], dataset.tensors[0][[8]])
    assert lazy.labels().tolist() == dataset.tensors[1][[7, 8]].tolist()


def test_labels_of_lazy_data_keep_their_values():
    inputs, labels = torch.zeros(3, 2), torch.tensor([0.25, 1.5, -2.0])
    lazy = Samples([(x, float(y)) for x, y in zip(inputs, labels, strict=True)])
    assert torch.equal(lazy.fetch([0, 1, 2])[1], labels)
    assert lazy.labels().tolist() == labels.tolist()
    assert Samples([(inputs[0], np.uint8(3))]).fetch([0])[1].dtype == torch.int64


def test_lazy_data_trains_alike(data, model):
    lazy = tuple(map(Lazy, data))
    assert same(train("epsl", model, data, **OPTIONS), train("epsl", model, lazy, **OPTIONS))
    options = OPTIONS | {"partition": 2.0, "batch_size": 4}
    assert same(train("epsl", model, data, **options), train("epsl", model, lazy, **options))


def test_sampler_visits_every_sample_once_per_epoch_and_needs_no_state():
    sampler = Sampler(np.arange(100, 120), 5, seed=3, client=1)
    epochs = [np.concatenate([sampler.batch(4 * e + k) for k in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 120))
    assert not np.array_equal(epochs[0], epochs[1])
    fresh = Sampler(np.arange(100, 120), 5, seed=3, client=1)
    assert np.array_equal(fresh.batch(9), sampler.batch(9))
    assert not np.array_equal(Sampler(np.arange(100, 120), 5, seed=3, client=2).batch(9), sampler.batch(9))


def test_every_part_of_a_run_has_random_numbers_of_its_own():
    """The numbers of the streams are part of every result: they stay as they are."""
    numbers = {"PARTITION": 0, "BATCHES": 1, "ROUND": 2, "PARTICIPATION": 3, "COMPUTATION": 4, "EVALUATION": 5}
    numbers["SCENARIO"] = 7
    assert {stream.name: int(stream) for stream in Stream} == numbers
    drawn = generator(Stream.PARTICIPATION, 5, 9).random(3)
    assert np.array_equal(drawn, np.random.default_rng([5, 3, 9]).random(3))
    assert np.array_equal(generator(Stream.ROUND, 5, 9).random(3), np.random.default_rng([5, 2, 9]).random(3))


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"phi": 1.5}, ScenarioError, r"phi: expected a value of at most 1, got 1.5"),
        ({"phi": -0.1}, ScenarioError, r"phi: expected values of at least 0, got -0.1"),
        ({"phi": float("nan")}, ScenarioError, r"phi: expected finite numbers"),
        ({"linearise": "median"}, ScenarioError, r"linearise: expected one of 'representative'.* got 'median'"),
        ({"framework": "splitfed"}, ScenarioError, r"framework: expected one of 'centralised'.* got 'splitfed'"),
        ({"dataset": "imagenet"}, DataError, r"dataset: expected one of 'digits'.* got 'imagenet'"),
        ({"dataset": 5}, DataError, r"dataset: expected a name or a pair of data sets, got int"),
        ({"batch_size": 60}, DataError, r"client 0: expected at least batch_size = 60 training samples, got 34"),
        ({"n_clients": 101, "batch_size": 1}, DataError, r"client 100: expected at least one training sample"),
        ({"partition": [[], range(50), range(50, 100)]}, DataError, r"client 0: expected at least one training sample"),
        ({"partition": [range(50), range(50, 100)]}, DataError, r"one index array per client, 3 in all, got 2"),
        ({"partition": [range(50), range(50, 70), [99, 100]]}, DataError, r"\[2\]: expected indices in 0..99, got 100"),
        ({"partition": [range(50), range(50, 70), [0.5]]}, DataError, r"\[2\]: expected a 1-D array of integers"),
        ({"partition": [range(40), range(40, 60), [60] * 9]}, DataError, r"partition\[2\]: .* got sample 60 again"),
        ({"partition": [range(40), range(39, 60), range(60, 99)]}, DataError, r"\[1\]: .* got sample 39 again"),
        ({"partition": 0.0}, ScenarioError, r"partition: expected values above 0"),
        ({"partition": 0.001, "n_clients": 9}, DataError, r"partition=0.001: expected 9 clients with at least 8"),
        ({"partition": "sorted"}, DataError, r"partition: expected 'iid', a Dirichlet α or a list"),
        ({"cut": None}, CutError, r"cut: expected number or name of a cut, got none"),
        ({"cut": float("nan")}, CutError, r"cut: expected number or name of a cut, got nan"),
        ({"cut": [3]}, CutError, r"cut: expected number or name of a cut, got \[3\]"),
        ({"cut": 0}, CutError, r"would send the raw data"),
        ({"cut": 99}, CutError, r"cut: expected a number 0\.\.\d+, got 99"),
        ({"cut": "layer9"}, CutError, r"cut: expected the name of a cut, got 'layer9'"),
        ({"optimizer": "lion"}, ScenarioError, r"optimizer: expected one of 'sgd', 'adam', got 'lion'"),
        ({"optimizer": 3}, ScenarioError, r"optimizer: expected a name or a function"),
        ({"lr": -1}, ScenarioError, r"lr: expected values above 0"),
        ({"rounds": 0}, ScenarioError, r"rounds: expected at least 1, got 0"),
        ({"model": "resnet"}, ScenarioError, r"model: expected a torch.nn.Module, got str"),
        ({"model": cnn().requires_grad_(False), "framework": "fedavg"}, ScenarioError, r"at least one trainable"),
        ({"plan": SimpleNamespace(cut=3)}, ScenarioError, r"plan: expected a plan of .*, got SimpleNamespace.*solve"),
    ],
)  # fmt: skip
def test_bad_input_says_what_was_expected(options, error, message, data, model):
    arguments = {"framework": "epsl", "model": model, "dataset": data} | OPTIONS | options
    with pytest.raises(error, match=message):
        train(**arguments)


def test_a_plan_for_another_model_is_refused(data, model):
    names = cut_names(model)
    fits = plan_for(names, cut=3)
    options = {"rounds": 1, "batch_size": 8, "progress": False}
    train("psl", model, data, plan=fits, **options)
    with pytest.raises(ScenarioError, match=f"plan: expected one whose cut 3 is '{names[3]}'.*, got 'conv9'"):
        train("psl", model, data, plan=plan_for([*names[:3], "conv9", *names[4:]], cut=3), **options)
    longer = plan_for(map(str, range(100)), cut=3)
    with pytest.raises(ScenarioError, match=f"expected one for a model of {len(names) - 1} units, got one for 99"):
        train("psl", model, data, plan=longer, **options)


def test_a_loss_that_is_no_number_is_reported_once(data, model):
    with pytest.warns(RuntimeWarning, match="train loss is nan in round 1: lower lr") as caught:
        history = train("psl", model, data, **OPTIONS | {"loss": lambda o, y: o.sum(1) * float("nan")})
    assert len(caught) == 1
    assert np.isnan(history.train_loss).all()


def test_a_progress_bar_is_closed_on_an_error(data, model, monkeypatch):
    module = importlib.import_module("psl.training.train")
    bars = []

    class Bar(module.tqdm):
        closed = False

        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            bars.append(self)

        def close(self):
            super().close()
            self.closed = True

    calls = []

    def fail(outputs, labels):
        calls.append(1)
        if len(calls) > 2:  # two calls are made before round 1
            raise ZeroDivisionError
        return cross_entropy(outputs, labels)

    monkeypatch.setattr(module, "tqdm", Bar)
    with pytest.raises(ZeroDivisionError):
        train("psl", model, data, **OPTIONS | {"progress": True, "loss": fail})
    assert [bar.closed for bar in bars] == [True]


@pytest.mark.parametrize(("name", "value"), [("n_clients", 4), ("batch_size", 9), ("phi", 0.25), ("cut", 2)])
def test_an_argument_that_contradicts_the_plan_is_refused(name, value, data, model):
    arguments = {"n_clients": 3, "batch_size": 8, "phi": 0.5, "cut": 3}
    plan = StandInPlan("epsl", cut_names(model), lambda name, steps: 1.0, **arguments)
    with pytest.raises(ScenarioError, match=f"{name}: expected the plan's .*, got {value}.*solve a plan for it"):
        train("epsl", model, data, rounds=1, plan=plan, progress=False, **{name: value})


def test_a_cut_without_one_row_per_sample_is_refused(data):
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(64, 4)

        def forward(self, x):
            return self.last(self.first(x.reshape(-1, 8)).reshape(-1, 64))

    with pytest.raises(CutError, match=r"one row per sample, got shape \(64, 8\) for 8 samples"):
        train("psl", Folded(), data, **(OPTIONS | {"cut": "first"}))
