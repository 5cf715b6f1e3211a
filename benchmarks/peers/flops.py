"""FLOP of a forward pass: `psl.profile` against fvcore, ptflops, torch's counter, and torchvision's stated counts.

In multiply-adds × 2 per image of 224 × 224. torchvision's counts are those of its documentation (GFLOPS there are
10^9 multiply-adds), rounded to three decimals.
"""

import contextlib
import io
import logging
import warnings

import torch
import torchvision
from benchmarks.peers.common import Table, installed, timed
from torch.utils.flop_counter import FlopCounterMode

import psl

MODELS = ("resnet18", "resnet50", "vgg16", "mobilenet_v2", "densenet121", "efficientnet_b0", "vit_b_16", "swin_t")
SHAPE = (3, 224, 224)


def by_psl(name):
    """Count on the meta device: without weights and without running the model."""
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    return float(psl.profile(model, SHAPE).fwd_cost[-1])


def by_torch(name):
    """Count with torch's counter; on the meta device it need not compute either."""
    with torch.device("meta"):
        model, x = torchvision.models.get_model(name).eval(), torch.empty(1, *SHAPE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x)
    return float(counter.get_total_flops())


def by_fvcore(name):
    """Count with fvcore, which traces the model."""
    from fvcore.nn import FlopCountAnalysis

    logging.getLogger("fvcore").setLevel(logging.ERROR)
    model = torchvision.models.get_model(name).eval()
    return 2.0 * FlopCountAnalysis(model, torch.zeros(1, *SHAPE)).unsupported_ops_warnings(False).total()


def by_ptflops(name):
    """Count with ptflops' default backend, which runs the model."""
    from ptflops import get_model_complexity_info

    model = torchvision.models.get_model(name)
    with contextlib.redirect_stdout(io.StringIO()):
        macs, _ = get_model_complexity_info(model, SHAPE, as_strings=False, print_per_layer_stat=False)
    return 2.0 * macs


def main(effort: float) -> None:
    """Run; effort 1 takes about a minute on an idle core."""
    table, methods = Table("flops"), {"psl": by_psl, "torch": by_torch}
    methods |= {"fvcore": by_fvcore} if installed("fvcore") else {}
    methods |= {"ptflops": by_ptflops} if installed("ptflops") else {}
    for name in MODELS if effort >= 1 else MODELS[:2]:
        weights = torchvision.models.get_model_weights(name).DEFAULT
        table.add("forward pass", name, "torchvision's documentation", value=2e9 * weights.meta["_ops"])
        for method, count in methods.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                value, took = timed(lambda c=count, n=name: c(n))
            table.add("forward pass", name, method, seconds=took, value=value)
    table.write()
