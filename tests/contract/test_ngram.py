"""The n-gram model: equal to its formula, a probability distribution, and quick on real text."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.evaluation.ngram import NGram, fit, grow

corpora = st.lists(st.lists(st.integers(0, 3), max_size=12), min_size=1, max_size=6)


def model_of(documents: list[list[int]], max_order: int, symbols: int = 4) -> NGram:
    return fit([np.array(document, np.int64) for document in documents], symbols=symbols, max_order=max_order)


class Textbook:
    """The same model from the formula, with dictionaries and no thought of speed."""

    def __init__(self, documents: list[list[int]], symbols: int, order: int) -> None:
        self.symbols, self.order = symbols, order
        grams: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order + 1)]
        before: list[dict[tuple[int, ...], set[int]]] = [defaultdict(set) for _ in range(order + 1)]
        for document in documents:
            framed = [symbols, *document, symbols]
            for end in range(1, len(framed)):
                for k in range(1, min(order, end + 1) + 1):
                    gram = tuple(framed[end - k + 1 : end + 1])
                    grams[k][gram] += 1
                    if end - k >= 0:
                        before[k][gram].add(framed[end - k])
        self.counts = [Counter[tuple[int, ...]]()] + [
            Counter({g: c if k == order or not before[k][g] else len(before[k][g]) for g, c in grams[k].items()})
            for k in range(1, order + 1)
        ]
        self.discounts = [(0.0, 0.0, 0.0)] + [self.discount(list(c.values())) for c in self.counts[1:]]

    def discount(self, counts: list[int]) -> tuple[float, float, float]:
        n1, n2, n3, n4 = (counts.count(c) for c in (1, 2, 3, 4))
        if not n1 or not n2:
            return 0.5, 0.5, 0.5
        y = n1 / (n1 + 2 * n2)
        if n3 and n4:
            found = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
            if all(0 < d < c for c, d in zip((1, 2, 3), found, strict=True)):
                return found
        return y, y, y

    def p(self, symbol: int, history: tuple[int, ...]) -> float:
        k = len(history) + 1
        lower = self.p(symbol, history[1:]) if history else 1 / (self.symbols + 1)
        following = {g[-1]: c for g, c in self.counts[k].items() if g[:-1] == history}
        if not following:
            return lower
        total = sum(following.values())
        taken = [self.discounts[k][min(c, 3) - 1] for c in following.values()]
        own = following.get(symbol, 0)
        own = own - self.discounts[k][min(own, 3) - 1] if own else 0
        return own / total + sum(taken) / total * lower


@settings(deadline=None, max_examples=60)
@given(corpora, st.integers(1, 5), st.lists(st.integers(0, 3), max_size=8))
def test_it_is_the_formula(documents: list[list[int]], order: int, probe: list[int]) -> None:
    model, textbook = model_of(documents, 5), Textbook(documents, 4, order)
    framed = [4, *probe, 4]
    expected = [
        -math.log(textbook.p(framed[end], tuple(framed[max(0, end - order + 1) : end])))
        for end in range(1, len(framed))
    ]
    np.testing.assert_allclose(model.symbol_nats(np.array(probe, np.int64), order), expected, rtol=1e-5)


@settings(deadline=None, max_examples=60)
@given(corpora, st.integers(1, 5), st.lists(st.integers(0, 3), max_size=6))
def test_probabilities_sum_to_one_and_none_is_zero(documents: list[list[int]], order: int, context: list[int]) -> None:
    p = model_of(documents, 5).distribution(context, order)
    assert p.shape == (5,) and p.min() > 0
    assert p.sum() == pytest.approx(1, abs=1e-6)


def test_a_bigram_worked_by_hand() -> None:
    """One document a b a b b (a = 0, b = 1, border = 2), order 2.

    Bigrams: |a 1, ab 2, ba 1, bb 1, b| 1, so n1 = 4, n2 = 1, D = 4 / (4 + 2) = 2/3 for all.
    Unigrams count what comes before: a after | and b: 2; b after a and b: 2; | after b: 1. Total 5;
    n1 = 1, n2 = 2, D = 1 / (1 + 4) = 1/5, three kinds: kept for uniform 3/25.
    p1(b) = (2 - 1/5)/5 + 3/25 · 1/3 = 9/25 + 1/25 = 2/5.
    After b: a 1, b 1, | 1, total 3: p(b | b) = (1 - 2/3)/3 + (3 · 2/3)/3 · 2/5 = 1/9 + 4/15 = 17/45.
    After a: b 2, total 2: p(b | a) = (2 - 2/3)/2 + (2/3)/2 · 2/5 = 2/3 + 2/15 = 4/5.
    """
    model = model_of([[0, 1, 0, 1, 1]], 2, symbols=2)
    assert model.distribution([1], 2)[1] == pytest.approx(17 / 45)
    assert model.distribution([0], 2)[1] == pytest.approx(4 / 5)
    assert model.distribution([], 1)[1] == pytest.approx(
        # As the highest order, unigrams count occurrences: a 2, b 3, | 1; n1 = n2 = 1, D = 1/3.
        (3 - 1 / 3) / 6 + (3 * 1 / 3) / 6 / 3
    )


def test_documents_are_scored_alone_and_alike_in_every_order() -> None:
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 4, rng.integers(0, 50)) for _ in range(200)]
    held_out = [rng.integers(0, 4, n) for n in (0, 1, 7, 30)]
    model = fit(train, symbols=4, max_order=6)
    together = model.document_nats(held_out)
    assert together.shape == (6, 4)
    for column, document in enumerate(held_out):
        for order in range(1, 7):
            alone = model.symbol_nats(document, order)
            assert len(alone) == len(document) + 1
            assert together[order - 1, column] == pytest.approx(alone.sum())
    chosen = model.document_nats(held_out, orders=[3])
    np.testing.assert_allclose(chosen[0], together[2])


def test_growing_gives_the_models_of_each_order_also_when_used_in_between() -> None:
    rng = np.random.default_rng(1)
    train = [rng.integers(0, 4, 300) for _ in range(20)]
    probe = [rng.integers(0, 4, 200)]
    whole = fit(train, symbols=4, max_order=4).document_nats(probe)
    for model in islice(grow(train, symbols=4), 4):
        nats = model.document_nats(probe, orders=[model.max_order])
        assert nats[0, 0] == pytest.approx(whole[model.max_order - 1, 0])


def test_unseen_symbols_cost_a_finite_amount() -> None:
    model = model_of([[0, 0, 0]], 3)
    nats = model.symbol_nats(np.array([3, 3, 3], np.int64), 3)
    assert np.isfinite(nats).all() and nats.min() > 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one document"):
        fit([], symbols=4, max_order=2)
    with pytest.raises(ValueError, match="order"):
        fit([np.array([1])], symbols=4, max_order=0)
    with pytest.raises(ValueError, match="symbols must lie"):
        fit([np.array([5])], symbols=4, max_order=2)


def test_english_bytes_cost_what_the_literature_says(shared_data: Callable[[str], Path]) -> None:
    """Tiny Shakespeare, the last tenth held out: order 6 to 8 near 2.24 bits per byte, in seconds."""
    import gzip

    text = gzip.decompress((shared_data("lm") / "tinyshakespeare.txt.gz").read_bytes())
    lines = [np.frombuffer(part, np.uint8) for part in text.split(b"\n\n")]
    cut = len(lines) * 9 // 10
    began = time.perf_counter()
    model = fit(lines[:cut], symbols=256, max_order=8)
    nats = model.document_nats(lines[cut:]).sum(1)
    seconds = time.perf_counter() - began
    size = sum(len(line) for line in lines[cut:])
    bits = nats / size / math.log(2)
    print(f"{seconds:.1f} s, bits per byte by order: {np.round(bits, 3)}, tables {model.bytes / 1e6:.0f} MB")
    assert 1.9 < bits.min() < 2.25
    assert bits[0] > 4 and bits.argmin() >= 4
    assert seconds < 60
