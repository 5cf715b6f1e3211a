"""Channels carry tensors unchanged, refuse what is not expected, and never wait for ever."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.distributed import PrefixStore

from psl.distributed.edge.pacing import DelayLine
from psl.distributed.wire import clocks, groups, messages, transport
from psl.distributed.wire.messages import ChannelError, Header, Kind, Layout, ProtocolError, checksum
from psl.distributed.wire.transport import Channel, chunk_size, open_store, serve_store
from psl.errors import ScenarioError


@pytest.fixture
def pair():
    """Two connected ends of a channel in this process, and what crossed."""
    store, port = serve_store(timeout=10)
    crossed = []
    options = {"patience": 10, "timeout": 1.0}
    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(Channel.connect, store, "c/0", 0, name="client 0", **options)
        client = pool.submit(
            Channel.connect, open_store("127.0.0.1", port, 10), "c/0", 1, name="server",
            on_message=lambda *what: crossed.append(what), **options,
        )  # fmt: skip
        ends = server.result(), client.result()
    yield *ends, crossed
    for end in ends:
        end.close()


def exchange(sender, receiver, kind, step, tensor, *expected):
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(sender.send, kind, step, tensor)
        received = receiver.recv(kind, step, *expected)
        sending.result()
    return received


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5), torch.arange(7), torch.tensor(2.5, dtype=torch.float64), torch.zeros(0, 4),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(6, 4).t(),
        torch.randn(700_000), torch.tensor([True, False]), torch.randn(4).bfloat16(),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}",
)  # fmt: skip
def test_tensors_arrive_unchanged_in_both_directions(pair, tensor):
    server, client, crossed = pair
    for sender, receiver in ((server, client), (client, server)):
        got = exchange(sender, receiver, Kind.MODEL, 3, tensor, tuple(tensor.shape), tensor.dtype)
        assert got.dtype == tensor.dtype and torch.equal(got, tensor)
        if tensor.ndim == 4:
            assert got.stride() == tensor.stride()
    assert [(way, kind) for way, kind, *_ in crossed] == [("in", Kind.MODEL), ("out", Kind.MODEL)]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ((Kind.LABELS, 1, (4,)), "expected labels of step 1, got activation of step 1"),
        ((Kind.ACTIVATION, 2, (4,)), "expected activation of step 2, got activation of step 1"),
        ((Kind.ACTIVATION, 1, (None, 4)), r"expected shape \(any, 4\), got shape \(4,\)"),
        ((Kind.ACTIVATION, 1, (5,)), r"expected shape \(5\), got shape \(4,\)"),
        ((Kind.ACTIVATION, 1, (4,), torch.int64), "expected torch.int64, got torch.float32"),
    ],
)
def test_a_wrong_message_is_refused_before_its_payload_and_closes_the_channel(pair, expected, message):
    server, client, _ = pair
    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(client.send, Kind.ACTIVATION, 1, torch.ones(4))
        with pytest.raises(ProtocolError, match=message + r".*Fix"):
            server.recv(*expected)
        assert server.closed
        with pytest.raises(ChannelError, match="server: expected an answer within 1 s, got a closed connection"):
            sending.result()
    with pytest.raises(ChannelError, match="expected an open channel, got one that was closed"):
        server.recv(Kind.ACTIVATION, 1, (4,))


@pytest.mark.parametrize("position", range(9))
def test_a_damaged_header_is_refused(position):
    header = Header(Kind.ACTIVATION, 0, 0, 0, torch.float32, Layout.CONTIGUOUS, (2, 3)).pack()
    messages.check_header(header, Kind.ACTIVATION, 0, (2, 3), torch.float32)
    header[position] = -5
    if position in (4, 5):  # when it was sent is only recorded, the checksum is the payload's
        return
    with pytest.raises(ProtocolError, match=r"expected .*, got .*Fix"):
        messages.check_header(header, Kind.ACTIVATION, 0, (2, 3), torch.float32)


@pytest.fixture
def liar():
    """A channel, and gloo's bare group at its other end, which may send what it likes."""
    store, port = serve_store(timeout=10)
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(Channel.connect, store, "c/0", 0, name="client 0", patience=10, timeout=1.0)
        other = PrefixStore("c/0", open_store("127.0.0.1", port, 10))
        other.set("offer 1", f"gloo 65536 {clocks.machine()}")
        group = groups.two_member_group("gloo", other, 1, "127.0.0.1", 10)
        yield server.result(), group
    server.result().close()


@pytest.mark.parametrize(
    ("shape", "sent", "message"),
    [
        ((4,), torch.ones(3), "expected the payload that its header announces, got a shorter or damaged one"),
        ((4,), torch.tensor([1.0, 1, 1, 2]), "expected the payload that its header announces"),
        ((2**61,), torch.ones(4), r"client 0: expected a message that can be received, got .*size"),
        ((2**45,), torch.ones(4), r"client 0: expected a message that can be received, got .*memory"),
    ],
    ids=["too short", "damaged", "no such size", "no such memory"],
)
def test_a_payload_that_its_header_does_not_announce_is_refused(liar, shape, sent, message):
    server, group = liar
    header = Header(Kind.MODEL, 0, 0, checksum(torch.ones(4)), torch.float32, Layout.CONTIGUOUS, shape)
    numbers = header.pack()
    sending = group.send([numbers], 0, 0), group.send([sent], 0, 1)
    with pytest.raises(ProtocolError, match="client 0: .*" + message.removeprefix("client 0: ") + r".*Fix"):
        server.recv(Kind.MODEL, 0, (None,))
    assert server.closed and len(sending) == 2


@pytest.mark.parametrize(
    "offer", ["", "nccl", "gloo 12", "gloo 99999999", "gloo -655360", "gloo 65536", "gloo 65536 x"]
)
def test_an_offer_that_is_none_is_refused(offer):
    store, _ = serve_store(timeout=10)
    store.set("c/offer 1", offer)
    with pytest.raises(ProtocolError, match="client 3: expected a backend, a number of bytes, a machine, got b'"):
        Channel.connect(store, "c", 0, name="client 3", patience=1, timeout=1)


@pytest.mark.parametrize("numbers", [1, 7, 8, 1001])
def test_a_checksum_finds_what_is_missing_or_changed(numbers):
    whole = torch.randn(numbers + 1)
    for tensor in (whole[1:], whole[:-1], whole[1:].bfloat16(), whole.gt(0)):  # beginning anywhere in memory
        flat = tensor.clone().view(torch.uint8)
        assert checksum(tensor) == checksum(tensor.clone()) != checksum(tensor[:-1])
        for position in {0, len(flat) // 2, len(flat) - 1}:
            changed = flat.clone()
            changed[position] += 1
            assert checksum(changed) != checksum(flat)
    assert checksum(torch.empty(0, 3)) == 0 <= checksum(torch.full((9,), -1)) < 2**63


def test_ends_with_other_timeouts_agree():
    store, port = serve_store(timeout=10)
    with ThreadPoolExecutor(2) as pool:
        server = pool.submit(Channel.connect, store, "c", 0, name="c", patience=10, timeout=0.5, backend="nccl")
        other = open_store("127.0.0.1", port, 10)
        client = pool.submit(Channel.connect, other, "c", 1, name="s", patience=10, timeout=30).result()
        server = server.result()
    assert client._chunk == server._chunk == chunk_size(0.5) < chunk_size(30)
    assert torch.equal(exchange(client, server, Kind.MODEL, 0, torch.arange(99_999.0), (None,)), torch.arange(99_999.0))
    for end in (server, client):
        end.close()


def test_clocks_of_two_machines_are_compared(monkeypatch):
    skew, lines = 3_600, {}
    names = iter("ab")
    monkeypatch.setattr(transport, "machine", lambda: next(names))
    store, port = serve_store(timeout=10)

    def note(end):
        return lambda *what: lines.setdefault(end, []).append(what)

    with ThreadPoolExecutor(2) as pool:
        options = {"patience": 10, "timeout": 10}
        server = pool.submit(Channel.connect, store, "c", 0, name="c", on_transfer=note(0), **options)
        other = open_store("127.0.0.1", port, 10)
        client = pool.submit(Channel.connect, other, "c", 1, name="s", on_transfer=note(1), **options).result()
        server = server.result()
        assert server.offset == 0 and abs(client.offset) < 0.05  # of the clock that both have
        there = pool.submit(clocks.compare_clocks, server, 0)
        late = clocks.compare_clocks(client, 1, now=lambda: time.monotonic_ns() + skew * 10**9)
        assert there.result() == 0 and late == pytest.approx(-skew, abs=0.05)
    client.offset, begun = skew, time.monotonic()  # as if this clock were behind the server's
    exchange(client, server, Kind.MODEL, 0, torch.ones(3), (3,))
    exchange(server, client, Kind.MODEL, 1, torch.ones(3), (3,))
    (*_, start, _), (*_, end) = lines[0][-1], lines[1][-1]
    assert all(0 <= moment - skew - begun < 5 for moment in (start, end))
    for channel in (server, client):
        channel.close()


def test_on_one_machine_clocks_are_one(pair):
    assert [end.offset for end in pair[:2]] == [0, 0] and pair[2] == []  # nothing was asked


@pytest.mark.parametrize(
    ("device", "backend", "gpus", "n_local", "found"),
    [
        ("cpu", "auto", 8, 2, "gloo"), ("cuda", "auto", 4, 4, "nccl"), ("cuda", "auto", 3, 4, "gloo"),
        ("cuda:1", "auto", 4, 2, "gloo"), ("cuda:1", "auto", 4, 1, "nccl"), ("cuda", "gloo", 4, 4, "gloo"),
        ("cuda", "nccl", 4, 4, "nccl"), ("cuda", "nccl", 3, 4, None), ("cpu", "nccl", 4, 1, None),
    ],
)  # fmt: skip
def test_nccl_is_taken_where_each_process_has_a_gpu(monkeypatch, device, backend, gpus, n_local, found):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    if found is None:
        with pytest.raises(ScenarioError, match="backend: expected device 'cuda' and a GPU for each process, for nccl"):
            groups.backend_for(device, n_local, backend)
    else:
        assert groups.backend_for(device, n_local, backend) == found
    if device == "cuda":
        assert [groups.device_of("cuda", rank).index for rank in range(5)] == [rank % gpus for rank in range(5)]
    assert groups.device_of("cuda:1", 3).index == 1 and groups.device_of("cpu", 3) == torch.device("cpu")


def test_devices_that_are_none_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device, message in (
        ("gpu", "expected 'cpu', 'cuda' or 'cuda:1', got 'gpu'"), (3.5, "got 3.5"), ("meta", "got 'meta'"),
        ("cuda:1", "expected a device that torch sees, got 'cuda:1' where torch .* sees 1 GPUs"),
    ):  # fmt: skip
        with pytest.raises(ScenarioError, match="device: .*" + message):
            groups.check_device(device)
    with pytest.raises(ScenarioError, match="backend: expected one of 'auto', 'gloo', 'nccl', got 'mpi'"):
        groups.backend_for("cpu", 1, "mpi")


def test_silence_and_a_closed_connection_end_a_wait(pair):
    server, client, _ = pair
    begun = time.monotonic()
    with pytest.raises(ChannelError, match=r"client 0: expected an answer within 0.2 s, got nothing"):
        server.recv(Kind.HELLO, 0, (1,), patience=0.2)
    assert 0.2 <= time.monotonic() - begun < 10
    with pytest.raises(ChannelError, match="server: expected an answer within 1 s, got a closed connection"):
        client.recv(Kind.COMMAND, 0, (1,))


def test_nobody_at_the_other_end():
    store, port = serve_store(timeout=10)
    with pytest.raises(ChannelError, match=r"client 4: expected a connection within 0.3 s, got nothing"):
        Channel.connect(store, "c/4", 0, name="client 4", patience=0.3, timeout=1)
    del store
    with pytest.raises(ChannelError, match=f"server: expected a store at 127.0.0.1:{port} within"):
        open_store("127.0.0.1", port, 0.3)


def test_the_store_listens_on_loopback_only():
    _store, port = serve_store()
    with socket.create_connection(("127.0.0.1", port), timeout=1):
        pass
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (listening,) = {row[1] for row in table if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    assert listening == f"0100007F:{port:04X}"


def test_a_paced_channel_keeps_order_and_takes_the_time_of_its_rates():
    store, port = serve_store(timeout=10)
    line = DelayLine([(1.6e6, 0.05)])
    with ThreadPoolExecutor(2) as pool:
        ends = [
            pool.submit(Channel.connect, where, "p", k, name="other", patience=10, timeout=10, **more)
            for k, (where, more) in enumerate(
                [(store, {"line": line, "broadcast_rate": 640e6}), (open_store("127.0.0.1", port, 10), {})]
            )
        ]
        server, client = (end.result() for end in ends)
    begun = time.monotonic()
    server.send(Kind.GRADIENT, 0, torch.ones(50_000))  # 1 s at 1.6 Mbit/s
    server.send(Kind.BROADCAST, 0, torch.ones(2_000_000))  # 0.1 s, at the line's own rate 40 s
    assert time.monotonic() - begun < 1  # sending does not wait
    assert torch.equal(client.recv(Kind.GRADIENT, 0, (50_000,)), torch.ones(50_000))
    client.recv(Kind.BROADCAST, 0, (2_000_000,))
    assert 1.14 <= time.monotonic() - begun < 20
    server.flush()
    thread = line._thread
    for end in (server, client):
        end.close()
    thread.join(10)
    assert not thread.is_alive(), "it ends with its channel"
