"""Pipelined split learning: micro-batches go through the stages of one model, whose gradients add up."""

from typing import Any

import numpy as np
import torch
from torch import nn

from psl.errors import CutError, expected
from psl.models.splitting import boundaries
from psl.models.stages import stages
from psl.models.tracing import trace
from psl.training.batchnorm import one_row_refused
from psl.training.config import TrainingConfig, check_cuts
from psl.training.frameworks.base import Framework, Round, SeedFor, no_seed, refuse_raw_data
from psl.training.frameworks.split_step import only_needed
from psl.training.messages import split_rows
from psl.training.stage import Stage, loss_and_gradient


class Pipeline(Framework):
    """One mini-batch of b = n_clients × batch_size samples per round, in micro-batches through consecutive stages.

    With m_u samples in micro-batch u the gradient is Σ_u (m_u / b) ∇ℓ̄_u, that of the mini-batch's mean loss; the last
    micro-batch may be smaller. Every stage has its own optimizer and steps once per round, after the last
    micro-batch. So the result is that of centralised training, to float summation, in whatever order stages and
    micro-batches run.

    BatchNorm is the exception: it normalises every micro-batch by that micro-batch's own statistics, as in GPipe
    (arXiv 1811.06965), and updates its running statistics once per micro-batch.

    Attributes:
        cut: numbers (names where several tensors cross) of the boundaries between stages.
        micro_batch: samples at a time.
        stages: the parts of the model with their optimizers.

    Source: pipelined split learning (arXiv 2505.04368): micro-batches through stages [P], the rest [R].
    """

    name = "pipeline"
    splits = True
    several_cuts = True
    pooled = True
    waits_for_all = "its stages wait for one another, a missing one stops all"

    def __init__(self, model: nn.Module, config: TrainingConfig, weights: np.ndarray | None = None):
        super().__init__(model, config, weights)
        traced = trace(model, config.example)
        places = boundaries(traced, check_cuts(config.cut), config.tensors)
        self.cut = [traced.number(place) for place in places]
        last = len(traced.places()) - 1
        for cut, place in zip(self.cut, places, strict=True):
            refuse_raw_data(cut)
            if place is traced.all_places[-1]:
                want = f"inner boundaries, 1..{last - 1}"
                raise expected("cut", want, f"{cut}, the output", "leave it out", CutError)
        mini_batch = config.n_clients * config.batch_size
        self.micro_batch = mini_batch if config.micro_batch is None else config.micro_batch
        if self.micro_batch > mini_batch:
            fix = "take a smaller micro_batch"
            raise expected("micro_batch", f"at most the mini-batch of {mini_batch}", self.micro_batch, fix)
        self.modules["model"] = model
        self.stages: list[Stage] = []
        for i, module in enumerate(stages(traced, places)):
            self.optimizers[f"stage {i}"] = optimizer = config.make_optimizer(module)
            self.stages.append(Stage(module, optimizer, first=i == 0))

    def settings(self) -> dict[str, Any]:
        """Return the arguments that bear on this framework but not on all, by name."""
        return super().settings() | {"cut": self.cut, "micro_batch": self.micro_batch}

    def train_round(self, this: Round) -> torch.Tensor | float:
        """Send the round's mini-batch through, then step."""
        inputs, labels = this.draw(0, 0)
        for stage in self.stages:
            stage.zero_grad()
        micro_batches = zip(split_rows(inputs, self.micro_batch), labels.split(self.micro_batch), strict=True)
        losses = [
            self.micro_step(m, x, y, len(y) / len(labels), this.seed_for) for m, (x, y) in enumerate(micro_batches)
        ]
        for stage in self.stages:
            stage.step()
        return sum(losses)

    def micro_step(
        self, number: int, inputs: Any, labels: torch.Tensor, share: float, seed_for: SeedFor = no_seed
    ) -> torch.Tensor:
        """Send one micro-batch forward and backward through all stages.

        Args:
            number: of the micro-batch.
            inputs, labels: its samples.
            share: m_u / b.
            seed_for: called before a stage computes forward, with "stage", its number and the micro-batch's.

        Returns:
            `share` times its mean loss.
        """
        *before, last = self.stages
        for k, stage in enumerate(before):
            seed_for("stage", k, number)
            inputs = self.bits.up(self.stage_forward(stage, inputs, number))
        labels = self.bits.up(labels) if before else labels  # from the source to the last stage
        seed_for("stage", len(before), number)
        value, gradient = loss_and_gradient(self.stage_forward(last, inputs, number), labels, self.config.loss, share)
        for before_it, stage in reversed(list(zip(self.stages, self.stages[1:], strict=False))):
            needed = before_it.needs_gradient(number)
            gradient = self.bits.down(only_needed(stage.backward(gradient, number), needed))
        self.stages[0].backward(gradient, number)
        return value

    def stage_forward(self, stage: Stage, inputs: Any, number: int) -> Any:
        """Run a stage forward; an error of BatchNorm about single rows says what to do."""
        fix = "take a micro_batch that leaves more than one sample for the last, or another batch_size"
        want = "2 samples or more for this model's BatchNorm"
        with one_row_refused("micro_batch", want, fix):
            return stage.forward(inputs, number)

    def client_models(self) -> list[nn.Module]:
        """Return the model, of which the stages are parts."""
        return [self.model]
