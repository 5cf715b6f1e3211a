"""Server and clients in processes of their own: the same result as in one process, and only what may cross crosses."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import psl.distributed
from distributed_models import (
    OPTIONS,
    UNEVEN,
    assert_same_run,
    fork_server,
    in_one_process,
    in_processes,
    noted,
    pixel_loss,
    small_data,
)
from psl.distributed import Job
from psl.distributed.edge import emulate
from psl.distributed.names import device_of
from psl.distributed.place import agreed
from psl.distributed.segments import Segments
from psl.distributed.star import half
from psl.errors import CutError, DataError, PSLError, ScenarioError
from psl.models import cuts
from psl.networks import WirelessCell
from psl.privacy import Noise, NoPeek, Quantise
from psl.schedulers import epsl

DROPOUT = {"model_options": {"dropout": 0.3}}
FRAMEWORKS = [
    ("fedavg", {"cut": None, "local_steps": 2} | DROPOUT), ("sl", DROPOUT), ("sfl", {"local_steps": 2} | DROPOUT),
    ("psl", DROPOUT | {"loss": "distributed_models:pixel_loss"}),
    ("epsl", {"phi": 0.5} | DROPOUT), ("edgesplit", {"cut": (1, 6, 14), "local_steps": 2} | DROPOUT),
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(processes):
    """One recorded run of each framework, by name."""
    return {name: in_processes(name, record=True, **options) for name, options in FRAMEWORKS}


@pytest.mark.parametrize(("framework", "options"), FRAMEWORKS, ids=[name for name, _ in FRAMEWORKS])
def test_processes_find_what_one_process_finds(runs, framework, options):
    found = runs[framework]
    assert_same_run(found.history, in_one_process(framework, **options))
    assert found.emulation == "none" and found.faults == () and found.history.participants is None
    assert len(found.round_times) == OPTIONS["rounds"] and (found.round_times > 0).all()


@pytest.mark.parametrize(
    ("framework", "options"),
    [
        ("epsl", {"phi": 1.0, "linearise": "mean", "n_clients": 2, "partition": 0.7}),
        ("psl", {"n_clients": 1, "partition": "iid"}), ("sl", {"n_clients": 1, "partition": "iid"}),
        ("edgesplit", {"cut": 12, "optimizer": "adam", "lr": 0.01}),
        ("psl", {"model": "distributed_models:pairs", "dataset": "distributed_models:dict_data", "cut": "first"}),
        ("epsl", {"dataset": "digits", "model": "psl.models:cnn", "cut": "pool1", "partition": "iid", "eval_every": 2}),
        ("epsl", {"phi": 1.0, "linearise": "sampled"}),
        ("epsl", {"phi": 0.5, "linearise": "sampled", "rows": "adaptive", "defence": Noise(0.3)}),
        ("psl", {"dataset": "digits", "model": "psl.models:cnn", "cut": "pool1", "partition": "iid", "micro_batch": 3}),
        ("epsl", {"phi": 1.0, "micro_batch": 4} | DROPOUT),
        ("edgesplit", {"cut": (1, 6, 12), "local_steps": 2, "micro_batch": 3} | DROPOUT),
        ("psl", {"sampling": "global"} | DROPOUT),
        ("psl", {"server_steps": 2, "defence": NoPeek(0.1)}), ("sfl", {"defence": Quantise(4)}),
    ],
)  # fmt: skip
def test_odd_settings_too(processes, framework, options):
    assert_same_run(in_processes(framework, **options).history, in_one_process(framework, **options))


def test_the_plan_says_the_seconds_of_rounds_with_adaptive_rows(processes):
    model = Job.of("epsl", **OPTIONS).build_model()
    cell = WirelessCell.sample(3, 6, 0)
    plan = epsl.solve(psl.profile(model, (1, 8, 8)), cell, batch_size=4, phi=0.5, linearise="sampled")
    options = {"plan": plan, "rows": "adaptive", "cut": None, "phi": None, "batch_size": None}
    found, alone = in_processes("epsl", **options).history, in_one_process("epsl", **options)
    assert_same_run(found, alone)
    np.testing.assert_array_equal(found.simulated_time_s, alone.simulated_time_s)
    assert len(np.unique(np.diff(found.simulated_time_s))) > 1, "another number of rows takes another time"


KINDS = {
    "fedavg": {"model", "broadcast", "loss"}, "sl": {"model"}, "sfl": {"model", "broadcast"}, "psl": set(),
    "epsl": {"broadcast"}, "edgesplit": {"model", "loss"},
}  # fmt: skip
ALWAYS = {"command", "report", "activation", "labels", "gradient", "test_activation", "test_labels"}


@pytest.mark.parametrize(("framework", "options"), FRAMEWORKS, ids=[name for name, _ in FRAMEWORKS])
def test_only_what_the_framework_exchanges_crosses_and_never_an_image(runs, framework, options):
    found, (train, test) = runs[framework], small_data()
    images = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)  # (130, 64)
    model = Job.of(framework, **OPTIONS | options).build_model()
    smashed = {point.shape for point in cuts(model, (1, 8, 8))[1:]}
    sent = {rank: [m for m in messages if m[0] == "out"] for rank, messages in found.messages.items()}
    received = {rank: [m for m in messages if m[0] == "in"] for rank, messages in found.messages.items()}
    assert {kind for messages in found.messages.values() for _, kind, _, _ in messages} <= ALWAYS | KINDS[framework]
    # What the server has is what clients sent, so the record of one end leaves nothing out at the other.
    assert sum(len(m) for r, m in sent.items() if r > 0) == len(received[0])
    bits = 0
    for rank in (1, 2, 3):
        for _, kind, _, content in sent[rank]:
            assert kind not in ("command", "gradient")
            for tensor in content if isinstance(content, tuple) else [content]:
                if tensor is None:
                    continue
                if kind in ("activation", "test_activation"):
                    assert tuple(tensor.shape[1:]) in smashed, f"client {rank - 1} sent {tensor.shape}"
                if kind in ("labels", "test_labels"):
                    assert tensor.dtype == torch.int64 and tensor.ndim == 1
                if kind in ("activation", "labels", "model"):
                    bits += 8 * tensor.element_size() * tensor.numel()
                if tensor.is_floating_point() and tensor.numel() >= images.shape[1]:
                    assert not holds_an_image(tensor, images), f"{kind} of client {rank - 1}"
    assert bits == found.history.uplink_bits[-1]


def holds_an_image(tensor, images):
    """Whether any row of the tensor, or any run of 64 of its numbers that starts like an image, is an image."""
    flat = tensor.flatten()
    starts = torch.isin(flat[: len(flat) - images.shape[1] + 1], images[:, 0]).nonzero().flatten()
    return any((flat[start : start + images.shape[1]] == images).all(dim=1).any() for start in starts)


def test_the_search_for_images_finds_one():
    images = small_data()[0].tensors[0].flatten(1)
    hidden = torch.cat([torch.randn(7), images[31], torch.randn(90)])
    assert holds_an_image(hidden, images) and not holds_an_image(torch.randn(500), images)


def test_nothing_received_is_unpickled_and_torch_sends_nothing():
    for path in Path(psl.distributed.__file__).parent.rglob("*.py"):
        text = path.read_text()
        words = ("import pickle", "weights_only=False", "torch.distributed", "ProcessGroup")
        assert not any(word in text for word in words), path


def test_the_server_never_opens_the_data(processes):
    pids, notes = [], noted(fork_server())
    notes.unlink(missing_ok=True)
    in_processes("psl", dataset="distributed_models:noted_data", rounds=1,
                 watch=lambda launch: pids.append([worker.pid for worker in launch.workers]))  # fmt: skip
    opened = {int(pid) for pid in notes.read_text().splitlines()}
    notes.unlink()
    assert opened == set(pids[0][1:])


def test_events_are_those_of_a_round(runs):
    table = runs["epsl"].events
    one = table[table["round"] == 1]
    count = one.groupby("kind").size()
    assert count.to_dict() == {
        "activation": 3, "labels": 3, "forward": 4, "backward": 4, "step": 4, "broadcast": 3, "gradient": 3
    }  # fmt: skip
    assert (table["end_s"] >= table["start_s"]).all() and table["start_s"].iloc[0] == 0
    for client in range(3):  # forward, upload, server, download, backward
        own = one[one["stage"] == client].set_index(["resource", "kind"])["end_s"]
        up, down = f"uplink of client {client}", f"downlink of client {client}"
        chain = [
            own[f"client {client}", "forward"], own[up, "activation"],
            one[one["resource"] == "server"].set_index("kind")["end_s"]["backward"], own[down, "gradient"],
            own[f"client {client}", "backward"],
        ]  # fmt: skip
        assert chain == sorted(chain)
    assert runs["edgesplit"].events.query("kind == 'model'")["micro_batch"].eq(-1).all()


def test_the_server_takes_what_waits_in_the_plans_order():
    profile = psl.profile(psl.models.cnn(), (1, 8, 8))
    cell = psl.WirelessCell.sample(n_clients=3, n_subchannels=6, channel="log-distance", seed=1)
    plan = epsl.solve(profile, cell, batch_size=8, phi=0.0, micro_batches=4, bound=False)
    job = Job.of("psl", "psl.models:cnn", plan=plan, rounds=1)
    assert np.bincount(job.turns).tolist() == [4, 4, 4] and list(job.turns) == plan.served.order.tolist()
    assert Job.of("psl", "psl.models:cnn", cut="pool1", rounds=1).turns == ()
    rank = half.ranks(job.turns)
    assert sorted(rank.values()) == list(range(12)) and all(
        rank[i, k] < rank[i, k + 1] for i in range(3) for k in range(3)
    )
    turns, taken = half.Turns(), []

    def take(number):
        with turns.turn(number):
            taken.append(number)

    waiting = [(1, 0), (0, 7), (0, 2), (0, 5)]
    with turns.turn((0, 0)):
        threads = [threading.Thread(target=take, args=(number,)) for number in waiting]
        for n, thread in enumerate(threads):
            thread.start()
            while len(turns.waiting) < n + 1:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert taken == sorted(waiting)


def test_segments_follow_a_step():
    seen, model = [], nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compute = emulate.Compute(record=lambda kind, number, *_: seen.append((kind, number)))
    segments = Segments(compute)
    segments.switch("forward")  # outside a step of training nothing is noted
    segments.watch([optimizer, None])
    loss = segments.around_loss(lambda outputs, labels: (outputs - labels).square().sum())
    with segments("forward", 4):
        loss(model(torch.ones(1, 3)), torch.zeros(1, 2)).backward()
        optimizer.step()
    optimizer.step()  # outside a step of training nothing is noted
    assert seen == [("forward", 4), ("backward", 4), ("step", 4)]
    with segments("", 5):
        assert len(seen) == 3
        segments.switch("forward")
    assert seen[3:] == [("forward", 5)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"framework": "centralised"}, ScenarioError, "framework: expected one of 'fedavg', .*'pipeline', got 'centr"),
        ({"model": "nowhere:cnn"}, ScenarioError, "model: expected 'module:function', got 'nowhere:cnn'"),
        ({"dataset": "cifar"}, DataError, "dataset: expected one of digits, .*'cifar'"),
        ({"cut": None}, CutError, "cut: expected number or name of a cut, got none"),
        ({"cuts": 3}, ScenarioError, "argument: expected one of .*'cut', .* got 'cuts'"),
        ({"timeout": 0}, ScenarioError, "timeout: expected values above 0"),
        ({"rounds": 0}, ScenarioError, "rounds: expected at least 1"),
        ({"emulate": "auto"}, ScenarioError, "emulate: expected a plan to emulate, got none"),
        ({"cut": 99}, CutError, "99"),
        ({"partition": UNEVEN[:1]}, DataError, "partition: expected one index array per client, 3 in all, got 1"),
        ({"partition": -1}, ScenarioError, "partition: expected values above 0"),
        ({"partition": "foo"}, DataError, "partition: expected 'iid', a Dirichlet α or .*, got 'foo'"),
        (
            {"partition": "iid", "batch_size": 50},
            PSLError,
            "client 0 failed: DataError: client 0: expected at least batch",
        ),
        ({"save_every": "x"}, ScenarioError, "save_every: expected numbers, got 'x'. Fix: pass seconds"),
        ({"model": "__main__:f"}, ScenarioError, "model: expected a function of a file .*pass 'mine:f'"),
        ({"model": nn.Linear(1, 1)}, ScenarioError, "model: expected 'module:function', got an object, Linear"),
        ({"model_options": 3}, ScenarioError, "model_options: expected a dictionary, got int"),
        ({"model_options": {"width": {1, 2}}}, PSLError, "model_options: expected numbers, .*, got set"),
        ({"dataset": small_data()}, DataError, "dataset: expected one of digits, .*got an object, tuple.*a function"),
        ({"dataset": np.ones(3)}, DataError, "dataset: expected one of digits, .*got an object, ndarray"),
        ({"optimizer": torch.optim.Adam}, ScenarioError, "optimizer: expected 'module:function', got an object, Adam"),
        ({"optimizer": "lion"}, ScenarioError, "optimizer: expected one of 'sgd', 'adam', got 'lion'"),
        ({"loss": pixel_loss}, ScenarioError, "loss: expected 'module:function', got an object, pixel_loss"),
        ({"device": "gpu"}, ScenarioError, "device: expected 'cpu', 'cuda' or 'cuda:1', got 'gpu'"),
        ({"device": "cuda:99"}, ScenarioError, r"device: expected a device that torch sees, got 'cuda:99' where torch"),
        ({"schedule": "gpipe"}, ScenarioError, "schedule, which is for pipelines: expected none for 'psl', got 'gpipe"),
    ],
)
def test_what_cannot_run_is_refused(processes, options, error, message):
    options = {"framework": "psl"} | options
    with pytest.raises(error, match=message):
        in_processes(options.pop("framework"), **options)


def test_emulation_needs_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    fast, none = np.full(3, np.inf), np.zeros(3)
    slow = emulate.EdgeEmulation("star", np.ones(4), fast, fast, none, none, np.zeros(4))
    with pytest.raises(ScenarioError, match="emulate: expected device 'cpu', got 'cuda'"):
        Job.of("psl", **OPTIONS, device="cuda", emulation=slow)
    job = Job.of("psl", **OPTIONS, device="cuda")  # the launcher itself touches no GPU
    assert [device_of(job.device, rank) for rank in range(5)] == [f"cuda:{rank % 4}" for rank in range(5)]
    assert device_of("cuda:1", 3) == "cuda:1" and device_of("cpu", 3) == "cpu"


@pytest.mark.slow
def test_psl_itself_starts_nothing():
    code = "import psl.distributed, psl.distributed.worker, os, threading; print(threading.active_count(), "
    code += "len(os.listdir('/proc/self/task')))"  # gRPC's too, so that a process may fork afterwards
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "1"]


def test_jobs_survive_json():
    job = Job.of("edgesplit", **OPTIONS | {"cut": (1, 6, 12), "timeout": 3})
    assert Job.from_dict(job.to_dict()) == job
    assert agreed(job) == agreed(Job.from_dict(job.to_dict())) != agreed(Job.of("psl", **OPTIONS))
    assert "timeout" not in agreed(job) and "rounds" not in agreed(job, saved=True)
    assert np.array_equal(job.partition[1], OPTIONS["partition"][1])


def test_a_loss_that_is_no_number_is_warned_of_where_the_run_was_started(processes):
    with pytest.warns(RuntimeWarning, match=r"train loss is (nan|inf) in round 2: lower lr"):
        in_processes("psl", optimizer="sgd", lr=1e30, rounds=2, eval_every=2)


def test_labels_are_converted_and_the_metric_is_the_one_asked_for(processes):
    options = {"dataset": "distributed_models:one_hot_data", "metric": "distributed_models:label_share", "rounds": 2}
    found = in_processes("psl", **options).history
    want = in_one_process("psl", rounds=2)
    np.testing.assert_allclose(found.train_loss, want.train_loss, rtol=1e-5)
    np.testing.assert_allclose(found.test_accuracy, 2 * want.test_accuracy, atol=0.07)
    assert found.settings["metric"] == "label_share"
    with pytest.raises(DataError, match="class numbers 0..3"):
        in_processes("psl", dataset="distributed_models:data_of_five_classes")
