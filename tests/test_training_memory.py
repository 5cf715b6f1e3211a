"""A step's tensors are freed when it ends, not when Python's collector of reference cycles happens to run."""

import gc
from collections import Counter

import pytest
import torch

from marks import some
from psl.models import cnn
from psl.training import train
from psl.training.defences import Noise, NoPeek, Quantise

DRAWN = {"phi": 0.5, "linearise": "sampled"}
RUNS = [
    ("centralised", {}),
    ("fedavg", {}),
    ("sl", {"cut": 3}),
    ("sl", {"cut": (2, 5)}),
    ("sfl", {"cut": 3}),
    ("psl", {"cut": 3}),
    ("psl", {"cut": (2, 5)}),
    ("psl", {"cut": 3, "micro_batch": 4}),
    ("psl", {"cut": 3, "sampling": "global"}),
    ("psl", {"cut": 3, "server_steps": 2}),
    ("psl", {"cut": 3, "defence": Noise(0.1)}),
    ("psl", {"cut": 3, "defence": NoPeek(0.1)}),
    ("psl", {"cut": 3, "defence": Quantise(8)}),
    ("epsl", {"cut": 3, "phi": 0.5}),
    ("epsl", {"cut": 3} | DRAWN),
    ("epsl", {"cut": 3, "rows": "adaptive"} | DRAWN),
    ("edgesplit", {"cut": [2, 3, 5]}),
    ("edgesplit", {"cut": 3, "micro_batch": 4}),
    ("pipeline", {"cut": [2, 5], "micro_batch": 4}),
]


def left_in_cycles(run):
    """Return the shapes of tensors that only the collector would have freed, with their numbers."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run()
        gc.collect()
        found = [thing for thing in gc.garbage if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        return Counter(tuple(tensor.shape) for tensor in found)
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()


def kinds(run):
    """The frameworks, each once, and what keeps several passes under way."""
    return len(run[1]) <= 1 or "micro_batch" in run[1] or "server_steps" in run[1]


@pytest.mark.parametrize("framework, options", some(RUNS, kinds), ids=str)
def test_a_training_leaves_no_tensors_in_cycles(framework, options):
    always = {"batch_size": 8, "rounds": 2, "eval_every": 2, "verify": False, "progress": False}
    if framework != "pipeline":
        always["n_clients"] = 3

    def run():
        train(framework, cnn(), "digits", **always, **options)

    run()  # traces the model, which is kept
    assert not left_in_cycles(run)
