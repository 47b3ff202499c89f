"""Streaming: the pieces put together are the whole text, and no piece ends inside a character."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.text.pipelines import KINDS, SPECIALS
from groundup.text.streaming import StreamDecoder
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import Wish, learn

TRAINING = [
    "The quick brown fox jumps over the lazy dog again and again.",
    "敏捷的棕色狐狸跳过了懒狗，一次又一次。",
    "emoji 😀 👍🏽 👩‍👩‍👧 🇨🇳 and signs – “quoted” …",
]
EMOJI = ["😀", "👍🏽", "👩‍👩‍👧‍👦", "🇨🇳", "🇫🇷", "❤️", "🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"]
texts = st.text(max_size=60) | st.lists(st.sampled_from([*EMOJI, "中", "文", "a", " ", "é"]), max_size=12).map("".join)


@cache
def tokenizer(kind: str) -> Tokenizer:
    engine, _ = learn(Wish(kind, None, min_frequency=1) if kind == "characters" else wished(kind), lambda: TRAINING)
    return Tokenizer.of_roles(engine, SPECIALS[kind])


def wished(kind: str) -> Wish:
    return Wish(kind, {"bpe": 300, "unigram": 275, "wordpiece": 90}[kind], min_frequency=1)


def streamed(which: Tokenizer, ids: list[int], *, skip_special: bool = False) -> list[str]:
    decoder = StreamDecoder(which, skip_special=skip_special)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts)
@settings(max_examples=60, deadline=None)
def test_pieces_of_a_text_make_the_text(kind: str, text: str) -> None:
    which = tokenizer(kind)
    ids = which.encode(text)
    assert "".join(streamed(which, ids)) == which.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@given(numbers=st.lists(st.integers(0, 10**6), max_size=40), skip_special=st.booleans())
@settings(max_examples=80, deadline=None)
def test_pieces_of_any_ids_make_their_decoding(kind: str, numbers: list[int], skip_special: bool) -> None:
    which = tokenizer(kind)
    ids = [number % which.vocab_size for number in numbers]
    pieces = streamed(which, ids, skip_special=skip_special)
    assert "".join(pieces) == which.decode(ids, skip_special=skip_special)


@given(text=texts.filter(lambda text: "\ufffd" not in text))
@settings(max_examples=100, deadline=None)
def test_no_piece_holds_a_broken_character(text: str) -> None:
    which = tokenizer("bpe")
    assert not any("\ufffd" in piece for piece in streamed(which, which.encode(text)))


@given(symbols=st.lists(st.sampled_from([*EMOJI, "中", "文", "字"]), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_every_piece_ends_where_a_symbol_ends(symbols: list[str]) -> None:
    which = tokenizer("bpe")
    ends = {0}
    for symbol in symbols:
        ends.add(max(ends) + len(symbol))
    shown = 0
    for piece in streamed(which, which.encode("".join(symbols))):
        shown += len(piece)
        assert shown in ends


def test_chinese_flows_without_delay() -> None:
    which = tokenizer("bpe")
    decoder = StreamDecoder(which)
    text = "今天天气很好"
    shown = ""
    for position, token in enumerate(which.encode(text), 1):
        shown += decoder.push(token)
        whole = which.decode(which.encode(text)[:position]).rstrip("\ufffd")
        assert shown == whole


def test_a_cut_character_is_shown_as_such_at_the_end() -> None:
    which = tokenizer("bpe")
    ids = which.encode("鑫")[:-1]
    assert streamed(which, ids)[-1] == "\ufffd" and not any(streamed(which, ids)[:-1])


def test_many_tokens_cost_the_same_each() -> None:
    class Counting:
        """Counts the ids it is asked to decode."""

        asked = 0

        def decode(self, ids: list[int], skip_special: bool = False) -> str:
            self.asked += len(ids)
            return tokenizer("bpe").decode(ids, skip_special)

    counting = Counting()
    decoder = StreamDecoder(counting)
    ids = tokenizer("bpe").encode("the lazy dog, 棕色狐狸 😀 " * 100)
    for token in ids:
        decoder.push(token)
    assert counting.asked < 12 * len(ids)


@given(numbers=st.lists(st.integers(0, 511), max_size=40))
@settings(max_examples=150, deadline=None)
def test_published_byte_fallback_streams_too(numbers: list[int], shared_data: Callable[[str], Path]) -> None:
    which = published(shared_data("models/stories260K/hf"))
    assert "".join(streamed(which, numbers)) == which.decode(numbers)
    # A broken byte costs only itself, not the characters beside it.
    chinese = which.encode("世界")
    assert which.decode([*chinese, which.token_id("<0xFF>") or 0]) == "世界\ufffd"


def test_published_gpt2_streams_too(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        packed = shared_data(f"tokenizers/gpt2/{name}.gz")
        (tmp_path / name).write_bytes(gzip.decompress(packed.read_bytes()))
    which = Tokenizer.load(tmp_path)
    text = "It streams: 词语 👩‍👩‍👧 and more…"
    assert "".join(streamed(which, which.encode(text))) == text


@cache
def published(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)
