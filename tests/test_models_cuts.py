"""Cuts: every legal one is exact, none hides, and a wrong one is refused with a reason."""

import contextlib
import copy
import gc
import os
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import regnet

import psl
from psl.errors import CutError
from psl.models.stages import stages
from psl.models.tracing import trace

# Two of torchvision's 80 classification models have several outputs in train mode as they come, because of their
# auxiliary heads; here they are built without.
WITH_AUXILIARY_HEADS = {"googlenet", "inception_v3"}

# One model per family at the smallest image it takes; the transformers that insist on large images
# are built smaller, block for block the same.
FAMILIES = {
    "alexnet": 64, "convnext_tiny": 32, "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32,
    "googlenet": 32, "inception_v3": 75, "maxvit": 32, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32,
    "regnet_x_400mf": 32, "regnet_y_400mf": 32, "resnet18": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32,
    "squeezenet1_1": 32, "swin_t": 32, "swin_v2_t": 32, "vgg11_bn": 32, "vit": 32, "wide_resnet50_2": 32,
}  # fmt: skip
# These run with FULL=1: their operations are those of others here or of the models in model_zoo.py.
SIMILAR = {
    "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnext50_32x4d", "swin_t", "swin_v2_t", "vgg11_bn", "wide_resnet50_2",
}  # fmt: skip
FULL = os.environ.get("FULL") == "1"


@contextlib.contextmanager
def meta_device():
    """Build models without memory; RegNet computes its widths with tensors, which need a real device."""
    original = regnet.BlockParams.__dict__["from_init_params"]

    def on_cpu(cls, *args, **kwargs):
        with torch.device("cpu"):
            return original.__func__(cls, *args, **kwargs)

    regnet.BlockParams.from_init_params = classmethod(on_cpu)
    try:
        with torch.device("meta"):
            yield
    finally:
        regnet.BlockParams.from_init_params = original


def build(name):
    if name == "maxvit":
        return torchvision.models.MaxVit((32, 32), 8, 2, [8, 8, 16], [1, 2, 1], 8, 0.2, num_classes=10)
    if name == "vit":
        return torchvision.models.VisionTransformer(32, 8, 4, 2, 16, 32, dropout=0.1, num_classes=10)
    options = {"aux_logits": False, "init_weights": False} if name in WITH_AUXILIARY_HEADS else {}
    return torchvision.models.get_model(name, num_classes=10, **options)


def image_size(name):
    return {"inception_v3": 299}.get(name, 224)


def restore(model, buffers):
    for name, value in model.named_buffers():
        value.copy_(buffers[name])


def test_auxiliary_heads_are_outputs_of_the_last_stage():
    model = torchvision.models.googlenet(init_weights=False, num_classes=10)
    parts, x = psl.split(model, "maxpool1", (3, 64, 64)), torch.randn(2, 3, 64, 64)
    for mode in (True, False):
        model.train(mode)
        parts.train(mode)
        torch.manual_seed(1)
        expected = model(x)
        torch.manual_seed(1)
        found = parts(x)
        assert type(found) is type(expected)
        for a, b in zip(found if mode else [found], expected if mode else [expected], strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if FULL or name not in SIMILAR])
def test_every_cut_is_bit_exact_in_eval_and_train_mode(name):
    torch.manual_seed(0)
    model = build(name)
    x = torch.randn(2, 3, FAMILIES[name], FAMILIES[name])
    start = copy.deepcopy(dict(model.named_buffers()))  # all that a forward pass can change
    traced = trace(model, (3, FAMILIES[name], FAMILIES[name]))
    expected, trained = {}, {}
    with torch.no_grad():
        for mode in (False, True):
            restore(model, start)
            torch.manual_seed(1)  # the same dropout masks
            expected[mode] = model.train(mode)(x)
            trained[mode] = copy.deepcopy(dict(model.named_buffers()))  # in train mode, BatchNorm's have moved
        places = traced.places()
        some = places if FULL else places[:: max(1, len(places) // 5)]
        for cuts in (places, *([place] for place in some)):  # all cuts at once, then client and server
            parts = nn.Sequential(*stages(traced, cuts))
            for mode in (False, True):
                restore(model, start)
                torch.manual_seed(1)
                found = parts.train(mode)(x)
                cut = f"{[place.name for place in cuts]}, train={mode}"
                assert torch.equal(found, expected[mode]), cut
                for key, value in model.named_buffers():
                    assert torch.equal(value, trained[mode][key]), f"{cut}: {key}"


def test_halves_share_parameters_and_keep_their_names():
    model = build("resnet18")
    parts = psl.split(model, "layer2.0", (3, 32, 32))
    mine = {id(p) for p in model.parameters()}
    client, server = dict(parts.client.named_parameters()), dict(parts.server.named_parameters())
    assert {id(p) for p in [*client.values(), *server.values()]} == mine
    assert client.keys().isdisjoint(server.keys())
    assert client.keys() | server.keys() == dict(model.named_parameters()).keys()
    assert "layer2.0.conv1.weight" in client
    assert "layer2.1.conv1.weight" in server


def test_gradients_through_a_split_are_those_of_the_whole_model():
    torch.manual_seed(0)
    model = build("mobilenet_v2").train()
    x = torch.randn(2, 3, 32, 32)
    torch.manual_seed(1)
    model(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    for cut in ("features.0.1", "features.2"):  # the first is followed by an operation in place
        model.zero_grad()
        parts = psl.split(model, cut, (3, 32, 32))
        torch.manual_seed(1)
        smashed = parts.client(x)
        received = smashed.detach().requires_grad_()  # what a server gets over the network
        parts.server(received).square().sum().backward()
        smashed.backward(received.grad)
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name])


def test_the_server_leaves_the_received_tensor_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    parts = psl.split(model, 1, (4,))
    received = torch.randn(8, 4)
    kept = received.clone()
    parts.server(received)
    assert torch.equal(received, kept)


def test_partition_is_exact_and_ordered():
    torch.manual_seed(0)
    model = build("resnet18").eval()
    x = torch.randn(2, 3, 32, 32)
    stages = psl.partition(model, ["relu", 6, "layer3.1", "flatten"], (3, 32, 32))
    y = x
    for stage in stages:
        y = stage(y)
    assert len(stages) == 5
    assert torch.equal(y, model(x))
    assert len(psl.partition(model, [])) == 1
    with pytest.raises(CutError, match="strictly increasing"):
        psl.partition(model, [5, 5])


def test_a_cut_inside_a_residual_block_is_refused_with_the_blocks_name():
    with pytest.raises(CutError, match=r"inside block 'layer1.0'.*'maxpool' \(4\)"):
        psl.split(build("resnet18"), "layer1.0.conv1", (3, 32, 32))
    with pytest.raises(CutError, match="inside block 'features.denseblock2'"):
        densenet = torchvision.models.DenseNet(8, (2, 3), 16)
        psl.split(densenet, "features.denseblock2.denselayer3.conv1", (3, 32, 32))


def test_a_cut_that_does_not_exist_is_refused():
    model = build("resnet18")
    with pytest.raises(CutError, match=r"expected a number 0\.\.23, got 24"):
        psl.split(model, 24, (3, 32, 32))
    with pytest.raises(CutError, match="did you mean.*'layer2.0'"):
        psl.split(model, "layer2.o")


def test_models_that_cannot_be_exported_are_refused_with_the_reason():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            y = self.first(x)
            return y if y.sum() > 0 else -y

    class TwoInputs(nn.Module):
        def forward(self, x, y):
            return x + y

    with pytest.raises(CutError, match="depends on values of tensors.*torch.where"):
        psl.cuts(nn.Sequential(nn.Linear(3, 3), Branch()), (3,))
    with pytest.raises(CutError, match="the inputs of TwoInputs.*missing a required argument: 'y'"):
        psl.cuts(TwoInputs(), (3,))
    with pytest.raises(CutError, match="example fits the model"):
        psl.cuts(build("resnet18"), (1, 3, 32, 32))


def test_functional_dropout_follows_train_and_eval():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(20, 20), nn.Linear(20, 5)

        def forward(self, x, scale=None):
            x = nn.functional.dropout(self.a(x), 0.5, training=self.training)
            return self.b(x) if scale is None else self.b(x) * scale

    torch.manual_seed(0)
    model, x = Functional(), torch.randn(6, 20)
    for mode in (True, False):
        parts = psl.split(model.train(mode), 2, (20,))
        torch.manual_seed(3)
        expected = model(x)
        torch.manual_seed(3)
        assert torch.equal(parts(x), expected)
    parts.client.train(True)
    assert not torch.equal(parts.client(x), parts.client(x)), "dropout is live again"


def test_a_shared_parameter_is_never_torn_apart():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(self.b(self.a(x)))

    # a runs first and last: the only cuts left are the input and the output.
    assert [c.index for c in psl.cuts(Tied(), (4,))] == [0, 1]


def test_tracing_leaves_the_model_as_it_was():
    model = build("vit")
    model.encoder.layers[0].eval()
    before = {name: (m.training, set(vars(m))) for name, m in model.named_modules()}
    psl.split(model, 3, (3, 32, 32))
    assert {name: (m.training, set(vars(m))) for name, m in model.named_modules()} == before


class Net(nn.Module):
    """Two linear layers, and a forward pass given as a function of (self, x)."""

    def __init__(self, forward, width=6):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)
        self.w = nn.Parameter(torch.randn(width, width))
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def test_constants_that_forward_makes_come_along():
    model = Net(lambda self, x: self.b(self.a(x) * torch.arange(6.0)) + torch.tensor(2.0)).eval()
    x = torch.randn(3, 6)
    for cut in psl.cuts(model, (6,)):
        assert torch.equal(psl.split(model, cut.index)(x), model(x))
    assert not any(name.startswith("_tensor_constant") for name in vars(model))
    assert psl.split(model, 1).server.state_dict().keys() <= dict(model.named_parameters()).keys()


def test_random_tensors_are_drawn_anew_and_the_random_state_is_left_alone():
    model = Net(lambda self, x: self.b(self.a(x) + torch.randn(6)))
    state = torch.get_rng_state()
    parts = psl.split(model, "a", (6,))
    assert torch.equal(torch.get_rng_state(), state)
    x = torch.randn(3, 6)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = model(x)
        torch.manual_seed(seed)
        assert torch.equal(parts(x), expected)


def test_a_weight_tied_through_an_operation_is_never_torn_apart():
    linear = nn.functional.linear
    model = Net(lambda self, x: linear(torch.relu(linear(self.a(x), self.w)), self.w.t()))
    names = [c.name for c in psl.cuts(model, (6,))]
    assert names[:2] == ["input", "a"]
    assert len(names) == 3, "no cut between the two uses of w"


def test_sizes_are_per_sample_wherever_the_batch_stands():
    model = Net(lambda self, x: self.b(self.a(x.permute(1, 0, 2)).permute(1, 0, 2)))
    assert {c.shape for c in psl.cuts(model, (10, 6))} == {(10, 6)}
    assert set(psl.profile(model, (10, 6)).act_bits) == {60 * 32}
    folded = Net(lambda self, x: self.b(self.a(x).reshape(-1, 6)).reshape(-1, 10, 6))
    assert {c.shape for c in psl.cuts(folded, (10, 6))} == {(10, 6)}


def test_a_batch_that_was_folded_crosses_in_rows_wherever_it_stands():
    model = Net(lambda self, x: self.b(self.a(x).reshape(-1, 6).reshape(-1, 10, 6).transpose(0, 1)).transpose(0, 1))
    x = torch.randn(10, 10, 6)  # as many samples as steps: the shape does not tell which is which
    for cut in psl.cuts(model, (10, 6))[4:]:
        client = psl.split(model, cut, (10, 6)).client
        torch.testing.assert_close(client(x[:3]), client(x)[:3])


@pytest.mark.parametrize("between", [nn.Flatten(), nn.Identity(), nn.Dropout(0.0)])
def test_the_server_leaves_the_received_tensor_alone_behind_a_view_too(between):
    model = nn.Sequential(nn.Linear(4, 4), between, nn.ReLU(inplace=True), nn.Linear(4, 2)).eval()
    parts = psl.split(model, 1, (4,))
    received = torch.randn(8, 4, requires_grad=True)
    kept = received.detach().clone()
    parts.server(received).sum().backward()
    assert torch.equal(received, kept)
    assert received.grad is not None


def test_names_of_inputs_may_resemble_each_other_and_attributes_are_restored():
    class Inputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.last = nn.Linear(4, 4), None

        def forward(self, x_1, x=None, flag=False):
            self.last = self.a(x_1)
            return self.last

    model = Inputs()  # what it leaves behind it never reads
    assert len(psl.cuts(model, (4,))) == 2
    assert model.last is None


@pytest.mark.parametrize("cut", [float("nan"), float("inf"), None, [1], 2.5, True, -1])
def test_strange_cuts_are_refused(cut):
    with pytest.raises(CutError, match=r"expected a number 0\.\."):
        psl.split(psl.models.cnn(), cut, (1, 8, 8))


def test_strange_arguments_are_refused():
    with pytest.raises(CutError, match="expected a torch.nn.Module, got str"):
        psl.split("resnet18", 1)
    with pytest.raises(CutError, match="expected a list of cuts, got 1"):
        psl.partition(psl.models.cnn(), 1)
    with pytest.raises(CutError, match="example"):
        psl.cuts(psl.models.cnn(), 8)


def test_reading_the_batch_size_early_costs_no_cut():
    def forward(self, x):
        n, m = x.size(0), x.shape[0]
        y = torch.relu(self.a(x))
        return self.b(y.view(n, -1).reshape(m, 6))

    model, x = Net(forward), torch.randn(5, 6)
    assert [c.name for c in psl.cuts(model, (6,))] == ["input", "a", "relu", "view", "reshape", "b"]
    for cut in range(6):
        assert torch.equal(psl.split(model, cut)(x), model(x)), cut


def test_sizes_may_be_read_inside_slices():
    model, x = Net(lambda self, x: self.b(self.a(x[:, : x.size(1)])[: x.size(0)])), torch.randn(5, 6)
    for cut in psl.cuts(model, (6,)):
        assert torch.equal(psl.split(model, cut.index)(x), model(x)), cut


def test_constants_are_no_state_but_buffers_of_the_model_are():
    model = Net(lambda self, x: self.b(self.a(x) * self.scale * torch.tensor([1.0] * 6) + self.shift))
    model.register_buffer("scale", torch.ones(6))
    model.register_buffer("shift", torch.zeros(6))
    server = psl.split(model, "a", (6,)).server
    assert [name for name, _ in server.named_buffers() if name in ("scale", "shift")] == ["scale", "shift"]
    assert server.scale is model.scale
    assert server.state_dict().keys() == {"b.weight", "b.bias", "scale", "shift", "w"}  # w is used by nothing
    assert len(list(server.buffers())) == 3


def test_a_split_model_is_a_module():
    model = psl.models.thin_resnet()
    parts = psl.split(model, "block1", (1, 8, 8)).eval()
    assert not parts.client.training
    assert model.bn.training, "the parts share the model's tensors and have modes of their own"
    assert {id(p) for p in parts.parameters()} == {id(p) for p in model.parameters()}


def test_nothing_keeps_a_model_alive():
    model = psl.models.cnn()
    references = weakref.ref(model), weakref.ref(next(model.parameters()))
    parts = psl.split(model, 5, (1, 8, 8))
    psl.verify(model, 5, torch.randn(2, 1, 8, 8))
    psl.profile(model, (1, 8, 8))
    parts.server(parts.client(torch.randn(2, 1, 8, 8))).sum().backward()
    del model, parts
    gc.collect()
    assert [reference() for reference in references] == [None, None]
