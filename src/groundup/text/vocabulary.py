"""How a vocabulary is learnt from text, in bounded memory and with the same result every time.

The library's trainers hold every distinct piece of the text and, for each pair of neighbouring
symbols, the set of pieces it occurs in: about a hundred bytes of memory for each symbol of text that
is new. Spaced text soon stops being new; unspaced Chinese never does, and a gigabyte of it takes a
hundred (huggingface/tokenizers#1795). So the text is surveyed first: documents are read in the
corpus's shuffled order until the *distinct* pieces fill the memory allowed, and the vocabulary is
learnt from what was read up to there. That is a uniform sample whose size follows from the text: all
of an English corpus, some thirty-five megabytes of Chinese. bench/vocabulary.py measures what it costs in
bytes per token.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from tokenizers import Tokenizer, models, trainers

from groundup.errors import DataError
from groundup.text import byte_pairs, unigram
from groundup.text.byte_pairs import LONGEST_PIECE
from groundup.text.pipelines import SPECIALS, build, finish

Texts = Callable[[], Iterable[str]]
"""Gives the texts of a corpus, in the same order each time it is called."""
Progress = Callable[[str, float, float | None], None]
"""Told what is being done, how much of it is done, and of how much."""
BYTES = 256
SLICE = 8192
"""Characters of a document taken at once; a document may be a whole book."""
MEMORY_FLOOR = 300 << 20
"""What Python, the library and a corpus being read take by themselves."""
MARGIN = 0.8
"""The share of the remaining memory that the prediction may fill: tables grow by doubling."""
LEAST_ROOM = 1 << 16
"""Characters of distinct pieces that are read however little memory is allowed."""
_PIECES = re.compile(rf"[^\w\s]?[^\W\d_]{{1,{LONGEST_PIECE}}}|[^\w\s]{{1,{LONGEST_PIECE}}}|\s{{2,{LONGEST_PIECE}}}")
_HAN = "\u2e80-\u2fdf\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_WORDS = re.compile(rf"[^\W\d_{_HAN}]{{1,100}}")
_IDEOGRAPH = re.compile(f"[{_HAN}]")


@dataclass(frozen=True)
class Wish:
    """What vocabulary is asked for."""

    kind: str
    vocab_size: int | None
    lowercase: bool = False
    min_frequency: int = 2
    sample_bytes: int = 256 << 20
    memory_bytes: int = 2 << 30
    extra: tuple[str, ...] = ()

    @property
    def specials(self) -> list[str]:
        """The special tokens in the order of their ids."""
        return [*SPECIALS[self.kind].values(), *self.extra]


@dataclass
class Survey:
    """What one reading of the text found, and how far it went."""

    slices: int = 0
    bytes: int = 0
    distinct: int = 0
    """Characters of the distinct pieces, which is what the memory of learning follows."""
    whole: bool = True
    """Whether all of the text was read; otherwise it is a sample."""
    characters: Counter[str] = field(default_factory=Counter)


def smallest(kind: str, extra: Sequence[str] = ()) -> int:
    """The smallest vocabulary a kind can have: its special tokens, and all bytes where it needs them."""
    return len(SPECIALS[kind]) + len(extra) + (BYTES if kind in ("bpe", "unigram") else 1)


def learn(wish: Wish, texts: Texts, progress: Progress = lambda *_: None) -> tuple[Tokenizer, Survey]:
    """The trained tokenizer of the library, special tokens marked, and what was read to train it.

    Raises DataError for an empty text and for a vocabulary larger than the text supports, saying how
    many entries it does support.
    """
    engine = build(wish.kind, lowercase=wish.lowercase)
    survey = survey_texts(wish, texts, engine, progress)
    if not survey.characters:
        raise DataError(
            "the corpus has no text to learn a vocabulary from",
            fix="look at the ledger of the prepare stage: its filters or its source may have left nothing",
        )
    _LEARNERS[wish.kind](engine, wish, survey, _read(wish, texts, survey, progress))
    finish(engine, wish.kind, wish.extra)
    found = engine.get_vocab_size()
    if wish.vocab_size is not None and wish.kind != "characters" and found < wish.vocab_size:
        raise too_large(wish, found)
    return engine, survey


class TooLarge(DataError):
    """A vocabulary that the text cannot fill; `supported` is how many entries it does support."""

    supported: int = 0


def too_large(wish: Wish, found: int) -> TooLarge:
    """The error for a vocabulary larger than the `found` entries that the text supports."""
    what = f"vocab_size is {wish.vocab_size}, but the text supports no more than {found} entries"
    lower = f", or min_frequency: 1 (now {wish.min_frequency})" if wish.min_frequency > 1 else ""
    error = TooLarge(what, fix=f"set vocab_size to {found} or less, add text{lower}")
    error.supported = found
    return error


def symbol_bytes(wish: Wish) -> float:
    """Memory of the trainers for each character of distinct pieces, measured.

    126 bytes for 8192 entries, and 13 more for each doubling, as every pair joined brings new pairs
    to be counted: within 3 % of what 8192, 32,768 and 65,536 entries took (bench/vocabulary.py).
    """
    entries = (wish.vocab_size or 1) * (unigram.SEEDS if wish.kind == "unigram" else 1)
    return 126 + 13 * math.log2(max(8192, entries) / 8192)


def room_for(wish: Wish) -> int:
    """Characters of distinct pieces that fit into the memory allowed."""
    return max(LEAST_ROOM, int(MARGIN * (wish.memory_bytes - MEMORY_FLOOR) / symbol_bytes(wish)))


def survey_texts(wish: Wish, texts: Texts, engine: Tokenizer, progress: Progress = lambda *_: None) -> Survey:
    """Read text until a limit is met: `sample_bytes` of it, or distinct pieces that fill `memory_bytes`."""
    found = Survey()
    room = room_for(wish)
    pattern = _WORDS if wish.kind == "wordpiece" else _PIECES
    pieces: set[str] = set()
    for text in slices(texts()):
        if found.bytes >= wish.sample_bytes or found.distinct >= room:
            found.whole = False
            break
        clean = _normalised(engine, text)
        found.characters.update(clean)
        found.slices += 1
        found.bytes += len(text.encode("utf-8"))
        if wish.kind != "characters":
            fresh = set(pattern.findall(clean)) - pieces
            found.distinct += sum(map(len, fresh))
            pieces |= fresh
        if found.slices % 256 == 0:
            progress("surveying", found.bytes, None)
    return found


def slices(texts: Iterable[str]) -> Iterator[str]:
    """The texts, long ones in slices that end after a line or a space where there is one."""
    for text in texts:
        start = 0
        while len(text) - start > SLICE:
            end = _good_end(text, start)
            yield text[start:end]
            start = end
        if start < len(text):
            yield text[start:]


def _good_end(text: str, start: int) -> int:
    for mark in ("\n", " ", "。"):
        found = text.rfind(mark, start + SLICE // 2, start + SLICE)
        if found > 0:
            return found + 1
    return start + SLICE


def _read(wish: Wish, texts: Texts, survey: Survey, progress: Progress) -> Callable[[], Iterator[str]]:
    """A function that reads the surveyed part of the text again, showing progress."""

    def read() -> Iterator[str]:
        done = 0
        for number, text in enumerate(islice(slices(texts()), survey.slices)):
            done += len(text.encode("utf-8"))
            if number % 256 == 0:
                progress("learning the vocabulary", done, survey.bytes)
            yield text

    return read


def _normalised(engine: Tokenizer, text: str) -> str:
    return text if engine.normalizer is None else str(engine.normalizer.normalize_str(text))


Read = Callable[[], Iterator[str]]


def _learn_bpe(engine: Tokenizer, wish: Wish, survey: Survey, read: Read) -> None:
    """Byte-pair encoding: the special tokens, all bytes, then what occurs most often."""
    assert wish.vocab_size is not None, "the recipe's check asks for a size"
    entries, pairs = _pairs(engine, wish, survey, read, wish.vocab_size - len(wish.specials))
    vocabulary = {entry: number for number, entry in enumerate([*wish.specials, *entries])}
    engine.model = models.BPE(vocabulary, pairs)


def _learn_unigram(engine: Tokenizer, wish: Wish, survey: Survey, read: Read) -> None:
    """A unigram language model of pieces (Kudo 2018), its candidates found by byte-pair encoding."""
    assert wish.vocab_size is not None, "the recipe's check asks for a size"
    pieces = wish.vocab_size - len(wish.specials)
    entries, pairs = _pairs(engine, wish, survey, read, unigram.SEEDS * pieces)
    seeds = build("bpe", lowercase=wish.lowercase)
    seeds.model = models.BPE({entry: number for number, entry in enumerate(entries)}, pairs)
    engine.model = unigram.learn(seeds, engine, read, pieces=pieces, specials=wish.specials)


def _pairs(
    engine: Tokenizer, wish: Wish, survey: Survey, read: Read, entries: int
) -> tuple[list[str], list[tuple[str, str]]]:
    clean = (lambda: map(engine.normalizer.normalize_str, read())) if engine.normalizer is not None else read
    words = engine.pre_tokenizer[0]
    return byte_pairs.learn(words, clean, survey.characters, entries=entries, min_frequency=wish.min_frequency)


def _learn_wordpiece(engine: Tokenizer, wish: Wish, survey: Survey, read: Read) -> None:
    """BERT's sub-words: pairs joined as in byte-pair encoding, written `##` inside a word.

    The library numbers the `##` letters in the order a hash table gives them, and ties between
    pairs follow the numbers, so two runs differ. Naming those letters beforehand fixes the order.
    """
    assert wish.vocab_size is not None, "the recipe's check asks for a size"
    alphabet, rare = _alphabet(survey.characters, wish.vocab_size - len(wish.specials), wish.min_frequency)
    inside = [f"##{letter}" for letter in sorted(alphabet) if not _IDEOGRAPH.match(letter)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=wish.vocab_size,
        min_frequency=wish.min_frequency,
        special_tokens=[*wish.specials, *inside],
        initial_alphabet=sorted(alphabet),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    drop = str.maketrans(dict.fromkeys(rare, " "))
    scratch = build("wordpiece", lowercase=wish.lowercase)
    scratch.train_from_iterator((_normalised(engine, text).translate(drop) for text in read()), trainer)
    vocabulary = scratch.get_vocab(with_added_tokens=False)
    for letter in rare[: wish.vocab_size - len(vocabulary)]:
        vocabulary[letter] = len(vocabulary)
    engine.model = models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100)


def _alphabet(characters: Counter[str], room: int, min_frequency: int) -> tuple[set[str], list[str]]:
    """The characters to keep, and the others by falling frequency.

    An ideograph takes one entry; any other character two, for the first and the later places of a
    word. They take four fifths of the vocabulary at the most; what pairs leave free, the rest get.
    """
    kept: set[str] = set()
    rest: list[str] = []
    spent = 0
    for letter, count in sorted(characters.items(), key=lambda item: (-item[1], item[0])):
        if letter.isspace():
            continue
        cost = 1 if _IDEOGRAPH.match(letter) else 2
        if count >= min_frequency and spent + cost <= room * 4 // 5:
            kept.add(letter)
            spent += cost
        else:
            rest.append(letter)
    return kept, rest


def _learn_characters(engine: Tokenizer, wish: Wish, survey: Survey, read: Read) -> None:
    """One entry a character, the most frequent first; `vocab_size` only caps their number."""
    ranked = sorted(survey.characters.items(), key=lambda item: (-item[1], item[0]))
    room = None if wish.vocab_size is None else wish.vocab_size - len(wish.specials)
    letters = [letter for letter, count in ranked if count >= wish.min_frequency][:room]
    vocabulary = {entry: number for number, entry in enumerate([*wish.specials, *letters])}
    engine.model = models.WordLevel(vocabulary, unk_token=SPECIALS["characters"]["unk"])


_LEARNERS: dict[str, Callable[[Tokenizer, Wish, Survey, Read], None]] = {
    "bpe": _learn_bpe,
    "wordpiece": _learn_wordpiece,
    "unigram": _learn_unigram,
    "characters": _learn_characters,
}
