"""Run a traced model on the meta device: shapes without memory or arithmetic."""

import copy
import itertools
from typing import Any, TypeVar

import torch
from torch import fx, nn

from psl.errors import CutError, expected
from psl.models.tracing import TracedModel

Module = TypeVar("Module", bound=nn.Module)


def meta_copy(module: Module) -> Module:
    """Return a copy of a module on the meta device, without copying a single weight."""
    memo: dict[int, Any] = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        ghost = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        memo[id(tensor)] = nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
    return copy.deepcopy(module, memo)


class MetaRun(fx.Interpreter):
    """Runs a traced model node by node on the meta device; a subclass looks at every node as it runs."""

    def __init__(self, traced: TracedModel):
        super().__init__(meta_copy(traced.model), graph=traced.graph)
        for name, tensor in traced.constants.items():
            setattr(self.module, name, tensor.to("meta"))

    def start(self, example: tuple[int, ...], batch_size: int) -> torch.Tensor:
        """Run a batch of samples of shape `example`.

        Raises:
            CutError: the model does not take samples of this shape.
        """
        try:
            shape = (batch_size, *(int(n) for n in example))
            return self.run(torch.empty(shape, device="meta"))
        except CutError:
            raise
        except Exception as cause:  # whatever an operation says about sizes that it cannot take
            reason = (str(cause).splitlines() or [""])[0]
            want = "the shape of one sample that the model takes"
            got = f"{example!r}, at which the model says: {type(cause).__name__}: {reason}"
            fix = "pass it without the batch dimension, such as (3, 224, 224)"
            raise expected("example", want, got, fix, CutError) from cause


class _CutShapes(MetaRun):
    def __init__(self, traced: TracedModel):
        super().__init__(traced)
        self.cut_nodes = set(traced.cut_nodes)
        self.shapes: list[torch.Size] = []

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.cut_nodes:
            if not isinstance(value, torch.Tensor):
                raise expected(f"node {node.name!r}", "one tensor", type(value).__name__, "return a tensor", CutError)
            self.shapes.append(value.shape)
        return value


def cut_shapes(traced: TracedModel, example: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape of one sample's tensor at every cut, wherever the batch dimension stands there."""
    shapes: dict[int, list[torch.Size]] = {}
    for batch_size in (2, 4):
        run = _CutShapes(traced)
        with torch.no_grad():
            run.start(example, batch_size)
        shapes[batch_size] = run.shapes
    return [_one_sample(small, large) for small, large in zip(shapes[2], shapes[4], strict=True)]


def _one_sample(small: torch.Size, large: torch.Size) -> tuple[int, ...]:
    """Return one sample's shape from those of batches of 2 and 4: the axis that grows is the batch, or contains it."""
    kept = [a if a == b else a // 2 for a, b in zip(small, large, strict=True)]
    return tuple(n for n, a, b in zip(kept, small, large, strict=True) if a == b or n != 1)
