"""Learn a vocabulary from a corpus: text in, a tokenizer out that transformers opens as it is.

The artefact holds `tokenizer.json`, `tokenizer_config.json` and a report of what the vocabulary is
like (`report.json`, `report.md`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from groundup.artifact import Artifact, Draft, Input
from groundup.config import Mistake, StageSection
from groundup.data.corpus import Corpus
from groundup.errors import DataError, Interrupted, nearest
from groundup.forecast import Forecast, Known
from groundup.progress import Reporter, interrupt_requested
from groundup.text import measures, vocabulary_forecast
from groundup.text.pipelines import KINDS, SPECIALS
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import Survey, Wish, learn, smallest
from groundup.units import Bytes, PositiveCount

READS = {"of": "corpus"}
WRITES = "tokenizer"
VERSION = 1
HELD_OUT_BYTES = 2 << 20
"""Text on which bytes per token are measured."""
TRAINING_BYTES = 16 << 20
"""Training text on which the use of entries is counted."""
FORECAST_BYTES = 3 << 17
"""Text from which a forecast learns a vocabulary to look at."""
QUICK_BYTES = 1 << 17
"""The same where plan must be quick."""


class Config(StageSection):
    """A vocabulary to learn: its kind and its size."""

    of: str
    """The corpus whose train split is learnt from."""
    kind: str = "bpe"
    """bpe and unigram work on bytes and never miss; wordpiece is BERT's; characters has one entry a character."""
    vocab_size: PositiveCount | None = Field(default=None)
    """Entries, special tokens included. characters takes as many as the text has, and this at the most."""
    lowercase: bool = False
    """Whether text is lower-cased first (and, for wordpiece, accents dropped, as in BERT uncased)."""
    min_frequency: PositiveCount = 2
    """How often something must occur to become an entry."""
    sample: Bytes = 256 << 20
    """Text read at the most. Beyond some tens of megabytes a vocabulary hardly changes."""
    memory: Bytes = 2 << 30
    """Memory that learning may take. Text is read until its distinct pieces fill it."""
    special_tokens: tuple[str, ...] = ()
    """Further special tokens, such as the marks of a chat's turns."""

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        if kind not in KINDS:
            raise ValueError(f"no tokenizer kind named {kind!r}; {nearest(kind, KINDS)}")
        return kind

    @field_validator("vocab_size")
    @classmethod
    def _large_enough(cls, size: int | None, info: ValidationInfo) -> int | None:
        kind = info.data.get("kind")
        if kind is None:
            return size
        if size is None and kind != "characters":
            raise ValueError(f"a {kind} tokenizer needs a vocab_size, such as 8192")
        least = smallest(kind) + 1
        if size is not None and size < least:
            needs = "the 256 bytes and its special tokens" if kind in ("bpe", "unigram") else "its special tokens"
            raise ValueError(f"vocab_size {size} is too small: {kind} needs {needs}, so {least} or more")
        return size

    @field_validator("special_tokens")
    @classmethod
    def _distinct(cls, tokens: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        own = set(SPECIALS.get(info.data.get("kind", ""), {}).values())
        twice = sorted({token for token in tokens if tokens.count(token) > 1 or token in own or not token.strip()})
        if twice:
            raise ValueError(f"special tokens must be new and not empty: {twice[0]!r} is not")
        return tokens

    def wish(self) -> Wish:
        """What the learner is asked for."""
        return Wish(
            self.kind,
            self.vocab_size,
            self.lowercase,
            self.min_frequency,
            self.sample,
            self.memory,
            self.special_tokens,
        )


def run(config: Config, inputs: Mapping[str, Input], out: Draft) -> None:
    """Write the tokenizer's files and its report.

    Raises DataError for an empty corpus and for a vocabulary larger than the text supports.
    """
    given = inputs["of"]
    corpus, split = Corpus(given.artifact), given.part or "train"
    if split not in corpus.splits:
        raise DataError(f"the corpus has no split {split!r}", fix=nearest(split, corpus.splits))
    engine, survey = learn(config.wish(), lambda: _texts(corpus, split), _Shown(out.reporter))
    names = SPECIALS[config.kind]
    tokenizer = Tokenizer.of_roles(engine, names)
    tokenizer.save(out.folder)
    _write_report(tokenizer, corpus, split, survey, out)
    out.licences |= given.artifact.manifest["licences"]


def facts(artifact: Artifact) -> dict[str, Any]:
    """What plan passes on of a finished tokenizer: its size and the bytes a token holds."""
    return {key: artifact.metrics[key] for key in ("vocab_size", "bytes_per_token")}


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """A vocabulary that the text cannot fill whatever it says, as each entry needs its occurrences."""
    known = inputs.get("of")
    size = _train_bytes(known)
    if size is None or config.vocab_size is None or (known is not None and known.estimated):
        return []
    most = smallest(config.kind, config.special_tokens) + size // config.min_frequency
    if config.vocab_size <= most:
        return []
    what = f"vocab_size is {config.vocab_size}, but {size} bytes of text support no more than {most} entries"
    return [Mistake(("vocab_size",), what, "choose a smaller vocabulary or add text")]


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """Bytes per token, from a vocabulary learnt on the sample; time and memory from measured rates."""
    known = inputs["of"]
    texts = _first_bytes(known.facts.get("sample", ()), QUICK_BYTES if effort == "quick" else FORECAST_BYTES)
    return vocabulary_forecast.forecast(config.wish(), texts, _train_bytes(known))


def _write_report(tokenizer: Tokenizer, corpus: Corpus, split: str, survey: Survey, out: Draft) -> None:
    held_out = "validation" if "validation" in corpus.splits and corpus.rows("validation") else split
    usage = measures.measure(tokenizer, _texts(corpus, held_out), limit_bytes=HELD_OUT_BYTES)
    trained = measures.measure(tokenizer, _texts(corpus, split), limit_bytes=TRAINING_BYTES, scripts=False)
    figures = measures.report(tokenizer, usage, trained)
    figures["measured_on"]["split"] = held_out
    figures["learnt_from"] = {"bytes": survey.bytes, "whole": survey.whole}
    out.write_json("report.json", figures)
    out.path("report.md").write_text(measures.markdown(figures, "Tokenizer"), encoding="utf-8")
    plain = ("vocab_size", "bytes_per_token", "unknown_rate", "vocabulary_used", "entries_never_used")
    out.metrics |= {key: figures[key] for key in plain}
    out.metrics |= {f"bytes_per_token_{name}": value for name, value in figures["bytes_per_token_by_script"].items()}
    out.choices["learnt_from_bytes"] = survey.bytes
    if not survey.whole:
        out.reporter.note(
            f"learnt from the first {survey.bytes:,} bytes of the shuffled {split} split (memory, sample)"
        )


def _texts(corpus: Corpus, split: str) -> Iterator[str]:
    for batch in corpus.read(split, columns=["text"]):
        yield from batch.column("text").to_pylist()


def _first_bytes(texts: Iterable[str], limit: int) -> list[str]:
    taken: list[str] = []
    size = 0
    for text in texts:
        if size >= limit:
            break
        taken.append(text)
        size += len(text.encode("utf-8"))
    return taken


def _train_bytes(known: Known | None) -> int | None:
    sizes = known.facts.get("bytes") if known else None
    if not sizes or known is None:
        return None
    return int(sizes.get(known.part or "train", 0)) if isinstance(sizes, Mapping) else int(sizes)


class _Shown:
    """Passes progress on to the user, and stops when the user asks to."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def __call__(self, doing: str, done: float, total: float | None) -> None:
        self.reporter.advance(doing, done, total)
        if interrupt_requested():
            raise Interrupted("stopped while learning the vocabulary", fix="run again: it starts afresh")
