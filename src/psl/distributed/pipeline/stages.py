"""Stages of a pipeline on torch.distributed.pipelining, slowed down and recorded."""

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage

from psl.distributed.edge.emulate import Compute
from psl.distributed.edge.pacing import DelayLine
from psl.errors import PSLError, expected


class EdgeStage(PipelineStage):
    """One process of a pipeline: some layers of the model, or none in a relay, which stores and forwards.

    Shapes are given for both sides, so that torch has nothing to ask a neighbour for: it would send pickled objects,
    which this stage refuses to receive. Images travel in the order in which the layers keep them, so nothing is copied.
    Only what the layers compute is slowed down, not the bookkeeping around them.

    Args:
        module: the layers; None for a relay.
        index, count: of the stage, among so many.
        example, output_shape: with the micro-batch in front.
        layout: memory format of the layers' images.
        compute: slows forward and backward down and records them.
        lines: of what goes forward and backward; None where nothing delays it.
        seed_for: called with the round and the number of a micro-batch before it is computed forward.
        arrived: called with kind, number and time when a message has come in; by the schedule "eager" alone.
        record: called with "out" or "in", the kind's name, a step (round times the number of micro-batches, plus the
            micro-batch) and the tensor of everything that crosses.
        device: of the layers; micro-batches cross from there, by the group's engine for it.
        group: process group; default the default one.

    Attributes:
        ends: shapes of a sample as it comes in and as it goes out, in the order of the wire.
        round: index of the round, for `record` and `seed_for`.
    """

    def __init__(
        self,
        module: nn.Module | None,
        index: int,
        count: int,
        example: Sequence[int],
        output_shape: Sequence[int],
        *,
        layout: torch.memory_format = torch.contiguous_format,
        compute: Compute | None = None,
        lines: tuple[DelayLine | None, DelayLine | None] = (None, None),
        seed_for: Callable[[int, int], None] | None = None,
        arrived: Callable[[str, int, float], None] | None = None,
        record: Callable | None = None,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ):
        compute = compute or Compute()
        swap = layout == torch.channels_last
        swap_in, swap_out = swap and index > 0, swap and index < count - 1
        inlet = torch.empty(_on_the_wire(example, swap_in), device="meta", requires_grad=index > 0)
        outlet = torch.empty(_on_the_wire(output_shape, swap_out), device="meta", requires_grad=True)
        layers = _Layers(module, compute, swap_in, swap_out)
        super().__init__(layers, index, count, torch.device(device), inlet, outlet, group=group)
        self.ends = tuple(inlet.shape[1:]), tuple(outlet.shape[1:])
        self.compute, self._layers, self._number = compute, layers, 0
        self.lines, self.arrived = lines, arrived or (lambda kind, number, when: None)
        self.round, self._record, self._seed_for = 0, record, seed_for

    def _recv_meta(self, src_stage):
        self._refuse(f"a request to unpickle those of stage {src_stage}")

    def _send_meta(self, meta, dst_stage):
        self._refuse(f"a request to pickle them for stage {dst_stage}")

    def _refuse(self, got):
        want, fix = "shapes given on both sides", "start every stage with the same plan"
        raise expected(f"stage {self.stage_index}", want, got, fix, PSLError)

    def _warmup_forward_vote(self, *args, **kwargs):
        vote = super()._warmup_forward_vote(*args, **kwargs)
        return self._voted(vote, came=not self.is_first, goes=not self.is_last)

    def _warmup_backward_result(self, *args, **kwargs):
        vote = super()._warmup_backward_result(*args, **kwargs)
        return self._voted(vote, came=not self.is_last, goes=not self.is_first)

    def _voted(self, vote, came, goes):
        """Record torch's own messages before the first micro-batch: one number, whether shapes are known (1)."""
        for way, crossed in (("in", came), ("out", goes)):
            if crossed:
                self._crossed(way, "vote", 0, vote)
        return vote

    def _crossed(self, way, kind, number, *tensors):
        for tensor in tensors if self._record is not None else ():
            self._record(way, kind, self.round * (self.chunks or 1) + number, tensor)

    def _validate_fwd_input(self, *arguments):
        """Torch 2.11 wants all micro-batches as large as the first; their sizes are agreed on before every round."""

    def _validate_fwd_outputs(self, *arguments):
        """As `_validate_fwd_input`."""

    def forward_one_chunk(self, fwd_chunk_id, args, kwargs=None, save_forward_output=True):
        """Compute one micro-batch forward, as slowly as the device emulated."""
        self._layers.number = fwd_chunk_id
        if not self.is_first:
            self._crossed("in", "activation", fwd_chunk_id, *_buffers(self.args_recv_info[fwd_chunk_id]))
        if self._seed_for is not None:
            self._seed_for(self.round, fwd_chunk_id)
        return super().forward_one_chunk(fwd_chunk_id, args, kwargs, save_forward_output)

    def backward_one_chunk(self, bwd_chunk_id, loss=None, full_backward=True, last_backward=False):
        """Compute one micro-batch backward, as slowly as the device emulated."""
        self._number = bwd_chunk_id
        if not self.is_last:
            self._crossed("in", "gradient", bwd_chunk_id, *_buffers(self.grad_recv_info[bwd_chunk_id]))
        return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_maybe_with_nosync(self, *args, **kwargs):
        """Run autograd; the part of `backward_one_chunk` that computes."""
        with self.compute("backward", self._number):
            return super().backward_maybe_with_nosync(*args, **kwargs)

    def get_fwd_send_ops(self, fwd_chunk_id):
        """Return what to send forward; nothing if a delay line takes it."""
        operations = super().get_fwd_send_ops(fwd_chunk_id)
        self._crossed("out", "activation", fwd_chunk_id, *(operation.tensor for operation in operations))
        return self._delayed(self.lines[0], operations)

    def get_bwd_send_ops(self, bwd_chunk_id):
        """Return what to send backward; nothing if a delay line takes it."""
        operations = super().get_bwd_send_ops(bwd_chunk_id)
        self._crossed("out", "gradient", bwd_chunk_id, *(operation.tensor for operation in operations))
        return self._delayed(self.lines[1], operations)

    def _delayed(self, line, operations):
        if line is None:
            return operations
        for operation in operations:
            bits = 8 * operation.tensor.element_size() * operation.tensor.numel()
            line.put(bits, lambda operation=operation: begin(operation).wait())
        return []

    def flush(self, timeout: float | None = None) -> None:
        """Wait until the delay lines are empty."""
        for line in filter(None, self.lines):
            line.flush(timeout)

    def close(self) -> None:
        """End the delay lines."""
        for line in filter(None, self.lines):
            line.close()


def _buffers(infos) -> list[torch.Tensor]:
    return [info.buffer for info in infos if info.buffer is not None]


class _Layers(nn.Module):
    """The layers of a stage; images come and go in the order of the wire, (b, H, W, C), where the flags say so."""

    def __init__(self, module: nn.Module | None, compute: Compute, swap_in: bool, swap_out: bool):
        super().__init__()
        self.module, self.compute, self.number = module or nn.Identity(), compute, 0
        self.swap_in, self.swap_out = swap_in and module is not None, swap_out and module is not None

    def forward(self, x):
        if self.swap_in and x.ndim == 4:
            x = x.permute(0, 3, 1, 2)
        with self.compute("forward", self.number):
            y = self.module(x)
        if self.swap_out and y.ndim == 4:
            y = y.permute(0, 2, 3, 1)
        return y.contiguous()


def _on_the_wire(shape: Sequence[int], swap: bool) -> tuple[int, ...]:
    if swap and len(shape) == 4:
        b, c, h, w = shape
        return b, h, w, c
    return tuple(shape)


def begin(operation: dist.P2POp) -> dist.Work:
    """Start a send or receive."""
    return operation.op(operation.tensor, operation.peer, operation.group, operation.tag)
