"""One end of a stream between two processes: sends and receives messages in order, and knows when the other is gone."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from psl.distributed.edge.pacing import DelayLine
from psl.distributed.wire.messages import ChannelError, Kind, Message, ProtocolError, decode, encode, now
from psl.errors import PSLError, expected

#: s to wait for processes that are still starting: importing takes a while, and so does opening the data.
START = 120.0
_FLOOD = 4  # times the longest message: who sends more than that unasked is refused


class Link:
    """A stream of messages to another process; gRPC moves its bytes, see `psl.distributed.wire.streams`.

    Sending returns at once. The other end counts as gone when its connection ends, and when it does not answer gRPC's
    keepalive for the timeout. As long as it answers, a message may take any time that the receiver waits for.

    Args:
        name: of the other end, for messages.
        line: delays what is sent, None for no pacing.
        broadcast_rate: bit/s on that line of what goes to all.
        limit: bytes of the longest message.
        secure: whether the stream is encrypted; if not, messages carry a checksum.
        change: condition to notify of arrivals; default one of its own.
        on_message: called with "out" or "in", kind, step and content of everything that crosses.
        on_transfer: called with the `Message` and its arrival, s on the clock of rank 0.

    Attributes:
        failure: why the stream has ended; None while it is open.
        hello: what a client said when it connected, at the server.
        offset: s to add to this machine's monotonic clock for rank 0's.
    """

    def __init__(
        self,
        name: str,
        *,
        line: DelayLine | None = None,
        broadcast_rate: float | None = None,
        limit: int = 1 << 28,
        secure: bool = True,
        change: threading.Condition | None = None,
        on_message: Callable[..., None] | None = None,
        on_transfer: Callable[[Message, float], None] | None = None,
    ):
        self.name, self.limit, self.offset = name, limit, 0.0
        self.failure: PSLError | None = None
        self.hello: dict[str, Any] = {}
        self._line, self._broadcast_rate, self._secure = line, broadcast_rate, secure
        self._change = change or threading.Condition()
        self._inbox: deque[Message] = deque()
        self._waiting, self._welcomed = 0, False  # bits in the inbox
        self.ended = threading.Event()  # nothing more crosses, in either direction
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._on_message, self._on_transfer = on_message, on_transfer

    def send(self, kind: Kind, step: int, content: Any = None, **word: Any) -> None:
        """Send a message; with pacing it leaves later, in order.

        Raises:
            ChannelError: the stream has ended.
        """
        if self.failure is not None:
            raise self.failure
        if self._on_message is not None:
            self._on_message("out", kind, step, content)
        data = encode(kind, step, content, word, sent=now() + self.offset, check=not self._secure)
        if len(data) > self.limit:
            fix = "take a smaller batch_size, or cut elsewhere"
            raise expected(
                "a message", f"at most {self.limit / 1e6:.0f} MB", f"{len(data) / 1e6:.0f}", fix, ProtocolError
            )
        if self._line is None:
            self._outbox.put(data)
            return
        size = int.from_bytes(data[:8], "little") + 8
        rate = self._broadcast_rate if kind == Kind.BROADCAST else None
        self._line.put(8 * (len(data) - size), lambda: self._outbox.put(data), rate)

    def recv(self, kind: Kind, step: int, patience: float | None = None) -> Message:
        """Return the message that must come next.

        Args:
            kind, step: what it must be.
            patience: s to wait for it; None as long as the other end is there.

        Raises:
            ProtocolError: another one came, and the stream was closed.
            ChannelError: the other end is gone, or nothing came in time.
        """
        with self._change:
            self._change.wait_for(lambda: self._inbox or self.failure is not None, patience)
            if not self._inbox:
                if self.failure is None:
                    fix = "see what it does: it is alive, but does not answer"
                    self._end(expected(self.name, f"a message within {patience:g} s", "none", fix, ChannelError))
                assert self.failure is not None
                raise self.failure
            message = self._inbox.popleft()
            self._waiting -= message.bits
        if message.kind != kind or message.step != step:
            fix = "start all processes with the same arguments"
            want, got = (f"{k.name.lower()} of step {s}" for k, s in ((kind, step), (message.kind, message.step)))
            failure = expected(self.name, want, got, fix, ProtocolError)
            self.close(failure)
            raise failure
        return message

    def recv_any(self, kind: Kind) -> Message:
        """Return the next message, which may be of any step, as long as the other end is there; raises as `recv`."""
        with self._change:
            self._change.wait_for(lambda: self._inbox or self.failure is not None)
            step = self._inbox[0].step if self._inbox else 0
        return self.recv(kind, step)

    def wait_closed(self, patience: float) -> None:
        """Wait until the other end, which has heard all, ends the stream."""
        self.ended.wait(patience)

    @property
    def ready(self) -> int:
        """How many messages wait to be received."""
        return len(self._inbox)

    def welcome(self, machine: str, **word: Any) -> None:
        """Tell a client, once, that it is let in; without pacing."""
        if not self._welcomed:
            self._welcomed = True
            word |= {"machine": machine, "offset": self.offset}
            self._outbox.put(encode(Kind.WELCOME, 0, word=word, sent=0.0, check=not self._secure))

    def flush(self) -> None:
        """Wait until paced messages have left."""
        if self._line is not None:
            self._line.flush()

    def close(self, reason: Exception | str | None = None) -> None:
        """Tell the other end why, and end the stream."""
        if self.failure is None:
            text = "" if reason is None else f"{reason}"
            self._outbox.put(encode(Kind.BYE, 0, word={"reason": text}, sent=0.0, check=not self._secure))
        closed = expected(self.name, "an open stream", "one that was closed here", "connect again", ChannelError)
        self._end(reason if isinstance(reason, PSLError) else closed)

    # --- for what moves the bytes ---

    def outgoing(self) -> Iterator[bytes]:
        """Yield what is to be sent, until the stream ends."""
        while (data := self._outbox.get()) is not None:
            yield data

    def arrived(self, data: bytes) -> None:
        """Take a message in, unless the stream has ended."""
        if self.failure is not None:
            return
        try:
            message = decode(data)
        except ProtocolError as failure:
            self.close(type(failure)(f"{self.name}: {failure}"))
            return
        when = now() + self.offset
        if message.kind == Kind.BYE:
            self.broken(str(message.word.get("reason") or "its end"))
            return
        if message.kind == Kind.CLOCK and self.hello:
            self.send(Kind.CLOCK, message.step, heard=when)
            return
        if self._on_transfer is not None:
            self._on_transfer(message, when)
        if self._on_message is not None:
            self._on_message("in", message.kind, message.step, message.content)
        with self._change:
            self._inbox.append(message)
            self._waiting += message.bits
            self._change.notify_all()
        if self._waiting > 8 * _FLOOD * self.limit:
            self.close(expected(self.name, "what it was asked for", "more", "see what it runs", ProtocolError))

    def broken(self, reason: str) -> None:
        """Note that the other end is gone."""
        said = "".join(c if c.isprintable() else " " for c in reason)[:400]
        if ": expected " in said:  # its own words say all
            self._end(ChannelError(f"{self.name}: {said}"))
        else:
            fix = "see its own output; it may connect again"
            self._end(expected(self.name, "a process that goes on", said, fix, ChannelError))

    def _end(self, failure: PSLError) -> None:
        with self._change:
            if self.failure is None:
                self.failure = failure
                self._outbox.put(None)
                if self._line is not None:
                    self._line.close()
            self._change.notify_all()


def compare_clocks(link: Link, turns: int = 8) -> float:
    """Return the s to add to this end's clock for that of rank 0, as the other end knows it.

    The client asks a few times. Of the quickest answer it takes the middle between asking and hearing as the moment
    of the other clock, as NTP does: wrong by no more than half of what that took. Clocks that drift apart later are
    not followed.
    """
    found = []
    for turn in range(turns):
        asked = now()
        link.send(Kind.CLOCK, turn)
        heard = float(link.recv(Kind.CLOCK, turn, START).word["heard"])
        back = now()
        found.append((back - asked, heard - (asked + back) / 2))
    return min(found)[1]
