"""Run a traced model on the meta device: shapes without memory or arithmetic."""

import copy
import itertools

import torch
from torch import fx, nn

from psl.errors import CutError, expected
from psl.models.tracing import TracedModel


def meta_copy(module: nn.Module) -> nn.Module:
    """Return a copy of a module on the meta device, without copying a single weight."""
    memo = {}
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        ghost = torch.empty_like(tensor, device="meta", requires_grad=tensor.requires_grad)
        memo[id(tensor)] = nn.Parameter(ghost, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else ghost
    return copy.deepcopy(module, memo)


class MetaRun(fx.Interpreter):
    """Interpret a traced model on the meta device; subclasses look at every node as it runs."""

    def __init__(self, traced: TracedModel):
        super().__init__(meta_copy(traced.model), graph=traced.graph)
        for name, tensor in traced.constants.items():
            setattr(self.module, name, tensor.to("meta"))

    def start(self, example: tuple[int, ...], batch_size: int) -> torch.Tensor:
        """Run a batch of samples of `example`; raises `CutError` if the shape does not fit."""
        try:
            shape = (batch_size, *(int(n) for n in example))
            return self.run(torch.empty(shape, device="meta"))
        except CutError:
            raise
        except Exception as cause:  # whatever an operation says about sizes it cannot take
            reason = (str(cause).splitlines() or [""])[0]
            raise expected(
                "example", "the shape of one sample that the model takes", f"{example!r}, at which "
                f"the model says: {type(cause).__name__}: {reason}",
                "pass it without the batch dimension, such as (3, 224, 224)", CutError,
            ) from cause  # fmt: skip


class _CutShapes(MetaRun):
    def __init__(self, traced):
        super().__init__(traced)
        self.cut_nodes, self.shapes = set(traced.cut_nodes), []

    def run_node(self, node):
        value = super().run_node(node)
        if node in self.cut_nodes:
            if not isinstance(value, torch.Tensor):
                raise expected(f"node {node.name!r}", "one tensor", type(value).__name__, "return a tensor", CutError)
            self.shapes.append(value.shape)
        return value


def cut_shapes(traced: TracedModel, example: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape of one sample's tensor at every cut, wherever the batch dimension stands there."""
    shapes = {}
    for batch_size in (2, 4):
        run = _CutShapes(traced)
        with torch.no_grad():
            run.start(example, batch_size)
        shapes[batch_size] = run.shapes
    return [_one_sample(small, large) for small, large in zip(shapes[2], shapes[4], strict=True)]


def _one_sample(small: torch.Size, large: torch.Size) -> tuple[int, ...]:
    """What a batch of 2 and one of 4 have in common: the axis that grows is the batch, or is folded with it."""
    kept = [a if a == b else a // 2 for a, b in zip(small, large, strict=True)]
    return tuple(n for n, a, b in zip(kept, small, large, strict=True) if a == b or n != 1)
