"""What learning a vocabulary will take and yield, told from a sample of the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from tokenizers import Tokenizer as Engine

from groundup.forecast import Forecast
from groundup.text.byte_pairs import READ_CHARACTERS
from groundup.text.measures import measure
from groundup.text.pipelines import SPECIALS, build
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import (
    Survey,
    TooLarge,
    Wish,
    learn,
    room_for,
    survey_texts,
    symbol_bytes,
)

READ_S = {"bpe": 0.5, "unigram": 0.5, "wordpiece": 0.75, "characters": 0.05}
"""CPU seconds for each megabyte that is read, twice, and cut into pieces; measured on two cores."""
LEARN_S = {"bpe": 3.0, "unigram": 3.0, "wordpiece": 2.0, "characters": 0.0}
"""CPU seconds for each million characters of distinct pieces."""
ROUNDS_S = 7.0
"""CPU seconds for each megabyte on which unigram counts its rounds."""
PROCESS_BYTES = 240 << 20
"""Memory of Python, the library and a corpus being read, measured."""
HELD_OUT = 8
"""One text in so many of a sample is kept to measure on."""
GROWTH = 0.6
"""The entries a text supports grow with its length to about this power."""
BYTES_PER_ENTRY = 100
"""An entry takes about this much of tokenizer.json."""


def forecast(wish: Wish, texts: Sequence[str], size: int | None) -> Forecast:
    """The facts, lines, time and memory of learning from `size` bytes of which `texts` are a sample.

    Without a sample nothing but the size asked for is known.
    """
    found = Forecast(estimated=True, disk_bytes=BYTES_PER_ENTRY * (wish.vocab_size or 8192))
    found.facts = {"vocab_size": wish.vocab_size}
    if not any(texts):
        return found
    whole = size is None or size <= sum(len(text.encode("utf-8")) for text in texts)
    held_out = [] if whole or len(texts) < 2 * HELD_OUT else list(texts[::HELD_OUT])
    learnt_from = [text for number, text in enumerate(texts) if not held_out or number % HELD_OUT]
    engine, survey = _learn_most(wish, learnt_from)
    size = survey.bytes if size is None else size
    _describe(wish, engine, learnt_from, held_out, found)
    read, distinct = _read_and_distinct(wish, learnt_from, survey, size)
    found.seconds = found.cpu_s = 1.0 + (read * READ_S[wish.kind] + distinct * LEARN_S[wish.kind]) / 10**6
    if wish.kind == "unigram":
        per_character = survey.bytes / sum(survey.characters.values())
        found.seconds = found.cpu_s = found.cpu_s + ROUNDS_S * min(read, READ_CHARACTERS * per_character) / 10**6
    found.peak_bytes = PROCESS_BYTES + int(distinct * symbol_bytes(wish))
    _warn(wish, engine.get_vocab_size(), survey.bytes, size, found)
    return found


def _warn(wish: Wish, supported: int, seen: int, size: int, found: Forecast) -> None:
    """Say so if the text looks too small for the vocabulary."""
    if wish.vocab_size is None or wish.kind == "characters":
        return
    grown = int(supported * max(1.0, size / max(1, seen)) ** GROWTH)
    if grown < wish.vocab_size:
        about = "" if seen >= size else f", going by {seen:,} of them"
        found.warnings.append(
            f"vocab_size is {wish.vocab_size}, but {size:,} bytes of text support about {grown} entries{about}"
        )


def _describe(wish: Wish, engine: Engine, learnt_from: Sequence[str], held_out: Sequence[str], found: Forecast) -> None:
    """The facts and lines that follow from the vocabulary of the sample.

    On the text it was learnt from, a small sample's vocabulary looks too good; on other text it is
    worse than that of the whole text will be. The middle was within 3 % of the truth where both were known.
    """
    tokenizer = Tokenizer.of_roles(engine, SPECIALS[wish.kind])
    size = wish.vocab_size if wish.vocab_size and wish.kind != "characters" else tokenizer.vocab_size
    parts = [measure(tokenizer, texts, limit_bytes=1 << 40, scripts=False) for texts in (learnt_from, held_out)]
    rates = [part.bytes_per_token for part in parts if part.tokens]
    per_token = sum(rates) / len(rates) if rates else 0.0
    found.facts = {"vocab_size": size, "bytes_per_token": per_token}
    found.lines = [("vocabulary", f"{size:,} entries ({wish.kind})"), ("bytes per token", f"{per_token:.2f}")]


def _learn_most(wish: Wish, texts: Sequence[str]) -> tuple[Engine, Survey]:
    """A tokenizer of the wished size, or of as many entries as the texts support, and what was read."""
    try:
        return learn(wish, lambda: texts)
    except TooLarge as error:
        return learn(replace(wish, vocab_size=error.supported), lambda: texts)


def _read_and_distinct(wish: Wish, texts: Sequence[str], survey: Survey, size: int) -> tuple[float, float]:
    """Bytes that will be read and, of these, characters of distinct pieces.

    Distinct pieces grow as a power of the text (Heaps' law); half the sample and all of it give the
    exponent.
    """
    room, read = room_for(wish), float(min(size, wish.sample_bytes))
    half = survey_texts(wish, lambda: texts[::2], build(wish.kind, lowercase=wish.lowercase))
    if not half.distinct or half.bytes >= survey.bytes:
        return read, float(min(room, survey.distinct))
    power = math.log(survey.distinct / half.distinct) / math.log(survey.bytes / half.bytes)
    distinct = survey.distinct * (read / survey.bytes) ** power
    if distinct > room:
        read *= (room / distinct) ** (1 / power)
    return read, min(float(room), distinct)
