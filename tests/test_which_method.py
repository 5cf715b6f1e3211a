"""The page "which method when" quotes figures/ as they are, and its advice follows from them."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import which_method  # noqa: E402


@pytest.fixture(scope="module")
def numbers():
    return which_method.numbers()


def test_numbers_are_those_of_the_figures(numbers):
    quoted = re.findall(r"<!-- (\w+) -->(.*?)<!-- / -->", which_method.PAGE.read_text(encoding="utf-8"))
    assert len(quoted) >= 30
    stale = {name: (text, which_method.shown(numbers[name])) for name, text in quoted}
    stale = {name: pair for name, pair in stale.items() if pair[0] != pair[1]}
    assert not stale, f"docs/which_method.md is out of date: {stale}. Fix: .venv/bin/python tools/which_method.py"


def test_every_number_is_quoted(numbers):
    text = which_method.PAGE.read_text(encoding="utf-8")
    assert not [name for name in numbers if f"<!-- {name} -->" not in text]


def test_the_advice_follows_from_the_numbers(numbers):
    wrong = [sentence for sentence, holds in which_method.conditions(numbers).items() if not holds]
    assert not wrong, f"the numbers no longer support: {wrong}. Fix: rewrite docs/which_method.md"
