"""Frozen records of plain values and arrays that survive a JSON round trip."""

import contextlib
import dataclasses
import importlib
import json
import math
import os
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from psl import html
from psl.errors import PSLError, expected


class Record:
    """Mixin for frozen dataclasses: `to_dict`, `from_dict`, `save`, `load`, equality and a short repr.

    Use it as ``@dataclass(frozen=True, repr=False, eq=False) class Thing(Record)``.

    Fields may hold numbers, strings, None, NumPy arrays, tuples or dicts of these, and other records. A record with
    a field of another kind overrides `_values` and `_from_values`.
    A dict written by `to_dict` names its class under ``"type"``; arrays become nested lists. NaN and infinities, which
    JSON does not know, become ``{"float": "inf"}``, and in arrays ``"inf"``.
    """

    _classes: ClassVar[dict[str, type["Record"]]] = {}
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # the decorator of the subclass sets it

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Record._classes[_full_name(cls)] = cls

    def _set(self, **values: Any) -> None:
        """Set fields of the frozen record; for `__post_init__`, which replaces what was given by what was checked."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict of JSON types; `from_dict` restores an equal record from it."""
        cls = type(self)
        return {"type": _full_name(cls)} | {
            name: _encode(value, f"{cls.__name__}.{name}") for name, value in self._values().items()
        }

    def _values(self) -> dict[str, Any]:
        """Return the fields that make the record, by name: what files hold and `==` compares."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}

    @classmethod
    def _from_values(cls, values: dict[str, Any]) -> Self:
        """Return the record of what `_values` returned."""
        return cls(**values)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Restore a record from `to_dict`'s result.

        Raises:
            PSLError: it names another class, or its fields are not those of the class.
        """
        got = data.get("type") if isinstance(data, dict) else type(data).__name__
        found = _class_named(str(got))
        if found is None or not issubclass(found, cls):
            want, fix = f"a dict with type={_full_name(cls)!r}", "pass what to_dict() of the same class returned"
            raise expected(f"{cls.__name__}.from_dict", want, f"type={got!r}", fix, PSLError)
        fields = [f for f in dataclasses.fields(found) if f.init]
        names = {f.name for f in fields}
        required = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        missing = [name for name in required if name not in data]
        unknown = [name for name in data if name not in names and name != "type"]
        if missing or unknown:
            want, fix = f"a dict with the fields of {found.__name__}", "pass what to_dict() of this version returned"
            parts = [f"none named {', '.join(map(repr, missing))}"] if missing else []
            parts += [f"unknown {', '.join(map(repr, unknown))}"] if unknown else []
            raise expected(f"{found.__name__}.from_dict", want, " and ".join(parts), fix, PSLError)
        return found._from_values({k: _decode(v) for k, v in data.items() if k != "type"})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the record to a file of strict JSON and return its path."""
        path = Path(path)
        path.write_text(json.dumps(self.to_dict(), allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a record that `save` wrote."""
        try:
            data = json.loads(Path(path).read_text())
        except json.JSONDecodeError as cause:
            raise expected(str(path), "a JSON file written by save()", str(cause), "save it again", PSLError) from cause
        return cls.from_dict(data)

    def __eq__(self, other: object) -> bool:  # and no hash: fields may hold arrays
        if type(self) is not type(other) or not isinstance(other, Record):
            return NotImplemented
        return _equal(self._values(), other._values())

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={_short(getattr(self, f.name))}" for f in dataclasses.fields(self) if f.repr)
        return f"{type(self).__name__}({shown})"

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: of a record that has a table, its first rows."""
        to_frame = getattr(self, "to_frame", None)
        if to_frame is None:
            return None  # its repr
        with np.errstate(all="ignore"):  # a gain of 0 is −inf dB
            return html.frame_table(repr(self), to_frame())


def _full_name(cls: type) -> str:
    """Return module and name of a class: two classes of the same name are not confused."""
    return f"{cls.__module__}.{cls.__qualname__}"


def _class_named(name: str) -> type[Record] | None:
    """Return the class of that full name, if there is one; psl imports its own when they are first used."""
    if name not in Record._classes and name.startswith("psl."):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name.rpartition(".")[0])
    return Record._classes.get(name)


def as_kept(name: str, value: Any) -> Any:
    """Return a value in the form in which files of records keep it: lists become tuples, NumPy's numbers Python's.

    Raises:
        PSLError: a record cannot hold it; `name` says whose value it is.
    """
    return _decode(_encode(value, name))


def _encode(value: Any, name: str) -> Any:
    if isinstance(value, Record):
        return value.to_dict()
    if isinstance(value, np.ndarray):
        plain = value.dtype.kind != "f" or np.isfinite(value).all()
        shown = value if plain else np.where(np.isfinite(value), value.astype(object), value.astype(str))
        return {"array": shown.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, np.generic):
        return _encode(value.item(), name)
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, dict):
        return {"dict": {str(k): _encode(v, name) for k, v in value.items()}}
    if isinstance(value, list | tuple):
        return [_encode(v, name) for v in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    want = "numbers, texts, arrays, records, or tuples and dicts of them"
    raise expected(name, want, type(value).__name__, "convert it, or pass a name in its place", PSLError)


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if "float" in value:
            return float(value["float"])
        if "array" in value:
            return np.array(value["array"], dtype=value["dtype"])
        if "dict" in value:
            return {k: _decode(v) for k, v in value["dict"].items()}
        return Record.from_dict(value)
    if isinstance(value, list):
        return tuple(_decode(v) for v in value)
    return value


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b, equal_nan=True)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) or (a != a and b != b)  # NaN equals NaN: the same record


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.size <= 6:
            return np.array2string(value, precision=4, separator=", ")
        if value.dtype.kind in "fiu":
            return f"<{'×'.join(map(str, value.shape))} in [{value.min():.4g}, {value.max():.4g}]>"
        return f"<{'×'.join(map(str, value.shape))}>"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and len(value) > 6:
        return f"<{len(value)} entries>"
    return repr(value)
