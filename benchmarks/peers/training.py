"""A training step of split parts in one process: `psl.split` and torchslicer against the whole model.

VGG-11 at 32 × 32, a mini-batch of 32, SGD, two parts; every part steps with an optimizer of its own, and the gradient
crosses as a tensor. Models in the order whole, psl, torchslicer, step after step; medians of CPU seconds.
"""

import torch
import torchvision
from benchmarks.peers.common import Table, installed, timed

import psl

SHAPE, BATCH = (3, 32, 32), 32


def vgg():
    """Return VGG-11 for ten classes without dropout (draws of random numbers would differ between parts)."""
    torch.manual_seed(0)
    return torchvision.models.vgg11(num_classes=10, dropout=0.0)


def whole_step(model):
    """Return a function that takes one step."""
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.01), torch.nn.CrossEntropyLoss()

    def step(x, y):
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        optimizer.step()
        return float(value)

    return step


def psl_step(model):
    """Return a function that takes one step of two parts, cut in the middle of the list of cuts."""
    found = psl.cuts(model, SHAPE)
    parts = psl.split(model, found[len(found) // 2], SHAPE).train()
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in (parts.client, parts.server)]
    loss = torch.nn.CrossEntropyLoss()

    def step(x, y):
        for optimizer in optimizers:
            optimizer.zero_grad()
        sent = parts.client(x)
        arrived = sent.detach().requires_grad_()
        value = loss(parts.server(arrived), y)
        value.backward()
        sent.backward(arrived.grad)
        for optimizer in optimizers:
            optimizer.step()
        return float(value)

    return step


def torchslicer_step(model):
    """Return a function that takes one step of torchslicer's local executor."""
    import torchslicer

    sliced = torchslicer.slice(model, n=2)
    sgd, entropy = {"name": "SGD", "params": {"lr": 0.01}}, {"name": "CrossEntropyLoss", "params": {}}
    sliced.executor.setup(sliced.graph, sliced.partitions, sgd, entropy)
    return lambda x, y: sliced.executor.train_epoch([(x, y)])


def main(effort: float) -> None:
    """Run; effort 1 takes about half a minute on an idle core."""
    torch.set_num_threads(1)
    table, methods = Table("training"), {"whole model": whole_step, "psl": psl_step}
    if installed("torchslicer"):
        methods["torchslicer"] = torchslicer_step
    models = {name: vgg().train() for name in methods}
    steps = {name: make(models[name]) for name, make in methods.items()}
    generator = torch.Generator().manual_seed(1)
    for number in range(-2, max(int(15 * effort), 3)):  # two to warm up
        x, y = torch.randn(BATCH, *SHAPE, generator=generator), torch.randint(10, (BATCH,), generator=generator)
        for name, step in steps.items():
            _, took = timed(lambda s=step, x=x, y=y: s(x, y))
            if number >= 0:
                table.add("VGG-11, b = 32", number, name, seconds=took)
    weights = {name: torch.cat([p.detach().flatten() for p in model.parameters()]) for name, model in models.items()}
    for name, mine in weights.items():
        off = float((mine - weights["whole model"]).abs().max())
        table.add("weights after all steps, largest difference from the whole model's", "all", name, value=off)
    table.write()
