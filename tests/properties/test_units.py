"""Units read back what they show, and refuse what is no number."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup import units


@given(st.integers(0, 10**15))
def test_a_plain_count_is_itself(count: int) -> None:
    assert units.parse_count(count) == count
    assert units.parse_count(str(count)) == count


@given(st.integers(0, 2**40))
def test_a_shown_count_is_within_half_a_percent(count: int) -> None:
    assert units.parse_count(units.show_count(count)) == pytest.approx(count, rel=0.005)


@pytest.mark.parametrize(
    ("text", "count"),
    [("5M", 5_000_000), ("8Ki", 8192), ("1e6", 1_000_000), ("2.5k", 2500), ("1_000", 1000), ("3 B", 3 * 10**9)],
)
def test_counts(text: str, count: int) -> None:
    assert units.parse_count(text) == count


@pytest.mark.parametrize("text", ["5X", "-3", "1.5", "", "five", "nan", True, None, float("inf"), "5 M B"])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"count|unit|whole"):
        units.parse_count(text)


def test_shares_durations_and_bytes() -> None:
    assert units.parse_share("5%") == units.parse_share(0.05) == 0.05
    assert units.parse_duration("30min") == 1800
    assert units.parse_bytes("2GiB") == 2 * 2**30
    assert units.parse_bytes("500MB") == 500_000_000
    assert units.parse_steps_or_share("2%") == 0.02
    assert units.parse_steps_or_share(100) == 100
    assert isinstance(units.parse_steps_or_share(units.parse_steps_or_share("100%")), float)
    assert isinstance(units.parse_steps_or_share(1), int)
    assert units.show_bytes(1020 * 2**20) == "1020 MiB"
    assert units.show_bytes(1.5 * 2**30) == "1.5 GiB"
    with pytest.raises(ValueError, match="not between"):
        units.parse_share("120%")
