"""Every classification model of torchvision: its cuts, and a split in the middle that is the model in both modes.

Takes eight minutes on a core, so it runs on request: FULL=1 pytest tests/test_models_zoo_torchvision.py. One model of
every family is tested at all its cuts in tests/test_models_cuts.py.
"""

import pytest
import torch
import torchvision

import psl
from test_models_zoo import loss_of, random_state, run_stages, seed, tensors_of

pytestmark = [pytest.mark.slow, pytest.mark.full]
NAMES = torchvision.models.list_models(module=torchvision.models)
# Small images that the models accept, and at which BatchNorm of two images does not blow gradients up to infinity.
SIZES = {
    "alexnet": 64,
    "convnext": 32,
    "densenet": 32,
    "inception": 299,
    "maxvit": 224,
    "resne": 64,
    "shuffle": 64,
    "squeezenet": 32,
    "wide": 64,
    "vgg": 32,
}
AUXILIARY = {"googlenet": 3, "inception_v3": 2}  # how many outputs they have in train mode
LARGE = 100_000_000  # weights; the gradients of larger models are left out, which would take gigabytes


def make(name):
    """Return a model with random weights and the size of its images."""
    size = next((n for family, n in SIZES.items() if name.startswith(family)), 16)
    options = {}
    if name.startswith("vit"):
        size = options["image_size"] = int(name.split("_")[2])  # one patch
    if name in AUXILIARY:
        options["init_weights"] = False  # takes long; what the layers themselves do is enough
    return torchvision.models.get_model(name, weights=None, **options), size


def test_there_are_eighty():
    assert len(NAMES) == 80


@pytest.mark.parametrize("name", NAMES)
def test_a_split_in_the_middle_is_the_model(name):
    model, size = make(name)
    cuts = psl.cuts(model, (3, size, size))
    assert len(cuts) > 8
    assert cuts[0].shape == (3, size, size)
    assert cuts[-1].shape == ((1000,) if name not in AUXILIARY else ((1000,),) * AUXILIARY[name])
    cut = cuts[len(cuts) // 2]
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with_gradients = sum(parameter.numel() for parameter in model.parameters()) < LARGE
    start = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for training in (True, False):
        model.train(training)
        results = []
        for k in range(2):
            for name, buffer in model.named_buffers():
                buffer.copy_(start[name])
            model.zero_grad()
            with torch.set_grad_enabled(with_gradients):
                if k == 0:
                    seed()
                    output, state = model(x), random_state()
                    if with_gradients:
                        loss_of(output).backward()
                else:
                    parts = psl.split(model, cut)
                    stages = [parts.client, parts.server]
                    output, state = run_stages(stages, x, backward=with_gradients)
            gradients = [parameter.grad for parameter in model.parameters()]
            buffers = [buffer.clone() for buffer in model.buffers()]
            results.append((type(output), [t.detach() for t in tensors_of(output)], buffers, gradients, state))
        (kind, right, right_buffers, right_gradients, right_state), (split_kind, found, buffers, gradients, state) = (
            results
        )
        assert kind is split_kind
        assert len(right) == len(found) > 0
        assert all(torch.equal(a, b) for a, b in zip(right, found, strict=True)), "outputs differ"
        assert all(torch.equal(a, b) for a, b in zip(right_buffers, buffers, strict=True)), "buffers differ"
        assert state == right_state, "the random state differs"
        assert [g is None for g in gradients] == [g is None for g in right_gradients]
        pairs = [(a, b) for a, b in zip(gradients, right_gradients, strict=True) if a is not None]
        largest = max((b.abs().max().item() for _, b in pairs), default=0.0)
        assert all(b.isfinite().all() for _, b in pairs), "the gradients of the model itself: take larger images"
        assert all((a - b).abs().max().item() <= 1e-6 * largest for a, b in pairs), "gradients differ"
