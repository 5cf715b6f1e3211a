"""Training of models as people bring them: frozen parts, several inputs, cuts of several tensors, outputs in a dict."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

import psl
from psl.errors import CutError, DataError, ScenarioError
from psl.schedulers import epsl
from psl.training import train
from psl.training.frameworks import FRAMEWORKS
from psl.training.messages import each, joined
from psl.training.model_preparation import image_layout

SPLIT = tuple(name for name, kind in FRAMEWORKS.items() if kind.splits)


def vectors(n_rows=64, width=4, n_classes=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n_rows, width, generator=generator)
    return TensorDataset(x, torch.randint(0, n_classes, (n_rows,), generator=generator))


def run(name, model, cut, data=None, **options):
    data = vectors() if data is None else data
    given = {"n_clients": 1, "rounds": 5, "batch_size": 16, "lr": 0.5, "progress": False} | options
    cut = [cut] if name == "pipeline" else cut
    return train(name, model, (data, data), **({"cut": cut} if name in SPLIT else {}), **given)


class Probe(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.mid, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        with torch.no_grad():
            x = torch.relu(self.mid(torch.relu(self.body(x))))
        return self.head(x)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_body_without_gradients_stays_and_no_gradient_comes_back(name):
    torch.manual_seed(0)
    model = Probe()
    found = run(name, model, "mid")
    assert torch.equal(found.models[0].body.weight, model.body.weight)
    assert torch.equal(found.models[0].mid.weight, model.mid.weight)
    assert not torch.equal(found.models[0].head.weight, model.head.weight)
    models_down = {"sfl": 32 * (5 * 8 + 9 * 8), "fedavg": 32 * (5 * 8 + 9 * 8 + 9 * 3)}
    models_down["edgesplit"] = models_down["sfl"]
    assert found.downlink_bits[-1] == 5 * models_down.get(name, 0)


class FixedStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.bn, self.h = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
        return self

    def forward(self, x):
        return self.h(torch.relu(self.bn(self.a(x))))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_batchnorm_that_train_leaves_in_eval_mode_sees_no_batch(name):
    torch.manual_seed(0)
    model = FixedStatistics()
    losses = []
    for every in (1, 99):
        found = run(name, model, "a", eval_every=every)
        assert int(found.models[0].bn.num_batches_tracked) == 0
        assert torch.equal(found.models[0].bn.running_mean, torch.zeros(8))
        losses.append(found.train_loss)
    np.testing.assert_array_equal(*losses)
    np.testing.assert_allclose(losses[0], run("centralised", model, None).train_loss, rtol=1e-6)


class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4 * 6 * 6, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x))
        return self.fc(x.view(x.size(0), -1))


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_model_that_needs_contiguous_images_trains(name, data):
    torch.manual_seed(0)
    model, train_set = Viewing(), data[0]
    found = run(name, model, "conv", data=train_set, batch_size=100, lr=0.1, rounds=3)
    reference = copy.deepcopy(model)
    x, y = train_set.tensors
    for _ in range(3):  # one client with all samples in one batch: plain gradient descent
        reference.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.1 * parameter.grad
    for a, b in zip(found.models[0].parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class ViewsBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.view(-1).view(gradient.shape)


class ViewingBackward(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 6)

    def forward(self, x):
        return self.b(ViewsBackward.apply(self.a(x))).flatten(1)


@pytest.mark.parametrize("name", ["centralised", "fedavg", "psl", "pipeline"])
def test_a_model_whose_backward_pass_needs_contiguous_images_trains(name, data):
    torch.manual_seed(0)
    model = ViewingBackward()
    assert image_layout(model, torch.device("cpu")) == torch.channels_last  # it is tried
    found = run(name, model, "a", data=data[0], lr=0.1, rounds=20)
    assert found.train_loss[-1] < found.train_loss[0]


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.h = nn.Linear(4, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.h(torch.relu(self.a(x.sub_(100).div_(20))))


def test_every_client_is_evaluated_on_test_data_as_they_are():
    torch.manual_seed(0)
    z = torch.randn(200, 4)
    kept = 100 + 20 * z
    found = run("psl", InPlace(), "a", TensorDataset(kept.clone(), z.argmax(1)), n_clients=3, rounds=20, lr=0.3)
    own = [(model(kept.clone()).argmax(1) == z.argmax(1)).float().mean().item() for model in found.models]
    np.testing.assert_allclose(found.client_accuracy, own, rtol=1e-6)
    assert min(own) > 0.5


class Adapted(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.base = nn.Linear(n_in, n_out).requires_grad_(False)
        self.down, self.up = nn.Linear(n_in, 2, bias=False), nn.Linear(2, n_out, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


class Unused(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
        self.spare = nn.Parameter(torch.zeros(7))

    def forward(self, x):
        for layer in self:
            x = layer(x)
        return x


def frozen_prefix():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    return model


def frozen_end():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[4].requires_grad_(False)
    return model


def shared():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3))
    model[3].weight = model[2].weight
    return model


def adapted():
    return nn.Sequential(Adapted(4, 8), nn.ReLU(), Adapted(8, 8), nn.ReLU(), nn.Linear(8, 3))


MODELS = {"frozen_prefix": frozen_prefix, "frozen_end": frozen_end, "unused": Unused, "shared": shared}
MODELS |= {"lora": adapted}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_profile_plans_the_bits_that_are_counted(name, make):
    torch.manual_seed(0)
    model = make()
    profile, n_clients, rows = psl.profile(model, (4,)), 2, 16
    trained = {id(p): p for p in model.parameters() if p.requires_grad}
    floating = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    assert profile.param_bits[-1] == 32 * (sum(p.numel() for p in trained.values()) + floating)
    for j, cut in enumerate(psl.cuts(model, (4,))[1:-1], 1):
        found = run(name, model, cut.index, n_clients=n_clients, rounds=1, batch_size=rows)
        up = n_clients * rows * (profile.act_bits[j] + 64)
        down = n_clients * rows * profile.grad_bits[j]
        part, whole = profile.param_bits[j], profile.param_bits[-1]
        want = {
            "centralised": (0, 0),
            "fedavg": (n_clients * whole, whole),
            "sl": (up + n_clients * part, down + n_clients * part),
            "sfl": (up + n_clients * part, down + part),
            "psl": (up, down),
            "epsl": (up, down * (0.5 / n_clients + 0.5)),  # half of the slots once for all
            "edgesplit": (up + n_clients * part, down + n_clients * part),
            "pipeline": (up, down),
        }[name]
        assert (found.uplink_bits[-1], found.downlink_bits[-1]) == want, cut


class Masked(nn.Module):
    """Two inputs, a skip connection across the second layer, and a dict as output."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, mask):
        first = torch.relu(self.a(x))
        second = torch.relu(self.b(first)) * mask[:, None]
        return {"logits": self.c(first + second), "hidden": second}


class Forms(Dataset):
    def __init__(self, form):
        self.form, self.data = form, vectors()

    def __len__(self):
        return len(self.data)

    def __getitem__(self, k):
        x, y = self.data[k]
        mask = (x.sum() > 0).float()
        return {
            "labels": {"mask": mask, "labels": y, "x": x},
            "label": {"x": x, "label": int(y), "mask": mask},
            "triple": (x, mask, y),
            "pair": ((x, mask), y),
        }[self.form]


def cut_of_two(model):
    x, _ = vectors().tensors
    (cut,) = (cut for cut in psl.cuts(model, (x[:2], x[:2, 0]), tensors=2) if cut.name == "b")
    assert cut.n_tensors == 2
    return cut


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_several_inputs_and_tensors_at_the_cut_train_as_the_whole_model_does(name):
    torch.manual_seed(0)
    model = Masked()
    cut = cut_of_two(model)
    curves = [run(name, model, cut, Forms(form), batch_size=64, n_clients=1) for form in ("labels", "triple")]
    reference = copy.deepcopy(model)
    x, y = vectors().tensors
    losses = []
    for _ in range(5):
        reference.zero_grad()
        loss = F.cross_entropy(reference(x, (x.sum(1) > 0).float())["logits"], y)
        losses.append(loss.item())
        loss.backward()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter -= 0.5 * parameter.grad
    for found in curves:
        np.testing.assert_allclose(found.train_loss, losses, rtol=1e-5)
    assert curves[0].uplink_bits[-1] == curves[1].uplink_bits[-1]


@pytest.mark.parametrize("form", ["labels", "label", "triple", "pair"])
@pytest.mark.parametrize("name", ["sl", "epsl", "pipeline"])
def test_the_form_of_the_samples_changes_nothing(name, form):
    torch.manual_seed(0)
    model = Masked()
    cut = cut_of_two(model)
    found, same = (run(name, model, cut, Forms(f), n_clients=2, phi=0.5) for f in (form, "triple"))
    np.testing.assert_array_equal(found.train_loss, same.train_loss)


@pytest.mark.parametrize("name", ["sl", "psl", "pipeline"])
def test_all_that_crosses_is_counted(name):
    torch.manual_seed(0)
    model = Masked()
    found = run(name, model, cut_of_two(model), Forms("triple"), rounds=1)
    assert found.uplink_bits[-1] == 16 * (32 * (8 + 8 + 1) + 64)  # two tensors, the mask, the label
    assert found.downlink_bits[-1] == 16 * 32 * (8 + 8)


@pytest.mark.parametrize("rule", ["representative", "mean", "each", "cut", "sampled"])
def test_epsl_with_several_outputs_is_psl_where_nothing_is_lost_by_aggregation(rule):
    torch.manual_seed(0)
    model = Masked()
    cut = cut_of_two(model)

    def loss(outputs, labels):  # uses both outputs
        return F.cross_entropy(outputs["logits"], labels, reduction="none") + outputs["hidden"].square().mean(1)

    whole = run("psl", model, cut, Forms("triple"), n_clients=1, loss=loss)
    found = run("epsl", model, cut, Forms("triple"), n_clients=1, loss=loss, phi=1.0, linearise=rule)
    np.testing.assert_array_equal(found.train_loss, whole.train_loss)
    several = run(
        "epsl", model, cut, Forms("triple"), n_clients=3, loss=loss, phi=0.5, linearise=rule, rounds=30, lr=0.1
    )
    assert several.train_loss[-1] < several.train_loss[0]


NOW = {"factor": 1.0, "growth": 0.0}


class Switched(nn.Module):
    """What forward does depends on globals that no graph sees."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        NOW["factor"] += NOW["growth"]
        return self.b(torch.relu(self.a(x)) * NOW["factor"])


@pytest.mark.parametrize("name", SPLIT)
def test_parts_that_are_not_the_model_are_refused_before_the_first_round(name, monkeypatch):
    monkeypatch.setitem(NOW, "factor", 1.0)
    monkeypatch.setitem(NOW, "growth", 0.5)
    with pytest.raises(CutError, match="verify: .* in train mode, got a difference in the output"):
        run(name, Switched(), "a", rounds=1)
    run(name, Switched(), "a", rounds=1, verify=False)


@pytest.mark.parametrize("name", SPLIT)
def test_operations_remembered_from_another_model_are_not_taken_where_they_differ(name, monkeypatch):
    torch.manual_seed(0)
    model = Switched()
    for factor in (1.0, 2.0):
        monkeypatch.setitem(NOW, "factor", factor)
        found, want = run(name, model, "a").train_loss, run("centralised", model, None).train_loss
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_a_plan_for_other_images_is_refused(data):
    torch.manual_seed(0)
    model = psl.models.thin_resnet(n_classes=4, width=4)
    cell = psl.WirelessCell.sample(seed=1, channel="log-distance")
    options = {"rounds": 1, "progress": False}
    fitting, other = (
        epsl.solve(psl.profile(model, (1, size, size)), cell, batch_size=8, phi=0.0, cut=3) for size in (8, 64)
    )
    assert train("epsl", model, data, plan=fitting, **options).rounds == 1
    with pytest.raises(ScenarioError, match=r"plan: expected .* samples .* Fix:"):
        train("epsl", model, data, plan=other, **options)
    half = epsl.solve(psl.profile(model, (1, 8, 8), bits=16), cell, batch_size=8, phi=0.0, cut=3)
    assert train("epsl", model, data, plan=half, **options).rounds == 1


def test_samples_that_make_no_batch_are_refused():
    class Words(Dataset):
        def __init__(self, of):
            self.of = of

        def __len__(self):
            return 64

        def __getitem__(self, k):
            return self.of(k), k % 3

    for of, match in ((lambda k: torch.ones(k % 4 + 1), "one shape"), (lambda k: "text", "tensors or numbers")):
        with pytest.raises(DataError, match=match):
            run("centralised", nn.Linear(4, 3), None, Words(of))


def test_labels_that_the_accuracy_does_not_fit_are_refused():
    x, y = vectors().tensors
    data = TensorDataset(x, (y > 0).float()[:, None])

    def loss(outputs, labels):
        return F.binary_cross_entropy_with_logits(outputs, labels, reduction="none").squeeze(1)

    with pytest.raises(ScenarioError, match=r"metric: expected outputs \(rows, classes ≥ 2\).*pass metric="):
        run("centralised", nn.Linear(4, 1), None, data, loss=loss)


def test_the_accuracy_of_pixels_is_a_share():
    generator = torch.Generator().manual_seed(0)
    images, masks = torch.randn(16, 1, 8, 8, generator=generator), torch.randint(0, 3, (16, 8, 8), generator=generator)
    found = run("fedavg", nn.Conv2d(1, 3, 1), None, TensorDataset(images, masks), batch_size=8)
    right = found.models[0](images).argmax(1) == masks
    np.testing.assert_allclose(found.final_accuracy, right.float().mean().item(), rtol=1e-6)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_a_class_per_token(name):
    torch.manual_seed(0)
    tokens = torch.randint(0, 7, (32, 5))
    model = nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 3))  # (b, tokens, classes)
    found = run(name, model, 1, TensorDataset(tokens, tokens % 3), lr=2.0, rounds=20)
    right = (found.models[0](tokens).argmax(2) == tokens % 3).float().mean().item()
    np.testing.assert_allclose(found.final_accuracy, right, rtol=1e-6)
    want = run("centralised", model, None, TensorDataset(tokens, tokens % 3)).train_loss[0]
    np.testing.assert_allclose(found.train_loss[0], want, rtol=1e-6)
    assert right > 0.6


def test_messages_of_several_clients_become_one():
    a, b = (torch.ones(2, 3), torch.zeros(2), 5), (torch.ones(4, 3), torch.ones(4), 5)
    tensor, vector, size = joined([a, b])
    assert (tuple(tensor.shape), vector.tolist(), size) == ((6, 3), [0, 0, 1, 1, 1, 1], 5)
    with pytest.raises(CutError, match="equal sizes"):
        joined([a, (*b[:2], 7)])
    with pytest.raises(CutError, match="equal size"):
        joined([torch.ones(2, 3), torch.ones(2, 4)])


def test_a_form_is_kept():
    from collections import namedtuple

    pair = namedtuple("pair", "x y")
    made = each(lambda t: t + 1, {"a": pair(torch.zeros(1), 3), "b": [torch.ones(1)]})
    assert (made["a"].x.item(), made["a"].y, made["b"][0].item()) == (1, 3, 2)
