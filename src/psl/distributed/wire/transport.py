"""Channels between the server and one client: groups of two that can be torn down and rebuilt alone."""

import re
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import torch
from torch.distributed import PrefixStore, Store, TCPStore

from psl.distributed.wire.clocks import compare_clocks, machine
from psl.distributed.wire.groups import end_group, two_member_group
from psl.distributed.wire.messages import (
    HEADER,
    ChannelError,
    Header,
    Kind,
    Layout,
    ProtocolError,
    check_header,
    checksum,
)
from psl.errors import expected

_SLOWEST = 1e6  # bit/s; see `chunk_size`
_CHUNKS = 1 << 12, 1 << 22  # bytes
_TAG_HEADER, _TAG_PAYLOAD = 0, 1
LOOPBACK = "127.0.0.1"
#: Seconds that processes wait for each other at the start: importing takes a while, and so does opening the data.
START = 120.0


class Channel:
    """A connection between the server (member 0) and one client (member 1) that carries tensors with checked headers.

    Nothing that arrives is unpickled: a header is 17 whole numbers, a payload raw numbers into a tensor of the
    expected shape, whose checksum must be the header's. Every wait ends after the timeout. After any error the channel
    is closed. What cannot be survived: gloo ends the whole process (SIGABRT) that is sent more bytes than it waits for.
    `send` never does that, as it cuts what it sends by the header; a program that talks gloo to us could.

    Args:
        group: the two-member group.
        member: 0 or 1, this end.
        name: of the other end, for messages.
        timeout: s without progress after which the other end counts as gone.
        line: delays what is sent (`psl.distributed.edge.pacing.DelayLine`), None for no pacing.
        chunk: bytes that are waited for at a time, the same at both ends.
        broadcast_rate: bit/s on that line of broadcasts, None for the line's own.
        on_message: called with "out" or "in", the kind, the step and the tensor of everything that crosses.
        on_transfer: called with "in", the kind, the step, start and end (s on the server's monotonic clock) of
            everything received; its start is when it was handed over.

    Attributes:
        offset: s to add to this machine's monotonic clock for the server's; 0 on the same machine.
    """

    def __init__(
        self,
        group,
        member: int,
        *,
        name: str,
        timeout: float,
        chunk: int,
        line=None,
        broadcast_rate: float | None = None,
        on_message: Callable | None = None,
        on_transfer: Callable | None = None,
    ):
        self._group, self._peer = group, 1 - member
        # Where what the group sends and receives must be; threads do not inherit the current GPU.
        self._place = f"cuda:{torch.cuda.current_device()}" if group.name() == "nccl" else "cpu"
        self.name, self.timeout, self._chunk = name, timeout, chunk
        self._line, self._broadcast_rate = line, broadcast_rate
        self._on_message, self._on_transfer = on_message, on_transfer
        self._lock = threading.Lock()
        self.offset = 0.0

    @classmethod
    def connect(
        cls, store: Store, key: str, member: int, *, address: str = LOOPBACK, patience: float, timeout: float,
        backend: str = "gloo", **options,
    ):  # fmt: skip
        """Meet the other end under a key of the store and return the channel.

        Args:
            store: where both ends find each other's address; a connection of its own if threads share the store.
            key: names the channel and its generation.
            member: 0 for the server, 1 for the client.
            address: of the network interface to listen on, or its name.
            patience: s to wait for the other end.
            timeout: as for the class; the shorter of both ends' decides how much is waited for at a time.
            backend: "gloo" or "nccl", which is taken if both ends offer it.
            options: as for the class.

        Raises:
            ChannelError: it did not come.
            ProtocolError: it does not speak psl.
        """
        store = PrefixStore(key, store)
        try:
            offer = _agree(store, member, backend, chunk_size(timeout), options["name"], patience)
            backend, chunk, elsewhere = offer
            group = two_member_group(backend, store, member, address, patience)
        except RuntimeError as cause:
            want = f"a connection within {patience:g} s"
            fix = "start it, and let both ends reach each other's address"
            raise expected(options["name"], want, _reason(cause), fix, ChannelError) from cause
        channel = cls(group, member, timeout=timeout, chunk=chunk, **options)
        if elsewhere:
            channel.offset = compare_clocks(channel, member)
        return channel

    @property
    def closed(self) -> bool:
        """Whether the channel can no longer be used."""
        return self._group is None

    def send(self, kind: Kind, step: int, tensor: torch.Tensor) -> None:
        """Send a tensor, and return when the other end has it; with pacing at once, and it leaves later, in order.

        Raises:
            ChannelError: the other end is gone, or took nothing for longer than the timeout.
        """
        tensor = tensor.detach()
        if self._on_message is not None:
            self._on_message("out", kind, step, tensor)
        sent = time.monotonic_ns() + round(1e9 * self.offset)
        payload, layout = _flat(tensor.to(self._place))
        header = Header(kind, step, sent, checksum(payload), payload.dtype, layout, tuple(tensor.shape))
        parts = [(header.pack().to(self._place), _TAG_HEADER), *((c, _TAG_PAYLOAD) for c in self._chunks(payload))]
        if self._line is None:
            self._transmit(parts)
            return
        rate = self._broadcast_rate if kind == Kind.BROADCAST else None
        for part, tag in parts:
            bits = 8 * part.numel() if tag == _TAG_PAYLOAD else 0
            self._line.put(bits, lambda part=part, tag=tag: self._transmit([(part, tag)]), rate)

    def recv(
        self,
        kind: Kind,
        step: int,
        shape: tuple[int | None, ...],
        dtype: torch.dtype | None = torch.float32,
        patience: float | None = None,
    ) -> torch.Tensor:
        """Receive the tensor that must come next.

        Args:
            kind, step, shape, dtype: what the header must say; None in `shape` for any size.
            patience: s until the header must be there, default the timeout.

        Raises:
            ProtocolError: the header says something else, and no payload was received, or the payload is damaged.
            ChannelError: the other end is gone, or silent for too long.
        """
        try:
            header, tensor = self._receive(kind, step, shape, dtype, patience or self.timeout)
        except Exception as cause:  # whatever one end does is an error of this channel alone
            self.close()
            if isinstance(cause, ChannelError):
                raise
            if isinstance(cause, ProtocolError):
                raise ProtocolError(f"{self.name}: {cause}") from cause
            want, fix = "a message that can be received", "see its own output; it may connect again"
            raise expected(self.name, want, _reason(cause), fix, ProtocolError) from cause
        if self._on_transfer is not None:
            self._on_transfer("in", kind, step, header.sent / 1e9, time.monotonic() + self.offset)
        if self._on_message is not None:
            self._on_message("in", kind, step, tensor)
        return tensor

    def _receive(self, kind, step, shape, dtype, patience) -> tuple[Header, torch.Tensor]:
        numbers = torch.empty(HEADER, dtype=torch.int64, device=self._place)
        self._wait([self._begin("recv", numbers, _TAG_HEADER)], patience)
        header = check_header(numbers, kind, step, shape, dtype)
        tensor, payload = _empty(header, self._place)
        total, chunks = 0, self._chunks(payload)
        for chunk, work in [(chunk, self._begin("recv", chunk, _TAG_PAYLOAD)) for chunk in chunks]:
            self._wait([work], self.timeout)
            total += checksum(chunk)  # while the next one comes
        header.check_sum(total)
        return header, tensor

    def flush(self) -> None:
        """Wait until paced messages have left."""
        if self._line is not None:
            self._line.flush()

    def close(self) -> None:
        """Close the connection; what waits at either end fails."""
        with self._lock:
            group, self._group = self._group, None
        if group is not None:
            end_group(group)
        if self._line is not None:
            self._line.close()

    def _transmit(self, parts) -> None:
        self._wait([self._begin("send", part, tag) for part, tag in parts], self.timeout)

    def _chunks(self, payload: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the bytes of a contiguous tensor in pieces."""
        return payload.view(-1).view(torch.uint8).split(self._chunk) if payload.numel() else ()

    def _begin(self, way: str, tensor: torch.Tensor, tag: int):
        with self._lock:
            group = self._group
        if group is None:
            raise expected(self.name, "an open channel", "one that was closed", "connect again", ChannelError)
        try:
            return getattr(group, way)([tensor], self._peer, tag)
        except RuntimeError as cause:
            raise self._gone(cause, self.timeout) from cause

    def _wait(self, works, patience: float) -> None:
        for work in works:
            try:
                work.wait(timedelta(seconds=patience))
            except RuntimeError as cause:
                raise self._gone(cause, patience) from cause

    def _gone(self, cause: RuntimeError, patience: float) -> ChannelError:
        self.close()
        want = f"an answer within {patience:g} s"
        return expected(self.name, want, _reason(cause), "see its own output; it may connect again", ChannelError)


def chunk_size(timeout: float) -> int:
    """Return the bytes of a message to wait for at a time, so that a slow link is told from a dead one.

    A link of 1 Mbit/s needs half the timeout for them, however long the message; slower ones need a longer timeout.
    """
    least, most = _CHUNKS
    return int(min(max(timeout / 2 * _SLOWEST / 8, least), most)) // 8 * 8  # whole numbers, for checksums of pieces


def _agree(store: Store, member: int, backend: str, chunk: int, name: str, patience: float) -> tuple[str, int, bool]:
    """Return what both ends take: NCCL if both offer it, the smaller number of bytes; and if their machines differ."""
    here = machine()
    store.set(f"offer {member}", f"{backend} {chunk} {here}")
    store.wait([f"offer {1 - member}"], timedelta(seconds=patience))
    text = store.get(f"offer {1 - member}")
    offer = re.fullmatch(rb"(gloo|nccl) ([0-9]{4,7}) ([0-9a-f-]{1,36})", text)
    if offer is None:
        fix = "let both ends run the same version of psl"
        raise expected(name, "a backend, a number of bytes, a machine", repr(text[:40]), fix, ProtocolError)
    return min(backend, offer[1].decode()), min(chunk, int(offer[2]) // 8 * 8), offer[3].decode() != here


def serve_store(address: str = LOOPBACK, port: int = 0, timeout: float = 300.0) -> tuple[TCPStore, int]:
    """Open the store where ends find each other, on one network interface only, and return it with its port.

    Args:
        address: of the interface; the default is this machine's own, which no other machine reaches.
        port: 0 for a free one.
        timeout: s that a look-up waits.

    Raises:
        ChannelError: the port is taken, or the address is not this machine's.
    """
    try:
        listener = socket.create_server((address, port), backlog=1024)
    except OSError as cause:
        fix = "end what listens there or take another port, on an address of this machine"
        want = f"a port to listen on at {address}:{port}"
        raise expected("server", want, cause.strerror or cause, fix, ChannelError) from cause
    with listener:
        port = listener.getsockname()[1]
        store = TCPStore(
            address, port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout),
            master_listen_fd=listener.detach(),
        )  # fmt: skip
    return store, port


def open_store(address: str, port: int, timeout: float = 300.0) -> TCPStore:
    """Return a connection to a store, waited for until the timeout in s; raises `ChannelError` if nobody serves it."""
    end = time.monotonic() + timeout
    try:
        while True:
            try:  # torch's own attempts end in a page of frames of its C++ code
                socket.create_connection((address, port), timeout).close()
                break
            except OSError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))
    except (OSError, RuntimeError) as cause:
        want = f"a store at {address}:{port} within {timeout:g} s"
        raise expected("server", want, _reason(cause), "start the server first", ChannelError) from cause


def _reason(cause: BaseException) -> str:
    text = (str(cause).splitlines() or [type(cause).__name__])[0]
    if "closed" in text or "reset" in text.lower() or "Broken pipe" in text:
        return "a closed connection"
    return "nothing" if any(sign in text for sign in ("imed out", "imeout", "refused")) else text[-160:]


def _flat(tensor: torch.Tensor) -> tuple[torch.Tensor, Layout]:
    """Return a contiguous tensor with the same numbers, without copying an image in channels_last."""
    if not tensor.is_contiguous() and tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.permute(0, 2, 3, 1), Layout.CHANNELS_LAST
    return tensor.contiguous(), Layout.CONTIGUOUS


def _empty(header: Header, place: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a tensor as the header says, and its numbers in the order in which they come."""
    if header.layout == Layout.CONTIGUOUS:
        tensor = torch.empty(header.shape, dtype=header.dtype, device=place)
        return tensor, tensor
    n, c, h, w = header.shape
    payload = torch.empty((n, h, w, c), dtype=header.dtype, device=place)
    return payload.permute(0, 3, 1, 2), payload
