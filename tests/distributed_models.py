"""Models, data and functions that worker processes import by name, and how tests use them."""

import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psl.distributed import Job, run
from psl.distributed.wire.messages import Kind
from psl.distributed.wire.transport import Channel
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


def in_processes(framework, nursery, **options):
    """Run with real processes."""
    return run(framework, nursery=nursery, **{"progress": False, "timeout": 20.0} | OPTIONS | options)


def in_one_process(framework, **options):
    """Run the same with `psl.train`."""
    given = OPTIONS | options
    names = {"model", "dataset", "model_seed", "model_options", "optimizer", "timeout", "record", "loss", "save_every"}
    rest = {name: value for name, value in given.items() if name not in names}
    job = Job.of(framework, **{name: value for name, value in given.items() if name != "checkpoint"})
    loss = None if job.loss is None else globals()[job.loss.partition(":")[2]]
    optimizer = momentum if ":" in job.optimizer else job.optimizer
    dataset = small_data() if ":" in job.dataset else job.dataset
    return train(framework, job.build_model(), dataset, optimizer=optimizer, loss=loss, progress=False, **rest)


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


def lying_data(tensors=None, parts=None):
    """The data; the first process of the run that opens it lies in the step `LIE_AT`.

    It sends ``tensors(kind, tensor)`` in place of a tensor, or ``parts(bytes)`` in place of an activation's.
    """
    try:
        os.close(os.open(noted(os.getppid()), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return small_data()
    send, transmit, lying = Channel.send, Channel._transmit, []

    def lying_send(self, kind, step, tensor):
        lying[:] = [kind] if step == LIE_AT and kind == Kind.ACTIVATION else []
        send(self, kind, step, tensors(kind, tensor) if tensors is not None and step == LIE_AT else tensor)

    def lying_transmit(self, pieces):
        if lying and parts is not None:
            pieces = [pieces[0], *((parts(piece), tag) for piece, tag in pieces[1:])]
        transmit(self, pieces)

    Channel.send, Channel._transmit = lying_send, lying_transmit
    return small_data()


def data_with_a_wrong_header():
    """One client announces activations of fewer samples than it should."""
    return lying_data(tensors=lambda kind, tensor: tensor[1:] if kind == Kind.ACTIVATION else tensor)


def data_with_impossible_labels():
    """One client sends a label of no class."""
    return lying_data(tensors=lambda kind, tensor: tensor + 7 if kind == Kind.LABELS else tensor)


def data_sent_too_short():
    """One client sends half the bytes that it announces."""
    return lying_data(parts=lambda piece: piece[: len(piece) // 2])


def data_sent_too_long():
    """One client sends more bytes than it announces."""
    return lying_data(parts=lambda piece: torch.cat([piece, piece]))


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


def noted(parent):
    """File where the children of a process note that they opened the data."""
    return Path(tempfile.gettempdir()) / f"psl-opened-{parent}"
