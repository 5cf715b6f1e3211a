"""What crosses between server and client: kinds of messages, their checked header, and the errors of a channel."""

import enum
from dataclasses import dataclass

import torch

from psl.errors import PSLError, expected

_MAGIC, _VERSION = 0x50534C_0A0D, 2
_MAX_DIMS = 8
_MODULUS = 1 << 63
#: Numbers of a header, int64: magic, version, kind, step, when it was sent, checksum, dtype, layout, dimensions, sizes.
HEADER = 9 + _MAX_DIMS
_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


class ChannelError(PSLError):
    """The other end of a channel is gone, or silent for longer than the timeout."""


class ProtocolError(PSLError):
    """A message is not the one that is expected, or damaged; it is dropped and the channel is closed."""


class Kind(enum.IntEnum):
    """What a message carries."""

    COMMAND = 1  # server → client: what to do next
    HELLO = 2  # client → server: sizes of its data, and what it was started with
    ACTIVATION = 3
    LABELS = 4
    GRADIENT = 5  # server → one client
    BROADCAST = 6  # server → all clients: EPSL's aggregated gradients, SFL's averaged model
    MODEL = 7
    LOSS = 8  # of a device that holds the whole model
    REPORT = 9  # client → server: all done
    TEST_ACTIVATION = 10
    TEST_LABELS = 11
    CLOCK = 12  # between two machines: what time is it there?


class Layout(enum.IntEnum):
    """How a payload's numbers are ordered."""

    CONTIGUOUS = 0
    CHANNELS_LAST = 1


@dataclass(frozen=True)
class Header:
    """What precedes a payload.

    Args:
        kind: of the message.
        step: number that both ends agree on, so that a message of another step is noticed.
        sent: ns on the server's monotonic clock when the message was handed over.
        checksum: of the payload, see `checksum`.
        dtype, layout, shape: of the payload.
    """

    kind: Kind
    step: int
    sent: int
    checksum: int
    dtype: torch.dtype
    layout: Layout
    shape: tuple[int, ...]

    def pack(self) -> torch.Tensor:
        """Return the header as int64 numbers, (HEADER,)."""
        if len(self.shape) > _MAX_DIMS or self.dtype not in _DTYPES:
            want = f"at most {_MAX_DIMS} dimensions of a plain number type"
            got = f"{self.dtype} of shape {self.shape}"
            raise expected("a message", want, got, "flatten it, or convert it to float32", ProtocolError)
        sizes = [*self.shape, *[0] * (_MAX_DIMS - len(self.shape))]
        numbers = [_MAGIC, _VERSION, self.kind, self.step, self.sent, self.checksum, _DTYPES.index(self.dtype)]
        return torch.tensor([*numbers, self.layout, len(self.shape), *sizes], dtype=torch.int64)

    def check_payload(self, payload: torch.Tensor) -> None:
        """Raise `ProtocolError` if a payload is not the one that was sent."""
        self.check_sum(checksum(payload))

    def check_sum(self, total: int) -> None:
        """Raise `ProtocolError` if the checksums of a payload's pieces do not add up to what was sent."""
        if total % _MODULUS != self.checksum:
            name, fix = (
                f"{self.kind.name.lower()} of step {self.step}",
                "see whether the network is sound, and connect again",
            )
            raise expected(
                name, "the payload that its header announces", "a shorter or damaged one", fix, ProtocolError
            )


def check_header(
    numbers: torch.Tensor, kind: Kind, step: int, shape: tuple[int | None, ...], dtype: torch.dtype | None
) -> Header:
    """Return the header that was received if it is the one expected.

    Args:
        numbers: (HEADER,) as received.
        kind, step: that must have come.
        shape: None for any size.
        dtype: None for any.

    Raises:
        ProtocolError: it is not.
    """
    magic, version, got_kind, got_step, sent, total, code, layout, n_dims, *sizes = numbers.tolist()
    if (magic, version) != (_MAGIC, _VERSION):
        fix = "let both ends run the same version of psl, and nothing else use these ports"
        raise expected("header", f"one of psl, version {_VERSION}", f"{magic:#x}, {version}", fix, ProtocolError)
    fix = "start server and clients with the same arguments"
    if got_kind != kind or got_step != step:
        names = {int(k): k.name.lower() for k in Kind}
        got = f"{names.get(got_kind, got_kind)} of step {got_step}"
        raise expected("message", f"{kind.name.lower()} of step {step}", got, fix, ProtocolError)
    name = f"{kind.name.lower()} of step {step}"
    if not 0 <= code < len(_DTYPES) or not 0 <= layout < len(Layout) or not 0 <= n_dims <= _MAX_DIMS:
        want = "codes of a dtype, a layout and a number of dimensions"
        raise expected(name, want, (code, layout, n_dims), fix, ProtocolError)
    got = tuple(sizes[:n_dims])
    fits = len(got) == len(shape) and all(n >= 0 and want in (None, n) for n, want in zip(got, shape, strict=True))
    if not fits:
        want = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise expected(name, f"shape {want}", f"shape {got}", fix, ProtocolError)
    if dtype not in (None, _DTYPES[code]):
        raise expected(name, dtype, _DTYPES[code], fix, ProtocolError)
    if layout == Layout.CHANNELS_LAST and n_dims != 4:
        raise expected(name, "4 dimensions in channels_last", n_dims, fix, ProtocolError)
    return Header(kind, step, sent, total, _DTYPES[code], Layout(layout), got)


def checksum(payload: torch.Tensor) -> int:
    """Return the sum of a contiguous tensor's bytes as whole numbers of 8 bytes, those left over, and their number.

    Modulo 2⁶³ it is the sum of those of pieces whose lengths, but for the last, are multiples of 8 bytes. It finds
    what is missing or damaged by accident; who means to deceive can make it right.
    """
    if not payload.numel():
        return 0
    content = payload.view(-1).view(torch.uint8)
    if content.data_ptr() % 8:  # begins within a larger tensor
        content = content.clone()
    whole = content.numel() // 8 * 8
    total = int(content[:whole].view(torch.int64).sum()) + int(content[whole:].sum()) + content.numel()
    return total % _MODULUS


def dtype_code(dtype: torch.dtype) -> int:
    """Return the number that stands for a dtype in messages."""
    return _DTYPES.index(dtype)


def dtype_of(code: int) -> torch.dtype:
    """Return the dtype that a number stands for."""
    if not 0 <= code < len(_DTYPES):
        raise expected("dtype", f"a code in 0..{len(_DTYPES) - 1}", code, "let both ends run psl", ProtocolError)
    return _DTYPES[code]
