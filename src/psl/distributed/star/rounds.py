"""The server's side of each framework's round: what it asks of its clients, and its own half of the step."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch

from psl.distributed.job import Job
from psl.distributed.segments import Segments
from psl.distributed.star.client import Command
from psl.distributed.star.peer import Peer
from psl.training.communication import BitCounter, exchanged
from psl.training.frameworks.local_training import Average
from psl.training.scores import Mean
from psl.training.seeds import Stream, generator, seed_computation

Each = Callable[[list[Peer], Callable[[Peer], object]], dict[Peer, object]]


class Star(ABC):
    """Rounds of one framework.

    Args:
        job: the run.
        compute: ``compute(client)`` returns what wraps the server's computations; the client matters only where each
            has a part of the server to itself.
        each: ``each(peers, action)`` does something with several clients at a time and returns the results of those
            that did not fail; the others are given up.
    """

    def __init__(self, job: Job, compute: Callable[[int], Callable], each: Each):
        self.job, self.each, self.bits = job, each, BitCounter()
        self.segments = Segments(compute(0))
        self.run = job.prepare(0, self.segments)
        self.device = torch.device(job.device)

    @abstractmethod
    def round(self, index: int, peers: list[Peer], shares: np.ndarray) -> tuple[float, list[Peer]]:
        """Run a round and return its training loss and the clients that took part in all of it.

        Args:
            index: of the round.
            peers: the clients that are there.
            shares: (N,) numbers of samples of all clients.
        """

    def welcome(self, peer: Peer, index: int, returning: bool) -> None:
        """Prepare a client that has just come, before round `index`; `returning` if it was there before."""
        peer.expect(self.run.devices[0].module, self.rest(peer))

    @torch.inference_mode()
    def evaluate(self, index: int, peers: list[Peer]) -> np.ndarray:
        """Return the test metric of each distinct client model; the clients do their part on the test data."""
        self.train(False)
        found = self.each(self.tested(peers), lambda peer: self._evaluate(index, peer))
        self.train(True)
        return np.array(list(found.values()))

    def _evaluate(self, index, peer):
        with torch.inference_mode():  # in this thread too
            rest = self.rest(peer)
            mean = Mean()
            for smashed, labels in peer.test_batches(index):
                mean.add(self.run.config.metric(smashed if rest is None else rest(smashed), labels))
        return mean.value

    def train(self, mode: bool) -> None:
        """Put the server's layers into training or evaluation mode."""
        self.run.train(mode)

    def tested(self, peers: list[Peer]) -> list[Peer]:
        """Return the clients whose models differ, or one of them if none do."""
        return peers[:1]

    def rest(self, peer: Peer) -> torch.nn.Module | None:
        """Return the server's layers for a client, None if it holds the whole model."""
        return self.run.server

    def state_dict(self) -> dict:
        """Return everything that training changes here."""
        return {"framework": self.run.state_dict(), "link": [self.bits.uplink_bits, self.bits.downlink_bits]}

    def load_state_dict(self, state: dict) -> None:
        """Restore what `state_dict` returned."""
        self.run.load_state_dict(state["framework"])
        self.bits.uplink_bits, self.bits.downlink_bits = state["link"]

    def model_state(self) -> dict[str, torch.Tensor]:
        """Return the server's part of the trained model, by the names of the whole model."""
        return dict(self.run.server.state_dict())

    def train_together(self, index: int, k: int, peers: list[Peer], weights: np.ndarray, rng):
        """Take local step k with several clients at once; returns the loss and those that got their gradients.

        Args:
            index: of the round.
            peers: the clients.
            weights: (N,) λ_i of all clients; those of the ones that answer are divided by their sum.
            rng: draws representatives.
        """
        number = index * self.job.steps + k

        def upload(peer):
            peer.command(Command.TRAIN, index, k)
            return peer.batch(number)

        arrived = self.each(peers, upload)
        if not arrived:
            return float("nan"), []
        smashed, labels = map(list, zip(*arrived.values(), strict=True))
        for tensors in zip(smashed, labels, strict=True):
            for tensor in tensors:
                self.bits.up(tensor)
        chosen = weights[[peer.number for peer in arrived]]
        chosen = chosen if len(arrived) == len(weights) else chosen / chosen.sum()
        seed_computation(self.job.seed, index, self.device, "server", next(iter(arrived)).number, k)
        with self.segments("forward", k):
            found = self.run.update_server(smashed, labels, chosen, rng)
        shared, own = found.shared, found.own
        if shared is None and self.job.n_aggregated:  # one client is left: it aggregates with itself
            n_agg = self.job.n_aggregated
            shared, own = own[0][:n_agg], [own[0][n_agg:]]
        if shared is not None:
            self.bits.broadcast(shared)
        for gradient in own:
            self.bits.down(gradient)
        gradients = dict(zip(arrived, own, strict=True))
        served = self.each(list(arrived), lambda peer: peer.gradients(number, shared, gradients[peer]))
        return found.loss, list(served)


class Parallel(Star):
    """PSL and EPSL: all clients at once, each with its own client-side model."""

    def round(self, index, peers, shares):
        rng, losses = generator(Stream.ROUND, self.job.seed, index), []
        rng.integers(2**63)  # torch's seed of the round, drawn first in `psl.train` too
        for k in range(self.job.steps):
            loss, peers = self.train_together(index, k, peers, shares / shares.sum(), rng)
            losses.append(loss)
        return float(sum(losses) / self.job.steps), peers

    def tested(self, peers):
        return peers


class SplitFed(Parallel):
    """SFL: the client-side models are averaged after the local steps."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.average: list[torch.Tensor] | None = None
        self.like = exchanged(self.run.devices[0].module)

    def round(self, index, peers, shares):
        loss, peers = super().round(index, peers, shares)
        models = self.each(peers, lambda peer: peer.give(index, self.like))
        if models:
            average = Average(self.like)
            weights = shares / shares.sum()
            chosen = weights[[peer.number for peer in models]]
            chosen = chosen if len(models) == len(weights) else chosen / chosen.sum()
            for model, weight in zip(models.values(), chosen, strict=True):
                average.add([self.bits.up(tensor) for tensor in model], weight)
            self.average = [self.bits.broadcast(tensor) for tensor in average.tensors]
        return loss, list(self.each(list(models), lambda peer: peer.take(index, self.average, broadcast=True)))

    def welcome(self, peer, index, returning):
        super().welcome(peer, index, returning)
        if returning and self.average is not None:
            peer.take(index, self.average)

    def tested(self, peers):
        return peers[:1]

    def state_dict(self):
        return super().state_dict() | {"average": self.average}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.average = state["average"]


class Sequential(Star):
    """SL: one client after the other; the client-side model goes through the server to the next.

    BatchNorm's batch counter, a whole number, is not part of what goes: each client counts its own.
    """

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.model: list[torch.Tensor] | None = None  # as it was when a client last gave it
        self.holder: int | None = None  # who has it; at first everybody
        self.like = exchanged(self.run.devices[0].module)

    def round(self, index, peers, shares):
        total, done = 0.0, []
        weights = shares / shares.sum()
        for peer in peers:
            loss, served = self._turn(index, peer, weights)
            if not served:
                continue
            done.append(peer)
            total = total + weights[peer.number] * loss
            if self.job.n_clients > 1:
                there = [p for p in peers if p.failed is None]
                self._hand_to(index, next((p for p in there if p.number > peer.number), there[0]))
        if not done:
            return float("nan"), []
        everybody = len(done) == len(shares)
        return float(total if everybody else total / weights[[p.number for p in done]].sum()), done

    def _turn(self, index, peer, weights):
        if self.holder not in (None, peer.number) and not self._hand_to(index, peer):
            return float("nan"), []
        loss, served = self.train_together(index, 0, [peer], weights, None)
        if served and self.job.n_clients > 1:
            given = self.each(served, lambda peer: peer.give(index, self.like))
            for model in given.values():
                self.model, self.holder = [self.bits.up(tensor) for tensor in model], peer.number
            served = list(given)
        return loss, served

    def _hand_to(self, index, peer):
        model = [self.bits.down(tensor) for tensor in self.model]
        self.holder = peer.number if self.each([peer], lambda peer: peer.take(index, model)) else -1
        return self.holder == peer.number

    def welcome(self, peer, index, returning):
        super().welcome(peer, index, returning)
        if self.model is not None and self.holder == peer.number:
            self.holder = -1  # it came back without the model

    def tested(self, peers):
        return [peer for peer in peers if peer.number == self.holder] or peers[:1]

    def state_dict(self):
        return super().state_dict() | {"model": self.model, "holder": self.holder}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.model, self.holder = state["model"], state["holder"]
