"""Sixty-two models as people bring them: their stages are the model, bit for bit, in train and in eval mode.

Every fourth one runs always, all of them with FULL=1 (four minutes on a core).
"""

import copy
import inspect
import random

import numpy as np
import pytest
import torch

import psl
from marks import some
from model_zoo import ZOO
from psl.models import exporting

pytestmark = pytest.mark.slow
EXACT: dict[tuple[str, bool], bool] = {}
LENGTH = 7


def call(model, inputs):
    """Return what a model or first stage returns; without the cache of keys and values that only generation reads."""
    extra = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
    if isinstance(inputs, dict):
        return model(**inputs, **extra)
    return model(*inputs, **extra) if isinstance(inputs, tuple) else model(inputs, **extra)


def tensors_of(value):
    """Return the tensors of an output: a tensor, a tuple, a dict or a ModelOutput."""
    if isinstance(value, torch.Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def random_state():
    """Return the state of the random generators of torch, Python and NumPy."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)


def seed():
    """Start the three generators afresh."""
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002


def loss_of(output):
    """Return a scalar with a different weight for every number of the output."""
    generator = torch.Generator().manual_seed(9)
    floating = [t for t in tensors_of(output) if t.is_floating_point()]
    return sum((t * torch.randn(t.shape, generator=generator)).sum() for t in floating)


def run_model(model, inputs):
    """Run one forward and backward pass; return the output and the random state behind it."""
    seed()
    output = call(model, inputs)
    state = random_state()
    loss_of(output).backward()
    return output, state


def run_stages(stages, inputs, backward=True):
    """The same through stages that see nothing of each other but detached tensors, and their gradients."""
    seed()
    carried, boundaries = inputs, []
    for k, stage in enumerate(stages):
        output = call(stage, carried) if k == 0 else stage(carried)
        if k == len(stages) - 1:
            break
        sent = output if isinstance(output, tuple) else (output,)
        assert all(isinstance(value, torch.Tensor | int) for value in sent)
        received, gradients = [], {}
        for j, value in enumerate(sent):
            leaf = value.detach() if isinstance(value, torch.Tensor) else value
            if isinstance(leaf, torch.Tensor) and value.requires_grad:
                leaf.requires_grad_()
                leaf.register_hook(lambda gradient, j=j, kept=gradients: kept.__setitem__(j, gradient))
            received.append(leaf)
        boundaries.append((sent, gradients))
        carried = tuple(received) if isinstance(output, tuple) else received[0]
    state = random_state()
    if backward:
        loss_of(output).backward()
    for sent, gradients in reversed(boundaries):
        if gradients:
            torch.autograd.backward([sent[j] for j in gradients], list(gradients.values()))
    return output, state


def differences(model, reference, results, expected):
    """Return the largest difference of gradients relative to the largest gradient; everything else must be equal."""
    (output, state), (right, right_state) = results, expected
    assert type(output) is type(right)
    found, wanted = tensors_of(output), tensors_of(right)
    assert len(found) == len(wanted) > 0
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), "outputs differ"
    assert state == right_state, "the random state differs"
    buffers = dict(model.named_buffers())
    for name, buffer in reference.named_buffers():
        assert torch.equal(buffers[name], buffer), f"buffer {name} differs"
    worst, largest = 0.0, 0.0
    parameters = dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        gradient, right_one = parameters[name].grad, parameter.grad
        assert (gradient is None) == (right_one is None), f"{name} has a gradient on one side only"
        if gradient is not None:
            worst = max(worst, (gradient - right_one).abs().max().item())
            largest = max(largest, right_one.abs().max().item())
    return worst / largest


def compare(model, training, cuts, example, inputs, tensors=1):
    """Compare the stages of a copy with another copy of the model; return the difference of the gradients."""
    split, whole = copy.deepcopy(model).train(training), copy.deepcopy(model).train(training)
    expected = run_model(whole, inputs)
    stages = psl.partition(split, cuts, example, tensors=tensors)
    assert len(stages) == len(cuts) + 1
    own = {id(parameter) for parameter in split.parameters()}
    assert all(id(parameter) in own for stage in stages for parameter in stage.parameters())
    return differences(split, whole, run_stages(stages, inputs), expected)


@pytest.mark.xdist_group("model zoo")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", some(ZOO, lambda name: list(ZOO).index(name) % 4 == 0))
def test_stages_are_the_model(name, training, monkeypatch):
    entry = ZOO[name]
    model, example = entry.make().train(training), entry.example(3, LENGTH)
    n = next(n for n in (1, 2, 3) if len(psl.cuts(model, example, tensors=n)) > 2)  # 2: decoders read more than one
    fewest = psl.cuts(model, example, tensors=n)
    inner = range(1, len(fewest) - 1)
    first, middle, last = inner[0], inner[len(inner) // 2], inner[-1]
    worst = [compare(model, training, sorted({first, middle, last}), example, example, n)]
    more = [cut for cut in psl.cuts(model, example, tensors=n + 1) if cut.n_tensors == n + 1]
    if more:
        worst.append(compare(model, training, [more[len(more) // 2]], example, example))

    # Other batch sizes and lengths, and the model of another seed: without a new export.
    def refuse(*args, **kwargs):
        raise AssertionError("exported again")

    monkeypatch.setattr(exporting.torch.export, "export", refuse)
    for batch, length in [(1, LENGTH), (5, LENGTH + 3)]:
        if not training or batch >= entry.min_batch:
            other = entry.example(batch, length if entry.lengths else LENGTH)
            worst.append(compare(model, training, [fewest[middle]], None, other))
    EXACT[name, training] = max(worst) == 0
    assert max(worst) <= 1e-6


@pytest.mark.xdist_group("model zoo")
def test_most_gradients_are_exact():
    assert len(ZOO) == 62
    if len(EXACT) < 2 * len(ZOO):
        pytest.skip("needs the results of all models")
    exact = [name for name in ZOO if EXACT[name, True] and EXACT[name, False]]
    assert len(exact) >= 50, sorted(set(ZOO) - set(exact))


def test_the_comparison_sees_what_is_lost():
    """Dropout that draws in another order, a buffer that is not updated, a gradient that is not handed on."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5))
    x = torch.randn(4, 3)
    whole = copy.deepcopy(model)
    right = run_model(whole, x)
    same = copy.deepcopy(model)
    assert differences(same, whole, run_stages([same[0], same[1:]], x), right) == 0
    frozen = copy.deepcopy(model)
    frozen[1].momentum = 0.0
    with pytest.raises(AssertionError, match="buffer 1.running_mean differs"):
        differences(frozen, whole, run_stages([frozen[0], frozen[1:]], x), right)
    no_dropout = copy.deepcopy(model)
    with pytest.raises(AssertionError, match="outputs differ"):
        differences(no_dropout, whole, run_stages([no_dropout[0], no_dropout[1]], x), right)

    class Cut(torch.nn.Module):
        def forward(self, x):
            return x.detach()

    lost = copy.deepcopy(model)
    with pytest.raises(AssertionError, match="one side only"):
        differences(lost, whole, run_stages([lost[0], Cut(), lost[1:]], x), right)
