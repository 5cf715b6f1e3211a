"""Messages arrive unchanged or are refused; streams let in who belongs to the run, and nobody waits for ever."""

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from psl.distributed.edge.pacing import DelayLine
from psl.distributed.wire import links
from psl.distributed.wire.keys import Bundle, make_bundles, write_keys
from psl.distributed.wire.links import Link
from psl.distributed.wire.messages import (
    ChannelError,
    Kind,
    ProtocolError,
    check_like,
    decode,
    described,
    encode,
    ones_like,
)
from psl.distributed.wire.streams import Listener, connect
from psl.errors import PSLError

BUNDLES = make_bundles(3)
CONTENTS = [
    torch.randn(3, 5), torch.arange(7), torch.tensor(2.5, dtype=torch.float64), torch.zeros(0, 4),
    torch.randn(6, 4).t(),
    torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.randn(70_000), torch.tensor([True, False]),
    torch.randn(4).bfloat16(), torch.randn(9)[1:], (torch.randn(2, 3), 7, None, (torch.ones(1),)), None,
    {"mask": torch.ones(2), "n": 3},
]  # fmt: skip


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple) else a == b


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("content", CONTENTS, ids=lambda c: str(described(c)))
def test_contents_arrive_unchanged(content, check):
    found = decode(encode(Kind.MODEL, 3, content, {"x": [1, "y"]}, sent=1.5, check=check))
    assert (found.kind, found.step, found.word, found.sent) == (Kind.MODEL, 3, {"x": [1, "y"]}, 1.5)
    assert same(content, found.content)
    if isinstance(content, torch.Tensor) and content.ndim == 4:
        assert found.content.stride() == content.stride()
    check_like("it", found.content, content)


def whole(check=True):
    return encode(Kind.ACTIVATION, 1, torch.arange(12.0), {"needed": [True]}, sent=0.0, check=check)


@pytest.mark.parametrize("place", range(0, len(whole()), 7))
def test_a_flipped_bit_is_noticed_in_plain_text(place):
    data = bytearray(whole())
    data[place] ^= 4
    try:
        found = decode(bytes(data))
    except ProtocolError:
        return
    true = decode(
        whole()
    )  # what is told beside the tensors has no checksum: it may differ, but never silently in these
    assert torch.equal(found.content, true.content)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"x", bytes(8), (1 << 62).to_bytes(8, "little") + b"{}", os.urandom(500), whole()[:-1], whole()[:40],
        whole() + b"more", save({"0": torch.ones(2)}), save({"0": torch.ones(2)}, {"psl": "{"}),
        save({}, {"psl": json.dumps({"psl": 99})}), save({}, {"psl": "[" * 100_000}), b"\x80\x04." * 9,
        save({}, {"psl": json.dumps({"psl": 3, "kind": 99, "step": 0, "word": {}, "form": None, "sent": 0})}),
        save({}, {"psl": json.dumps({"psl": 3, "kind": 5, "step": "0", "word": {}, "form": None, "sent": 0})}),
        save({}, {"psl": json.dumps({"psl": 3, "kind": 5, "step": 0, "word": {}, "form": {"tensor": "7"}, "sent": 0})}),
    ],
    ids=range(16),
)  # fmt: skip
def test_what_is_no_message_is_refused_in_one_line(data):
    with pytest.raises(ProtocolError, match=r"a message: expected one of .*Fix: ") as failure:
        decode(data)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 250


def test_forms_are_compared_and_rebuilt():
    inputs = {"pixels": torch.ones(2, 64), "mask": torch.ones(2, 16, dtype=torch.int64)}
    description = json.loads(json.dumps(described(inputs)))
    assert same(ones_like(description), inputs) and same(ones_like(described((inputs["mask"],))), (inputs["mask"],))
    check_like("x", {"pixels": torch.zeros(5, 64), "mask": torch.zeros(5, 16).long()}, inputs, rows=5)
    for wrong in (torch.ones(2, 64), {"pixels": torch.ones(2, 64)}, inputs | {"mask": torch.ones(2, 16)}):
        with pytest.raises(ProtocolError, match="x: expected .*, got "):
            check_like("x", wrong, inputs)
    for nonsense in (None, 3, [], ["float99", 2], ["float32", -2], ["float32", 1 << 40], {"set": []}, [["float32"]]):
        with pytest.raises(ProtocolError, match="samples: expected a description of tensors"):
            ones_like(nonsense)


# --- keys ---


def test_keys_are_written_once_and_only_their_owner_reads_them(tmp_path):
    places = write_keys(tmp_path / "keys", 2)
    assert [place.name for place in places] == ["rank-0", "rank-1"]
    for path in places[1].iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(places[1].stat().st_mode) == 0o700
    bundle = Bundle.load(places[1])
    assert "PRIVATE" in bundle.key and "PRIVATE" not in repr(bundle)
    with pytest.raises(PSLError, match="keys: expected a folder to write into, got .*rank-0: File exists"):
        write_keys(tmp_path / "keys", 2)
    (places[1] / "key.pem").chmod(0o640)
    with pytest.raises(PSLError, match="a key that only its owner can read, got .*mode 640. Fix: chmod 600"):
        Bundle.load(places[1])
    (places[0] / "certificate.pem").unlink()
    with pytest.raises(PSLError, match=r"--keys: expected a folder with certificate.pem, got .*No such file"):
        Bundle.load(places[0])


# --- streams ---


@pytest.fixture
def server():
    """Starts a server that lets ranks 1 and 2 in, and ends it."""
    opened = []

    def start(bundle=BUNDLES[0], admit=lambda word: None, timeout=2.0, limit=1 << 20, **options):
        make = lambda rank, plane: Link(f"client {rank - 1}", limit=limit, secure=bundle is not None, **options)  # noqa: E731
        found = Listener(["127.0.0.1:0"], bundle, make, admit, range(1, 3), limit=limit, timeout=timeout)
        opened.append(found)
        return found

    yield start
    for found in opened:
        found.__exit__()


def join(listener, rank=1, bundle="own", patience=1.0, timeout=2.0, link=None, word=None, welcome=True, **options):
    """Connect as a rank; returns both ends."""
    bundle = BUNDLES[rank] if bundle == "own" else bundle
    link = link or Link("server", limit=1 << 20, secure=bundle is not None, **options)
    word = {"rank": rank, "machine": "m"} if word is None else word
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(
            connect, link, f"127.0.0.1:{listener.port}", bundle, word, server=0, timeout=timeout, patience=patience
        )
        there = listener.meet(rank, 10.0) if welcome else None
        if there is not None:
            there.welcome("m")
        asking.result()
    return link, there


@pytest.mark.parametrize("bundle", [BUNDLES[0], None], ids=["TLS", "plain"])
def test_messages_cross_in_both_directions(server, bundle):
    crossed = []
    link, there = join(server(bundle), bundle="own" if bundle else None, on_message=lambda *what: crossed.append(what))
    for content in CONTENTS:
        for a, b in ((link, there), (there, link)):
            a.send(Kind.MODEL, 2, content)
            assert same(content, b.recv(Kind.MODEL, 2, 5.0).content)
    assert {(way, kind) for way, kind, *_ in crossed} == {("in", Kind.MODEL), ("out", Kind.MODEL)}
    assert link.offset == 0.0
    link.send(Kind.REPORT, 5)
    with pytest.raises(ProtocolError, match="client 0: expected labels of step 5, got report of step 5"):
        there.recv(Kind.LABELS, 5, 5.0)
    with pytest.raises(ChannelError, match="server: client 0: expected labels of step 5"):  # its reason was told
        link.recv(Kind.COMMAND, 0, 5.0)
    with pytest.raises(PSLError):
        there.send(Kind.REPORT, 6)


def strange(listener, bundle, rank=1, **options):
    """Connect, and return what was said when that was refused."""
    with pytest.raises((ChannelError, ProtocolError)) as failure:
        join(listener, rank, bundle, welcome=False, **options)
    assert "\n" not in str(failure.value)
    return str(failure.value)


def test_only_who_has_keys_of_the_run_is_let_in_and_as_itself(server):
    listener, others = server(), make_bundles(3)
    assert "expected rank-0 of this run's keys, got somebody else" in strange(listener, others[1])
    assert "expected" in strange(listener, None)  # plain text
    assert "rank 1: expected a certificate for rank-1, got rank-2" in strange(listener, BUNDLES[2])
    assert "a client: expected a rank in 1..2, got 0" in strange(listener, BUNDLES[0], rank=0)
    assert "rank 9: expected a certificate for rank-9, got rank-1" in strange(listener, BUNDLES[1], word={"rank": 9})
    assert "a stranger: expected a hello" in strange(listener, BUNDLES[1], word={"rank": "1"})
    assert len(listener.refused) == 4 and all(
        said.startswith("not let in: ipv4:127.0.0.1:") for said in listener.refused
    )
    link, there = join(listener)  # who belongs to the run is let in all the same
    link.send(Kind.REPORT, 1)
    assert there.recv(Kind.REPORT, 1, 5.0).step == 1


def test_an_impostor_at_the_servers_port_is_not_told_anything(server):
    listener = server(BUNDLES[2])  # has keys of the run, but those of a client
    assert "expected rank-0 of this run's keys, got somebody else" in strange(listener, BUNDLES[1])
    expired = make_bundles(2, days=-1 / 48)
    listener = server(expired[0])
    assert "expected rank-0 of this run's keys, got somebody else" in strange(listener, expired[1])


def test_a_second_connection_of_a_rank_waits_until_the_first_is_gone(server):
    listener = server()
    link, there = join(listener)
    assert "rank 1: expected one connection, got another while it is connected already" in strange(
        listener, BUNDLES[1], patience=0.2
    )
    there.send(Kind.COMMAND, 3)
    assert link.recv(Kind.COMMAND, 3, 5.0).step == 3  # undisturbed
    link.close()
    again, there = join(listener, patience=5.0)
    again.send(Kind.REPORT, 1)
    assert there.recv(Kind.REPORT, 1, 5.0).kind == Kind.REPORT


def test_a_refusal_is_told_with_its_reason(server):
    def admit(word):
        raise ProtocolError("rank 1: seed: expected 5, got 6. Fix: start all processes with the same arguments")

    listener = server(admit=admit)
    assert strange(listener, BUNDLES[1]).startswith("server refuses: rank 1: seed: expected 5, got 6")
    assert "seed: expected 5, got 6" in listener.refused[0]


def test_a_message_that_is_too_long_ends_its_own_connection_only(server):
    listener = server()
    link, there = join(listener)
    other, elsewhere = join(listener, 2)
    with pytest.raises(ProtocolError, match="a message: expected at most 1 MB, got 4"):
        link.send(Kind.MODEL, 0, torch.zeros(1_000_000))
    link.limit = 1 << 30  # as who does not mind would send it
    link.send(Kind.MODEL, 0, torch.zeros(1_000_000))
    with pytest.raises(ChannelError, match="client 0: expected a process that goes on, got a closed connection"):
        there.recv(Kind.MODEL, 0, 5.0)
    other.send(Kind.REPORT, 1)
    assert elsewhere.recv(Kind.REPORT, 1, 5.0).step == 1


def test_who_sends_unasked_is_ended_before_memory_is(server, monkeypatch):
    monkeypatch.setattr(links, "_FLOOD", 1)
    link, there = join(server())
    with contextlib.suppress(ChannelError):  # it may hear of its end before it has sent all
        for step in range(4):
            link.send(Kind.MODEL, step, torch.zeros(100_000))
    end = time.monotonic() + 10
    while there.failure is None and time.monotonic() < end:
        time.sleep(0.01)
    assert "client 0: expected what it was asked for, got more" in str(there.failure)


def test_silence_ends_a_wait_only_at_its_deadline_and_nobody_there_is_said(server):
    link, there = join(server(timeout=1.0), timeout=1.0)
    time.sleep(5.0)  # much longer than the timeout: who is alive may take any time, and many signs of life do no harm
    link.send(Kind.REPORT, 0)
    assert there.recv(Kind.REPORT, 0, 5.0).step == 0
    with pytest.raises(ChannelError, match=r"client 0: expected a message within 0.2 s, got none"):
        there.recv(Kind.REPORT, 1, 0.2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ChannelError, match=f"--listen: expected a free port at 127.0.0.1:{port}, got none"):
            Listener([f"127.0.0.1:{port}"], None, Link, print, range(1, 2), limit=1 << 20, timeout=1.0)
    with pytest.raises(ChannelError, match="--listen: expected a free port at 192.0.2.7:0"):
        Listener(["192.0.2.7:0"], None, Link, print, range(1, 2), limit=1 << 20, timeout=1.0)
    with pytest.raises(ChannelError, match=f"server: expected an answer at 127.0.0.1:{port} within 0.3 s, got "):
        connect(Link("server"), f"127.0.0.1:{port}", None, {"rank": 1}, server=0, timeout=1.0, patience=0.3)


def test_it_listens_where_it_is_told_only(server):
    port = server().port
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    rows = [line.split() for line in tables.splitlines()]
    here = {row[1][:-5] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
    assert here and here <= {"0100007F", "0000000000000000FFFF00000100007F"}, "loopback, also written as IPv6"


CLIENT = """
import sys, threading
from psl.distributed.wire.keys import Bundle
from psl.distributed.wire.links import Link
from psl.distributed.wire.streams import connect
from psl.distributed.wire.messages import Kind
link = Link("server", limit=1 << 20)
connect(link, sys.argv[1], Bundle.load(sys.argv[2]), {"rank": 1, "machine": "m"}, server=0, timeout=1.0, patience=20)
link.send(Kind.REPORT, 0)
threading.Event().wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "within"), [(signal.SIGSTOP, 2.0), (signal.SIGKILL, 1.0)], ids=["stop", "kill"])
def test_a_process_that_is_frozen_or_gone_is_noticed_within_the_timeout(server, tmp_path, number, within):
    listener = server(timeout=1.0)
    for name, file in (("authority", "authority.pem"), ("certificate", "certificate.pem"), ("key", "key.pem")):
        (tmp_path / file).write_text(getattr(BUNDLES[1], name))
        (tmp_path / file).chmod(0o600)
    client = subprocess.Popen([sys.executable, "-c", CLIENT, f"127.0.0.1:{listener.port}", str(tmp_path)])
    try:
        there = listener.meet(1, 60.0)
        there.welcome("m")
        there.recv(Kind.REPORT, 0, 30.0)
        client.send_signal(number)
        begun = time.monotonic()
        with pytest.raises(
            ChannelError, match="client 0: expected a process that goes on, got a closed connection, or no"
        ):
            there.recv(Kind.REPORT, 1, 30.0)
        assert time.monotonic() - begun < 10 * within  # other work may only delay
    finally:
        client.kill()
        client.wait()


@pytest.mark.slow
def test_idle_strangers_and_garbage_do_not_keep_anybody_out(server):
    listener, idle = server(timeout=20.0), []
    try:
        for k in range(300):
            idle.append(socket.create_connection(("127.0.0.1", listener.port), 5))
            if k % 3:
                idle[-1].sendall(os.urandom(200) if k % 3 == 1 else b"GET / HTTP/1.1\r\n\r\n")
        link, there = join(listener, patience=20.0, timeout=20.0)
        link.send(Kind.REPORT, 7)
        assert there.recv(Kind.REPORT, 7, 20.0).step == 7
    finally:
        for connection in idle:
            connection.close()


def test_a_stream_without_a_hello_is_ended(server, monkeypatch):
    monkeypatch.setattr("psl.distributed.wire.streams._HELLO_WITHIN", 0.3)
    import grpc

    listener = server(None)
    with grpc.insecure_channel(f"127.0.0.1:{listener.port}") as channel:
        with pytest.raises(grpc.RpcError):
            next(channel.stream_stream("/psl/stream")(iter(threading.Event().wait, True)))
        with pytest.raises(grpc.RpcError):
            next(channel.stream_stream("/other/method")(iter([b"x"])))


def test_clocks_of_two_machines_are_compared(server, monkeypatch):
    lines = []
    listener = server(on_transfer=lambda message, end: lines.append((message.sent, end)))
    skew, true = 3600.0, links.now
    here = threading.current_thread()
    link = Link("server", limit=1 << 20)
    monkeypatch.setattr(links, "now", lambda: true() + (skew if threading.current_thread() is not here else 0.0))
    asking = threading.Thread(
        target=connect, args=(link, f"127.0.0.1:{listener.port}", BUNDLES[1], {"rank": 1, "machine": "another"}),
        kwargs={"server": 0, "timeout": 5.0},
    )  # fmt: skip
    monkeypatch.setattr(links, "now", lambda: true() - (skew if threading.current_thread() is asking else 0.0))
    asking.start()
    there = listener.meet(1, 5.0)
    there.welcome("m")
    asking.join(10)
    assert link.offset == pytest.approx(skew, abs=0.2)


def test_a_paced_link_keeps_order_and_takes_the_time_of_its_rates(server):
    line = DelayLine([(1.6e6, 0.05)])
    listener = server(limit=1 << 24, line=line, broadcast_rate=640e6)
    link, there = join(listener, link=Link("server", limit=1 << 24))
    begun = time.monotonic()
    there.send(Kind.GRADIENT, 0, torch.ones(50_000))  # 1 s at 1.6 Mbit/s
    there.send(Kind.BROADCAST, 0, torch.ones(2_000_000))  # 0.1 s, at the line's own rate 40 s
    assert time.monotonic() - begun < 1  # sending does not wait
    assert torch.equal(link.recv(Kind.GRADIENT, 0, 30.0).content, torch.ones(50_000))
    link.recv(Kind.BROADCAST, 0, 30.0)
    assert 1.14 <= time.monotonic() - begun < 20
    there.flush()
    thread = line._thread
    there.close()
    thread.join(10)
    assert not thread.is_alive(), "it ends with its link"
