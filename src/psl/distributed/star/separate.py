"""EdgeSplit's rounds at the server: every client with server layers of its own, in a thread of its own."""

import contextlib
import threading

import torch

from psl.distributed.segments import Segments
from psl.distributed.star.client import Command
from psl.distributed.star.rounds import Parallel, Sequential, SplitFed, Star
from psl.training.communication import BitCounter, exchanged
from psl.training.frameworks.local_training import Average, copy_into
from psl.training.seeds import seed_computation


class Separate(Star):
    """EdgeSplit: every client alone with server layers of its own for the local steps, then the average of all models.

    The clients are served side by side, each in its thread. With layers that draw random numbers on both sides of a
    cut (dropout), the server's draws are others than in `psl.train`, where they follow the device's.
    """

    def __init__(self, job, compute, each):
        self._lock = threading.Lock()
        self._turns: dict[int, tuple[int, int]] = {}
        self.job, self.each, self.bits = job, each, BitCounter()
        self.device = torch.device(job.device)
        self.all_segments = [Segments(self._exclusive(compute(i), i)) for i in range(job.n_clients)]
        self.runs = [job.prepare(i, segments) for i, segments in enumerate(self.all_segments)]
        self.run = self.runs[0]
        self.likes = [exchanged(run.devices[0].module) for run in self.runs]
        self.average = [tensor.detach().clone() for tensor in exchanged(self.run.model)]

    def _exclusive(self, compute, client):
        """One forward pass at a time: torch's random numbers belong to the process, not to the thread."""

        @contextlib.contextmanager
        def exclusive(kind, number):
            with compute(kind, number):
                if kind != "forward":
                    yield
                    return
                with self._lock:
                    seed_computation(self.job.seed, self._turns[client], self.device, "device", client, number)
                    yield

        return exclusive

    def round(self, index, peers, shares):
        found = self.each(peers, lambda peer: self._local_steps(index, peer))
        weights = shares / shares.sum()
        if len(found) < len(weights) and found:
            weights = weights / weights[[peer.number for peer in found]].sum()
        total = 0.0 if found else float("nan")
        average = Average(self.average)
        for peer, (losses, model) in found.items():
            for loss in losses:
                total = total + weights[peer.number] * loss
            copy_into(self.likes[peer.number], model)
            average.add(exchanged(self.runs[peer.number].model), weights[peer.number])
        if found:
            self.average = average.tensors
        for run in self.runs:
            copy_into(exchanged(run.model), self.average)
        done = self.each(list(found), lambda peer: self._send_part(index, peer))
        self._count()
        return float(total / self.job.steps), list(done)

    def _local_steps(self, index, peer):
        job, i = self.job, peer.number
        run, self._turns[i] = self.runs[i], index
        peer.command(Command.TRAIN, index, -1)
        if job.holds_all(run):
            losses = list(peer.losses(index))
        else:
            losses = [self._local_step(index * job.steps + k, k, peer, run) for k in range(job.steps)]
        return losses, [run.bits.up(tensor) for tensor in peer.give(index, self.likes[i])]

    def _local_step(self, number, k, peer, run):
        smashed, labels = map(run.bits.up, peer.batch(number))
        with self.all_segments[peer.number]("forward", k):
            found = run.update_server_part(0, [smashed], [labels])
        (own,) = found.own
        peer.gradients(number, None, run.bits.down(own))
        return found.loss

    def _send_part(self, index, peer):
        part, counted = self.likes[peer.number], self.runs[peer.number].bits
        peer.take(index, [counted.down(tensor) for tensor in part])

    def _count(self):
        self.bits.uplink_bits = sum(run.bits.uplink_bits for run in self.runs)
        self.bits.downlink_bits = sum(run.bits.downlink_bits for run in self.runs)

    def welcome(self, peer, index, returning):
        peer.expect(self.runs[peer.number].devices[0].module, self.rest(peer))
        if returning:
            self._send_part(index, peer)

    def rest(self, peer):
        return self.runs[peer.number].server_part(0)

    def train(self, mode):
        for run in self.runs:
            run.train(mode)

    def state_dict(self):
        links = [[run.bits.uplink_bits, run.bits.downlink_bits] for run in self.runs]
        return {"runs": [run.state_dict() for run in self.runs], "average": self.average, "links": links}

    def load_state_dict(self, state):
        self.average = state["average"]
        for run, saved, bits in zip(self.runs, state["runs"], state["links"], strict=True):
            run.load_state_dict(saved)
            run.bits.uplink_bits, run.bits.downlink_bits = bits
        self._count()

    def model_state(self):
        return dict(self.run.model.state_dict())


STARS: dict[str, type[Star]] = {
    "sl": Sequential, "sfl": SplitFed, "psl": Parallel, "epsl": Parallel, "edgesplit": Separate,
}  # fmt: skip
