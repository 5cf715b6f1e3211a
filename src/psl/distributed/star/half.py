"""The server's half of a framework: its layers, and what it computes with them, for all clients or for each."""

import copy
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from psl.distributed.place import Place
from psl.distributed.segments import Segments
from psl.distributed.wire.messages import ones_like
from psl.models.values import call, copied
from psl.training.frameworks.base import Framework, no_seed
from psl.training.frameworks.local_training import LocalTraining
from psl.training.messages import each
from psl.training.seeds import own_random_state, seed_computation


class Turns:
    """One at a time; of those who wait the one with the lowest number is next, then who came first.

    Attributes:
        waiting: numbers of those who wait, with the order in which they came.
    """

    def __init__(self):
        self._change, self._busy, self._came = threading.Condition(), False, 0
        self.waiting: list[tuple[tuple[int, int], int]] = []

    @contextmanager
    def turn(self, number: tuple[int, int]) -> Iterator[None]:
        """The context of a turn."""
        with self._change:
            self._came += 1
            mine = number, self._came
            self.waiting.append(mine)
            self._change.wait_for(lambda: not self._busy and min(self.waiting) == mine)
            self.waiting.remove(mine)
            self._busy = True
        try:
            yield
        finally:
            with self._change:
                self._busy = False
                self._change.notify_all()


class ServerHalf:
    """The framework of a run with one client, and in EdgeSplit a copy of it for each client, with the client's cut.

    Args:
        place: the server's process; its job knows the form of samples.

    Attributes:
        run: the framework, whose rounds the server runs.
        index: of the round.
    """

    def __init__(self, place: Place):
        self.job, self.index, self._place = place.job, 0, place
        self._now, self._lock, self._turns = threading.local(), threading.Lock(), Turns()
        self._rank = ranks(self.job.turns)
        self._separate = self.job.framework == "edgesplit"
        self._segments = [Segments(self._exclusive(i)) for i in range(self.job.n_clients if self._separate else 1)]
        self.run: Any = self.job.prepare(0, None if self._separate else self._segments[0])
        made: dict[Any, Framework] = {}
        for i, segments in enumerate(self._segments if self._separate else ()):
            cut = self.job.cut[i] if isinstance(self.job.cut, tuple) else self.job.cut
            made.setdefault(cut, self.job.prepare(i))
            own = copy.deepcopy(made[cut], {id(made[cut].bits): self.run.bits})
            self.run.copies[i] = segments.attach(own)

    @property
    def copies(self) -> dict[int, LocalTraining]:
        """Frameworks of single clients, by client."""
        return self.run.copies if self._separate else {}

    def of(self, client: int) -> Any:
        """Return the framework whose layers belong to a client."""
        return self.copies.get(client, self.run)

    def rest(self, client: int) -> nn.Module | None:
        """Return the server's layers for a client, None if it holds the whole model."""
        return self.of(client).server_part(0) if self._separate else self.run.server

    def part(self, client: int) -> list[torch.Tensor]:
        """Return the tensors of a client's part of the model that travel, as this process has them."""
        return self.of(client).device(0, client, no_draw, no_seed).give()

    def at_server(self, client: int) -> list[torch.Tensor] | None:
        """Return a client's part of the model as the server last had it; None if clients keep it to themselves."""
        return self.part(client) if self._separate and self.run.at_server is not None else self.run.at_server

    def forms(self, client: int) -> dict[str, Any]:
        """Return a client's activations and the server's outputs for two samples of ones, to know their forms."""
        example = each(lambda tensor: tensor.to(self.job.device), ones_like(self.job.sample))
        own, rest = self.of(client), self.rest(client)
        own.train(False)
        with torch.no_grad(), own_random_state(torch.device(self.job.device)):
            smashed = call(own.devices[0].module, copied(example))
            outputs = None if rest is None else rest(smashed)
        own.train(True)
        return {"activations": smashed, "outputs": outputs}

    def train(self, mode: bool) -> None:
        """Put all layers into training or evaluation mode."""
        for run in (self.run, *self.copies.values()):
            run.train(mode)

    @contextmanager
    def computing(self, client: int, step: int, kind: str = "forward") -> Iterator[None]:
        """The context of what the server computes in a local step, for a client or, first of several, for all."""
        self._now.client = client
        if self._separate:
            with self._segments[client]("forward", step):
                yield
            return
        local_step, k = divmod(step, self.job.parts)
        with self._turns.turn((local_step, self._rank.get((client, k), k))), self._segments[0](kind, step):
            yield

    def _exclusive(self, client: int):
        """One forward pass at a time: torch's random numbers belong to the process, not to the thread."""
        job = self.job
        resource = f"server for client {client}" if self._separate else "server"
        compute = self._place.compute(resource, client, lambda kind, number: job.samples_of(number))

        @contextmanager
        def exclusive(kind: str, number: int) -> Iterator[None]:
            with compute(kind, number):
                if kind != "forward":
                    yield
                    return
                with self._lock:
                    seed_computation(job.seed, self.index, torch.device(job.device), "server", self._now.client, number)
                    yield

        return exclusive

    def state_dict(self) -> dict[str, Any]:
        """Return everything that training changes here."""
        copies = {i: own.state_dict() for i, own in self.copies.items()}
        more = {"at_server": self.run.at_server, "holder": getattr(self.run, "holder", None)}
        return {"framework": self.run.state_dict(), "copies": copies} | more

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.run.load_state_dict(state["framework"])
        for client, saved in state["copies"].items():
            self.copies[client].load_state_dict(saved)
        self.run.at_server = state["at_server"]
        if hasattr(self.run, "holder"):
            self.run.holder = state["holder"]


def ranks(turns: Sequence[int]) -> dict[tuple[int, int], int]:
    """Return the place of micro-batch k of a client in the order of clients, by (client, k)."""
    found, taken = {}, Counter()
    for place, client in enumerate(turns):
        found[client, taken[client]] = place
        taken[client] += 1
    return found


def no_draw(client: int, step: int) -> Any:
    """Stand for the data, which a server has not."""
    raise AssertionError("a server has no data")
