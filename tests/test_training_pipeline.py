"""Pipelined split learning: micro-batches through stages give the gradient of the whole mini-batch."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psl.errors import CheckpointError, CutError, ScenarioError
from psl.models import cuts, partition
from psl.training import train
from psl.training.config import TrainingConfig, cross_entropy
from psl.training.frameworks import build_framework
from psl.training.stage import Stage, loss_and_gradient
from training_plans import StandInPlan, cut_names

STAGES = {1: [], 2: [3], 3: [2, 7], 5: [1, 4, 5, 8]}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def batch(n=24):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, 8, 8, dtype=torch.float64, generator=generator)
    return images, torch.randint(0, 4, (n,), generator=generator)


def build(model, cut, micro_batch, n_clients=3, optimizer=sgd):
    config = TrainingConfig(
        framework="pipeline",
        n_clients=n_clients,
        batch_size=8,
        optimizer=optimizer,
        cut=cut,
        micro_batch=micro_batch,
        example=(1, 8, 8),
    )
    return build_framework(copy.deepcopy(model), config)


def gradients(model):
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(found, want, rtol=1e-10, atol=1e-13):
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=atol, msg=lambda t, name=name: f"{name}: {t}")


def whole_gradients(model, images, labels):
    model = copy.deepcopy(model)
    value = nn.functional.cross_entropy(model(images), labels)
    value.backward()
    return float(value.detach()), gradients(model)


@pytest.mark.parametrize("micro_batch", [1, 7, 8, 23, 24])  # 24 samples: 7 and 23 leave a smaller last one
@pytest.mark.parametrize("cut", STAGES.values(), ids=[f"{n} stages" for n in STAGES])
def test_gradients_are_those_of_the_whole_mini_batch(cut, micro_batch, plain):
    images, labels = batch()
    value, want = whole_gradients(plain, images, labels)
    training = build(plain, cut, micro_batch)
    loss = training.round(lambda i, k: (images, labels), None)
    assert len(training.stages) == len(cut) + 1
    assert float(loss) == pytest.approx(value, rel=1e-12)
    assert_close(gradients(training.model), want)


def test_gradients_with_batchnorm_that_uses_running_statistics(norm):
    images, labels = batch()
    norm.eval()
    _, want = whole_gradients(norm, images, labels)
    training = build(norm, [3, 7, 10], 5)
    training.round(lambda i, k: (images, labels), None)
    assert_close(gradients(training.model), want)


def test_batchnorm_normalises_every_micro_batch_by_itself(norm):
    """In train mode: not the whole mini-batch's gradient, but that of its micro-batches one by one, as in GPipe."""
    images, labels = batch()
    _, whole = whole_gradients(norm, images, labels)
    oracle = copy.deepcopy(norm)
    for part in range(4):  # 7 + 7 + 7 + 3
        rows = slice(7 * part, 7 * part + 7)
        nn.functional.cross_entropy(oracle(images[rows]), labels[rows], reduction="sum").div(24).backward()
    training = build(norm, [3, 7], 7)
    training.round(lambda i, k: (images, labels), None)
    found = gradients(training.model)
    assert_close(found, gradients(oracle))
    assert not torch.allclose(found["conv.weight"], whole["conv.weight"], rtol=0.05)
    assert_close(dict(training.model.named_buffers()), dict(oracle.named_buffers()))
    assert int(training.model.bn.num_batches_tracked) == 4


def in_double(data):
    return tuple(TensorDataset(part.tensors[0].double(), part.tensors[1]) for part in data)


def run(data, framework, model, **options):
    options = {"n_clients": 3, "rounds": 3, "batch_size": 8, "optimizer": sgd, "progress": False} | options
    return train(framework, model, data, **options)


@pytest.mark.parametrize("cut", [[], [5], [2, 6, 9], "block1"])
def test_one_micro_batch_is_centralised_training_bit_for_bit(cut, data, norm):
    model = norm.float()
    want, found = run(data, "centralised", model), run(data, "pipeline", model, cut=cut)
    assert found.settings["micro_batch"] == 24
    assert np.array_equal(found.train_loss, want.train_loss)
    assert np.array_equal(found.test_accuracy, want.test_accuracy)
    for x, y in zip(found.models[0].state_dict().values(), want.models[0].state_dict().values(), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", sgd])
def test_training_is_centralised_training(optimizer, data, plain):
    want = run(in_double(data), "centralised", plain, optimizer=optimizer)
    for micro_batch in (5, 12):
        found = run(in_double(data), "pipeline", plain, optimizer=optimizer, cut=[1, 4, 8], micro_batch=micro_batch)
        np.testing.assert_allclose(found.train_loss, want.train_loss, rtol=1e-9)
        assert_close(found.models[0].state_dict(), want.models[0].state_dict(), rtol=1e-7, atol=1e-9)


def test_stages_may_run_in_any_order(plain):
    """Stages know each other by tensors alone: all forward, then backward from the last micro-batch, is the same."""
    images, labels = batch()
    _, want = whole_gradients(plain, images, labels)
    model = copy.deepcopy(plain)
    stages = [Stage(m, None, first=i == 0) for i, m in enumerate(partition(model, [2, 5], (1, 8, 8)))]
    parts = list(zip(images.split(7), labels.split(7), strict=True))
    outputs = {}
    for number, (x, _) in enumerate(parts):
        for stage in stages:
            x = stage.forward(x, number)
        outputs[number] = x
        assert not x.requires_grad
    for number in (3, 0, 2, 1):
        labels = parts[number][1]
        _, gradient = loss_and_gradient(outputs[number], labels, cross_entropy, len(labels) / 24)
        for stage in reversed(stages):
            gradient = stage.backward(gradient, number)
        assert gradient is None
    assert_close(gradients(model), want)


def test_odd_stages_train(data):
    """A first stage without weights, a frozen one, an operation in place just behind a boundary."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.Linear(16, 4))
    model[3].requires_grad_(False)
    model = model.double()
    want = run(in_double(data), "centralised", model)
    found = run(in_double(data), "pipeline", model, cut=[1, 2, 3, 4], micro_batch=9)
    assert_close(found.models[0].state_dict(), want.models[0].state_dict())
    assert torch.equal(found.models[0][3].weight, model[3].weight)


def test_bits_cross_every_boundary_once(data, plain):
    history = run(in_double(data), "pipeline", plain, cut=[2, 6, 8], micro_batch=5, rounds=2)
    points = cuts(copy.deepcopy(plain).float(), (1, 8, 8))
    crossing = 24 * 64 * sum(int(np.prod(points[j].shape)) for j in (2, 6, 8))
    assert history.uplink_bits.tolist() == [crossing + 24 * 64, 2 * (crossing + 24 * 64)]  # labels to the last stage
    assert history.downlink_bits.tolist() == [crossing, 2 * crossing]
    alone = run(data, "pipeline", plain.float(), cut=[], rounds=1)
    assert (alone.uplink_bits[0], alone.downlink_bits[0]) == (0, 0)


def test_two_stages_and_one_client_are_split_learning(data, plain):
    options = {"n_clients": 1, "cut": [5]}
    pipeline, sl = (run(data, f, plain.float(), **options | {"cut": c}) for f, c in (("pipeline", [5]), ("sl", 5)))
    assert np.array_equal(pipeline.uplink_bits, sl.uplink_bits)
    assert np.array_equal(pipeline.downlink_bits, sl.downlink_bits)
    np.testing.assert_allclose(pipeline.train_loss, sl.train_loss, rtol=1e-6)


def test_resumed_equals_uninterrupted_bit_for_bit(data, norm, tmp_path):
    model, file = nn.Sequential(*norm.float(), nn.Dropout(0.2)), tmp_path / "run.pt"
    options = {"cut": [3, 8], "micro_batch": 7, "optimizer": "adam"}
    whole = run(data, "pipeline", model, rounds=5, **options)
    run(data, "pipeline", model, rounds=2, checkpoint=file, **options)
    resumed = run(data, "pipeline", model, rounds=5, checkpoint=file, **options)
    assert resumed == whole
    for x, y in zip(resumed.models[0].state_dict().values(), whole.models[0].state_dict().values(), strict=True):
        assert torch.equal(x, y)
    with pytest.raises(CheckpointError, match=r"micro_batch: expected 8, got 7 in the checkpoint"):
        run(data, "pipeline", model, rounds=5, checkpoint=file, **options | {"micro_batch": 8})


# --- plans and bad input ---


def plan_for(names, numbers):
    """A plan for a model with cuts of these names."""
    arguments = {"n_clients": 1, "batch_size": 24, "micro_batch": 7, "cut": list(numbers)}
    return StandInPlan("pipeline", names, lambda name, local_steps: 2.5, **arguments)


def names_of(model):
    return cut_names(copy.deepcopy(model).float())


@pytest.mark.parametrize("numbers", [[], [3, 7]])
def test_a_plan_supplies_boundaries_and_batches(numbers, data, plain):
    model = plain.float()
    history = train("pipeline", model, data, rounds=2, plan=plan_for(names_of(model), numbers), progress=False)
    wanted = {"cut": numbers, "n_clients": 1, "batch_size": 24, "micro_batch": 7}
    assert history.settings | wanted == history.settings
    assert history.simulated_time_s.tolist() == [2.5, 5.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cut": [3, 8]}, r"cut: expected the plan's \[3, 7\], got \[3, 8\]"),
        ({"cut": []}, r"cut: expected the plan's \[3, 7\], got \[\]"),
        ({"micro_batch": 8}, r"micro_batch: expected the plan's 7, got 8"),
        ({"n_clients": 2}, r"n_clients: expected the plan's 1, got 2"),
        ({"batch_size": 12}, r"batch_size: expected the plan's 24, got 12"),
    ],
)
def test_what_contradicts_the_plan_is_refused(options, message, data, plain):
    with pytest.raises(ScenarioError, match=message):
        train("pipeline", plain, data, rounds=1, plan=plan_for(names_of(plain), [3, 7]), progress=False, **options)


def test_a_plan_for_another_model_is_refused(data, plain, norm):
    plain, norm = plain.float(), norm.float()  # as the data is
    with pytest.raises(ScenarioError, match=r"plan: expected one for a model of 10 units, got one for 12"):
        train("pipeline", plain, data, rounds=1, plan=plan_for(names_of(norm), [3, 11]), progress=False)
    plan = plan_for(names_of(norm)[:11], [3, 9])
    with pytest.raises(ScenarioError, match=r"plan: expected one whose cut 3 is 'pool1', as in the model, got 'relu'"):
        train("pipeline", plain, data, rounds=1, plan=plan, progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cut": None}, CutError, r"cut: expected number or name of a cut, got none"),
        ({"cut": [3, 3]}, CutError, r"cuts: expected strictly increasing cuts, got \[3, 3\]"),
        ({"cut": [7, "conv2"]}, CutError, r"cuts: expected strictly increasing cuts, got \[7, 4\]"),
        ({"cut": [0, 3]}, CutError, r"cut: expected a cut after the first layer or later, got 0"),
        ({"cut": [3, 10]}, CutError, r"cut: expected inner boundaries, 1\.\.9, got 10, the output. Fix: leave it out"),
        ({"cut": [3, 11]}, CutError, r"cut: expected a number 0\.\.10, got 11"),
        ({"cut": [[3], 7]}, CutError, r"cut: expected number or name of a cut, got \[3\]"),
        ({"micro_batch": 25}, ScenarioError, r"micro_batch: expected at most the mini-batch of 24, got 25"),
        ({"micro_batch": 0}, ScenarioError, r"micro_batch: expected at least 1, got 0"),
        ({"micro_batch": 2.5}, ScenarioError, r"micro_batch: expected a whole number, got 2\.5"),
    ],
)
def test_bad_input_says_what_was_expected(options, error, message, data, plain):
    with pytest.raises(error, match=message):
        run(data, "pipeline", plain.float(), **{"cut": [3, 7]} | options)


def test_a_micro_batch_of_one_row_that_batchnorm_cannot_normalise_is_refused(data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    with pytest.raises(ScenarioError, match=r"micro_batch: expected 2 samples or more for this model's BatchNorm, got"):
        run(data, "pipeline", model, cut=[1], micro_batch=23)
