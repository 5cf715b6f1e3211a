"""Models, data and functions that worker processes import by name, and how tests use them."""

import functools
import multiprocessing
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psl.distributed import Job, run
from psl.distributed.wire import links
from psl.distributed.wire.messages import Kind
from psl.distributed.workers import start_fork_server
from psl.models import thin_resnet
from psl.training import train
from psl.training.scores import cross_entropy

UNEVEN = (np.arange(10), np.arange(10, 60), np.arange(60, 100))
OPTIONS = {
    "model": "distributed_models:small_model", "dataset": "distributed_models:small_data", "n_clients": 3,
    "rounds": 3, "batch_size": 8, "optimizer": "distributed_models:momentum", "partition": UNEVEN, "model_seed": 2,
    "seed": 5, "cut": 3,
}  # fmt: skip


def small_data():
    """Random images of four classes: 100 to train, 30 to test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(130, 1, 8, 8, generator=generator)
    labels = torch.randint(0, 4, (130,), generator=generator)
    return TensorDataset(images[:100], labels[:100]), TensorDataset(images[100:], labels[100:])


def one_hot_data():
    """The data with one-hot labels."""
    return tuple(TensorDataset(part.tensors[0], torch.eye(4)[part.tensors[1]]) for part in small_data())


def data_of_five_classes():
    """The data with labels 1..4, of which the last has no output."""
    return tuple(TensorDataset(part.tensors[0], part.tensors[1] + 1) for part in small_data())


def label_share(outputs, labels):
    """A metric of one's own: twice the accuracy of a row."""
    return 2.0 * (outputs.argmax(1) == labels)


def small_model(dropout=0.0):
    """BatchNorm on both sides of most cuts, and dropout on both sides if wanted."""
    model = thin_resnet(n_classes=4, width=4)
    if dropout:
        model = nn.Sequential(*model[:3], nn.Dropout(dropout), *model[3:], nn.Dropout(dropout))
    return model


def wide_model():
    """Large activations at cut 1 for little computing: 192 × 64 numbers per sample."""
    return nn.Sequential(nn.Conv2d(1, 192, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 4))


def momentum(parameters, lr=0.05):
    """SGD with momentum, whose state must survive rounds and checkpoints."""
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def pixel_loss(outputs, labels):
    """A loss of one's own."""
    return 2 * cross_entropy(outputs, labels)


def in_processes(framework, **options):
    """Run with real processes."""
    return run(framework, **{"progress": False, "timeout": 20.0} | OPTIONS | options)


def in_one_process(framework, **options):
    """Run the same with `psl.train`."""
    given = OPTIONS | options
    names = {"model", "dataset", "model_seed", "model_options", "optimizer", "timeout", "record", "loss", "save_every"}
    rest = {name: value for name, value in given.items() if name not in names}
    job = Job.of(framework, **{name: value for name, value in given.items() if name != "checkpoint"})
    given = {name: getattr(job, name) or "" for name in ("loss", "metric", "optimizer", "dataset")}
    named = {name: globals()[value.partition(":")[2]] for name, value in given.items() if ":" in value}
    rest |= {"dataset": job.dataset, "optimizer": job.optimizer} | named
    rest["dataset"] = rest["dataset"]() if callable(rest["dataset"]) else rest["dataset"]
    return train(framework, job.build_model(), progress=False, **rest)


def assert_same_run(found, want, tolerance=1e-5):
    """Two histories agree to float summation: curves, bits, models with their buffers.

    Except that each client of sl counts BatchNorm's batches for itself: whole numbers stay where they are.
    """
    np.testing.assert_allclose(found.train_loss, want.train_loss, rtol=tolerance)
    np.testing.assert_allclose(found.test_accuracy, want.test_accuracy, atol=0.034)  # one test sample
    for name in ("uplink_bits", "downlink_bits"):
        assert np.array_equal(getattr(found, name), getattr(want, name)), name
    assert found.settings | {"partition": 0} == want.settings | {"partition": 0}
    assert len(found.models) == len(want.models)
    for model, other in zip(found.models, want.models, strict=True):
        for (name, x), y in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            if found.framework == "sl" and not x.is_floating_point():
                continue
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance, msg=lambda t, name=name: f"{name}: {t}")


def noted_data():
    """The data, noting which process opened it."""
    with open(noted(os.getppid()), "a") as file:
        file.write(f"{os.getpid()}\n")
    return small_data()


LIE_AT = 4


def first_of_the_run():
    """Whether this process is the first worker that asks, since the file `noted` was deleted."""
    if multiprocessing.parent_process() is None:  # it launches the run
        return False
    try:
        os.close(os.open(noted(os.getppid()), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def lying(tensors=None, data=None, word=None):
    """The data; the first process of the run that opens it lies in the step `LIE_AT`.

    It sends ``tensors(kind, content)`` in place of a content, ``data(bytes)`` in place of an activation's message, or
    puts ``word(kind, word)`` in place of what stands beside.
    """
    if first_of_the_run():
        true = links.encode

        def lie(kind, step, content=None, said=None, **more):
            if step == LIE_AT and tensors is not None:
                content = tensors(kind, content)
            if step == LIE_AT and word is not None:
                said = word(kind, said)
            found = true(kind, step, content, said, **more)
            return data(found) if step == LIE_AT and data is not None and kind == Kind.ACTIVATION else found

        links.encode = lie
    return small_data()


def activation(change):
    """Return what changes activations alone."""
    return lambda kind, content: change(content) if kind == Kind.ACTIVATION else content


def data_with_fewer_rows():
    """One client sends activations of fewer samples than it should."""
    return lying(tensors=activation(lambda x: x[1:]))


def data_of_another_type():
    """One client sends activations of another number type."""
    return lying(tensors=activation(lambda x: x.double()))


def data_as_a_tuple():
    """One client sends two tensors in place of one."""
    return lying(tensors=activation(lambda x: (x, x)))


def data_with_nothing():
    """One client sends no activations."""
    return lying(tensors=activation(lambda x: None))


def data_with_impossible_labels():
    """One client sends a label of no class."""
    return lying(tensors=lambda kind, x: x + 7 if kind == Kind.LABELS else x)


def data_with_negative_labels():
    """One client sends labels below 0."""
    return lying(tensors=lambda kind, x: x - 9 if kind == Kind.LABELS else x)


def data_cut_short():
    """One client sends half a message."""
    return lying(data=lambda found: found[: len(found) // 2])


def data_without_a_header():
    """One client sends a message without its first bytes."""
    return lying(data=lambda found: found[8:])


def data_of_garbage():
    """One client sends random bytes."""
    return lying(data=lambda found: os.urandom(len(found)))


def data_of_an_impossible_length():
    """One client announces a header of 2⁶⁰ bytes."""
    return lying(data=lambda found: (1 << 60).to_bytes(8, "little") + found[8:])


def data_of_another_kind():
    """One client sends labels twice in place of activations."""
    return lying(data=lambda found: found.replace(b'\\"kind\\": 5', b'\\"kind\\": 6'))


def data_pickled():
    """One client sends a pickle that would write a file."""
    return lying(data=lambda found: pickle.dumps(Evil()))


def data_too_long():
    """One client sends a message that is longer than any may be."""
    return lying(data=lambda found: found + bytes((1 << 28) + (1 << 24)))


def data_that_answers_nothing_of_use():
    """One client does not say which gradients it needs."""
    return lying(word=lambda kind, said: {} if kind == Kind.REPORT else said)


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, (str(noted("evil")), "w"))


def data_that_raises():
    """One client's samples cannot be read from the step `LIE_AT` on."""
    train, test = small_data()
    return Broken(train, 78 if first_of_the_run() else 10**9), test  # 34 reads come before round 1


class Broken(torch.utils.data.Dataset):
    """Samples of which the first few can be read."""

    def __init__(self, found, left):
        self.tensors, self.left = found.tensors, left

    def __len__(self):
        return len(self.tensors[0])

    def __getitem__(self, index):
        self.left -= 1
        if self.left < 0:
            raise OSError(f"sample {index} cannot be read:\nthe card is gone")
        return self.tensors[0][index], self.tensors[1][index]


def data_with_nan():
    """One client sends activations that are no numbers."""
    return lying(tensors=activation(lambda x: x * float("nan")))


def other_data_for_whoever_comes_back():
    """The data of three clients; with a sample fewer for a fourth process of the run that opens it."""
    with open(noted(os.getppid()), "a") as file:
        file.write("x")
        file.flush()
        first = file.tell() <= 3
    train, test = small_data()
    return train, test if first else TensorDataset(*test[1:])


def data_that_may_change():
    """The data; other labels once the file `noted` is there."""
    train, test = small_data()
    if noted(os.getppid()).exists():
        train.tensors[1].copy_(3 - train.tensors[1])
    return train, test


class Pairs(nn.Module):
    """Takes two inputs by name, of which the second, a mask, crosses every cut beside the activations."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, pixels, mask):
        x = torch.relu(self.first(pixels)) * mask
        x = torch.relu(self.second(x)) * mask
        return self.last(x)


def pairs():
    """A model with dict inputs and a mask."""
    return Pairs()


class Skip(nn.Module):
    """Has a connection around a layer: two tensors cross the cuts beside it."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        a = self.a(x.flatten(1))
        return self.d(self.c(self.b(a).relu()) + a)


def skip():
    """A model in which two tensors cross some cuts."""
    return Skip()


class Dicts(torch.utils.data.Dataset):
    """Samples that are dicts."""

    def __init__(self, images, labels):
        self.images, self.labels = images.flatten(1), labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        mask = (torch.arange(16) % (2 + index % 3) > 0).float()
        return {"pixels": self.images[index], "mask": mask, "label": int(self.labels[index])}


def dict_data():
    """The data as dicts with a mask."""
    return tuple(Dicts(*part.tensors) for part in small_data())


def wide_chain():
    """Large activations at cut 1 for little computing: 64 × 64 numbers per sample."""
    return nn.Sequential(nn.Conv2d(1, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def noted(key):
    """File where the children of a process note that they opened the data."""
    return Path(tempfile.gettempdir()) / f"psl-opened-{os.getuid()}-{key}"


@functools.cache
def usual_jobs():
    """Jobs with the models of most tests, as plain values."""
    usual = OPTIONS | {"partition": "iid"}
    others = {"model_options": {"dropout": 0.3}}, {"model": "psl.models:cnn", "dataset": "digits", "cut": "pool1"}
    return [Job.of("psl", **usual | options).to_dict() for options in ({}, *others)]


def fork_server():
    """Number of the process that this one's workers are forked from, their parent; it knows the usual models."""
    start_fork_server(*usual_jobs())
    for path in Path("/proc/self/task").glob("*/children"):
        for child in path.read_text().split():
            if b"forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                return int(child)
    raise AssertionError("expected a fork server among the children")


def targets_of_64_bits():
    """Two numbers per sample as NumPy gives them, for a model of 32 bits."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 6, generator=generator), torch.randn(60, 2, generator=generator).double()
    return TensorDataset(inputs[:40], targets[:40]), TensorDataset(inputs[40:], targets[40:])


def two_layers():
    """A regression model for six numbers."""
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))


def squared_error(outputs, labels):
    """A loss of the type of the labels."""
    return ((outputs - labels) ** 2).mean(1)


def many_tests():
    """Few images to train, and so many to test that their activations do not fit into one message."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(540, 1, 8, 8, generator=generator), torch.randint(0, 4, (540,), generator=generator)
    return TensorDataset(images[:40], labels[:40]), TensorDataset(images[40:], labels[40:])


def large_activations():
    """Activations of 0.8 MB per image behind the second layer."""
    layers = [nn.Upsample(scale_factor=4), nn.Conv2d(1, 192, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(192, 4))


class Tied(nn.Module):
    """Two layers of the server share their weights."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 2)
        self.there, self.back = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.back.weight = self.there.weight

    def forward(self, x):
        return self.last(torch.relu(self.back(torch.relu(self.there(torch.relu(self.first(x)))))))
