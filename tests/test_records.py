"""Records: JSON and back, equality, files, and what is refused."""

import json
from dataclasses import dataclass

import numpy as np
import pytest

from psl.errors import PSLError, ScenarioError, check_array, check_number
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
    with pytest.raises(PSLError, match=r"Inner\.name: expected numbers, texts, .*, got object\. Fix"):
        Inner(np.zeros(1), name=object()).to_dict()


def test_missing_and_unknown_fields_are_named():
    with pytest.raises(
        PSLError, match=r"Outer.from_dict: expected a dict with the fields of Outer, got none named 'inner', 'table'"
    ):
        Outer.from_dict({"type": f"{__name__}.Outer", "numbers": []})
    with pytest.raises(PSLError, match=r"got unknown 'colour'\. Fix: "):
        Outer.from_dict(example().to_dict() | {"colour": 1})


def test_json_is_strict_and_keeps_what_is_not_finite(tmp_path):
    odd = (float("inf"), -float("inf"), float("nan"), np.float64("inf"))
    record = Outer(Inner(np.array([[1.5, np.inf], [-np.inf, np.nan]])), odd, {"a": float("nan")})

    def refuse(constant):
        raise AssertionError(constant)

    text = record.save(tmp_path / "record.json").read_text()
    assert Outer.from_dict(json.loads(text, parse_constant=refuse)) == record
    bare = text.replace('{"float": "inf"}', "Infinity")  # as psl 0.4 wrote it
    assert Outer.from_dict(json.loads(bare)) == record


def test_classes_of_equal_names_are_not_confused():
    @dataclass(frozen=True, repr=False, eq=False)
    class Inner(Record):  # another one
        values: int = 0

    assert Outer.from_dict(example().to_dict()) == example()
    assert type(Outer.from_dict(example().to_dict()).inner) is not Inner


@pytest.mark.parametrize("value", ["0.1", True, np.True_, b"1", ["1", 2], [True, 2.0], np.array(["1"]), [[1.0, False]]])
def test_text_and_booleans_are_no_numbers(value):
    with pytest.raises(ScenarioError, match="x: expected numbers, got "):
        check_array("x", value)
    with pytest.raises(ScenarioError, match="x: expected "):
        check_number("x", value)


def test_repr_is_short():
    assert len(repr(Inner(np.arange(10_000.0)))) < 100
