"""Bodies that parsers disagree on, or choke on, are refused with a reason; all others come through unchanged."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.serving.api import errors, strict_json
from groundup.serving.api.errors import ApiError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.floats(-1e300, 1e300) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_what_is_sane_comes_through(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert strict_json.parse(text) == value
    assert json.loads(errors.written(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        strict_json.parse(body)
    except ApiError as error:
        assert error.status == 400 and error.what


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"a": 1, "a": 2}', "'a' is given twice"),
        (b"[NaN]", "NaN"),
        (b"[-Infinity]", "Infinity"),
        (b"[1e999]", "too large"),
        (b"[" + b"9" * 20 + b"]", "64 bits"),
        (b"[" + b"9" * 1_000_000 + b"]", "64 bits"),
        (b"[0." + b"1" * 1_000_000 + b"]", "too long"),
        (rb'["\ud800"]', "U+D800"),
        (rb'{"\udfff": 1}', "U+DFFF"),
        (b"[" * 65 + b"]" * 65, "deeper than 64"),
        (b"[" * 5_000_000, "deeper than 64"),
        (b'{"a":' * 1_000_000, "deeper than 64"),
    ],
)
def test_what_is_not_is_refused_with_the_reason(body: bytes, expected: str) -> None:
    with pytest.raises(ApiError, match="the body is no JSON that can be used") as caught:
        strict_json.parse(body)
    assert expected in caught.value.what
    assert len(caught.value.what) < 300
    json.loads(errors.written(caught.value.as_data()))


def test_as_deep_as_allowed_is_not_too_deep() -> None:
    assert strict_json.parse(b"[" * 64 + b"]" * 64) is not None


def test_half_a_character_is_written_as_it_came() -> None:
    assert errors.written({"found": "\ud800 and 字"}) == '{"found":"\\ud800 and 字"}'.encode()
