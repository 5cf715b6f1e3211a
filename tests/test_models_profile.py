"""Profiles: counts against published ones, backward against PyTorch's counter, memory against autograd."""

import json

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import psl
from marks import some
from psl.errors import CutError, ScenarioError
from test_models_cuts import WITH_AUXILIARY_HEADS, meta_device

# At least one model of every family; `_ops` and `num_params` stand in torchvision's weight metadata.
PUBLISHED = [
    "alexnet", "convnext_tiny", "efficientnet_b0", "googlenet", "mnasnet1_0", "mobilenet_v2", "resnet18", "resnet50",
    "shufflenet_v2_x1_0", "squeezenet1_0", "swin_t", "vgg11", "vit_b_16",
]  # fmt: skip
# These run with FULL=1.
LONG = ("efficientnet_b0", "googlenet", "mnasnet1_0", "swin_t", "densenet121", "inception_v3", "vit_b_16")


@pytest.mark.parametrize("name", some(PUBLISHED, lambda name: name not in LONG))
def test_forward_counts_equal_torchvisions_published_multiply_adds(name):
    weights = next(iter(torchvision.models.get_model_weights(name)))
    options = {"aux_logits": False, "init_weights": False} if name in WITH_AUXILIARY_HEADS else {}
    with meta_device():
        model = torchvision.models.get_model(name, **options)
    size = weights.transforms.keywords["crop_size"]
    found = psl.profile(model, (3, size, size))
    assert found.fwd_cost[-1] / 2e9 == pytest.approx(weights.meta["_ops"], rel=0.01)
    # What an exchange sends: parameters, and BatchNorm's running statistics.
    statistics = sum(b.numel() for b in model.buffers() if b.is_floating_point())
    n_parameters = found.param_bits[-1] / 32 - statistics
    assert n_parameters == sum(p.numel() for p in model.parameters())
    if not options:  # without auxiliary heads there are fewer parameters than published
        assert n_parameters == weights.meta["num_params"]


BACKWARD = ["vgg11", "resnet18", "densenet121", "squeezenet1_1", "inception_v3"]


@pytest.mark.parametrize("name", some(BACKWARD, lambda name: name not in LONG))
def test_backward_counts_equal_pytorchs_where_its_counter_is_right(name):
    # PyTorch's counter ignores groups in a convolution's backward pass; these models have none.
    options = {"aux_logits": False, "init_weights": False} if name in WITH_AUXILIARY_HEADS else {}
    with meta_device():
        model = torchvision.models.get_model(name, **options)
    x = torch.empty(2, 3, 299, 299, device="meta")
    with FlopCounterMode(display=False) as whole:
        output = model(x)
        forward = whole.get_total_flops()
        output.backward(torch.empty_like(output))
    found = psl.profile(model, (3, 299, 299))
    assert found.fwd_cost[-1] == forward / 2
    assert found.bwd_cost[-1] == (whole.get_total_flops() - forward) / 2


def test_grouped_convolutions_count_backward_by_hand():
    depthwise = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False))
    found = psl.profile(depthwise, (3, 10, 10))
    first, second = 2 * 100 * 8 * 3, 2 * 100 * 8 * 9
    np.testing.assert_array_equal(found.fwd_cost, [0, first, first + second])
    # The raw input needs no gradient: the first layer has one product, the second two.
    np.testing.assert_array_equal(found.bwd_cost, [0, first, first + 2 * second])
    assert found.last_bwd_cost == 2 * second


def test_profile_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    found = psl.profile(model, (1, 8, 8))
    assert found.names == ("input", "0", "1", "2", "3", "4")
    np.testing.assert_array_equal(found.act_bits, np.array([64, 256, 256, 256, 256, 10]) * 32)
    np.testing.assert_array_equal(found.grad_bits[1:], found.act_bits[1:])
    assert found.grad_bits[0] == 0, "nobody needs the gradient of the raw input"
    np.testing.assert_array_equal(found.param_bits, np.array([0, 40, 56, 56, 56, 56 + 2570]) * 32)
    counter = 8  # bytes of BatchNorm's batch counter
    weights, learns = np.array([0, 40, 56, 56, 56, 56 + 2570]), np.array([0, 40, 48, 48, 48, 48 + 2570])
    np.testing.assert_array_equal(found.param_memory, 4 * (weights + 2 * learns) + counter * (np.arange(6) > 1))
    conv, linear = 2 * 64 * 4 * 9, 2 * 256 * 10
    np.testing.assert_array_equal(found.fwd_cost, [0, conv, conv, conv, conv, conv + linear])
    np.testing.assert_array_equal(found.bwd_cost, [0, conv, conv, conv, conv, conv + 2 * linear])
    # Kept: the image (conv), conv's output (BatchNorm), ReLU's output (ReLU and Linear share it).
    np.testing.assert_array_equal(found.act_memory, np.cumsum([0, 64, 256, 256, 0, 0]) * 4)


def test_saved_memory_equals_what_autograd_saves_on_a_real_batch():
    model = psl.models.thin_resnet().train()

    def saved_bytes(batch_size):
        state = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
        kept = {}

        def note(t):
            kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            output = model(torch.randn(batch_size, 1, 16, 16))
        del output
        return sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in state)

    found = psl.profile(model, (1, 16, 16))
    assert found.act_memory[-1] == (saved_bytes(12) - saved_bytes(4)) / 8


def test_half_precision_halves_bits_and_memory():
    full, half = (psl.profile(psl.models.cnn(), (1, 8, 8), bits=bits) for bits in (32, 16))
    np.testing.assert_array_equal(half.act_bits * 2, full.act_bits)
    np.testing.assert_array_equal(half.param_bits * 2, full.param_bits)
    assert full.act_memory[-1] / 2 < half.act_memory[-1] < full.act_memory[-1], "pooling's indices keep their width"


def test_profiling_touches_neither_the_model_nor_much_memory():
    model = psl.models.thin_resnet().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    psl.profile(model, (1, 16, 16))
    assert not model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.device.type == "cpu" for p in model.parameters())


def test_measured_profile_has_the_same_shape_and_positive_seconds():
    model = psl.models.thin_resnet()
    counted, measured = psl.profile(model, (1, 16, 16)), psl.measure(model, (1, 16, 16), batch_size=8, repeats=3)
    assert measured.unit == "s"
    assert measured.names == counted.names
    np.testing.assert_array_equal(measured.act_bits, counted.act_bits)
    assert (np.diff(measured.fwd_cost) > 0).all(), "every unit takes some time"
    assert measured.bwd_cost[-1] > 0
    assert 0 < measured.last_bwd_cost <= measured.bwd_cost[-1]
    assert all(p.grad is None for p in model.parameters())


def test_a_table_from_elsewhere_survives_json():
    table = psl.Profile.measured(["in", "a", "b"], [0, 0.1, 0.3], [0, 0.2, 0.5], [8, 4, 2], last_bwd_seconds=0.3)
    assert psl.Profile.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert list(table.to_frame().columns[:2]) == ["name", "fwd_seconds"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fwd_cost": [0, 2, 1]}, "fwd_cost.*never falls.*entry 2"),
        ({"fwd_cost": [1, 2, 3]}, "fwd_cost.*expected 0 at entry 0"),
        ({"act_bits": [1, float("nan"), 1]}, "act_bits.*finite.*nan at index"),
        ({"bwd_cost": [0, 1]}, r"bwd_cost.*shape \(3\).*shape \(2,\)"),
        ({"last_bwd_cost": 9.0}, "last_bwd_cost.*at most"),
    ],
)
def test_a_wrong_profile_is_refused(change, message):
    fields = {
        "names": ("in", "a", "b"), "fwd_cost": [0, 1, 2], "bwd_cost": [0, 1, 2], "act_bits": [3, 2, 1],
        "grad_bits": [3, 2, 1], "param_bits": [0, 1, 2], "act_memory": [0, 1, 2],
    }  # fmt: skip
    psl.Profile(**fields)
    with pytest.raises(ScenarioError, match=message):
        psl.Profile(**(fields | change))


def test_measure_refuses_a_single_sample():
    with pytest.raises(ScenarioError, match="batch_size: expected at least 2"):
        psl.measure(psl.models.cnn(), (1, 8, 8), batch_size=1)
    with pytest.raises(CutError, match="example"):
        psl.measure(psl.models.cnn(), (3, 8, 8), batch_size=4)


def test_the_last_layer_is_the_last_one_with_weights_counted_and_measured():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    counted, measured = psl.profile(model, (1, 16, 16)), psl.measure(model, (1, 16, 16), batch_size=8, repeats=3)
    assert counted.last_bwd_cost == counted.bwd_cost[3] - counted.bwd_cost[2]
    assert measured.last_bwd_cost == pytest.approx(measured.bwd_cost[3] - measured.bwd_cost[2])
    ends_in_a_block = nn.Sequential(nn.Conv2d(1, 16, 1), psl.models.thin_resnet().block1)
    assert psl.profile(ends_in_a_block, (1, 6, 6)).last_bwd_cost == 2 * 2 * 36 * 16 * 16 * 9
