"""Messages between processes: one safetensors file each, whose header is checked before its content is read.

The tensors of a message are those of a safetensors file; what kind it is, its step, its form and plain words stand in
the file's metadata as JSON. Nothing is unpickled.
"""

import enum
import json
import time
import zlib
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, TensorSpec, deserialize, serialize

from psl.errors import PSLError, expected, first_line

PROTOCOL = 3
_LONGEST_HEADER = 1 << 20  # bytes
_DTYPES = {
    "F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: str(dtype).removeprefix("torch.") for dtype in _DTYPES.values()}


class ChannelError(PSLError):
    """The process at the other end is gone, silent, or did not come."""


class ProtocolError(PSLError):
    """The process at the other end is not the one expected, or says something else than it must."""


class Kind(enum.IntEnum):
    """What a message is."""

    HELLO = 1  # who connects, and what for
    WELCOME = 2
    BYE = 3  # why a connection ends
    COMMAND = 4  # server → client
    ACTIVATION = 5
    LABELS = 6
    GRADIENT = 7  # to one
    BROADCAST = 8  # server → all clients: EPSL's aggregated gradients, an averaged model
    MODEL = 9
    LOSS = 10  # of a device that holds the last layers
    REPORT = 11  # all done
    TEST_ACTIVATION = 12
    TEST_LABELS = 13
    CLOCK = 14  # what time is it there?
    BEGIN = 15  # of a round of a pipeline, forward, and back when all are ready


@dataclass(frozen=True)
class Message:
    """A message as it arrived.

    Args:
        kind, step: what it is, and the number that both ends agree on.
        content: a tensor, or tuples and dicts of tensors, numbers and None.
        word: plain values by name.
        sent: s on the clock of rank 0 when it was handed over.
        bits: of its tensors.
    """

    kind: Kind
    step: int
    content: Any
    word: dict[str, Any]
    sent: float
    bits: int


def encode(kind: Kind, step: int, content: Any = None, word: dict | None = None, *, sent: float, check: bool) -> bytes:
    """Return a message as bytes.

    Args:
        kind, step, content, word, sent: see `Message`.
        check: add a checksum of the tensors, for connections that do not protect them.
    """
    tensors: list[torch.Tensor] = []
    head = {"psl": PROTOCOL, "kind": int(kind), "step": step, "sent": sent, "word": word or {}}
    head["form"] = _form(content, tensors)
    if check:
        head["sum"] = _checksum(_bytes(tensor).numpy() for tensor in tensors)
    specs = {
        str(n): TensorSpec(
            dtype=_NAMES[t.dtype], shape=list(t.shape), data_ptr=t.data_ptr(), data_len=t.numel() * t.element_size()
        )
        for n, t in enumerate(tensors)
    }
    return bytes(serialize(specs, {"psl": json.dumps(head)}))


def decode(data: bytes) -> Message:
    """Return the message in some bytes; raises `ProtocolError` if there is none, or a damaged one."""
    try:
        size = int.from_bytes(data[:8], "little")
        if not 2 <= size <= min(_LONGEST_HEADER, len(data) - 8):
            raise ValueError("no header")
        head = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["psl"])
        if head["psl"] != PROTOCOL:
            fix = "let both ends run the same version of psl"
            raise expected("a message", f"one of protocol {PROTOCOL}", repr(head["psl"])[:40], fix, ProtocolError)
        kind, step, word = Kind(head["kind"]), head["step"], head["word"]
        if not (isinstance(step, int) and isinstance(word, dict)):
            raise TypeError("no step")
        parts = dict(deserialize(bytes(data)))
        if "sum" in head and head["sum"] != _checksum(parts[name]["data"] for name in sorted(parts, key=int)):
            raise ValueError("a checksum that differs")
        content = _content(head["form"], {name: _tensor(part) for name, part in parts.items()})
        bits = sum(8 * len(part["data"]) for part in parts.values())
        return Message(kind, step, content, word, float(head["sent"]), bits)
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError, RecursionError) as cause:
        if isinstance(cause, PSLError):
            raise
        fix = "let both ends run psl, and see whether the network is sound"
        raise expected(
            "a message", "one of psl", f"damaged bytes ({first_line(cause, 80)})", fix, ProtocolError
        ) from cause


def check_like(name: str, content: Any, like: Any, rows: int | None = None) -> None:
    """Refuse a content of another form, shape or number type.

    Args:
        name: of the message, for the error.
        content: as it arrived.
        like: a content of the same form, whose tensors may be on the meta device.
        rows: number of rows that all tensors must have; None for those of `like`.

    Raises:
        ProtocolError: they differ.
    """
    want, got = described(like, rows), described(content)
    if want != got:
        raise expected(
            name, str(want)[:160], str(got)[:160], "start all processes with the same arguments", ProtocolError
        )


def described(content: Any, rows: int | None = None) -> Any:
    """Return form, shapes and number types of a content, as plain values.

    Args:
        content: tensors in tuples and dicts.
        rows: to put in place of each tensor's first dimension; None to leave it.
    """
    if isinstance(content, torch.Tensor):
        shape = list(content.shape)
        return [_NAMES.get(content.dtype, "?"), *([rows, *shape[1:]] if rows is not None and shape else shape)]
    if isinstance(content, dict):
        return {"dict": {name: described(entry, rows) for name, entry in content.items()}}
    if isinstance(content, tuple | list):
        return {"tuple": [described(entry, rows) for entry in content]}
    return type(content).__name__


def ones_like(description: Any) -> Any:
    """Return tensors of ones as `described` says; raises `ProtocolError` if that is no description of tensors."""
    try:
        if isinstance(description, dict):
            (form, entries), *others = description.items()
            if form == "dict" and not others:
                return {str(name): ones_like(entry) for name, entry in entries.items()}
            if form == "tuple" and not others:
                return tuple(map(ones_like, entries))
        name, *shape = description
        dtype = {text: dtype for dtype, text in _NAMES.items()}[name]
        if not 0 < torch.Size(shape).numel() <= 1 << 31:
            raise ValueError("no such size")
        return torch.ones(shape, dtype=dtype)
    except (LookupError, TypeError, ValueError, RuntimeError) as cause:
        fix = "let both ends run the same version of psl"
        raise expected("samples", "a description of tensors", str(description)[:80], fix, ProtocolError) from cause


def now() -> float:
    """Return s on this machine's monotonic clock, the same for all its processes."""
    return time.monotonic()


def _form(content: Any, tensors: list[torch.Tensor]) -> Any:
    """Return a content's form as JSON, and collect its tensors, contiguous."""
    if isinstance(content, torch.Tensor):
        number, tensor = str(len(tensors)), content.detach().cpu()
        swapped = tensor.ndim == 4 and not tensor.is_contiguous() and tensor.permute(0, 2, 3, 1).is_contiguous()
        tensor = (tensor.permute(0, 2, 3, 1) if swapped else tensor).contiguous()
        if tensor.dtype not in _NAMES:
            fix = "convert it to float32 or a whole-number type"
            raise expected("a message", "tensors of plain numbers", tensor.dtype, fix, ProtocolError)
        tensors.append(tensor)
        return {"tensor": number, "swapped": True} if swapped else {"tensor": number}
    if isinstance(content, dict):
        return {"dict": {name: _form(entry, tensors) for name, entry in content.items()}}
    if isinstance(content, tuple | list):
        return [_form(entry, tensors) for entry in content]
    return content


def _content(form: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(form, list):
        return tuple(_content(entry, tensors) for entry in form)
    if not isinstance(form, dict):
        return form
    if "dict" in form:
        return {name: _content(entry, tensors) for name, entry in form["dict"].items()}
    tensor = tensors[form["tensor"]]
    return tensor.permute(0, 3, 1, 2) if form.get("swapped") else tensor


def _tensor(part: dict) -> torch.Tensor:
    dtype, data = _DTYPES[part["dtype"]], part["data"]
    if not data:
        return torch.empty(part["shape"], dtype=dtype)
    return torch.frombuffer(bytearray(data) if isinstance(data, bytes) else data, dtype=dtype).reshape(part["shape"])


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)


def _checksum(parts) -> int:
    total = 0
    for part in parts:
        total = zlib.crc32(part, total)
    return total
