"""Pipelined split learning: micro-batches go through the stages of one model, whose gradients add up."""

from psl.errors import CutError, expected
from psl.models.splitting import boundaries, stages
from psl.models.tracing import trace
from psl.training.batchnorm import one_row_refused
from psl.training.frameworks.base import Framework
from psl.training.frameworks.split_step import refuse_raw_data
from psl.training.stage import Stage, loss_and_gradient


class Pipeline(Framework):
    """One mini-batch of n_clients × batch_size samples per round, in micro-batches through consecutive stages.

    Gradients are those of the mini-batch's mean loss: a micro-batch counts by its share of the samples, the last may
    be smaller. Every stage has its own optimizer and steps once per round, after the last micro-batch. So
    the result is that of centralised training, to float summation, in whatever order stages and micro-batches run.

    BatchNorm is the exception: it normalises every micro-batch by that micro-batch's own statistics, as in GPipe
    (arXiv 1811.06965), and updates its running statistics once per micro-batch.

    Source: pipelined split learning (arXiv 2505.04368): micro-batches through stages [P], the rest [R].
    """

    name = "pipeline"
    splits = True
    several_cuts = True
    pooled = True
    waits_for_all = "its stages wait for one another, a missing one stops all"

    def __init__(self, setup, link):
        super().__init__(setup, link)
        traced = trace(setup.model)
        self.cut = boundaries(traced, setup.cut)
        last = len(traced.cut_nodes) - 1
        for cut in self.cut:
            refuse_raw_data(cut)
            if cut == last:
                want = f"inner boundaries, 1..{last - 1}"
                raise expected("cut", want, f"{cut}, the output", "leave it out", CutError)
        batch_size = setup.n_clients * setup.batch_size
        self.micro_batch = batch_size if setup.micro_batch is None else setup.micro_batch
        if self.micro_batch > batch_size:
            fix = "take a smaller micro_batch"
            raise expected("micro_batch", f"at most the mini-batch of {batch_size}", self.micro_batch, fix)
        self.modules["model"] = setup.model
        self.stages: list[Stage] = []
        for i, module in enumerate(stages(traced, self.cut)):
            self.optimizers[f"stage {i}"] = optimizer = setup.make_optimizer(module)
            self.stages.append(Stage(module, optimizer, first=i == 0))

    def round(self, draw, rng):
        inputs, labels = draw(0, 0)
        for stage in self.stages:
            stage.zero_grad()
        micro_batches = zip(inputs.split(self.micro_batch), labels.split(self.micro_batch), strict=True)
        losses = [self.micro_step(m, x, y, len(x) / len(inputs)) for m, (x, y) in enumerate(micro_batches)]
        for stage in self.stages:
            stage.step()
        return sum(losses)

    def micro_step(self, number, inputs, labels, share):
        """Send one micro-batch forward and backward through all stages; returns `share` times its mean loss."""
        *before, last = self.stages
        for stage in before:
            inputs = self.link.up(self._forward(stage, inputs, number))
        labels = self.link.up(labels) if before else labels  # from the source to the last stage
        value, gradient = loss_and_gradient(self._forward(last, inputs, number), labels, self.setup.loss, share)
        for stage in reversed(self.stages[1:]):
            gradient = self.link.down(stage.backward(gradient, number))
        self.stages[0].backward(gradient, number)
        return value

    def _forward(self, stage, inputs, number):
        fix = "take a micro_batch that leaves more than one sample for the last, or another batch_size"
        want = "2 samples or more for this model's BatchNorm"
        with one_row_refused(len(inputs), "micro_batch", want, fix):
            return stage.forward(inputs, number)

    def client_models(self):
        return [self.modules["model"]]
