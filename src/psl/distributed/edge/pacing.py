"""Links paced in the sending process, where the kernel may not shape them, and latency where it has none."""

import queue
import threading
import time
from collections.abc import Callable, Sequence


class DelayLine:
    """One direction of a path that delivers messages late: bits / rate on every hop, then its latency.

    Every hop is first-in first-out and stores a message before it forwards it. `put` returns at once, like the socket
    of a sender with room in its buffer; a thread hands each message on when it would have arrived. Delivering through
    a fast local connection comes on top and takes the time it takes.

    Args:
        hops: (rate, latency) of each hop, bit/s and s; rate infinity for hops that the kernel shapes.

    Source: ours [B].
    """

    def __init__(self, hops: Sequence[tuple[float, float]]):
        self.hops = [(float(rate), float(latency)) for rate, latency in hops]
        self._free = [0.0] * len(self.hops)  # when each hop has sent all that it was given
        self._waiting: queue.SimpleQueue = queue.SimpleQueue()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._dropped = False
        self._open = 0  # messages not handed on yet
        self._change = threading.Condition()

    def arrival(self, bits: float, now: float, rate: float | None = None) -> float:
        """Return when a message handed over now arrives, and keep its hops busy until then.

        Args:
            bits: size of the message.
            now: s on the clock of `time.monotonic`.
            rate: bit/s for this message in place of the first hop's, such as a broadcast's.
        """
        for k, (usual, latency) in enumerate(self.hops):
            pace = rate if rate is not None and k == 0 else usual
            self._free[k] = max(now, self._free[k]) + bits / pace
            now = self._free[k] + latency
        return now

    def put(self, bits: float, hand_on: Callable[[], object], rate: float | None = None) -> None:
        """Let `hand_on` be called when a message of so many bits has arrived.

        Raises:
            Exception: whatever an earlier message's `hand_on` raised.
        """
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="delay line", daemon=True)
            self._thread.start()
        with self._change:
            self._open += 1
        self._waiting.put((self.arrival(bits, time.monotonic(), rate), hand_on))

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything is handed on.

        Raises:
            TimeoutError: that took longer than `timeout` s.
            Exception: whatever a message's `hand_on` raised.
        """
        with self._change:
            if not self._change.wait_for(lambda: not self._open, timeout):
                raise TimeoutError(f"{self._open} messages still on the line after {timeout:g} s")
        self._raise()

    def close(self) -> None:
        """End the thread; messages not handed on yet are dropped."""
        if self._thread is not None:
            self._dropped = True
            self._waiting.put(None)
            self._thread = None

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (message := self._waiting.get()) is not None:
            due, hand_on = message
            sleep_until(due)
            try:
                if self._failure is None and not self._dropped:
                    hand_on()
            except BaseException as failure:  # raised in the thread that sends
                self._failure = failure
            with self._change:
                self._open -= 1
                self._change.notify_all()


def sleep_until(due: float) -> None:
    """Sleep until a moment of `time.monotonic`; not at all if it has passed."""
    while (left := due - time.monotonic()) > 0:
        time.sleep(left)
