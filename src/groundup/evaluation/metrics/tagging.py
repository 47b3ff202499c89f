"""Scores of tag sequences: entities found whole, tags, and sequences that break their scheme.

A tag is `O` or a prefix and a kind, `B-PER`. Read leniently, as the CoNLL-2000 script and seqeval's
default mode do, an entity also begins at an `I` (or `M`, `E`) that continues nothing. Read strictly, it
begins at `B` or `S` only, and where the scheme marks ends (BIOES; BMES is the same with M for I) it
must have one. An entity counts as right if kind, begin and end are.

Axes: E sentences, K kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from groundup.evaluation.metrics.additive import Additive, Floats, mean, ratio

Scheme = Literal["BIO", "BIOES"]
Entity = tuple[str, int, int]
"""Kind, first token, and the token after the last."""
Tags = Sequence[str]


def split(tag: str) -> tuple[str, str]:
    """Prefix and kind of a tag; M counts as I, and a tag without a kind has the kind `_`."""
    prefix, _, kind = tag.partition("-")
    return ("I" if prefix == "M" else prefix), kind or "_"


def scheme_of(sentences: Iterable[Tags]) -> Scheme:
    """BIOES if ends or single tokens are marked anywhere, else BIO."""
    prefixes = {split(tag)[0] for tags in sentences for tag in tags}
    return "BIOES" if prefixes & {"E", "S"} else "BIO"


def marks_entities(tags: Iterable[str]) -> bool:
    """Whether tags mark entities (B-PER, S-LOC, …) rather than name a class of every token (NOUN)."""
    prefixes = {split(tag)[0] for tag in tags}
    return bool(prefixes & {"B", "S"}) and prefixes <= {"O", "B", "I", "E", "S"}


def entities(tags: Tags, *, strict: bool = False, scheme: Scheme = "BIO") -> list[Entity]:
    """The entities of a sentence, in order; see the module for the two ways to read."""
    found: list[Entity] = []
    start, before, kind_before = -1, "O", "_"
    for place, (prefix, kind) in enumerate([*map(split, tags), ("O", "_")]):
        goes_on = prefix in ("I", "E") and before in ("B", "I") and kind == kind_before
        if not goes_on and start >= 0:
            if not strict or scheme == "BIO" or before in ("E", "S"):
                found.append((kind_before, start, place))
            start = -1
        if not goes_on and (prefix in ("B", "S") or (prefix in ("I", "E") and not strict)):
            start = place
        before, kind_before = prefix, kind
        if strict and start < 0:
            before = "O"  # an I that continues nothing cannot be continued
    return found


def breaks(tags: Tags, scheme: Scheme) -> list[tuple[int, str]]:
    """Where a sequence breaks its scheme: the token's number and what is wrong there."""
    found = []
    ended = [*map(split, tags), ("O", "_")]
    before, kind_before = "O", "_"
    for place, (prefix, kind) in enumerate(ended):
        goes_on = before in ("B", "I") and kind == kind_before
        shown = tags[place] if place < len(tags) else "the end"
        if prefix not in ("O", "B", "I", "E", "S"):
            found.append((place, f"{shown!r} is no tag of {scheme}"))
        elif prefix in ("I", "E") and not goes_on:
            found.append((place, f"{shown!r} continues nothing"))
        elif scheme == "BIOES" and before in ("B", "I") and not (prefix in ("I", "E") and goes_on):
            found.append((place - 1, f"{tags[place - 1]!r} is followed by {shown}, so its entity has no end"))
        before, kind_before = prefix, kind
    return found


def kinds_of(*systems: Sequence[Tags]) -> list[str]:
    """Every kind of entity named in any of the sequences, sorted."""
    return sorted({split(tag)[1] for sentences in systems for tags in sentences for tag in tags if tag != "O"})


def entity_counts(truth: Sequence[Tags], answers: Sequence[Tags], kinds: Sequence[str], scheme: Scheme) -> Floats:
    """Statistics (E, 3 K) for `classification.micro`, `macro` and `of_class`: right, answered, true entities.

    Marked ends are read strictly, BIO leniently, as the scores of each are usually published. Raises
    ValueError if a sentence has another number of tags than its truth.
    """
    strict = scheme == "BIOES"
    number = {kind: place for place, kind in enumerate(kinds)}
    counts = np.zeros((len(truth), 3, len(kinds)))
    for row, (true_tags, answered_tags) in enumerate(zip(truth, answers, strict=True)):
        if len(true_tags) != len(answered_tags):
            raise ValueError(f"sentence {row} has {len(true_tags)} tags and was given {len(answered_tags)}")
        there = set(entities(true_tags, strict=strict, scheme=scheme))
        found = set(entities(answered_tags, strict=strict, scheme=scheme))
        for part, group in enumerate((there & found, found, there)):
            for kind, _, _ in group:
                counts[row, part, number[kind]] += 1
    return counts.reshape(len(truth), -1)


def tag_accuracy(truth: Sequence[Tags], answers: Sequence[Tags]) -> Additive:
    """The share of tokens with the right tag."""
    right = [sum(a == b for a, b in zip(x, y, strict=True)) for x, y in zip(truth, answers, strict=True)]
    return ratio("tag_accuracy", right, [len(tags) for tags in truth])


def whole_sentences(truth: Sequence[Tags], answers: Sequence[Tags]) -> Additive:
    """The share of sentences with every tag right."""
    return mean("whole_sentences", [list(x) == list(y) for x, y in zip(truth, answers, strict=True)])


def broken_share(answers: Sequence[Tags], scheme: Scheme) -> Additive:
    """The share of sentences whose tags break the scheme."""
    return mean("broken_sequences", [bool(breaks(tags, scheme)) for tags in answers], higher_is_better=False)
