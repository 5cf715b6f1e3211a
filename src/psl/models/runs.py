"""Run a traced model operation by operation, on its own device or on the meta device, which computes nothing."""

import copy
import itertools
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import fx, nn

from psl.models.examples import Example
from psl.models.graphs import region_context
from psl.models.tracing import TracedModel

Module = TypeVar("Module", bound=nn.Module)


def meta_copy(module: Module) -> Module:
    """Return a copy of a module on the meta device, without copying a single weight."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        ghost = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        memo[id(tensor)] = nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
    return copy.deepcopy(module, memo)


def ghosts(traced: TracedModel) -> dict[str, torch.Tensor]:
    """Return the model's parameters, buffers and constants on the meta device, by name; shared ones stay shared."""
    made: dict[int, torch.Tensor] = {}
    for tensor in (*traced.tensors.values(), *traced.constants.values()):
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
    return {name: made[id(tensor)] for name, tensor in (traced.constants | traced.tensors).items()}


class GraphRun(fx.Interpreter):
    """Runs the train mode's operations of a traced model; a subclass looks at every operation as it runs.

    Args:
        traced: the model.
        state: parameters, buffers and constants by name.
        device: where they are.
    """

    def __init__(self, traced: TracedModel, state: dict[str, torch.Tensor], device: torch.device):
        graph = traced.structure.analysis.graph
        super().__init__(nn.Module(), graph=graph.graph, garbage_collect_values=True)
        self.state, self.device = state, device

    def fetch_attr(self, target: str) -> torch.Tensor:
        """Return a parameter, a buffer or a constant."""
        return self.state[target]

    def run_node(self, n: fx.Node) -> Any:
        """Run an operation under the contexts in which forward runs it."""
        with ExitStack() as stack:
            for region in n.meta.get("regions", ()):
                stack.enter_context(region_context(region, self.device))
            return super().run_node(n)

    def start(self, example: Example) -> list[Any]:
        """Run on inputs and return what the graph lists as outputs."""
        # Placeholders come in the order of the graph: the device, then the inputs.
        return self.run(self.device, *(tensor.to(self.device) for tensor in example.tensors))
