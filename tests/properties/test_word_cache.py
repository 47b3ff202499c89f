"""The cache of words gives the ids the library gives, whatever the text."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers

import groundup
from groundup.text import pipelines, tokenizers, vocabulary, word_cache

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(groundup.__file__).parent.rglob("*.py"))]
PIECES = [
    *["the", "The", "don't", "I'LL", "'s", "x", "_", "__init__", "3", "42", ";", "):", "...", "<|eos|>"],
    *["½", "²", "①", "é", "ſ", "ß", "Σ", "ж", "中文", "。", "€", "→", "😀", "ﬁ", "K", "e\u0301", "\u200d"],
    *[" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\x0b", "\x1c", "\u2028", "\x00", "\u0378"],
]


def gpt2() -> Tokenizer:
    """A byte-level tokenizer with GPT-2's own cutting."""
    engine = learnt("bpe")
    engine.pre_tokenizer = pipelines.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return engine


def learnt(kind: str) -> Tokenizer:
    engine, _ = vocabulary.learn(vocabulary.Wish(kind, 600), lambda: TEXTS[:20])
    engine.encode_special_tokens = True
    return engine


ENGINES = {"bpe": learnt("bpe"), "unigram": learnt("unigram"), "gpt2": gpt2()}
CACHES = {name: word_cache.for_engine(engine) for name, engine in ENGINES.items()}


def by_library(engine: Tokenizer, text: str) -> list[int]:
    return list(engine.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", ENGINES)
@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40))
def test_any_text_has_the_librarys_ids(name: str, text: str) -> None:
    cache = CACHES[name]
    assert cache is not None
    found = cache.encode(text)
    assert found is None or found == by_library(ENGINES[name], text)


@pytest.mark.parametrize("name", ENGINES)
def test_every_safe_character_is_cut_as_the_library_cuts_it(name: str) -> None:
    """Each one after and before a letter, a digit, a mark and a space: its class decides where pieces end."""
    cache, engine = CACHES[name], ENGINES[name]
    assert cache is not None
    safe = [chr(code) for code in range(0x3000) if cache.encode(chr(code)) is not None]
    assert len(safe) > 1500
    for character in safe:
        text = f"a{character}b 1{character}2 .{character}. {character} \n{character}\n {character * 2}"
        assert cache.encode(text) == by_library(engine, text), f"U+{ord(character):04X}"


def test_real_text_has_the_librarys_ids_and_mostly_comes_from_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "ENTRIES", 2000)  # so that it is emptied on the way
    cache = word_cache.for_engine(ENGINES["bpe"])
    assert cache is not None
    found = [cache.encode(text) for text in TEXTS]
    assert sum(ids is not None for ids in found) > 0.9 * len(TEXTS)
    for text, ids in zip(TEXTS, found, strict=True):
        assert ids is None or ids == by_library(ENGINES["bpe"], text)


def test_long_words_are_not_kept() -> None:
    cache = word_cache.for_engine(ENGINES["bpe"])
    assert cache is not None
    assert cache.encode("a" * word_cache.LONGEST) == by_library(ENGINES["bpe"], "a" * word_cache.LONGEST)
    assert cache.encode("short " + "a" * (word_cache.LONGEST + 1)) is None


def test_threads_may_share_a_cache_that_is_emptied_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word_cache, "ENTRIES", 300)
    cache = word_cache.for_engine(ENGINES["bpe"])
    assert cache is not None
    texts = [text for text in TEXTS if cache.encode(text) is not None]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(cache.encode, texts * 3))
    assert found == [by_library(ENGINES["bpe"], text) for text in texts] * 3


def test_engines_that_cut_otherwise_have_no_cache() -> None:
    lower, spoken = learnt("bpe"), learnt("bpe")
    lower.normalizer = normalizers.Lowercase()
    spoken.add_tokens([AddedToken("new word", special=False)])
    with_commands = learnt("bpe")
    with_commands.encode_special_tokens = False
    random = learnt("bpe")
    random.model = models.BPE(dropout=0.1)
    for engine in (lower, spoken, with_commands, random, learnt("wordpiece"), learnt("characters")):
        assert word_cache.for_engine(engine) is None


def test_a_tokenizer_uses_it_only_where_special_tokens_are_text() -> None:
    tokenizer = tokenizers.Tokenizer.of_roles(learnt("bpe"), pipelines.SPECIALS["bpe"])
    text = "a <|eos|> b"
    assert tokenizer.eos_id not in tokenizer.encode(text)
    assert tokenizer.eos_id in tokenizer.encode(text, allow_special=True)
