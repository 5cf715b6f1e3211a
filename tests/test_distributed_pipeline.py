"""A pipeline in real processes: what one process finds, links and relays emulated, and what crosses between them."""

import os
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch

import psl
from distributed_models import assert_same_run, dict_data, momentum, pairs, pixel_loss, small_data, small_model
from psl.distributed import EdgeEmulation, Job, run
from psl.distributed.edge.namespaces import PAYLOAD, unavailable
from psl.distributed.place import agreed
from psl.errors import PSLError, ScenarioError
from psl.networks import EdgeNetwork
from psl.profiles import Profile
from psl.schedulers import pipeline
from test_distributed_star import holds_an_image

kernel = pytest.mark.skipif(unavailable() is not None, reason=f"no shaped namespaces: {unavailable()}")

NAMES = {
    "model": "distributed_models:small_model", "dataset": "distributed_models:small_data",
    "optimizer": "distributed_models:momentum", "loss": "distributed_models:pixel_loss",
}  # fmt: skip
OPTIONS = {"rounds": 3, "n_clients": 2, "batch_size": 11, "cut": [2, "block2"], "micro_batch": 6, "seed": 5}
SCHEDULES = ["eager", "gpipe", "1f1b"]


def in_processes(**options):
    usual = NAMES | OPTIONS | {"timeout": 20.0, "progress": False, "model_seed": 2}
    return run("pipeline", **usual | options)


def in_one_process(**options):
    torch.manual_seed(2)
    given = {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    return psl.train("pipeline", small_model(), small_data(), **given | OPTIONS | options)


def left_behind():
    """Namespaces of this process."""
    spaces = Path("/run/netns")
    names = [path.name for path in spaces.iterdir()] if spaces.is_dir() else []
    return [name for name in names if name.startswith(f"psl-{os.getpid()}-")]


@pytest.fixture(scope="module")
def runs(processes):
    """One run per schedule, with everything recorded that crossed."""
    return {name: in_processes(schedule=name, record=True) for name in SCHEDULES}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_three_stages_find_what_one_process_finds(runs, processes, schedule):
    found = runs[schedule]
    assert_same_run(found.history, in_one_process())  # BatchNorm, momentum, and a last micro-batch of 4 samples
    assert found.emulation == "none" and found.overrun == 0 and found.faults == ()
    assert len(found.round_times) == 3 and (found.round_times > 0).all()
    computed = found.events[found.events["kind"].isin(["forward", "backward"])]
    assert (computed.groupby(["round", "resource", "kind"])["micro_batch"].apply(list).map(sorted).map(len) == 4).all()
    assert computed.groupby(["round", "resource", "kind"])["samples"].sum().eq(22).all()
    assert (found.events["end_s"] >= found.events["start_s"]).all()
    assert left_behind() == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_stage_draws_the_dropout_that_one_process_draws(processes, schedule):
    options = {"cut": [2, 6], "eval_every": 3}
    torch.manual_seed(2)
    model, given = small_model(0.5), {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    want = psl.train("pipeline", model, small_data(), **given | OPTIONS | options)
    found = in_processes(schedule=schedule, model_options={"dropout": 0.5}, **options)
    assert_same_run(found.history, want)
    without = in_one_process(**options)
    assert not np.allclose(want.train_loss, without.train_loss)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_only_activations_and_gradients_of_the_cuts_cross_and_never_an_image(runs, schedule):
    messages, (train, test) = runs[schedule].messages, small_data()
    shapes = [point.shape for point in psl.cuts(small_model(), (1, 8, 8))]
    cuts = [shapes[number] for number in runs[schedule].history.settings["cut"]]
    kinds = {
        (0, "out"): {"begin", "activation"}, (0, "in"): {"begin", "gradient", "report"},
        (1, "out"): {"begin", "activation", "gradient", "report"},
        (1, "in"): {"begin", "activation", "gradient", "report"},
        (2, "out"): {"begin", "gradient", "report"}, (2, "in"): {"begin", "activation"},
    }  # fmt: skip
    images = torch.cat([train.tensors[0], test.tensors[0]]).flatten(1)  # (130, 64)
    for (rank, way), allowed in kinds.items():
        crossed = [message[1:] for message in messages[rank] if message[0] == way]
        assert {kind for kind, _, _ in crossed} == allowed, f"stage {rank} {way}"
        for kind, step, content in crossed:
            if kind in ("activation", "gradient"):
                forward = (way == "out") == (kind == "activation")
                cut = cuts[rank if forward else rank - 1]
                assert tuple(content.shape) == ((6, 6, 6, 4)[step % 4], *cut)
            if kind == "begin" and content is not None:
                assert content.dtype == torch.int64 and content.ndim == 1  # labels
            if way == "out":
                for tensor in flat(content):
                    assert not (tensor.is_floating_point() and holds_an_image(tensor, images)), (
                        f"{kind} of stage {rank}"
                    )
    # Whatever one process sent another received, in three rounds of four micro-batches.
    count = lambda way, kind: sum(m[:2] == (way, kind) for own in messages.values() for m in own)  # noqa: E731
    for kind, n in {"activation": 24, "gradient": 24, "begin": 12, "report": 6}.items():
        assert count("out", kind) == count("in", kind) == n


def flat(content):
    if isinstance(content, torch.Tensor):
        return [content]
    return [tensor for entry in content for tensor in flat(entry)] if isinstance(content, tuple) else []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_dict_inputs_and_masks_cross_every_cut(processes, schedule):
    options = {"cut": ["first", "second"], "rounds": 2, "schedule": schedule}
    names = {"model": "distributed_models:pairs", "dataset": "distributed_models:dict_data"}
    found = in_processes(**options | names)
    torch.manual_seed(2)
    options.pop("schedule")
    given = {"optimizer": momentum, "loss": pixel_loss, "progress": False}
    assert_same_run(found.history, psl.train("pipeline", pairs(), dict_data(), **given | OPTIONS | options))


def test_one_stage_and_shares_of_the_data_too(processes):
    shares = [np.arange(40), np.arange(40, 100)]
    options = {"cut": [], "micro_batch": None, "partition": shares, "rounds": 2}
    assert_same_run(in_processes(**options).history, in_one_process(**options))


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
def test_relays_and_links_are_emulated_and_the_result_stays(processes, links):
    plan = relayed_plan()
    found = run(
        "pipeline",
        "psl.models:cnn",
        plan=plan,
        rounds=3,
        emulate=links,
        timeout=20.0,
        progress=False,
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
    assert left_behind() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": 0.5}, "phi, which is for frameworks with clients: expected none"),
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
    with pytest.raises(ScenarioError, match="3 processes.*got a chain of 2"):
        run("pipeline", **NAMES | OPTIONS | {"progress": False, "emulate": chain})


def test_jobs_survive_json():
    job = Job.of("pipeline", **NAMES | OPTIONS)
    assert Job.from_dict(job.to_dict()) == job and job.names == ["stage 0", "stage 1", "stage 2"]
    other = Job.of("pipeline", **NAMES | OPTIONS | {"schedule": "gpipe"})
    assert agreed(other, saved=True) == agreed(job, saved=True) and agreed(other) != agreed(job)
