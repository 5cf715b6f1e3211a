"""A pipeline in real processes: what one process finds, links and relays emulated, and what crosses between them."""

import json
import os
import subprocess
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import networkx as nx
import numpy as np
import pytest
import torch
from torch.distributed.pipelining import PipelineStage

import psl
import psl.distributed.pipeline.messages as wire
from distributed_models import assert_same_run, momentum, pixel_loss, small_data, small_model
from pipeline_models import PICKLING
from psl.distributed import EdgeEmulation, PipelineJob, run
from psl.distributed.edge.namespaces import PAYLOAD, unavailable
from psl.distributed.pipeline.messages import Order, Partner, agree, begin_round
from psl.distributed.pipeline.stages import EdgeStage
from psl.distributed.pipeline.worker import World
from psl.distributed.wire import groups as engines
from psl.distributed.wire.groups import interface_of
from psl.distributed.wire.messages import Kind, ProtocolError
from psl.errors import PSLError, ScenarioError
from psl.networks import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers import pipeline

kernel = pytest.mark.skipif(unavailable() is not None, reason=f"no shaped namespaces: {unavailable()}")

NAMES = {
    "model": "distributed_models:small_model", "dataset": "distributed_models:small_data",
    "optimizer": "distributed_models:momentum", "loss": "distributed_models:pixel_loss",
}  # fmt: skip
OPTIONS = {"rounds": 3, "n_clients": 2, "batch_size": 11, "cut": [2, "block2"], "micro_batch": 6, "seed": 5}
SCHEDULES = ["eager", "gpipe", "1f1b"]


def in_processes(nursery, **options):
    usual = NAMES | OPTIONS | {"timeout": 20.0, "progress": False, "model_seed": 2}
    return run("pipeline", **usual | options, nursery=nursery)


def in_one_process(**options):
    torch.manual_seed(2)
    given = {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    return psl.train("pipeline", small_model(), small_data(), **given | OPTIONS | options)


def left_behind(nursery):
    """Workers that run, and namespaces of this process."""
    spaces = Path("/run/netns")
    names = [path.name for path in spaces.iterdir()] if spaces.is_dir() else []
    return list(nursery._workers), [name for name in names if name.startswith(f"psl-{os.getpid()}-")]


@pytest.fixture(scope="module")
def runs(nursery):
    """One run per schedule, with everything recorded that crossed."""
    model = "pipeline_models:model_without_pickle"
    return {name: in_processes(nursery, schedule=name, record=True, model=model) for name in SCHEDULES}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_stages_find_what_one_process_finds(runs, nursery, schedule):
    found = runs[schedule]
    assert_same_run(found.history, in_one_process())  # BatchNorm, momentum, and a last micro-batch of 4 samples
    assert found.emulation == "none" and found.overrun == 0 and found.faults == ()
    assert len(found.round_times) == 3 and (found.round_times > 0).all()
    computed = found.events[found.events["kind"].isin(["forward", "backward"])]
    assert (computed.groupby(["round", "resource", "kind"])["micro_batch"].apply(list).map(sorted).map(len) == 4).all()
    assert computed.groupby(["round", "resource", "kind"])["samples"].sum().eq(22).all()
    assert (found.events["end_s"] >= found.events["start_s"]).all()
    assert left_behind(nursery) == ([], [])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_stage_draws_the_dropout_that_one_process_draws(nursery, schedule):
    options = {"cut": [2, 6], "eval_every": 3}
    torch.manual_seed(2)
    model, given = small_model(0.5), {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    want = psl.train("pipeline", model, small_data(), **given | OPTIONS | options)
    found = in_processes(nursery, schedule=schedule, model_options={"dropout": 0.5}, **options)
    assert_same_run(found.history, want)
    without = in_one_process(**options)
    assert not np.allclose(want.train_loss, without.train_loss)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_only_activations_and_gradients_of_the_cuts_cross_and_never_an_image(runs, schedule):
    messages, (train, test) = runs[schedule].messages, small_data()
    shapes = [point.shape for point in psl.cuts(small_model(), (1, 8, 8))]
    cuts = [shapes[number] for number in runs[schedule].history.settings["cut"]]
    kinds = {
        (0, "out"): {"header", "vote", "activation", "labels"},
        (0, "in"): {"header", "vote", "gradient", "loss", "model"},
        (1, "out"): {"header", "vote", "activation", "gradient", "model"},
        (1, "in"): {"header", "vote", "activation", "gradient"},
        (2, "out"): {"header", "vote", "gradient", "loss", "model"},
        (2, "in"): {"header", "vote", "activation", "labels"},
    }  # fmt: skip
    votes = 4 if hasattr(PipelineStage, "_warmup_forward_vote") else 0  # from torch 2.12 on
    images = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)  # (130, 64)
    for (rank, way), allowed in kinds.items():
        crossed = [message[1:] for message in messages[rank] if message[0] == way]
        assert {kind for kind, _, _ in crossed} == (allowed if votes else allowed - {"vote"}), f"stage {rank} {way}"
        for kind, step, tensor in crossed:
            if kind in ("activation", "gradient"):
                forward = (way == "out") == (kind == "activation")
                cut = cuts[rank if forward else rank - 1]
                assert tuple(tensor.shape) == ((6, 6, 6, 4)[step % 4], *cut)
            if kind in ("header", "vote", "labels"):
                assert tensor.dtype in (torch.int64, torch.int32) and tensor.ndim == 1
            if way == "out" and tensor.is_floating_point():
                assert not holds_an_image(tensor, images), f"{kind} of stage {rank}"
    # Whatever one process sent another received, in three rounds of four micro-batches.
    count = lambda way, kind: sum(m[:2] == (way, kind) for own in messages.values() for m in own)  # noqa: E731
    for kind, n in {"activation": 24, "gradient": 24, "labels": 3, "loss": 3, "vote": votes}.items():
        assert count("out", kind) == count("in", kind) == n
    assert count("out", "header") == count("in", "header")


def holds_an_image(tensor, images):
    """Whether any run of 64 numbers of the tensor that starts like an image is one."""
    flat = tensor.flatten()
    starts = torch.isin(flat[: max(len(flat) - images.shape[1] + 1, 0)], images[:, 0]).nonzero().flatten()
    return any((flat[start : start + images.shape[1]] == images).all(dim=1).any() for start in starts)


def test_the_search_for_images_finds_one():
    images = small_data()[0].tensors[0].flatten(1)
    hidden = torch.cat([torch.randn(7), images[31], torch.randn(90)])
    assert holds_an_image(hidden, images) and not holds_an_image(torch.randn(500), images)


def test_one_stage_and_shares_of_the_data_too(nursery):
    shares = [np.arange(40), np.arange(40, 100)]
    options = {"cut": [], "micro_batch": None, "partition": shares, "rounds": 2}
    assert_same_run(in_processes(nursery, **options).history, in_one_process(**options))


def relayed_plan(rate=4e6, latency=5e-3):
    """Two stages of `psl.models.cnn` with a relay between them, on a profile of invented seconds."""
    counted = psl.profile(psl.models.cnn(), (1, 8, 8))
    profile = Profile.measured(
        counted.names, counted.fwd_cost * 1e-10, counted.bwd_cost * 1e-10, counted.act_bits, counted.grad_bits,
        counted.param_bits, counted.act_memory,
    )  # fmt: skip
    graph = nx.DiGraph()
    graph.add_nodes_from([(0, {"speed": 0.1}), (1, {}), (2, {"speed": 0.1})])
    for u, v in ((0, 1), (1, 0), (1, 2), (2, 1)):
        graph.add_edge(u, v, rate=rate, latency=latency)
    return pipeline.PipelinePlan(profile, EdgeNetwork(graph, 0), 32, 8, [(0, 0, 3), (2, 3, 10)], [(3, 0, 1), (3, 1, 2)])


@pytest.mark.parametrize("links", ["pacing", pytest.param("kernel", marks=kernel)])
def test_relays_and_links_are_emulated_and_the_result_stays(nursery, links):
    plan = relayed_plan()
    found = run(
        "pipeline",
        "psl.models:cnn",
        plan=plan,
        rounds=3,
        emulate=links,
        timeout=20.0,
        progress=False,
        nursery=nursery,
        lr=0.05,
    )
    torch.manual_seed(0)
    want = psl.train("pipeline", psl.models.cnn(), "digits", plan=plan, rounds=3, lr=0.05, progress=False)
    assert_same_run(found.history, want)
    np.testing.assert_array_equal(found.history.simulated_time_s, want.simulated_time_s)
    assert found.emulation == links
    one = 8 * plan.profile.act_bits[3] / 4e6 + 5e-3  # s of a micro-batch on a hop
    carried = found.events[found.events["kind"].isin(["activation", "gradient"])]
    assert set(carried["resource"]) == {"link 0→1", "link 1→2", "link 2→1", "link 1→0"}
    alone = carried[(carried["kind"] == "activation") & (carried["micro_batch"] == 0) & (carried["round"] > 0)]
    assert (alone["end_s"] - alone["start_s"]).min() == pytest.approx(one, rel=0.25)  # other work may only delay
    # Four micro-batches over the first hop, the last one over the second hop too, and all the way back.
    least = 4 * (one - 5e-3) + one + 5e-3 + 2 * one
    if links == "kernel":  # its token bucket lets two frames pass at once in each of four directions that were idle
        least -= 4 * 2 * 8 * PAYLOAD / 4e6
    assert (found.round_times > least).all()
    assert left_behind(nursery) == ([], [])


@pytest.mark.full  # the CLI's tests start a server and clients with torchrun
def test_torchrun_starts_stages_too_and_its_run_continues_anywhere(nursery, tmp_path):
    plan = relayed_plan(rate=50e6)
    plan.save(tmp_path / "plan.json")
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "3", "-m", "psl.distributed", "pipeline",
            "--rounds", "2", "--lr", "0.05", "--timeout", "20", "--plan", str(tmp_path / "plan.json"),
            "--emulate", "auto", "--out", str(tmp_path),
            "--checkpoint", str(tmp_path / "run"),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 stages, 1 relays, links emulated by: pacing" in done.stdout
    assert len(list((tmp_path / "run").glob("stage-*-round-2.pt"))) == 2 and (tmp_path / "events-1.json").exists()
    torch.manual_seed(0)
    options = {"plan": plan, "rounds": 3, "lr": 0.05, "progress": False}
    want = psl.train("pipeline", psl.models.cnn(), "digits", **options)
    early = psl.History.load(tmp_path / "history.json")
    np.testing.assert_allclose(early.train_loss, want.train_loss[:2], rtol=1e-5)
    np.testing.assert_allclose(early.test_accuracy, want.test_accuracy[:2], atol=0.003)
    np.testing.assert_array_equal(early.uplink_bits, want.uplink_bits[:2])
    found = run("pipeline", "psl.models:cnn", **options, checkpoint=tmp_path / "run", nursery=nursery)
    assert_same_run(found.history, want)
    assert len(found.round_times) == 3 and set(found.events["round"]) == {2}


def test_an_interface_is_found_by_its_address():
    assert interface_of("127.0.0.1") == interface_of("lo") == "lo"
    with pytest.raises(ScenarioError, match="--bind.*lo.*'192.0.2.7'"):
        interface_of("192.0.2.7")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 0.5}, "argument of a pipeline.*got 'phi'"),
        ({"schedule": "zigzag"}, "schedule.*'eager', 'gpipe', '1f1b'"),
        ({"schedule": "1f1b", "micro_batch": 20}, "micro_batch.*3 micro-batches or more.*eager"),
        ({"model": "psl.models:no_such"}, "model.*module:function.*no_such"),
        ({"emulate": "pacing"}, "emulate: expected a plan"),
        ({"cut": ["block1", "relu"]}, "strictly increasing"),
        ({"cut": [0]}, "raw data"),
        ({"restarts": 1}, "restarts: expected 0 in a pipeline"),
        ({"save_every": "often"}, "save_every"),
        ({"timeout": 0}, "timeout: expected values above 0"),
        ({"device": "meta"}, "device: expected 'cpu', 'cuda'"),
        ({"dataset": "cifar"}, "dataset: expected one of digits"),
        ({"dataset": small_data()}, "dataset: expected one of digits"),
        ({"optimizer": momentum}, "optimizer"),
        ({"loss": pixel_loss}, "loss"),
        ({"partition": "fair"}, "partition"),
        ({"model": "__main__:model"}, "model"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_starts(options, message):
    with pytest.raises(PSLError, match=message):
        run("pipeline", **NAMES | OPTIONS | {"progress": False} | options)


def test_an_emulation_of_something_else_is_refused():
    ones, none = np.ones(2), np.zeros(1)
    chain = EdgeEmulation("chain", ones, [1e6], [1e6], none, none, np.zeros(2))
    with pytest.raises(ScenarioError, match="3 processes.*got 2"):
        run("pipeline", **NAMES | OPTIONS | {"progress": False, "emulate": chain})


def test_a_gpu_for_each_process_is_needed_where_the_device_is_one(monkeypatch):
    monkeypatch.setattr(engines.torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    job = PipelineJob.of("pipeline", **NAMES | OPTIONS, device="cuda")
    assert job.schedule == "gpipe" and job.engine(3) == "cpu:gloo,cuda:nccl"
    with pytest.raises(ScenarioError, match="a GPU for each process.*4 processes"):
        job.engine(4)
    with pytest.raises(ScenarioError, match="schedule: expected one of torch's own on a GPU.*got eager"):
        PipelineJob.of("pipeline", **NAMES | OPTIONS, device="cuda", schedule="eager")
    slow = EdgeEmulation("chain", np.ones(3), np.ones(2), np.ones(2), np.zeros(2), np.zeros(2), np.zeros(3))
    with pytest.raises(ScenarioError, match="emulate: expected device 'cpu', got 'cuda'"):
        PipelineJob.of("pipeline", **NAMES | OPTIONS, device="cuda", emulation=slow)
    assert PipelineJob.of("pipeline", **NAMES | OPTIONS).engine(3) == "gloo"


def test_jobs_survive_json():
    job = PipelineJob.of("pipeline", **NAMES | OPTIONS)
    assert PipelineJob.from_dict(job.to_dict()) == job and job.names == ["stage 0", "stage 1", "stage 2"]
    other = PipelineJob.of("pipeline", **NAMES | OPTIONS | {"schedule": "gpipe"})
    assert other.identity() == job.identity() and other.agreed() != job.agreed()


def test_a_process_that_was_started_with_something_else_is_refused():
    store = torch.distributed.HashStore()
    ours = PipelineJob.of("pipeline", **NAMES | OPTIONS | {"cut": [2]})
    theirs = PipelineJob.of("pipeline", **NAMES | OPTIONS | {"cut": [2], "seed": 6})
    with pytest.raises(PSLError, match=r"stage 1: expected a process within 0\.1 s, got none"):
        agree(store, ours, 0, 0.1)
    with pytest.raises(ProtocolError, match=r"stage 0: expected seed 6 as in stage 1, got 5\. Fix: start all"):
        agree(store, theirs, 1, 0.1)
    with pytest.raises(ProtocolError, match="stage 1: expected seed 5 as in stage 0, got 6"):
        agree(store, ours, 0, 0.1)


def test_stages_of_two_runs_end_each_other_before_anything_crosses(nursery, tmp_path):
    workers = []
    for rank, seed in enumerate((5, 6)):
        folder = tmp_path / str(rank)
        folder.mkdir()
        PipelineJob.of("pipeline", **NAMES | OPTIONS | {"cut": [2], "seed": seed}).save(folder / "job.json")
        world = World(str(folder), None, str(tmp_path / "store"), ["lo", "lo"], [0, 1])
        (folder / "world.json").write_text(json.dumps(asdict(world)))
        workers.append(nursery.start("psl.distributed.pipeline.worker", [folder, str(rank)], folder / "log"))
    for rank, worker in enumerate(workers):
        assert worker.wait(30) == 1
        other = f"stage {1 - rank}: expected seed {5 + rank} as in stage {rank}, got {6 - rank}"
        assert worker.last_words().startswith(f"ProtocolError: {other}"), worker.last_words()


@pytest.mark.parametrize(
    ("sizes", "end", "index", "message"),
    [
        ([6, 6, 6], (4, 8, 8), 3, r"activation of step 3: expected shape \(4, 6, 4, 4, 8, 8\), got shape \(3, 6, 6"),
        ([6, 6, 6, 4], (4, 4, 8), 3, "activation of step 3: expected shape"),
        ([6, 6, 6, 4], (4, 8, 8), 2, "activation of step 3"),
    ],
)
def test_a_mini_batch_begins_when_neighbours_agree_on_it(monkeypatch, sizes, end, index, message):
    sent = []
    monkeypatch.setattr(wire.dist, "send", lambda tensor, rank, tag: sent.append(tensor.clone()))
    monkeypatch.setattr(wire.dist, "recv", lambda tensor, rank, tag: tensor.copy_(sent.pop()))
    agreed = [6, 6, 6, 4], ((4, 8, 8), (4,))
    first = Partner(0)
    first.tell(Kind.ACTIVATION, 3, (4, 6, 4, 4, 8, 8), Order.SHOW | Order.SAVE)
    assert begin_round(3, Order.NOTHING, *agreed, first, None) == Order.SHOW | Order.SAVE
    Partner(1).hear(Kind.GRADIENT, 3, (4, 6, 4, 4, 8, 8))  # sent back, as agreed
    first.tell(Kind.ACTIVATION, index, (len(sizes), sizes[0], sizes[-1], *end))
    with pytest.raises(ProtocolError, match=message):
        begin_round(3, Order.NOTHING, *agreed, first, None)


def test_a_stage_pickles_nothing():
    stage = SimpleNamespace(stage_index=1)
    stage._refuse = partial(EdgeStage._refuse, stage)
    with pytest.raises(PSLError, match="to unpickle"):
        EdgeStage._recv_meta(stage, 0)
    with pytest.raises(PSLError, match="to pickle"):
        EdgeStage._send_meta(stage, None, 0)
    assert {"send_object_list", "recv_object_list", "broadcast_object_list"} <= set(PICKLING)
    for path in Path(psl.distributed.__file__).parent.rglob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("import pickle", "_object(", "_object_list(", "weights_only=False"))
