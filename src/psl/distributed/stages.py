"""Stages of a pipeline on torch.distributed.pipelining, and the schedules by which micro-batches go through them."""

import threading
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from psl.distributed.emulate import Compute
from psl.distributed.pacing import DelayLine
from psl.errors import PSLError, expected


class EdgeStage(PipelineStage):
    """One process of a pipeline: some layers of the model, or none in a relay, which stores and forwards.

    Shapes are given for both sides, so that torch has nothing to ask a neighbour for: it would send pickled objects,
    which this stage refuses to receive. Images travel in the order in which the layers keep them, so nothing is copied.
    Only what the layers compute is slowed down, not the bookkeeping around them.

    Args:
        module: the layers; None for a relay.
        index, count: of the stage, among so many.
        input_shape, output_shape: with the micro-batch in front.
        layout: memory format of the layers' images.
        compute: slows forward and backward down and records them.
        lines: of what goes forward and backward; None where nothing delays it.
        arrived: called with kind, number and time when a message has come in; by the schedule "eager" alone.
        record: called with "out" or "in", the kind's name, a step (round times the number of micro-batches, plus the
            micro-batch) and the tensor of everything that crosses.
        device: of the layers; micro-batches cross from there, by the group's engine for it.
        group: process group; default the default one.

    Attributes:
        ends: shapes of a sample as it comes in and as it goes out, in the order of the wire.
        round: index of the round, for `record`.
    """

    def __init__(
        self,
        module: nn.Module | None,
        index: int,
        count: int,
        input_shape: Sequence[int],
        output_shape: Sequence[int],
        *,
        layout: torch.memory_format = torch.contiguous_format,
        compute: Compute | None = None,
        lines: tuple[DelayLine | None, DelayLine | None] = (None, None),
        arrived: Callable[[str, int, float], None] | None = None,
        record: Callable | None = None,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ):
        compute = compute or Compute()
        swap = layout == torch.channels_last
        swap_in, swap_out = swap and index > 0, swap and index < count - 1
        inlet = torch.empty(_on_the_wire(input_shape, swap_in), device="meta", requires_grad=index > 0)
        outlet = torch.empty(_on_the_wire(output_shape, swap_out), device="meta", requires_grad=True)
        layers = _Layers(module, compute, swap_in, swap_out)
        super().__init__(layers, index, count, torch.device(device), inlet, outlet, group=group)
        self.ends = tuple(inlet.shape[1:]), tuple(outlet.shape[1:])
        self.compute, self._layers, self._number = compute, layers, 0
        self.lines, self.arrived = lines, arrived or (lambda kind, number, when: None)
        self.round, self._record = 0, record

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

    def forward_one_chunk(self, fwd_chunk_id, args, kwargs=None, save_forward_output=True):
        """Compute one micro-batch forward, as slowly as the device emulated."""
        self._layers.number = fwd_chunk_id
        if not self.is_first:
            self._crossed("in", "activation", fwd_chunk_id, *_buffers(self.args_recv_info[fwd_chunk_id]))
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


class _MicroBatches:
    """What the schedules here add to torch's: micro-batches of given sizes, of which the last may be smaller.

    Args:
        stage: the stage of this process.
        sizes: samples of each micro-batch.
        loss: maps outputs and labels to one loss per row.
    """

    def __init__(self, stage: EdgeStage, sizes: Sequence[int], loss: Callable):
        total = sum(sizes)

        def share_of_loss(outputs, labels):
            with stage.compute("loss"):
                return loss(outputs, labels).mean() * (len(labels) / total)

        self.sizes = list(sizes)
        super().__init__(stage, len(self.sizes), loss_fn=share_of_loss, scale_grads=False)

    def mini_batch(self, inputs: torch.Tensor | None, labels: torch.Tensor | None) -> torch.Tensor:
        """Send a mini-batch through and add up its gradients.

        Args:
            inputs: in the first stage, else None.
            labels: in the last stage, else None.

        Returns:
            The mean loss of the mini-batch in the last stage, 0 in the others.
        """
        stage, losses = self._stage, []
        stage.has_backward = True
        stage.clear_runtime_states()
        none = [()] * len(self.sizes)
        arguments = none if inputs is None else [(part,) for part in inputs.split(self.sizes)]
        targets = None if labels is None else list(labels.split(self.sizes))
        self._step_microbatches(arguments, [{} for _ in self.sizes], targets, losses, False)
        return sum((loss.detach() for loss in losses), torch.zeros(()))

    def _initialize_stage(self, args, kwargs, target=None):
        if self._stage_forward_initialized:
            return
        super()._initialize_stage(args, kwargs, target)
        for m, n in enumerate(self.sizes):
            for info in (*self._stage.args_recv_info[m], *self._stage.grad_recv_info[m]):
                if info.buffer is not None and len(info.buffer) != n:
                    info.buffer = info.buffer[:n].clone()


class GPipe(_MicroBatches, ScheduleGPipe):
    """All forwards, then all backwards, as torch does it."""


class OneForwardOneBackward(_MicroBatches, Schedule1F1B):
    """A fixed order of one forward and one backward in turn, as torch does it; as many in flight as stages."""


class Eager(_MicroBatches, PipelineScheduleSingle):
    """Whatever has arrived, backward before forward, the lower micro-batch first: the rule of `psl.simulate`.

    Nothing waits for a message to leave, and receives are posted for all micro-batches at once.

    Source: ours [B]; torch's schedules compute in a fixed order, and wait for what they send.
    """

    def _step_microbatches(self, arg_mbs=None, kwarg_mbs=None, target_mbs=None, losses=None, return_outputs=True):
        arg_mbs, kwarg_mbs = self._check_inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
        self._initialize_stage(arg_mbs[0], kwarg_mbs[0])
        stage, total, sends = self._stage, len(self.sizes), []
        inbox = _Inbox(stage, total)
        forwards = backwards = 0
        while backwards < total:
            kind = inbox.next(forwards, backwards)
            if kind == "backward":
                stage.backward_one_chunk(
                    backwards, loss=self._maybe_get_loss(stage, backwards), last_backward=backwards == total - 1
                )
                sends += map(begin, stage.get_bwd_send_ops(backwards))
                backwards += 1
            else:
                output = stage.forward_one_chunk(forwards, arg_mbs[forwards], {}, save_forward_output=return_outputs)
                self._maybe_compute_loss(stage, output, target_mbs, forwards)
                sends += map(begin, stage.get_fwd_send_ops(forwards))
                forwards += 1
                if stage.is_last:
                    inbox.add("backward")
        for work in sends:
            work.wait()
        self._update_losses(stage, losses)


class _Inbox:
    """Micro-batches that have arrived at a stage, in order, from both sides; a thread waits on each side."""

    def __init__(self, stage: EdgeStage, total: int):
        self._stage, self._total = stage, total
        self._ready = {"forward": total if stage.is_first else 0, "backward": 0}
        self._change, self._failure = threading.Condition(), None
        for kind, operations_of in (("forward", stage.get_fwd_recv_ops), ("backward", stage.get_bwd_recv_ops)):
            works = [begin(operation) for m in range(total) for operation in operations_of(m)]
            if works:
                threading.Thread(target=self._receive, args=(kind, works), name=kind, daemon=True).start()

    def add(self, kind: str) -> None:
        """Note the arrival of the next micro-batch."""
        with self._change:
            self._ready[kind] += 1
            self._change.notify()

    def next(self, forwards: int, backwards: int) -> str:
        """Wait for something to do after so many forwards and backwards, and return "forward" or "backward"."""
        with self._change:
            self._change.wait_for(
                lambda: self._failure or self._ready["backward"] > backwards or self._ready["forward"] > forwards
            )
            if self._failure:
                raise self._failure
            return "backward" if self._ready["backward"] > backwards else "forward"

    def _receive(self, kind: str, works: list[dist.Work]) -> None:
        try:
            for m, work in enumerate(works):
                work.wait()
                self._stage.arrived(kind, m, time.monotonic())
                self.add(kind)
        except BaseException as failure:  # raised in the thread that computes
            with self._change:
                self._failure = failure
                self._change.notify()


#: Schedules by the name of their order.
SCHEDULES = {"eager": Eager, "gpipe": GPipe, "1f1b": OneForwardOneBackward}
