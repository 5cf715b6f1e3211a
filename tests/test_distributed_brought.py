"""Models, data and programs that people bring: real processes find what `psl.train` finds, or say why not."""

import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

import distributed_models
import psl.distributed
from distributed_models import assert_same_run, in_one_process, in_processes
from marks import some
from psl.distributed.job import Job
from psl.distributed.place import _program
from psl.errors import CutError
from psl.models import exporting
from psl.privacy import Noise
from psl.schedulers import epsl
from psl.training.model_preparation import tried_layout

HERE = "distributed_models:"
NUMBERS = {"dataset": f"{HERE}targets_of_64_bits", "loss": f"{HERE}squared_error", "metric": f"{HERE}squared_error"}
BROUGHT = {
    "labels of 64 bits": ("fedavg", {"model": f"{HERE}two_layers", "cut": None} | NUMBERS),
    "labels of 64 bits, the whole model on a device": ("edgesplit", {"model": f"{HERE}two_layers", "cut": 3} | NUMBERS),
    "large activations of many tests": ("psl", {"model": f"{HERE}large_activations", "dataset": f"{HERE}many_tests"}),
    "large features of many tests": (
        "psl",
        {"model": f"{HERE}large_activations", "dataset": f"{HERE}many_tests", "cut": (1, 2)},
    ),
    "tied weights": ("psl", {"model": f"{HERE}Tied", "cut": 2} | NUMBERS),
    "noise of each client": ("psl", {"defence": Noise(0.5)}),
}


@pytest.mark.parametrize("name", some(BROUGHT, lambda name: "whole model" not in name and "features" not in name))
def test_processes_find_what_one_process_finds(processes, name):
    framework, options = BROUGHT[name]
    options = {"n_clients": 2, "rounds": 1, "batch_size": 8, "partition": "iid", "cut": 2} | options
    found, want = in_processes(framework, **options), in_one_process(framework, **options)
    assert found.faults == ()
    assert found.history.train_loss == pytest.approx(want.train_loss, rel=1e-6)
    assert np.asarray(found.history.client_accuracy) == pytest.approx(np.asarray(want.client_accuracy), abs=1e-6)
    for model, other in zip(found.history.models, want.models, strict=True):
        for tensor, same in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(tensor, same, atol=1e-6, rtol=1e-5)


@pytest.mark.full
def test_workers_take_what_the_program_has_changed(processes, tmp_path, monkeypatch):
    text = "import os\nfrom psl.training.scores import cross_entropy\n\ndef loss(outputs, labels):\n"
    text += "    return {} * float(os.environ.get('TIMES', 1)) * cross_entropy(outputs, labels)\n"
    monkeypatch.syspath_prepend(str(tmp_path))
    losses = []
    for factor, times in ((1, "1"), (3, "1"), (3, "2")):
        (tmp_path / "brought_and_edited.py").write_text(text.format(f"{factor:.1f}"))
        monkeypatch.setenv("TIMES", times)
        options = {"n_clients": 2, "rounds": 1, "batch_size": 8, "partition": "iid", "loss": "brought_and_edited:loss"}
        losses.append(in_processes("psl", **options).history.train_loss[0])
        time.sleep(1.1)  # files have whole seconds
    assert losses[1:] == pytest.approx([3 * losses[0], 6 * losses[0]])


def test_a_checkpoint_knows_what_stands_behind_names():
    def behind(**options):
        job = Job.of("psl", "psl.models:cnn", n_clients=2, batch_size=8, rounds=1, cut="pool1", **options)
        return _program(job)

    usual = behind()
    for changed, key in (
        ({"lr": 0.5}, "optimizer groups"),
        ({"model_options": {"width": 9}}, "model"),
        ({"loss": f"{HERE}pixel_loss"}, "loss function"),
    ):
        other = behind(**changed)
        assert other[key] != usual[key]
    assert behind() == usual


def test_other_threads_may_train_while_a_model_is_traced():
    tensor, hooks = torch.ones(1, requires_grad=True), []
    with exporting._recording(nn.Linear(1, 1)):
        thread = threading.Thread(target=lambda: hooks.append(tensor.register_hook(lambda gradient: gradient)))
        thread.start()
        thread.join()
        with pytest.raises(CutError, match="hook"):
            tensor.register_hook(lambda gradient: gradient)
    assert len(hooks) == 1


def test_a_model_that_finds_no_number_for_constant_inputs_has_a_layout():
    class Standardised(nn.Module):
        def forward(self, x):
            return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)

    model = nn.Sequential(Standardised(), nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    assert tried_layout(model, torch.device("cpu"), torch.ones(2, 1, 8, 8)) is torch.channels_last


def test_a_process_that_is_told_nothing_ends(monkeypatch):
    monkeypatch.setattr("psl.distributed.place.START", 0.01)
    host = psl.distributed.place.Launcher.__new__(psl.distributed.place.Launcher)
    host._told = threading.Event()
    with pytest.raises(psl.distributed.wire.messages.ChannelError, match="nobody"):
        host.servers  # noqa: B018


def with_two_tensors():
    """A plan whose profile counts cuts of two tensors, and its model."""
    model = distributed_models.skip()
    profile = psl.profile(model, (1, 8, 8), tensors=2)
    cell = psl.WirelessCell.sample(2, 4, 0)
    return model, epsl.solve(profile, cell, batch_size=8, phi=0.0, cut="relu")


def test_cuts_of_several_tensors_are_those_of_one_process(processes):
    model, plan = with_two_tensors()
    cut = next(one for one in psl.cuts(model, (1, 8, 8), tensors=2) if one.n_tensors == 2)
    named = "psl", f"{HERE}skip", f"{HERE}small_data"
    job = Job.of(*named, plan=plan, rounds=1)
    assert (job.cut, job.tensors) == (plan.cut, 2) and Job.from_dict(job.to_dict()) == job
    options = {"n_clients": 2, "rounds": 2, "batch_size": 8, "partition": "iid", "model": f"{HERE}skip"}
    for asked in ({"cut": cut}, {"cut": None, "plan": plan}):
        found, want = in_processes("psl", **options | asked), in_one_process("psl", **options | asked)
        assert_same_run(found.history, want)
        assert found.history.settings["cut"] == want.settings["cut"]
    with pytest.raises(CutError, match="more than one tensor"):
        Job.of(*named, cut=cut.name, rounds=1)
    assert Job.of(*named, cut=cut.name, tensors=2, rounds=1).cut == cut.name
