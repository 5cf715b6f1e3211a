"""Which models can be split in two: `psl`, torchslicer, and torch.distributed.pipelining's tracer.

A model counts as split if two parts exist and, in eval mode, one after the other gives the model's own output bit for
bit. `psl` is asked for its middle cut; torchslicer for its uniform strategy with two partitions; the tracer for a split
before the child module in the middle of `named_children` (a split needs the name of a module), then before the others.
"""

import copy
import warnings

import torch
import torchvision
from benchmarks.peers.common import Table, installed, timed

import psl

MODELS = {
    "alexnet": 64,
    "vgg11": 32,
    "resnet18": 32,
    "squeezenet1_1": 64,
    "mobilenet_v2": 32,
    "densenet121": 32,
    "googlenet": 64,
    "efficientnet_b0": 32,
    "vit_b_16": 32,
    "swin_t": 32,
}


def build(name: str):
    """Return a torchvision model in eval mode and an input."""
    torch.manual_seed(0)
    size = MODELS[name]
    options = {"googlenet": {"aux_logits": False, "init_weights": False}, "vit_b_16": {"image_size": size}}.get(
        name, {}
    )
    model = torchvision.models.get_model(name, weights=None, num_classes=10, **options).eval()
    return model, torch.randn(2, 3, size, size)


def with_psl(model, x):
    """Return the parts' output and how many cuts there are."""
    found = psl.cuts(model, tuple(x.shape[1:]))
    parts = psl.split(model, found[len(found) // 2], tuple(x.shape[1:])).eval()
    return parts(x), f"{len(found) - 2} cuts inside"


def with_torchslicer(model, x):
    """Return the output of two partitions."""
    import torchslicer

    sliced = torchslicer.slice(model, n=2)
    layers = sliced.graph.get_layers()
    for k, partition in enumerate(sliced.partitions):
        part = torchslicer.SplitLayer(
            [layers[j] for j in partition.layer_indices], is_last=k == 1, predecessors=partition.predecessors or None
        )
        x = part.eval()(x)
    return x, f"{len(layers)} layers"


def with_tracer(model, x):
    """Return the output of the first split before a child module that can be made."""
    from torch.distributed.pipelining import SplitPoint, pipeline

    children = [name for name, _ in model.named_children()]
    middle = len(children) // 2
    error = None
    for child in sorted(children[1:], key=lambda name: abs(children.index(name) - middle)):
        try:
            pipe = pipeline(copy.deepcopy(model), (x,), split_spec={child: SplitPoint.BEGINNING})
            out = pipe(x)
            return out[0] if isinstance(out, tuple) else out, f"before {child}, of {len(children)} children"
        except Exception as failed:
            error = failed
    raise error or ValueError("one child only")


def main(effort: float) -> None:
    """Run; effort 1 takes about two minutes on an idle core."""
    table = Table("splitting")
    methods = {"psl": with_psl, "torch.distributed.pipelining": with_tracer}
    if installed("torchslicer"):
        methods["torchslicer"] = with_torchslicer
    for name in list(MODELS) if effort >= 1 else list(MODELS)[:3]:
        for method, call in methods.items():
            model, x = build(name)
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                want = model(x)
                try:
                    (got, note), took = timed(lambda c=call, m=model, x=x: c(m, x))
                    same = torch.equal(got, want)
                    state = "split, bit for bit" if same else f"split, off by {(got - want).abs().max():.2g}"
                except Exception as failed:  # whatever a peer raises means that it does not split this model
                    took, state, note = (
                        float("nan"),
                        "not split",
                        f"{type(failed).__name__}: {failed}".split("\n")[0][:120],
                    )
            table.add("two parts", name, method, seconds=took, status=state, note=note)
    table.write()
