"""Byte-pair encoding over bytes, learnt over characters.

Sennrich et al. 2016 join the most frequent pair of neighbours again and again; Radford et al. 2019
(§2.2) start from bytes, so that nothing is unknown. Learning over bytes costs Chinese three times the
memory and time, as a character is three bytes, and fills the vocabulary with entries such as "a full
stop and two thirds of a character". So pairs are learnt over characters, and the characters
themselves compete for entries by how often they occur: each that wins is built byte by byte before
any pair is joined, and the bytes of the others stay single. No entry then crosses a character that
it does not hold whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

Read = Callable[[], Iterator[str]]
LONGEST_PIECE = 24
"""Characters after which a piece is cut while learning, so that one endless piece (a text without a
single space or comma) costs what many short ones do. No token grows longer than this."""
READ_CHARACTERS = 2_000_000
"""Characters of text on which entries are counted after learning, and in each round of unigram."""
BYTES = 256


def _letters_of_bytes() -> list[str]:
    """The letter that the library writes for each byte: itself where it can be seen, else one beyond 255."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(BYTES) if byte not in seen]
    return [chr(byte) if byte in seen else chr(BYTES + hidden.index(byte)) for byte in range(BYTES)]


LETTERS = _letters_of_bytes()


def learn(
    words: pre_tokenizers.PreTokenizer, read: Read, characters: Counter[str], *, entries: int, min_frequency: int
) -> tuple[list[str], list[tuple[str, str]]]:
    """The entries, single bytes first, and the pairs to join in order; fewer where the text supports no more.

    `words` cuts the text that `read` gives into the pieces no entry crosses; `characters` counts it.
    """
    engine = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(rf"[\s\S]{{1,{LONGEST_PIECE}}}"), behavior="isolated")
    engine.pre_tokenizer = pre_tokenizers.Sequence([words, cut])
    trainer = trainers.BpeTrainer(
        vocab_size=len(characters) + max(0, entries - BYTES), min_frequency=min_frequency, show_progress=False
    )
    engine.train_from_iterator(read(), trainer)
    pairs = [(left, right) for left, right in _model(engine)["merges"]]
    share = sum(characters.values()) / max(1, min(READ_CHARACTERS, sum(characters.values())))
    occurs = {entry: count * share for entry, count in occurrences(engine, read).items()}
    return _choose(pairs, occurs, characters, entries=entries, min_frequency=min_frequency)


def _choose(
    pairs: list[tuple[str, str]],
    occurs: dict[str, float],
    characters: Counter[str],
    *,
    entries: int,
    min_frequency: int,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Characters and pairs of characters in one ranking by frequency, until the entries are used up."""
    vocabulary = dict.fromkeys(LETTERS)
    building: list[tuple[str, str]] = []
    joining: list[tuple[str, str]] = []
    wide = (item for item in characters.items() if len(item[0].encode()) > 1 and item[1] >= min_frequency)
    waiting = sorted(wide, key=lambda item: (item[1], item[0]))
    for left, right in [*pairs, ("", "")]:
        while waiting and waiting[-1][1] >= occurs.get(left + right, 0):
            _build(spelled(waiting.pop()[0]), vocabulary, building, entries)
        if len(vocabulary) >= entries:
            break
        joined = spelled(left + right)
        if left and {spelled(left), spelled(right)} <= vocabulary.keys() and joined not in vocabulary:
            vocabulary[joined] = None
            joining.append((spelled(left), spelled(right)))
    return list(vocabulary), building + joining


def _build(letters: str, vocabulary: dict[str, None], building: list[tuple[str, str]], entries: int) -> None:
    """Enter a character and the beginnings it shares with others, as long as there is room."""
    for end in range(2, len(letters) + 1):
        if letters[:end] not in vocabulary and len(vocabulary) < entries:
            vocabulary[letters[:end]] = None
            building.append((letters[: end - 1], letters[end - 1]))


def spelled(text: str) -> str:
    """A text as the library spells its bytes in a vocabulary."""
    return "".join(LETTERS[byte] for byte in text.encode("utf-8", "surrogatepass"))


def occurrences(engine: Tokenizer, read: Read) -> dict[str, int]:
    """How often each entry of a byte-pair engine occurs, whether or not a later pair took it in."""
    model = _model(engine)
    counts = dict.fromkeys(model["vocab"], 0) | count_entries(engine, read)
    for left, right in reversed(model["merges"]):
        counts[left] += counts[left + right]
        counts[right] += counts[left + right]
    return counts


def count_entries(engine: Tokenizer, read: Read) -> dict[str, int]:
    """How often each entry is used to write the first READ_CHARACTERS of the text."""
    totals: NDArray[np.int64] = np.zeros(engine.get_vocab_size(), dtype=np.int64)
    for texts in _groups(read()):
        for found in engine.encode_batch_fast(texts, add_special_tokens=False):
            totals += np.bincount(np.asarray(found.ids, dtype=np.int64), minlength=len(totals))
    names = {number: token for token, number in engine.get_vocab().items()}
    return {names[int(number)]: int(totals[number]) for number in np.flatnonzero(totals)}


def _groups(texts: Iterator[str]) -> Iterator[list[str]]:
    """The first READ_CHARACTERS of the text, in groups for the library to encode together."""
    seen = 0
    while seen < READ_CHARACTERS and (group := list(islice(texts, 64))):
        seen += sum(map(len, group))
        yield group


def _model(engine: Tokenizer) -> dict[str, Any]:
    return dict(json.loads(engine.to_str())["model"])
