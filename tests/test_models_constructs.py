"""What models do in forward beyond plain tensor operations: the stages keep it, or the model is refused by name."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import psl
from psl.errors import CutError


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x) * 1.0

    @staticmethod
    def backward(ctx, g):
        return -ctx.factor * g, None


class TwoOut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2, x.sin()

    @staticmethod
    def backward(ctx, g, h):
        (x,) = ctx.saved_tensors
        return g * 3 + h * x.cos()


class Net(nn.Module):
    """Linear layers, a BatchNorm, buffers, and a forward pass given as a function of (self, x)."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c, self.h = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.bn = nn.BatchNorm1d(8)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("mean", torch.ones(8))
        self.constant = torch.arange(8.0)
        self.t, self.log, self.state, self.cache = 0, [], None, {}
        self.body = body

    def forward(self, x):
        return self.body(self, x)


def no_grad_block(m, x):
    y = m.a(x)
    with torch.no_grad():
        y = torch.relu(m.b(y))
    return m.h(m.c(y))


def inference(m, x):
    with torch.inference_mode():
        scale = x.abs().mean()
    return m.h(torch.relu(m.a(x)) + 0 * m.b(m.a(x)) + scale.clone())


def grad_flags(m, x):
    y = m.a(x)
    with torch.set_grad_enabled(False):
        z = m.b(y)
        with torch.enable_grad():
            w = m.c(y)
    return m.h(y + z + w)


def autocast(m, x):
    y = m.a(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.c(torch.relu(m.b(y)))
    return m.h(y.float())


def buffer_in_place(m, x):
    y = m.a(x)
    if m.training:
        m.steps += 1
    return m.h(m.b(y) - m.mean.mul_(0.9))


def buffer_anew(m, x):
    y = m.a(x)
    m.mean = m.mean * 0.5 + 1
    return m.h(m.b(y) * m.mean)


def frozen_norm(m, x):
    m.bn.eval()
    return m.h(torch.relu(m.bn(m.a(x))))


def drop_path(m, x):
    y = m.a(x)
    keep = torch.rand(y.shape[0], 1) > 0.3 if m.training else torch.ones(y.shape[0], 1, dtype=torch.bool)
    return m.h(y + m.b(y) * keep)


def overwrites(m, x):
    y = m.a(x)
    y[:, 0] = 0
    z = y.view(-1, 2, 4)
    z[:, 1].mul_(2)
    y = F.relu_(y)
    return m.h(m.b(y))


def sizes(m, x):
    n, k = x.shape
    y = m.a(x.t().contiguous().t()).reshape(n * 2, 4)
    return m.h(m.b(y.reshape(n, -1)) / k + torch.arange(n)[:, None] / n)


def keeps_a_cache(m, x):
    if m.state is None:
        m.state = torch.arange(8.0) / 8
    return m.h(m.b(m.a(x)) * m.state)


def leaves_something(m, x):
    y = m.a(x)
    m.state = y.detach()
    return m.h(m.b(y))


def shared_module(m, x):
    return m.h(m.b(torch.relu(m.b(torch.relu(m.a(x))))))


KEPT = {
    "straight-through": lambda m, x: m.h(Straight.apply(4 * m.b(m.a(x))) / 4),
    "gradient reversal": lambda m, x: m.h(Reversed.apply(m.b(m.a(x)), 0.5)),
    "function of two outputs": lambda m, x: m.h(sum(TwoOut.apply(m.b(m.a(x))))),
    "no_grad": no_grad_block,
    "detach": lambda m, x: m.h(m.c(m.b(m.a(x)).detach())),
    "inference_mode": inference,
    "set_grad_enabled": grad_flags,
    "autocast": autocast,
    "buffer in place": buffer_in_place,
    "buffer assigned anew": buffer_anew,
    "BatchNorm": lambda m, x: m.h(torch.relu(m.bn(m.a(x)))),
    "eval() inside forward": frozen_norm,
    "functional dropout": lambda m, x: m.h(F.dropout(m.b(m.a(x)), 0.5, m.training)),
    "dropout always on": lambda m, x: m.h(F.dropout(m.b(m.a(x)), 0.5, True)),
    "drop path": drop_path,
    "noise": lambda m, x: m.h(m.b(m.a(x)) + torch.randn_like(m.a(x)) + torch.randn(8)),
    "permutation": lambda m, x: m.h(m.b(m.a(x))[:, torch.randperm(8)]),
    "in place": overwrites,
    "raw input in place": lambda m, x: m.h(m.b(m.a(x.sub_(1).div_(2)))),
    "sizes as values": sizes,
    "constant attribute": lambda m, x: m.h(m.b(m.a(x)) * m.constant),
    "cache filled once": keeps_a_cache,
    "left behind, never read": leaves_something,
    "module used twice": shared_module,
    "non-reentrant checkpoint": lambda m, x: m.h(checkpoint(m.b, m.a(x), use_reentrant=False)),
    "transposed": lambda m, x: m.h(m.b(m.a(x).t().t()).view(x.size(0), -1)),
    "einsum": lambda m, x: m.h(torch.einsum("bi,ij->bj", m.a(x), m.b.weight)),
}


def outcome(module, x, stages=None):
    """Run two steps; return outputs, gradients, buffers and random states."""
    torch.manual_seed(3)
    outputs = []
    for _ in range(2):
        given = x.clone()
        if stages is None:
            y = module(given)
            outputs.append(y.detach().clone())
            if y.requires_grad:
                y.square().sum().backward()
            continue
        passes, value = [], given
        for k, stage in enumerate(stages):
            parts = value if isinstance(value, tuple) else (value,)
            arrived = {}
            leaves = []
            for n, part in enumerate(parts):
                leaf = part.detach() if isinstance(part, torch.Tensor) else part
                if k and isinstance(part, torch.Tensor) and part.requires_grad:
                    leaf.requires_grad_()
                    leaf.register_hook(lambda g, n=n, arrived=arrived: arrived.__setitem__(n, g))
                leaves.append(leaf)
            made = stage(leaves[0] if len(leaves) == 1 else tuple(leaves))
            passes.append((parts, arrived))
            value = made
        outputs.append(value.detach().clone())
        if value.requires_grad:
            value.square().sum().backward()
        for parts, arrived in reversed(passes[1:]):
            for n, gradient in arrived.items():
                parts[n].backward(gradient, retain_graph=True)
    gradients = {name: p.grad for name, p in module.named_parameters()}
    return outputs, gradients, dict(module.named_buffers()), torch.get_rng_state()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", KEPT)
def test_stages_do_what_the_model_does(name, training):
    torch.manual_seed(0)
    model = Net(KEPT[name]).train(training)
    x = torch.randn(5, 6)
    whole = copy.deepcopy(model)
    outputs, gradients, buffers, state = outcome(whole, x)
    for cut in psl.cuts(model, (6,))[1:]:
        twin = copy.deepcopy(model)
        parts = psl.split(twin, cut)
        found = outcome(twin, x, [parts.client.train(training), parts.server.train(training)])
        assert all(torch.equal(a, b) for a, b in zip(outputs, found[0], strict=True)), cut
        for key, gradient in gradients.items():
            other = found[1][key]
            same = gradient is other or torch.equal(
                torch.zeros(()) if gradient is None else gradient, torch.zeros(()) if other is None else other
            )
            zero = gradient is None and other is not None and not other.any()
            assert same or zero, (cut, key)
        for key, buffer in buffers.items():
            assert torch.equal(buffer, found[2][key]), (cut, key)
        assert torch.equal(state, found[3]), cut
    psl.verify(model, psl.cuts(model, (6,))[1], x)


def counts(m, x):
    m.t += 1
    return m.h(m.b(m.a(x)) * min(1.0, m.t / 10))


def logs(m, x):
    m.log.append(1)
    return m.h(m.a(x) * len(m.log))


def remembers(m, x):
    y = m.a(x)
    m.state = y.mean(0).detach() if m.state is None else 0.9 * m.state + y.mean(0).detach()
    return m.h(y + m.state)


def tensor_hook(m, x):
    y = m.a(x)
    y.register_hook(lambda g: 2 * g)
    return m.h(y)


REFUSED = {
    "counter": (counts, "changes t, which is Python state"),
    "list": (logs, "changes log, which is Python state"),
    "state from step to step": (remembers, "changes state, which is Python state"),
    "random": (lambda m, x: m.h(m.a(x)) if random.random() < 0.5 else m.h(m.b(m.a(x))), "draws from random"),
    "numpy": (lambda m, x: m.h(m.a(x) * float(np.random.rand())), "draws from numpy.random"),  # noqa: NPY002
    "tensor hook": (tensor_hook, "a gradient hook that forward puts on a tensor"),
    "reentrant checkpoint": (lambda m, x: m.h(checkpoint(m.b, m.a(x), use_reentrant=True)), "use_reentrant=False"),
    "if on values": (lambda m, x: m.h(m.a(x)) if x.sum() > 0 else m.h(m.b(m.a(x))), "depends on values"),
    "item": (lambda m, x: m.h(m.a(x)) * x.max().item() if x.max().item() > 0 else m.h(m.a(x)), "depends on values"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_graph_cannot_keep_is_refused_by_name(name):
    body, message = REFUSED[name]
    for seed in range(3):
        random.seed(seed)
        state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
        with pytest.raises(CutError, match=message):
            psl.cuts(Net(body), (6,))
        assert random.getstate() == state[0]
        assert (np.random.get_state()[1] == state[1]).all()  # noqa: NPY002


def hooked(model):
    model.a.register_full_backward_hook(lambda *args: None)
    return model


def parameter_hooked(model):
    model.a.weight.register_hook(lambda g: 2 * g)
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (hooked, "a backward hook on 'a'"),
        (parameter_hooked, "a gradient hook on parameter 'a.weight'"),
        (nn.DataParallel, r"pass what it wraps, model\.module"),
        (torch.compile, "pass the model as it was before torch.compile"),
        (lambda m: nn.Sequential(nn.LazyLinear(3)), "lazy module"),
    ],
)
def test_wrappers_and_hooks_are_told_what_to_pass(make, message):
    model = make(Net(lambda m, x: m.h(m.b(m.a(x)))))
    with pytest.raises(CutError, match=message):
        psl.cuts(model, (6,))


def test_a_stale_memory_is_caught():
    factor = 2.0
    model = Net(lambda m, x: m.h(m.b(m.a(x)) * factor))
    x = torch.randn(4, 6)
    psl.verify(model, "a", x)
    factor = 3.0  # not seen by the key of the structure
    psl.verify(model, "a", x)
    assert torch.equal(psl.split(model, "a")(x), model(x))


def test_asking_changes_nothing():
    torch.manual_seed(0)
    model = Net(buffer_in_place)
    model.bn.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    attributes = [sorted(vars(m)) for m in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    psl.cuts(model, (6,))
    psl.split(model, 1)
    psl.partition(model, [1])
    psl.verify(model, 1, torch.randn(4, 6, generator=torch.Generator()))
    psl.profile(model, (6,))
    psl.measure(copy.deepcopy(model), (6,), batch_size=4, repeats=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [sorted(vars(m)) for m in model.modules()] == attributes
    assert all(p.grad is None for p in model.parameters())
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_counts_of_products_that_are_rare():
    class Rare(nn.Module):
        def __init__(self):
            super().__init__()
            self.i, self.b, self.w = nn.Linear(64, 64), nn.Bilinear(64, 64, 32), nn.Parameter(torch.randn(32))

        def forward(self, x):
            x = torch.relu(self.i(x))
            return self.b(x, x) @ self.w

    found = psl.profile(Rare(), (64,))
    cost = dict(zip(found.names[1:], np.diff(found.fwd_cost), strict=True))
    assert cost["b"] >= 2 * 64 * 64 * 32
    assert found.last_bwd_cost == 128
    assert found.fwd_cost[-1] - cost["b"] - 2 * 64 * 64 == 64


def test_no_backward_pass_before_what_trains():
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.mid, self.head = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            with torch.no_grad():
                x = torch.relu(self.mid(torch.relu(self.body(x))))
            return self.head(x)

    found = psl.profile(Probe(), (4,))
    np.testing.assert_array_equal(found.bwd_cost, [0] * found.n_units + [48])
    np.testing.assert_array_equal(found.grad_bits[:-1], 0)
