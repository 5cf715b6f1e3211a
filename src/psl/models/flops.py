"""Profile a model by counting its operators on the meta device."""

import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from psl.errors import CutError, check_count, expected
from psl.models.cut_points import operator_name
from psl.models.graphs import Operator, may_alias, overwritten
from psl.models.programs import interface_at
from psl.models.runs import GraphRun, ghosts
from psl.models.structure import Place
from psl.models.tracing import TracedModel, trace
from psl.profiles import Profile


def profile(model: nn.Module, example: Any, *, bits: int = 32, tensors: int = 1) -> Profile:
    """Count what every unit of a model costs, without running it.

    FLOP are those of convolutions and matrix products: what PyTorch's counter and published counts include. One
    multiply-add is 2 FLOP. Elementwise operations are left out. A layer's backward pass costs one product for its
    weights, if they train, and one for its input, if anything before it trains. `act_memory` is what autograd keeps
    in train mode.

    Args:
        model, example: as in `psl.cuts`. A model on the meta device is enough.
        bits: bits per element of floating-point activations, gradients and parameters; 32 for float32. Whole numbers
            and masks keep their own width.
        tensors: how many tensors may cross at a cut.

    Returns:
        A `Profile` with one entry per cut of `psl.cuts`. `act_bits` adds up the tensors of a cut and the inputs that
        are handed on beside it; `grad_bits` is 0 where nothing before the cut trains. `param_bits` counts trainable
        parameters and floating-point buffers, `param_memory` all weights, and gradients and one value of optimizer
        state of what trains.

    Warns:
        UserWarning: an operator with weights that no formula knows; it counts as 0.

    Raises:
        CutError: the model cannot be exported, or `example` does not fit it.

    Source: EPSL (arXiv 2303.15991) and EdgeSplit (arXiv 2403.15815) start from such a table; how it is counted is
    ours [R].
    """
    check_count("bits", bits)
    check_count("tensors", tensors)
    traced = trace(model, example)
    places = traced.places(tensors)
    # The cost of one more sample is half of what a batch of 4 costs beyond a batch of 2: what is paid once per batch
    # drops out. (BatchNorm in train mode refuses a batch of 1 where a feature map is 1 × 1.)
    small, large = (_Count.of(traced, places, batch_size) for batch_size in (2, 4))
    for name, kind in large.unknown.items():
        text = f"psl.profile: no formula for {kind} with weights (in {name}); it counts as 0 FLOP"
        warnings.warn(text, UserWarning, stacklevel=2)
    forward, backward, floats, other_bytes = (large.unit_costs - small.unit_costs) / 2
    crossing = (np.array(large.crossing) - small.crossing) / 2  # floats, other bits, floats with a gradient
    travels, weights, learns, fixed = (np.cumsum(column) for column in state_elements(traced, places))
    return Profile(
        names=traced.cut_names(tensors),
        fwd_cost=np.cumsum(forward),
        bwd_cost=np.cumsum(backward),
        act_bits=crossing[:, 0] * bits + crossing[:, 1],
        grad_bits=crossing[:, 2] * bits,
        param_bits=travels * bits,
        act_memory=np.cumsum(floats * bits / 8 + other_bytes),
        last_bwd_cost=(large.last_backward - small.last_backward) / 2,
        param_memory=(weights + 2 * learns) * bits / 8 + fixed,
    )


def units_of(traced: TracedModel, places: Sequence[Place]) -> dict[fx.Node, int]:
    """Return the unit 1..L that computes each node, 0 for the input; what all sides make anew is its first user's."""
    analysis = traced.structure.analysis
    ends = [place.crossings[True].position for place in places]
    nodes = list(analysis.graph.graph.nodes)
    unit: dict[fx.Node, int] = dict.fromkeys(analysis.graph.inputs, 0)
    for node in nodes:
        if node in analysis.carried and node not in unit:
            unit[node] = int(np.searchsorted(ends, analysis.position[node]))
    for node in reversed(nodes):
        if node not in unit:
            later = [unit[user] for user in node.users if user in unit]
            unit[node] = min(later, default=0) or len(places) - 1
    return unit


def state_elements(traced: TracedModel, places: Sequence[Place]) -> np.ndarray:
    """Return (4, L+1) per unit: elements that travel, elements of weights, of those that train, bytes of the others.

    What no operation uses belongs to the last unit: whoever holds the whole model holds it.
    """
    units = units_of(traced, places)
    unit_of = {
        id(traced.tensors[str(n.target)]): units[n] for n in units if n.op == "get_attr" and n.target in traced.tensors
    }
    persistent = traced.model.state_dict(keep_vars=True)
    kept = {id(tensor) for tensor in persistent.values()}
    counted: set[int] = set()
    found = np.zeros((4, len(places)))
    for tensor in traced.tensors.values():
        if id(tensor) in counted:
            continue
        counted.add(id(tensor))
        unit, n = unit_of.get(id(tensor), len(places) - 1), tensor.numel()
        if not tensor.is_floating_point():
            found[3, unit] += n * tensor.element_size()
            continue
        learns = tensor.requires_grad
        travels = learns or (not isinstance(tensor, nn.Parameter) and id(tensor) in kept)
        found[:3, unit] += n * travels, n, n * learns
    return found


def _trilinear(a: Any, b: Any, c: Any, *args: Any, **kwargs: Any) -> int:
    """FLOP of Bilinear's kernel: inputs (N, 1, I, 1) and (N, 1, 1, J), weights (1, O, I, J)."""
    first, weight, second = a.shape, b.shape, c.shape
    return 2 * first[0] * weight[-3] * weight[-2] * second[-1]


def _product(a: Any, b: Any, *args: Any, **kwargs: Any) -> int:
    return 2 * a.numel()


# Products that PyTorch's counter leaves out.
_FORMULAS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mv: _product,
    torch.ops.aten.dot: _product,
    torch.ops.aten.vdot: _product,
    torch.ops.aten._trilinear: _trilinear,
}
_BIAS_FIRST = (torch.ops.aten.addmm, torch.ops.aten.baddbmm)
# Operators that take weights and have no product: what they do is copying, or elementwise.
_WITHOUT_PRODUCT = {
    "embedding", "embedding_bag", "index", "index_select", "gather", "cat", "stack", "expand", "repeat", "clone",
    "copy", "where", "prelu", "sum", "mean", "softmax", "log_softmax", "roll", "pad", "flip", "interpolate", "std",
    "var", "cumsum", "norm", "linalg_vector_norm", "batch_norm", "layer_norm", "group_norm", "instance_norm",
    "rms_norm", "normal", "uniform", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d",
    "weight_norm_interface", "weight_norm", "repeat_interleave",
}  # fmt: skip


class _Count(GraphRun):
    """Adds up per unit, on the meta device: forward and backward FLOP, saved floats, other saved bytes."""

    @classmethod
    def of(cls, traced: TracedModel, places: Sequence[Place], batch_size: int) -> Self:
        run = cls(traced, places)
        counter = FlopCounterMode(display=False)
        known = {getattr(op, "overloadpacket", op): formula for op, formula in counter.flop_registry.items()}
        counter.flop_registry = {op: partial(run._count, op, formula) for op, formula in known.items()} | {
            op: partial(run._count_raw, op, formula) for op, formula in _FORMULAS.items()
        }
        example = traced.structure.example.of_batch(batch_size)
        try:
            with torch.enable_grad(), saved_tensors_hooks(run._note_saved, lambda saved: saved), counter:
                run.start(example)
        except Exception as cause:  # whatever an operator says that the meta device cannot do
            reason = (str(cause).splitlines() or [""])[0]
            want, got = "operators that can be counted without data", f"{type(cause).__name__}: {reason}"
            fix = "measure the model instead: psl.measure"
            raise expected("profile", want, got, fix, CutError) from cause
        return run

    def __init__(self, traced: TracedModel, places: Sequence[Place]):
        super().__init__(traced, ghosts(traced), torch.device("meta"))
        analysis = traced.structure.analysis
        self.unit_of = units_of(traced, places)
        self.unit_costs = np.zeros((4, len(places)))
        self._counted = {StorageWeakRef(tensor.untyped_storage()) for tensor in self.state.values()}
        self._useful = _with_gradient(analysis)
        self._analysis = analysis
        self._crossing_at: dict[fx.Node, list[int]] = {}
        for j, place in enumerate(places):
            here = interface_at(analysis, place.crossings[True])
            for node in (*here.tensors, *here.side):
                self._crossing_at.setdefault(node, []).append(j)
        self.crossing = np.zeros((len(places), 3))
        self.unknown: dict[str, str] = {}
        self._node: fx.Node | None = None
        self.last_backward = 0.0

    def run_node(self, n: fx.Node) -> Any:
        self._node, before = n, self.unit_costs[0].sum()
        value = super().run_node(n)
        if n.op == "call_function" and self.unit_costs[0].sum() == before and self._has_weights(n):
            self.unknown[n.meta["path"] or n.name] = operator_name(n)
        for j in self._crossing_at.get(n, ()):
            floating = value.is_floating_point()
            learns = value.requires_grad and j > 0 and n in self._useful
            width = 0 if floating else value.numel() * value.element_size() * 8
            self.crossing[j] += value.numel() * floating, width, value.numel() * learns
        return value

    def _has_weights(self, n: fx.Node) -> bool:
        """Return whether an operation has weights of two dimensions or more, and may hold a product."""
        roots = [self._analysis.root[source] for source in n.all_input_nodes]
        if not any(r.op == "get_attr" and r.meta["val"].ndim > 1 and r.meta["val"].requires_grad for r in roots):
            return False
        if n.target is operator.getitem or may_alias(n) is not None or operator_name(n) in _WITHOUT_PRODUCT:
            return False
        return not (isinstance(n.target, Operator) and torch.Tag.pointwise in n.target.tags)

    def _count_raw(self, op: object, formula: Callable[..., int], *args: Any, **kwargs: Any) -> int:
        kwargs.pop("out_val", None)
        return self._add(op, formula(*args), args)

    def _count(self, op: object, formula: Callable[..., int], *args: Any, **kwargs: Any) -> int:
        """Add what an operator costs; called by PyTorch's counter in place of the operator's own formula."""
        return self._add(op, formula(*args, **kwargs), args)

    def _add(self, op: object, flops: int, args: tuple[Any, ...]) -> int:
        # The backward pass of A·B has one product of the same size for each factor that needs a gradient. PyTorch's
        # own count of a convolution's backward pass ignores `groups`, so it is not used here.
        factors = args[1:3] if op in _BIAS_FIRST else args[:3] if op is torch.ops.aten._trilinear else args[:2]
        assert self._node is not None
        needs = self._node in self._useful
        backward = flops * sum(factor.requires_grad for factor in factors) if needs else 0
        if needs:
            self.last_backward = backward
        self.unit_costs[:2, self.unit_of[self._node]] += flops, backward
        return flops

    def _note_saved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add the memory of a tensor that autograd keeps, unless another one that shares it was added before."""
        memory = tensor.untyped_storage()
        if (key := StorageWeakRef(memory)) not in self._counted:
            self._counted.add(key)
            assert self._node is not None
            unit = self.unit_of[self._node]
            if tensor.is_floating_point():
                self.unit_costs[2, unit] += memory.nbytes() / tensor.element_size()
            else:  # masks and indices keep their width whatever `bits` is
                self.unit_costs[3, unit] += memory.nbytes()
        return tensor


def _with_gradient(analysis: Any) -> set[fx.Node]:
    """Return the operations through which a gradient flows back from the output."""
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in analysis.graph.calls:
        for target in overwritten(node):
            writers.setdefault(analysis.root[target], []).append(node)
    todo = [node for node in analysis.graph.outputs if isinstance(node, fx.Node)]
    found: set[fx.Node] = set()
    while todo:
        node = todo.pop()
        modes = [region[1] for region in node.meta.get("regions", ()) if region[0] == "grad"]
        if node in found or (modes and not modes[-1]) or operator_name(node) == "detach":
            continue
        found.add(node)
        todo += [*node.all_input_nodes, *writers.get(analysis.root[node], [])]
    return found
