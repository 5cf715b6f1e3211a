"""Records: JSON and back, equality, files, and what is refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from psl.errors import PSLError
from psl.records import Record


@dataclass(frozen=True, repr=False, eq=False)
class Inner(Record):
    values: np.ndarray
    name: str = "x"


@dataclass(frozen=True, repr=False, eq=False)
class Outer(Record):
    inner: Inner
    numbers: tuple
    table: dict
    nothing: None = None


def example():
    return Outer(Inner(np.arange(6.0).reshape(2, 3)), (1, 2.5, float("nan")), {"a": np.array([1, 2]), "b": "text"})


def test_json_round_trip_keeps_everything():
    record = example()
    again = Outer.from_dict(json.loads(json.dumps(record.to_dict())))
    assert again == record
    assert again.table["a"].dtype == np.array([1, 2]).dtype
    assert again.numbers[0] == 1


def test_equality_sees_a_single_entry():
    values = np.arange(6.0).reshape(2, 3)
    values[1, 2] = 7
    assert example() != Outer(Inner(values), example().numbers, example().table)
    assert example() != example().inner


def test_files(tmp_path):
    path = example().save(tmp_path / "record.json")
    assert Outer.load(path) == example()
    path.write_text(path.read_text()[:40])
    with pytest.raises(PSLError, match="record.json: expected a JSON file written by save"):
        Outer.load(path)


def test_another_class_is_refused():
    with pytest.raises(PSLError, match="expected a dict with type='.*Inner', got type='.*Outer'"):
        Inner.from_dict(example().to_dict())
    with pytest.raises(PSLError, match="which JSON cannot carry"):
        Inner(np.zeros(1), name=object()).to_dict()


def test_missing_fields_are_named():
    with pytest.raises(
        PSLError, match=r"Outer.from_dict: expected a dict with all fields, got none named 'inner', 'table'"
    ):
        Outer.from_dict({"type": f"{__name__}.Outer", "numbers": []})


def test_repr_is_short():
    assert len(repr(Inner(np.arange(10_000.0)))) < 100
