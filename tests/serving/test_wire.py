"""Frames between the two processes: what goes in comes out, in whatever pieces it arrives; nonsense is an error."""

from __future__ import annotations

import dataclasses
import math
import typing
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.serving import wire

texts = st.text(st.characters(), max_size=40)  # lone surrogates too
ids = st.lists(st.integers(0, 1 << 20), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
rows = st.lists(st.dictionaries(texts, plain | st.binary(max_size=20), max_size=4), max_size=4)
numbers = st.integers(0, 2**40)
frames = st.one_of(
    st.builds(wire.Load, numbers, texts, texts, st.dictionaries(texts, plain, max_size=3)),
    st.builds(
        wire.Generate,
        texts,
        ids,
        sampling=st.dictionaries(texts, plain, max_size=3),
        stop_ids=ids,
        grammar=st.none() | texts,
        priority=st.integers(-5, 5),
        deadline_s=st.none() | st.floats(0, 1e6),
        id=numbers,
    ),
    st.builds(wire.Answer, texts, rows, key=texts, id=numbers),
    st.builds(wire.Failed, st.none() | numbers, st.sampled_from(typing.get_args(wire.Code)), texts, texts),
    st.builds(wire.Scored, numbers, st.lists(st.floats(max_value=0, allow_nan=False), max_size=5)),
    st.builds(wire.Pong, numbers, numbers, st.dictionaries(texts, st.dictionaries(texts, st.floats(0, 9)), max_size=2)),
)


@given(st.lists(frames, max_size=5), st.integers(1, 50))
def test_frames_come_out_as_they_went_in_whatever_the_pieces(sent: list[wire.Frame], piece: int) -> None:
    data = b"".join(map(wire.encode, sent))
    reader = wire.Frames()
    got = [frame for start in range(0, len(data), piece) for frame in reader.feed(data[start : start + piece])]
    assert got == sent
    assert reader.is_empty


@given(st.binary(max_size=60))
def test_bytes_that_are_no_frame_are_a_wire_error_and_nothing_else(body: bytes) -> None:
    with suppress(wire.WireError):
        assert isinstance(wire.decode(body), wire.Frame)


def test_every_message_has_its_kind() -> None:
    assert all(kind.__name__ == name and kind.kind == name for name, kind in wire.KINDS.items())
    assert all(dataclasses.is_dataclass(kind) for kind in wire.KINDS.values())


def test_infinite_scores_survive() -> None:
    frame = wire.decode(wire.encode(wire.Scored(3, [-math.inf, -0.5]))[4:])
    assert frame == wire.Scored(3, [-math.inf, -0.5])


def test_bytes_in_rows_survive_and_text_that_looks_like_them_stays_text() -> None:
    sent = wire.Answer("m", [{"image": b"\x00\xff", "note": "AP8="}, {"image": "AP8="}])
    assert wire.decode(wire.encode(sent)[4:]) == sent


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"kind": "Nothing"}',
        b'{"kind": "Cancel"}',
        b'{"kind": "Cancel", "id": 1, "more": 2}',
        b'{"kind": ["Cancel"]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_frame_is_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode(body)


def test_an_impossible_length_is_refused_before_it_is_waited_for() -> None:
    with pytest.raises(wire.WireError, match="announced"):
        list(wire.Frames().feed(b"\xff\xff\xff\xff"))


@pytest.mark.parametrize("value", [object(), {1, 2}, {(1, 2): 3}])
def test_what_is_not_plain_is_not_sent(value: Any) -> None:
    with pytest.raises(wire.WireError, match="JSON"):
        wire.encode(wire.Answer("m", [{"text": value}]))


def test_what_is_nested_without_end_is_not_sent() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(wire.WireError, match="JSON"):
        wire.encode(wire.Answer("m", [{"text": nested}]))
