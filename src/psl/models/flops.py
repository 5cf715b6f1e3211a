"""Profile a model by counting its operators on the meta device."""

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from psl.errors import check_count
from psl.models.shapes import MetaRun
from psl.models.tracing import TracedModel, trace
from psl.profiles import Profile


def profile(model: nn.Module, example: tuple[int, ...], *, bits: int = 32) -> Profile:
    """Count what every unit of a model costs, without running it.

    Args:
        model: single-input, single-output `nn.Module` that torch.fx can trace; not modified.
        example: shape of one sample, for example ``(3, 224, 224)``.
        bits: bits per element of activations, gradients and parameters (32 for float32).

    Returns:
        A `Profile` with one entry per cut of ``psl.cuts``. FLOP are those of convolutions and matrix
        products (what PyTorch's counter and published multiply-add counts include; elementwise
        operations are left out), with one multiply-add = 2 FLOP. Backward is one product for the
        weights and one for the input of each layer, none for the raw input. `act_memory` is what
        autograd keeps in train mode.

    Raises:
        CutError: the model cannot be traced, or `example` does not fit it.

    Source: EPSL (arXiv 2303.15991) and EdgeSplit (2403.15815) take such a table as given; how it is
        counted is ours [R].
    """
    check_count("bits", bits)
    traced = trace(model)
    # The cost of one more sample: what a batch of 4 costs beyond one of 2. Leaves out what is paid
    # once per batch. (BatchNorm in train mode refuses a batch of 1 where a feature map is 1 × 1.)
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
    """Return how many parameter elements each unit 0..L holds (unit 0, the input, none)."""
    unit_of, counted = traced.units_with_constants(), set()
    elements = np.zeros(len(traced.cut_nodes))
    for node in traced.graph.nodes:
        parameters = []
        if node.op == "call_module":
            parameters = list(traced.model.get_submodule(node.target).parameters())
        elif node.op == "get_attr":
            value = traced.attribute(node.target)
            parameters = [value] if isinstance(value, nn.Parameter) else []
        for parameter in parameters:
            if id(parameter) not in counted:
                counted.add(id(parameter))
                elements[unit_of[node]] += parameter.numel()
    return elements


class _Count(MetaRun, TorchDispatchMode):
    """Adds up per unit, on the meta device: forward and backward FLOP, saved floats, other saved bytes."""

    @classmethod
    def of(cls, traced, example, batch_size):
        run = cls(traced)
        run.module.train()
        with torch.enable_grad(), saved_tensors_hooks(run._note_saved, lambda saved: saved):
            run.start(example, batch_size)
        return run

    def __init__(self, traced):
        MetaRun.__init__(self, traced)
        TorchDispatchMode.__init__(self)
        self.unit_of, self.cut_nodes = traced.units_with_constants(), set(traced.cut_nodes)
        self.unit_costs = np.zeros((4, len(traced.cut_nodes)))
        self.cut_elements: list[int] = []
        state = [*self.module.parameters(), *self.module.buffers()]
        self._counted = {id_of_storage(tensor): tensor for tensor in state}
        self._unit, self.last_backward = 0, 0.0

    def run_node(self, node):
        self._unit = self.unit_of[node]
        with self:
            value = super().run_node(node)
        if node in self.cut_nodes:
            self.cut_elements.append(value.numel())
        return value

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        value = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            flops = formula(*args, **(kwargs or {}), out_val=value)
            # d(A·B) is one product of the same size for each factor that needs a gradient. PyTorch's
            # own count of a convolution's backward pass ignores `groups`, hence not used here.
            bias_first = function._overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.baddbmm)
            factors = args[1:3] if bias_first else args[:2]
            self.last_backward = flops * sum(factor.requires_grad for factor in factors)
            self.unit_costs[:2, self._unit] += flops, self.last_backward
        return value

    def _note_saved(self, tensor):
        key = id_of_storage(tensor)
        if key not in self._counted:
            self._counted[key] = tensor  # held, so that the key is not given out again
            size = tensor.untyped_storage().nbytes()
            if tensor.is_floating_point():
                self.unit_costs[2, self._unit] += size / tensor.element_size()
            else:  # masks and indices keep their width whatever `bits` is
                self.unit_costs[3, self._unit] += size
        return tensor


def id_of_storage(tensor: torch.Tensor) -> int:
    """Return a number that tensors sharing memory have in common, also on the meta device."""
    return tensor.untyped_storage()._cdata
