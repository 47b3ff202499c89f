"""The pieces of a unigram tokenizer: candidates from byte-pair encoding, thinned by what each is worth.

Kudo 2018 keeps the pieces whose loss would cost the likelihood of the text most. The library's own
trainer gives another vocabulary on every run, because it adds floating-point numbers in the order of
a hash table, and takes its candidates from a suffix array of the text. Here the candidates are the
entries of a larger byte-pair vocabulary, which Schmidt et al. 2024 ("Tokenization is more than
compression", §6) found the better start, and the counts are whole numbers from best segmentations
(Viterbi training), so that no order matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from tokenizers import Tokenizer, models

from groundup.text.byte_pairs import count_entries, occurrences

SEEDS = 4
"""Candidates for each piece that is wanted."""
SHRINK = 0.7
"""The share of pieces that stays in each round."""


def learn(
    seeds: Tokenizer, engine: Tokenizer, read: Callable[[], Iterator[str]], *, pieces: int, specials: list[str]
) -> models.Unigram:
    """The model: `specials` first, then the best `pieces` pieces, all bytes among them.

    `seeds` is a trained byte-pair tokenizer; `engine` cuts text as the result will. Fewer entries
    come back where the text does not support so many.
    """
    counts = occurrences(seeds, read)
    letters = {token for token in counts if len(token) == 1}
    scores = _scores(counts)
    while len(scores) > pieces:
        engine.model = _model(scores, specials)
        counts = _used(scores, engine, read)
        keep = max(pieces, int(len(scores) * SHRINK))
        kept = _best(_scores(counts), counts, keep, letters)
        scores = _scores({piece: counts[piece] for piece in kept})
    engine.model = _model(scores, specials)
    return _model(_scores(_used(scores, engine, read)), specials)


def _used(scores: dict[str, float], engine: Tokenizer, read: Callable[[], Iterator[str]]) -> dict[str, int]:
    """How often each piece is used under the engine's model; 0 for those that are not."""
    counts = count_entries(engine, read)
    return {piece: counts.get(piece, 0) for piece in scores}


def _scores(counts: dict[str, int]) -> dict[str, float]:
    """Log-probabilities of the pieces; one that is not used keeps half a count, so that it can be."""
    total = math.log(sum(counts.values()) or 1)
    return {piece: math.log(max(count, 0.5)) - total for piece, count in counts.items()}


def _best(scores: dict[str, float], counts: dict[str, int], keep: int, letters: set[str]) -> list[str]:
    """The `keep` pieces whose absence would cost the text's likelihood most, and all bytes."""
    worth = {
        piece: counts[piece] * (score - _without(piece, scores))
        for piece, score in scores.items()
        if piece not in letters
    }
    ranked = sorted(worth, key=lambda piece: (-worth[piece], -scores[piece], len(piece), piece))
    return sorted(letters) + ranked[: keep - len(letters)]


def _without(piece: str, scores: dict[str, float]) -> float:
    """The best log-probability of writing a piece with the other pieces."""
    best = [0.0] + [-math.inf] * len(piece)
    for end in range(1, len(piece) + 1):
        for start in range(end):
            if end - start == len(piece):
                continue
            score = scores.get(piece[start:end])
            if score is not None and best[start] + score > best[end]:
                best[end] = best[start] + score
    return best[-1]


def _model(scores: dict[str, float], specials: list[str]) -> models.Unigram:
    """The library's model; the most probable pieces get the smallest ids after the special tokens."""
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return models.Unigram([(name, 0.0) for name in specials] + ranked, None, False)
