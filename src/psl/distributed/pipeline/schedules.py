"""The schedules by which micro-batches go through the stages of a pipeline: torch's own, and one by arrival."""

import threading
import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch.distributed.pipelining import Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from psl.distributed.pipeline.stages import EdgeStage, begin


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

    def _initialize_stage(self, *arguments):  # torch 2.12 passes a target too
        if self._stage_forward_initialized:
            return
        super()._initialize_stage(*arguments)
        for m, n in enumerate(self.sizes):
            for info in (*self._stage.args_recv_info[m], *self._stage.grad_recv_info[m]):
                buffer = getattr(info, "buffer", None)  # the data's place in the first stage has none
                if buffer is not None and len(buffer) != n:
                    info.buffer = buffer[:n].detach().clone().requires_grad_(buffer.requires_grad)


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
