"""Which part of a training step is computed just now: forward, backward, or the optimizer's step."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterable

import torch

from psl.training.frameworks import Framework


class Segments:
    """Runs a step of training inside one context per part, without a second copy of the step.

    The loss is called once all forward passes are done, and an optimizer steps once all backward passes are: there the
    next part begins. So the step function itself stays that of `psl.train`.

    Args:
        compute: ``compute(kind, number)`` returns the context of a part; `psl.distributed.edge.emulate.Compute`.
    """

    def __init__(self, compute: Callable):
        self._compute = compute
        self._stack: contextlib.ExitStack | None = None
        self._kind, self._number = "", 0

    @contextlib.contextmanager
    def __call__(self, kind: str, number: int):
        """Begin with a part, within the context; with "" the first `switch` begins one."""
        with contextlib.ExitStack() as stack:
            self._stack = stack
            self._enter(kind, number)
            try:
                yield
            finally:
                self._kind, self._stack = "", None

    def switch(self, kind: str) -> None:
        """End the part under way and begin the next, unless it is that one already; outside a step nothing happens."""
        if self._stack is not None and self._kind != kind:
            self._stack.pop_all().close()
            self._enter(kind, self._number)

    def around_loss(self, loss: Callable) -> Callable:
        """Return the loss, which now begins the part "backward" when it is called."""

        @functools.wraps(loss, updated=())
        def marked(outputs, labels):
            self.switch("backward")
            return loss(outputs, labels)

        return marked

    def attach(self, run: Framework) -> Framework:
        """Watch the steps of a framework; returns it."""
        run.config = dataclasses.replace(run.config, loss=self.around_loss(run.config.loss))
        self.watch(run.optimizers.values())
        return run

    def watch(self, optimizers: Iterable[torch.optim.Optimizer | None]) -> None:
        """Let the step of these optimizers begin the part "step"."""
        for optimizer in filter(None, optimizers):
            optimizer.register_step_pre_hook(lambda *_: self.switch("step"))

    def _enter(self, kind: str, number: int) -> None:
        self._kind, self._number = kind, number
        if kind and self._stack is not None:
            self._stack.enter_context(self._compute(kind, number))
