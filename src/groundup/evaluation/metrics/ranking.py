"""Scores of rankings: is what was looked for near the top?

A query has some relevant items and a ranked list of answers, best first, without repeats. A query
without relevant items scores 0.

Axes: Q queries.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Sequence

from groundup.evaluation.metrics.additive import Additive, mean

Relevant = Sequence[Collection[Hashable]]
Ranked = Sequence[Sequence[Hashable]]


def recall_at_k(relevant_Q: Relevant, ranked_Q: Ranked, *, k: int) -> Additive:
    """The mean share of a query's relevant items among its first k answers."""
    pairs = zip(relevant_Q, ranked_Q, strict=True)
    values = [len(set(there) & set(found[:k])) / len(set(there)) if there else 0.0 for there, found in pairs]
    return mean(f"recall_at_{k}", values)


def reciprocal_rank(relevant_Q: Relevant, ranked_Q: Ranked) -> Additive:
    """The mean of one over the place of the first relevant answer; 0 where none is among the answers."""
    return mean("reciprocal_rank", [_first(there, found) for there, found in zip(relevant_Q, ranked_Q, strict=True)])


def _first(relevant: Collection[Hashable], ranked: Sequence[Hashable]) -> float:
    wanted = set(relevant)
    return next((1 / place for place, item in enumerate(ranked, start=1) if item in wanted), 0.0)


def ndcg_at_k(relevant_Q: Relevant, ranked_Q: Ranked, *, k: int) -> Additive:
    """Mean normalised discounted cumulative gain of the first k answers, every relevant item worth the same.

    The discount is 1 / log2(place + 1) (Burges et al. 2005; Järvelin & Kekäläinen 2002 introduced the idea).
    """
    values = [_ndcg(set(there), found[:k], k) for there, found in zip(relevant_Q, ranked_Q, strict=True)]
    return mean(f"ndcg_at_{k}", values)


def _ndcg(relevant: set[Hashable], ranked: Sequence[Hashable], k: int) -> float:
    best = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(relevant)) + 1))
    found = sum(1 / math.log2(place + 1) for place, item in enumerate(ranked, start=1) if item in relevant)
    return found / best if best else 0.0
