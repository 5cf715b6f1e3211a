"""EdgeSplit: whatever the cuts, it is FedAvg; bits, plans and bad cuts."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from psl.errors import CheckpointError, CutError, ScenarioError
from psl.models import cnn, cuts, split, thin_resnet
from psl.training import train
from psl.training.config import TrainingConfig
from psl.training.frameworks import build_framework
from training_plans import StandInPlan, cut_names

UNEVEN = [range(10), range(10, 60), range(60, 100)]
LAST = 12  # the output of thin_resnet


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@pytest.fixture
def model():
    torch.manual_seed(2)
    return thin_resnet(n_classes=4, width=4)


def run(data, framework, model, **options):
    options = {
        "n_clients": 3, "rounds": 2, "batch_size": 8, "local_steps": 2, "partition": UNEVEN, "progress": False,
        "optimizer": momentum,
    } | options  # fmt: skip
    return train(framework, model, data, **options)


def in_double(data):
    return tuple(TensorDataset(part.tensors[0].double(), part.tensors[1]) for part in data)


def assert_close(a, b, rtol, atol):
    np.testing.assert_allclose(a.train_loss, b.train_loss, rtol=rtol)
    (model,), (other,) = a.models, b.models
    for (name, x), y in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("optimizer", [momentum, adam])
@pytest.mark.parametrize("cut", [[1, 4, 7], [10, 2, LAST], [LAST] * 3, 6, ["block1", 1, "linear"]])
def test_any_cuts_give_fedavg(cut, optimizer, data, model):
    used, model = in_double(data), model.double()
    want = run(used, "fedavg", model, optimizer=optimizer)
    assert_close(run(used, "edgesplit", model, optimizer=optimizer, cut=cut), want, 1e-11, 1e-13)


def test_single_precision_gives_fedavg_too(data, model):
    want = run(data, "fedavg", model)
    assert_close(run(data, "edgesplit", model, cut=[3, 7, LAST]), want, 1e-4, 1e-5)


def test_random_cuts_of_many_devices_give_fedavg(data):
    rng = np.random.default_rng(5)
    torch.manual_seed(0)
    plain = nn.Sequential(*cnn(n_classes=4, width=4), nn.BatchNorm1d(4)).double()
    for trial in range(2):
        shares = np.split(rng.permutation(100), np.sort(rng.choice(np.arange(1, 24), 6, replace=False)) * 4)
        options = {"n_clients": 7, "batch_size": 3, "partition": shares, "rounds": 1}
        cut = rng.integers(1, 12, 7)
        want = run(in_double(data), "fedavg", plain, **options)
        found = run(in_double(data), "edgesplit", plain, cut=cut, **options)
        assert_close(found, want, 1e-11, 1e-13)
        assert found.settings["cut"] == cut.tolist(), f"trial {trial}"


class Moody(nn.Module):
    """A parameter of its own, functional dropout that follows the mode, a frozen layer, a first one without weights."""

    def __init__(self, rate=0.0):
        super().__init__()
        self.rate = rate
        self.flatten, self.first, self.last = nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 4)
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(16))

    def forward(self, x):
        x = torch.relu(self.first(self.flatten(x))) * self.scale
        return self.last(F.dropout(self.frozen(x), self.rate, training=self.training))


def test_odd_parts_of_a_model_train_as_in_fedavg(data):
    torch.manual_seed(1)
    model = Moody().double()
    last = len(cuts(model, (1, 8, 8))) - 1
    want = run(in_double(data), "fedavg", model)
    for cut in ([1, 2, 3], [4, last, last - 1], [last - 1, 1, 4]):
        assert_close(run(in_double(data), "edgesplit", model, cut=cut), want, 1e-11, 1e-13)


def test_devices_share_one_copy_of_the_model_and_keep_optimizers_of_their_own(model):
    config = TrainingConfig(
        framework="edgesplit", n_clients=4, batch_size=8, optimizer=momentum, local_steps=2, cut=[3, 3, 6, LAST],
        example=(1, 8, 8),
    )  # fmt: skip
    training = build_framework(model, config)
    assert list(training.modules) == ["model"]
    whole = {id(p) for p in model.parameters()}
    held = {name: {id(p) for p in o.param_groups[0]["params"]} for name, o in training.optimizers.items()}
    assert set(held) == {f"client {i}" for i in range(4)} | {f"server {i}" for i in range(3)}
    for i in range(3):
        assert held[f"client {i}"] | held[f"server {i}"] == whole
        assert not held[f"client {i}"] & held[f"server {i}"]
    assert held["client 3"] == whole
    assert held["client 0"] == held["client 1"] < held["client 2"]


def test_bits_are_those_of_activations_labels_gradients_and_device_parts(data, model):
    history = run(data, "edgesplit", model, cut=[2, 6, LAST], local_steps=3)
    points = cuts(model, (1, 8, 8))
    up = down = 0
    for cut in (2, 6, LAST):
        part = 32 * sum(t.numel() for t in split(model, cut).client.state_dict().values() if t.is_floating_point())
        row = 32 * int(np.prod(points[cut].shape))
        exchanged = cut < LAST
        up += part + exchanged * 3 * 8 * (row + 64)
        down += part + exchanged * 3 * 8 * row
    assert history.uplink_bits.tolist() == [up, 2 * up]
    assert history.downlink_bits.tolist() == [down, 2 * down]


def test_with_everything_on_the_devices_only_models_travel(data, model):
    split_everywhere = run(data, "edgesplit", model, cut=LAST)
    fedavg = run(data, "fedavg", model)
    assert np.array_equal(split_everywhere.uplink_bits, fedavg.uplink_bits)
    assert np.array_equal(split_everywhere.downlink_bits, 3 * fedavg.downlink_bits)  # unicast, not broadcast


def test_resumed_equals_uninterrupted_bit_for_bit(data, model, tmp_path):
    model = nn.Sequential(*model[:3], nn.Dropout(0.2), *model[3:])
    file, options = tmp_path / "run.pt", {"cut": [2, 7, 11], "optimizer": adam}
    whole = run(data, "edgesplit", model, rounds=5, **options)
    run(data, "edgesplit", model, rounds=2, checkpoint=file, **options)
    resumed = run(data, "edgesplit", model, rounds=5, checkpoint=file, **options)
    assert resumed == whole
    assert_close(resumed, whole, 0, 0)
    with pytest.raises(CheckpointError, match=r"cut: expected 6, got 7 in the checkpoint"):
        run(data, "edgesplit", model, rounds=6, checkpoint=file, **options | {"cut": [2, 6, 11]})


# --- plans ---


def plan_for(names, numbers):
    """A plan for a model with cuts of these names."""
    seconds = {"edgesplit": 1.5, "fedavg": 4.0}
    arguments = {"n_clients": len(numbers), "batch_size": 8, "local_steps": 2, "cut": list(numbers)}
    return StandInPlan("edgesplit", names, lambda name, local_steps: seconds[name] * local_steps, **arguments)


def test_a_plan_supplies_cuts_clients_batch_size_local_steps_and_time(data, model):
    plan = plan_for(cut_names(model), [2, 7, 12, 4])
    history = train("edgesplit", model, data, rounds=2, plan=plan, progress=False)
    wanted = {"cut": [2, 7, 12, 4], "n_clients": 4, "batch_size": 8, "local_steps": 2}
    assert history.settings | wanted == history.settings
    assert history.simulated_time_s.tolist() == [3.0, 6.0]
    again = train(
        "edgesplit", model, data, rounds=2, plan=plan, progress=False, cut=[2, "block2", "linear", 4], local_steps=2
    )
    assert again == history
    assert train("fedavg", model, data, rounds=2, plan=plan, progress=False).simulated_time_s.tolist() == [8.0, 16.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 3}, r"local_steps: expected the plan's 2, got 3"),
        ({"n_clients": 2}, r"n_clients: expected the plan's 3, got 2"),
        ({"cut": [2, 7, 8]}, r"cut: expected the plan's \[2, 7, 12\], got \[2, 7, 8\]. Fix: leave it out"),
        ({"cut": 7}, r"cut: expected the plan's \[2, 7, 12\], got \[7, 7, 7\]"),
        ({"cut": ["bn", "block2", "flatten"]}, r"cut: expected the plan's"),
    ],
)
def test_what_contradicts_the_plan_is_refused(options, message, data, model):
    with pytest.raises(ScenarioError, match=message):
        train(
            "edgesplit", model, data, rounds=1, plan=plan_for(cut_names(model), [2, 7, 12]), progress=False, **options
        )


def test_a_plan_for_another_model_is_refused(data, model):
    names = cut_names(model)
    plan = plan_for([*names[:7], "conv9", *names[8:]], [2, 7, 12])
    with pytest.raises(
        ScenarioError, match=r"plan: expected one whose cut 7 is 'block2', as in the model, got 'conv9'"
    ):
        train("edgesplit", model, data, rounds=1, plan=plan, progress=False)
    plan = plan_for(names, [2, 7, 12])
    with pytest.raises(ScenarioError, match=r"plan: expected one for a model of 10 units, got one for 12"):
        train("edgesplit", cnn(n_classes=4), data, rounds=1, plan=plan, progress=False)
    plan = plan_for(names, [2, 7, 30])
    with pytest.raises(ScenarioError, match=r"plan: expected one whose cuts are in 0\.\.12, got 30"):
        train("edgesplit", model, data, rounds=1, plan=plan, progress=False)


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (None, r"cut: expected number or name of a cut, got none"),
        ([1, 2], r"cut: expected one cut per client, 3 in all, or one for all, got 2"),
        ([], r"cut: expected one cut per client, 3 in all, or one for all, got 0"),
        ([1, 2, None], r"cut: expected number or name of a cut, got none"),
        ([1, 2.5, 3], r"cut: expected number or name of a cut, got 2\.5"),
        ([1, 0, 3], r"cut: expected a cut after the first layer or later, got 0, which would send the raw data"),
        ([1, 13, 3], r"cut: expected a number 0\.\.12, got 13"),
        ([1, "layer9", 3], r"cut: expected the name of a cut, got 'layer9'"),
        (["block1.conv1", 1, 1], r"which lies inside block 'block1'"),
    ],
)
def test_bad_cuts_say_what_was_expected(cut, message, data, model):
    with pytest.raises(CutError, match=message):
        run(data, "edgesplit", model, cut=cut)
