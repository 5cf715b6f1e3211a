"""Bad inputs are refused in the house form, and docs/errors.md shows what psl says of them."""

import pytest
import torch

from bad_inputs import CASES, PAGE, message_of, page


@pytest.mark.parametrize("case", CASES, ids=[case.title for case in CASES])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_bad_input_is_told_what_was_expected_what_came_and_what_to_do(case):
    _, message = message_of(case.call)
    assert [part for part in case.parts if part not in message] == []
    assert ": expected " in message and ", got " in message and ". Fix: " in message


@pytest.mark.skipif(not torch.__version__.startswith("2.12."), reason="the page quotes the pinned version of torch")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_the_page_of_errors_is_what_psl_says():
    assert PAGE.read_text() == page(), "write it anew: python tests/bad_inputs.py"
