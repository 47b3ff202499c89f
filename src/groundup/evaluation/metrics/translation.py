"""Scores of translations, BLEU and chrF, from sacrebleu's statistics of every sentence.

sacrebleu cuts and counts; the counts of a set are the sums of its sentences', so both scores fit the
bootstrap and the tests of this package. `signature` says with which settings, and belongs beside any
published figure (Post 2018).

Axes: E sentences, S statistics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from groundup.evaluation.metrics.additive import Additive, Floats, divided

ORDERS = 4
CHARACTER_ORDERS = 6
BETA = 2.0
"""Recall counts twice as much as precision in chrF2 (Popović 2016)."""


def bleu(references_E: Sequence[str], answers_E: Sequence[str], *, language: str = "") -> Additive:
    """BLEU of a set (Papineni et al. 2002), 0 to 100; the target language chooses how words are cut.

    The smoothing is sacrebleu's default: each order without a match counts half of the one before.
    """
    return Additive("bleu", _statistics(_bleu(language), references_E, answers_E), _finish_bleu)


def chrf(references_E: Sequence[str], answers_E: Sequence[str]) -> Additive:
    """chrF2 of a set: F-score of runs of one to six characters, 0 to 100; spaces are put aside."""
    return Additive("chrf", _statistics(_chrf(), references_E, answers_E), _finish_chrf)


def signatures(language: str = "") -> dict[str, str]:
    """sacrebleu's account of the settings of each score; one reference a sentence."""
    found = {}
    for name, metric in (("bleu", _bleu(language)), ("chrf", _chrf())):
        metric.corpus_score(["a"], [["a"]])
        found[name] = str(metric.get_signature())
    return found


def _bleu(language: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    # Its cutter for Japanese and Korean needs further packages; characters need none.
    return BLEU(tokenize="char") if language in ("ja", "ko") else BLEU(trg_lang=language)


def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def _statistics(metric: Any, references: Sequence[str], answers: Sequence[str]) -> Floats:
    """What sacrebleu's own bootstrap sums up: one row of counts a sentence."""
    if len(references) != len(answers):
        raise ValueError(f"{len(answers)} answers for {len(references)} references")
    rows = metric._extract_corpus_statistics(list(answers), [list(references)])
    return np.array(rows, np.float64).reshape(len(answers), -1)


def _finish_bleu(sums: Floats) -> Floats:
    answer_length, reference_length = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS : 2 + 2 * ORDERS]
    missed = np.cumsum((right == 0) & (total > 0), axis=-1)
    precision = divided(np.where(right == 0, 2.0 ** -missed.astype(np.float64), right), total)
    logs = np.where(precision > 0, np.log(np.where(precision > 0, precision, 1.0)), -np.inf)
    short = np.minimum(0.0, 1 - divided(reference_length, answer_length))
    score = 100 * np.exp(short + logs.mean(-1))
    return np.where((right.sum(-1) > 0) & (answer_length > 0), score, 0.0)


def _finish_chrf(sums: Floats) -> Floats:
    by_order = sums.reshape(*sums.shape[:-1], CHARACTER_ORDERS, 3)
    answered, there, right = by_order[..., 0], by_order[..., 1], by_order[..., 2]
    counted = (answered > 0) & (there > 0)
    orders = counted.sum(-1).astype(np.float64)
    precision = divided((divided(right, answered) * counted).sum(-1), orders)
    recall = divided((divided(right, there) * counted).sum(-1), orders)
    return 100 * divided((1 + BETA**2) * precision * recall, BETA**2 * precision + recall)
