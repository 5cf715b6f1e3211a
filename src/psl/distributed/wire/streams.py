"""gRPC streams: who listens, who connects, and who is let in.

A client opens one bidirectional stream, so that only the server needs a port that others reach. Both show
certificates of the run (`psl.distributed.wire.keys`), unless the user asked for plain text.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from psl.distributed.wire.keys import Bundle, rank_name
from psl.distributed.wire.links import START, Link, compare_clocks
from psl.distributed.wire.messages import ChannelError, Kind, ProtocolError, decode, encode
from psl.errors import expected, first_line

LOOPBACK = "127.0.0.1"
_METHOD = "/psl/stream"
_SPARE = 32  # streams of strangers at a time
_HELLO_WITHIN = 10.0  # s
_POLL = 0.05
_GONE = "a closed connection, or no sign of life within the timeout"
_AGAIN = "is connected already"  # a rank that comes back before its old stream is known to be gone tries again


class Listener(grpc.GenericRpcHandler):
    """Waits for streams on a port, and lets in who belongs to the run; a context manager.

    Args:
        addresses: to listen on, each "ADDRESS:PORT", of which port 0 means any free one, the same for all.
        bundle: keys of this rank; None for plain text.
        make: ``make(rank, plane)`` returns a new `Link` to a rank.
        admit: called with what a client says, its hello; raises `ProtocolError` with the reason to refuse it.
        ranks: who may connect.
        limit: bytes of the longest message.
        timeout: s without an answer to keepalive after which a process counts as gone.

    Attributes:
        port: that it listens on.
        refused: what was said to those not let in, in order.

    Raises:
        ChannelError: an address is taken, or not this machine's.
    """

    def __init__(
        self,
        addresses: list[str],
        bundle: Bundle | None,
        make: Callable[[int, int], Link],
        admit: Callable[[dict[str, Any]], None],
        ranks: range,
        *,
        limit: int,
        timeout: float,
    ):
        self._make, self._admit, self._ranks, self._secure = make, admit, ranks, bundle is not None
        self.refused: list[str] = []
        self._lock, self._arrived = threading.Lock(), threading.Condition()
        self._there: dict[tuple[int, int], Link] = {}
        self._waiting: dict[tuple[int, int], Link] = {}
        most = 2 * len(ranks) + _SPARE
        self._server = grpc.server(
            ThreadPoolExecutor(most, thread_name_prefix="stream"),
            handlers=[self],
            options=[*_options(limit, timeout), ("grpc.so_reuseport", 0), ("grpc.server_handshake_timeout_ms", 10_000)],
            maximum_concurrent_rpcs=most,
        )
        self.port = 0
        for address in addresses:
            host, _, port = address.rpartition(":")
            where = f"{host}:{self.port or port}"
            try:
                self.port = self._open(where, bundle)
            except RuntimeError as cause:
                fix = "end what listens there or take another port, on an address of this machine"
                raise expected("--listen", f"a free port at {where}", "none", fix, ChannelError) from cause
        self._server.start()

    def _open(self, where: str, bundle: Bundle | None) -> int:
        if bundle is None:
            return self._server.add_insecure_port(where)
        pair = bundle.key.encode(), bundle.certificate.encode()
        credentials = grpc.ssl_server_credentials([pair], bundle.authority.encode(), require_client_auth=True)
        return self._server.add_secure_port(where, credentials)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for link in [*self._there.values()]:
            link.close()
        self._server.stop(1.0).wait(3.0)

    def meet(self, rank: int, patience: float = 0.0, plane: int = 0) -> Link | None:
        """Return the link to a rank that has come since the last call, waiting so many s for it; None if none has."""
        with self._arrived:
            self._arrived.wait_for(lambda: (rank, plane) in self._waiting, patience)
            return self._waiting.pop((rank, plane), None)

    def service(self, handler_call_details):
        """Return what answers a call; gRPC asks."""
        if handler_call_details.method == _METHOD:
            return grpc.stream_stream_rpc_method_handler(self._stream)
        return None

    def _stream(self, requests, context):
        """Answer one stream; runs in a thread of its own."""
        impatient = threading.Timer(_HELLO_WITHIN, context.cancel)
        impatient.daemon = True
        impatient.start()
        try:
            link = self._let_in(decode(next(requests)), context)
        except (ProtocolError, StopIteration, grpc.RpcError) as reason:
            if isinstance(reason, ProtocolError):
                with self._lock:
                    self.refused = [*self.refused[-99:], f"not let in: {context.peer()}: {reason}"]
                yield encode(Kind.BYE, 0, word={"reason": str(reason)}, sent=0.0, check=False)
            return
        finally:
            impatient.cancel()
        if not context.add_callback(lambda: link.broken(_GONE)):
            link.broken(_GONE)
        threading.Thread(target=_read, args=(requests, link), name=f"from {link.name}", daemon=True).start()
        yield from link.outgoing()

    def _let_in(self, hello, context) -> Link:
        word, fix = hello.word, "give it the keys of its own rank, of this run"
        if hello.kind != Kind.HELLO or not isinstance(rank := word.get("rank"), int):
            raise expected("a stranger", "a hello", hello.kind.name.lower(), "let both ends run psl", ProtocolError)
        plane = 1 if word.get("plane") == 1 else 0
        if self._secure:
            names = [
                name.decode(errors="replace")
                for name in context.auth_context().get("x509_subject_alternative_name", [])
            ]
            if names != [rank_name(rank)]:
                raise expected(
                    f"rank {rank}", f"a certificate for {rank_name(rank)}", ", ".join(names), fix, ProtocolError
                )
        if rank not in self._ranks:
            want = f"a rank in {self._ranks.start}..{self._ranks.stop - 1}"
            raise expected("a client", want, rank, "start as many processes as the run has", ProtocolError)
        with self._lock:
            self._admit(word)
            if (old := self._there.get((rank, plane))) is not None and old.failure is None:
                fix = "start each rank once; one that comes back is let in when its old connection is gone"
                raise expected(f"rank {rank}", "one connection", f"another while it {_AGAIN}", fix, ProtocolError)
            link = self._there[rank, plane] = self._make(rank, plane)
            link.hello = word
        with self._arrived:
            self._waiting[rank, plane] = link
            self._arrived.notify_all()
        return link


def connect(
    link: Link, address: str, bundle: Bundle | None, hello: dict[str, Any], *, server: int, timeout: float,
    patience: float = START,
) -> dict[str, Any]:  # fmt: skip
    """Open the stream of a link and wait to be welcomed; returns what the server says then.

    Args:
        link: to the server.
        address: "ADDRESS:PORT" of it.
        bundle: keys of this rank; None for plain text.
        hello: who this is, and what for.
        server: rank that must answer.
        timeout: s without an answer to keepalive after which it counts as gone.
        patience: s to wait until it answers at all.

    Raises:
        ChannelError: nobody answers, or not the server of this run's keys.
        ProtocolError: the server does not let this process in; with its reason.
    """
    end = time.monotonic() + patience
    while True:
        channel = _channel(address, bundle, server, link.limit, timeout)
        first = encode(Kind.HELLO, 0, word=hello, sent=0.0, check=False)

        answered, welcome = threading.Event(), []

        def messages(first=first, answered=answered, welcome=welcome):
            yield first
            answered.wait()  # else a stream that is refused would take what belongs to the next one
            if welcome:
                yield from link.outgoing()

        calls = channel.stream_stream(_METHOD)(messages(), wait_for_ready=False)
        try:
            answer = decode(next(calls))
        except grpc.RpcError as cause:
            _check_trust(cause, address, server)
            got = first_line(Exception(cause.details() or "nothing"), 100)
            fix = "start the server first, and let this host reach its port"
            failure = expected(link.name, f"an answer at {address} within {patience:g} s", got, fix, ChannelError)
        except StopIteration:
            failure = expected(link.name, "an answer", "a closed connection", "see its own output", ChannelError)
        else:
            if answer.kind == Kind.WELCOME:
                welcome.append(answer)
                break
            reason = str(answer.word.get("reason"))
            failure = ProtocolError(f"{link.name} refuses: {reason}")
            if _AGAIN not in reason:
                channel.close()
                raise failure
        finally:
            answered.set()
        channel.close()
        if time.monotonic() > end:
            raise failure
        time.sleep(_POLL)
    threading.Thread(target=_read, args=(calls, link, channel), name=f"from {link.name}", daemon=True).start()
    same_clock = answer.word.get("machine") == hello.get("machine")
    link.offset = float(answer.word.get("offset", 0.0)) if same_clock else compare_clocks(link)
    return answer.word


def _check_trust(cause, address: str, server: int) -> None:
    text = str(cause.details())
    if any(sign in text for sign in ("CERTIFICATE", "certificate", "Hostname", "SSL_ERROR_SSL", "Peer name")):
        fix = "use keys of one run at both ends, each rank its own; and --insecure at both ends or at none"
        raise expected(
            f"{address}", f"{rank_name(server)} of this run's keys", "somebody else, or keys that it refuses", fix,
            ChannelError,
        ) from cause  # fmt: skip


def _read(messages, link: Link, channel=None) -> None:
    try:
        for data in messages:
            link.arrived(data)
        link.broken(_GONE)
    except Exception:  # gRPC raises several kinds, and what failed is this link
        link.broken(_GONE)
    finally:
        link.ended.set()
        if channel is not None:
            channel.close()


def _channel(address: str, bundle: Bundle | None, server: int, limit: int, timeout: float):
    options = _options(limit, timeout)
    if bundle is None:
        return grpc.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(
        bundle.authority.encode(), bundle.key.encode(), bundle.certificate.encode()
    )
    return grpc.secure_channel(address, credentials, [*options, ("grpc.ssl_target_name_override", rank_name(server))])


def _options(limit: int, timeout: float) -> list[tuple[str, int]]:
    """Return gRPC's options: the longest message, and keepalive that notices within the timeout who is gone."""
    half = max(int(500 * timeout), 100)  # ms
    return [
        ("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", half), ("grpc.keepalive_timeout_ms", half), ("grpc.http2.ping_timeout_ms", half),
        ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0), ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]  # fmt: skip
