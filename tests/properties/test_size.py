"""The size chooser's arithmetic: what repeated tokens are worth, and what a budget buys."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup import size


@given(st.floats(1e5, 1e9), st.floats(1.0, 50.0))
def test_repeated_tokens_are_worth_less_than_new_ones_but_never_less_than_none(unique: float, epochs: float) -> None:
    worth = size.effective_tokens(epochs * unique, unique)
    assert unique <= worth <= epochs * unique * (1 + 1e-9)
    assert worth <= unique * (1 + size.HALF_LIFE)
    assert size.effective_tokens((epochs + 1) * unique, unique) > worth


def test_four_epochs_are_nearly_as_good_as_new_data() -> None:
    assert size.effective_tokens(4e6, 1e6) == pytest.approx(4e6, rel=0.1)


def test_the_law_prefers_more_of_either() -> None:
    assert size.expected_loss(2e6, 1e7) < size.expected_loss(1e6, 1e7)
    assert size.expected_loss(1e6, 2e7) < size.expected_loss(1e6, 1e7)
