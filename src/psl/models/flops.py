"""Profile a model by counting its operators on the meta device."""

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import fx, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from psl.errors import check_count
from psl.models.cut_points import target_of
from psl.models.shapes import MetaRun
from psl.models.tracing import TracedModel, trace
from psl.profiles import Profile


def profile(model: nn.Module, example: tuple[int, ...], *, bits: int = 32) -> Profile:
    """Count what every unit of a model costs, without running it.

    FLOP are those of convolutions and matrix products: what PyTorch's counter and published counts include. One
    multiply-add is 2 FLOP. Elementwise operations are left out. A layer's backward pass costs one product for its
    weights and one for its input; the raw input needs none. `act_memory` is what autograd keeps in train mode.

    Args:
        model: `nn.Module` with one input and one output that torch.fx can trace; not modified.
        example: shape of one sample, for example ``(3, 224, 224)``.
        bits: bits per element of activations, gradients and parameters; 32 for float32.

    Returns:
        A `Profile` with one entry per cut of `psl.cuts`.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.

    Source: EPSL (arXiv 2303.15991) and EdgeSplit (arXiv 2403.15815) start from such a table; how it is counted is
    ours [R].
    """
    check_count("bits", bits)
    traced = trace(model)
    # The cost of one more sample is half of what a batch of 4 costs beyond a batch of 2: what is paid once per batch
    # drops out. (BatchNorm in train mode refuses a batch of 1 where a feature map is 1 × 1.)
    small, large = (_Count.of(traced, example, batch_size) for batch_size in (2, 4))
    forward, backward, floats, other_bytes = (large.unit_costs - small.unit_costs) / 2
    elements = (np.array(large.cut_elements) - small.cut_elements) / 2
    return Profile(
        names=traced.cut_names,
        fwd_cost=np.cumsum(forward),
        bwd_cost=np.cumsum(backward),
        act_bits=elements * bits,
        grad_bits=elements * bits,
        param_bits=np.cumsum(parameter_elements(traced)) * bits,
        act_memory=np.cumsum(floats * bits / 8 + other_bytes),
        last_bwd_cost=(large.last_backward - small.last_backward) / 2,
    )


def parameter_elements(traced: TracedModel) -> np.ndarray:
    """Return how many parameter elements each unit 0..L holds; unit 0, the input, has none."""
    unit_of, counted = traced.units_with_constants(), set()
    elements = np.zeros(len(traced.cut_nodes))
    for node in traced.graph.nodes:
        parameters: list[nn.Parameter] = []
        if node.op == "call_module":
            parameters = list(traced.model.get_submodule(target_of(node)).parameters())
        elif node.op == "get_attr":
            value = traced.attribute(target_of(node))
            parameters = [value] if isinstance(value, nn.Parameter) else []
        for parameter in parameters:
            if id(parameter) not in counted:
                counted.add(id(parameter))
                elements[unit_of[node]] += parameter.numel()
    return elements


class _Count(MetaRun):
    """Adds up per unit, on the meta device: forward and backward FLOP, saved floats, other saved bytes."""

    @classmethod
    def of(cls, traced: TracedModel, example: tuple[int, ...], batch_size: int) -> Self:
        run = cls(traced)
        run.module.train()
        counter = FlopCounterMode(display=False)
        counter.flop_registry = {
            operator: partial(run._count, operator, formula) for operator, formula in counter.flop_registry.items()
        }
        with torch.enable_grad(), saved_tensors_hooks(run._note_saved, lambda saved: saved), counter:
            run.start(example, batch_size)
        return run

    def __init__(self, traced: TracedModel):
        super().__init__(traced)
        self.unit_of, self.cut_nodes = traced.units_with_constants(), set(traced.cut_nodes)
        self.unit_costs = np.zeros((4, len(traced.cut_nodes)))
        self.cut_elements: list[int] = []
        state = [*self.module.parameters(), *self.module.buffers()]
        self._counted = {StorageWeakRef(tensor.untyped_storage()) for tensor in state}
        self._unit, self.last_backward = 0, 0.0

    def run_node(self, node: fx.Node) -> Any:
        self._unit = self.unit_of[node]
        value = super().run_node(node)
        if node in self.cut_nodes:
            self.cut_elements.append(value.numel())
        return value

    def _count(self, operator: object, formula: Callable[..., int], *args: Any, **kwargs: Any) -> int:
        """Add what an operator costs; called by PyTorch's counter in place of the operator's own formula."""
        flops = formula(*args, **kwargs)
        # The backward pass of A·B has one product of the same size for each factor that needs a gradient. PyTorch's
        # own count of a convolution's backward pass ignores `groups`, so it is not used here.
        bias_first = operator in (torch.ops.aten.addmm, torch.ops.aten.baddbmm)
        factors = args[1:3] if bias_first else args[:2]
        self.last_backward = flops * sum(factor.requires_grad for factor in factors)
        self.unit_costs[:2, self._unit] += flops, self.last_backward
        return flops

    def _note_saved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add the memory of a tensor that autograd keeps, unless another one that shares it was added before."""
        memory = tensor.untyped_storage()
        if (key := StorageWeakRef(memory)) not in self._counted:
            self._counted.add(key)
            if tensor.is_floating_point():
                self.unit_costs[2, self._unit] += memory.nbytes() / tensor.element_size()
            else:  # masks and indices keep their width whatever `bits` is
                self.unit_costs[3, self._unit] += memory.nbytes()
        return tensor
