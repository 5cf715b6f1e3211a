"""Resuming continues bit for bit; foreign, broken and overlong checkpoints are refused."""

import errno
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from psl.errors import CheckpointError
from psl.models import thin_resnet
from psl.training import train
from psl.training.checkpoint import deferred_interrupt
from psl.training.config import cross_entropy

OPTIONS = {"n_clients": 3, "batch_size": 8, "cut": 4, "lr": None, "progress": False}


def momentum_sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def build_model(width=4):
    """BatchNorm and dropout on both sides of the cut."""
    torch.manual_seed(2)
    model = thin_resnet(n_classes=4, width=width)
    return nn.Sequential(*model[:3], nn.Dropout(0.2), *model[3:], nn.Dropout(0.2))


def run(data, framework="epsl", model=None, **options):
    return train(framework, model or build_model(), data, **OPTIONS | {"optimizer": momentum_sgd} | options)


def assert_same(a, b):
    assert a == b
    for model, other in zip(a.models, b.models, strict=True):
        for (name, x), y in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(x, y), name


@pytest.mark.parametrize(
    ("framework", "options"),
    [
        ("centralised", {}), ("fedavg", {"local_steps": 2}), ("sl", {}), ("sfl", {"local_steps": 2}), ("psl", {}),
        ("epsl", {"phi": 0.5}), ("epsl", {"phi": 1.0, "linearise": "mean"}), ("psl", {"optimizer": "adam"}),
        ("edgesplit", {"local_steps": 2, "cut": [2, 6, 14]}), ("pipeline", {"cut": [3, 6], "micro_batch": 7}),
    ],
)  # fmt: skip
def test_resumed_equals_uninterrupted_bit_for_bit(framework, options, data, tmp_path):
    file = tmp_path / "run.pt"
    whole = run(data, framework, rounds=6, **options)
    run(data, framework, rounds=2, checkpoint=file, **options)
    torch.rand(3)
    run(data, framework, rounds=5, checkpoint=file, **options)
    assert_same(run(data, framework, rounds=6, checkpoint=file, **options), whole)
    assert_same(run(data, framework, rounds=6, checkpoint=file, **options), whole)  # nothing left to do
    assert list(tmp_path.iterdir()) == [file]


class PressOnce:
    """The cross entropy, which presses Ctrl-C at its n-th call."""

    __name__ = "press_once"

    def __init__(self, at):
        self.at = at

    def __call__(self, outputs, labels):
        self.at -= 1
        if self.at == 0:
            signal.raise_signal(signal.SIGINT)
        return cross_entropy(outputs, labels)


def test_interrupt_ends_the_round_and_saves(data, tmp_path):
    file = tmp_path / "run.pt"
    whole = run(data, rounds=5, eval_every=2, loss=PressOnce(0))
    with pytest.raises(KeyboardInterrupt, match="after round 3"):
        run(data, rounds=5, eval_every=2, checkpoint=file, loss=PressOnce(5))  # two calls are made before round 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same(run(data, rounds=5, eval_every=2, checkpoint=file, loss=PressOnce(0)), whole)


def test_interrupt_without_checkpoint_is_immediate(data):
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(data, rounds=5, loss=PressOnce(3))
    assert str(stopped.value) == ""


def test_second_interrupt_is_immediate():
    with pytest.raises(KeyboardInterrupt), deferred_interrupt() as pressed:
        signal.raise_signal(signal.SIGINT)
        assert pressed()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_training_works_outside_the_main_thread(data, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(run(data, rounds=2, checkpoint=tmp_path / "run.pt")))
    thread.start()
    thread.join()
    assert_same(found[0], run(data, rounds=2))


def test_a_round_without_evaluation_is_evaluated_when_it_turns_out_to_be_the_last(data, tmp_path):
    file = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        run(data, rounds=5, eval_every=4, checkpoint=file, loss=PressOnce(3))
    history = run(data, rounds=3, eval_every=4, checkpoint=file, loss=PressOnce(0))
    assert np.isfinite(history.final_accuracy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": build_model(width=8)}, r"model: expected 0\.weight \(8, 1, 3, 3\).*got 0\.weight \(4, 1, 3, 3\)"),
        ({"framework": "psl"}, r"framework: expected 'psl', got 'epsl' in the checkpoint"),
        ({"cut": 6}, r"cut: expected 6, got 4"),
        ({"phi": 0.75}, r"phi: expected 0.75, got 0.5"),
        ({"linearise": "mean"}, r"linearise: expected 'mean', got 'representative'"),
        ({"n_clients": 2}, r"n_clients: expected 2, got 3"),
        ({"batch_size": 4}, r"batch_size: expected 4, got 8"),
        ({"seed": 1}, r"seed: expected 1, got 0"),
        ({"optimizer": "adam"}, r"optimizer: expected 'Adam\(lr=0.001"),
        ({"optimizer": "sgd", "lr": 0.05}, r"momentum=0,.*momentum=0.9"),
        ({"partition": [range(40), range(40, 80), range(80, 100)]}, r"partition: expected 'explicit', got 'iid'"),
        ({"rounds": 1}, r"expected at most rounds = 1, got 2 rounds in the checkpoint"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(options, message, data, tmp_path):
    file = tmp_path / "run.pt"
    run(data, rounds=2, checkpoint=file)
    before = file.read_bytes()
    with pytest.raises(CheckpointError, match=message):
        run(data, **{"rounds": 3, "checkpoint": file} | options)
    assert file.read_bytes() == before


def test_a_checkpoint_of_other_data_is_refused(data, tmp_path):
    file = tmp_path / "run.pt"
    train_set, test_set = data
    shares = [np.arange(0, 40), np.arange(41, 60), np.arange(60, 90)]
    run(data, rounds=1, checkpoint=file, partition=shares)
    with pytest.raises(CheckpointError, match="hash of the clients' samples"):
        run(data, rounds=2, checkpoint=file, partition=[shares[0] + 1, *shares[1:]])
    fewer = TensorDataset(*train_set[:90]), test_set
    with pytest.raises(CheckpointError, match=r"data: expected '90 training .* got '100 training"):
        run(fewer, rounds=2, checkpoint=file, partition=shares)
    relabelled = TensorDataset(train_set.tensors[0], train_set.tensors[1].flip(0)), test_set
    shifted = train_set, TensorDataset(test_set.tensors[0] + 1, test_set.tensors[1])
    for other in (relabelled, shifted):
        with pytest.raises(CheckpointError, match=r"hash of the data: expected '\w{16} training, \w{16} test', got"):
            run(other, rounds=2, checkpoint=file, partition=shares)


def two_groups(parameters, lr):
    """Every second parameter with its own learning rate, which the optimizer's defaults do not show."""
    return torch.optim.SGD([{"params": parameters[::2]}, {"params": parameters[1::2], "lr": lr}], lr=0.05)


def model_with(activation):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 4))


def frozen_model():
    model = model_with(nn.ReLU())
    model[3].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": model_with(nn.Tanh())},
            r"layers of the model: expected   \(2\): Tanh\(\), got   \(2\): ReLU\(\) in",
        ),
        ({"model": frozen_model()}, r"model: expected 3\.weight \(4, 8\) torch\.float32 frozen, got 3\.weight"),
        ({"optimizer": lambda p: two_groups(p, 0.2)}, r"optimizer groups: expected .*lr=0\.2.*, got .*lr=0\.1"),
        ({"loss": lambda o, y: 3 * cross_entropy(o, y)}, r"loss function: expected .*<lambda>.*, got .*<lambda>"),
    ],
)
def test_a_checkpoint_that_differs_in_no_size_and_no_name_is_refused(options, message, data, tmp_path):
    same = {"optimizer": lambda p: two_groups(p, 0.1), "loss": lambda o, y: 2 * cross_entropy(o, y), "cut": 2}
    same |= {"framework": "psl", "checkpoint": tmp_path / "run.pt"}
    run(data, rounds=1, model=model_with(nn.ReLU()), **same)
    run(data, rounds=2, model=model_with(nn.ReLU()), **same)
    with pytest.raises(CheckpointError, match=message):
        run(data, rounds=3, **{"model": model_with(nn.ReLU())} | same | options)


def test_an_extended_run_has_the_evaluations_of_a_whole_one(data, tmp_path):
    file = tmp_path / "run.pt"
    short = run(data, rounds=4, eval_every=3, checkpoint=file)
    assert np.isnan(short.test_accuracy).tolist() == [True, True, False, False]
    assert_same(run(data, rounds=4, eval_every=3, checkpoint=file), short)
    assert_same(run(data, rounds=8, eval_every=3, checkpoint=file), run(data, rounds=8, eval_every=3))


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(keep, data, tmp_path):
    file = tmp_path / "run.pt"
    run(data, rounds=1, checkpoint=file)
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"run\.pt: expected a checkpoint written by psl\.train, got an unr"):
        run(data, rounds=2, checkpoint=file)


class Evil:
    def __reduce__(self):
        return (print, ("unpickled!",))


@pytest.mark.parametrize("write", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_nothing_is_unpickled(write, data, tmp_path, capsys):
    file = tmp_path / "run.pt"
    write({"psl_checkpoint": 1, "fingerprint": Evil(), "state": {}}, file)
    with pytest.raises(CheckpointError, match="unreadable"):
        run(data, rounds=1, checkpoint=file)
    assert "unpickled!" not in capsys.readouterr().out


@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.9])
def test_a_single_changed_byte_is_noticed(place, data, tmp_path):
    file = tmp_path / "run.pt"
    run(data, rounds=1, checkpoint=file)
    content = bytearray(file.read_bytes())
    content[int(place * len(content))] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="unreadable file"):
        run(data, rounds=2, checkpoint=file)


def test_a_checkpoint_without_a_hash_is_continued_from(data, tmp_path):
    file = tmp_path / "run.pt"
    run(data, rounds=1, checkpoint=file)
    file.write_bytes(file.read_bytes().partition(b"\n")[2])  # as psl 0.6 wrote it
    assert_same(run(data, rounds=2, checkpoint=file), run(data, rounds=2))


def test_another_file_of_torch_is_refused(data, tmp_path):
    file = tmp_path / "weights.pt"
    for content in (build_model().state_dict(), {"psl_checkpoint": 1}, {"psl_checkpoint": 1, "fingerprint": 5}):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match="got another file"):
            run(data, rounds=1, checkpoint=file)


def test_a_path_that_cannot_be_written_is_refused_before_training(data, tmp_path):
    class Refusing(torch.optim.SGD):
        def step(self, closure=None):
            raise AssertionError("training began")

    refuse = {"optimizer": lambda p: Refusing(p, lr=0.1)}
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "run.pt"):
        with pytest.raises(CheckpointError, match="expected a file that can be written"):
            run(data, rounds=1, checkpoint=path, **refuse)
    with pytest.raises(AssertionError, match="training began"):
        run(data, rounds=1, checkpoint=tmp_path / "new" / "run.pt", **refuse)


def test_a_crash_while_saving_leaves_the_previous_checkpoint(data, tmp_path, monkeypatch):
    file = tmp_path / "run.pt"
    run(data, rounds=1, checkpoint=file)
    before = file.read_bytes()

    def crash(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(CheckpointError, match="expected a file that can be written, got No space left on device"):
        run(data, rounds=2, checkpoint=file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]
