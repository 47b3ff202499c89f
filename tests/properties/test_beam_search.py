"""Beam search over small made-up languages, where every target can be tried."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.nn.beam_search import Found, search

START, END, VOCABULARY, LONGEST = 0, 1, 4, 3


class Table:
    """Log-probabilities drawn for every beginning: a language that remembers all it wrote."""

    def __init__(self, seeds: list[int], beams: int) -> None:
        self.seeds = [seed for seed in seeds for _ in range(beams)]
        self.written: list[tuple[int, ...]] = [()] * len(self.seeds)

    def __call__(self, ids_R: Tensor, from_R: Tensor | None) -> Tensor:
        sources = range(len(self.seeds)) if from_R is None else from_R.tolist()
        self.seeds = [self.seeds[s] for s in sources]
        self.written = [(*self.written[s], token) for s, token in zip(sources, ids_R.tolist(), strict=True)]
        return torch.stack([follows(seed, ids) for seed, ids in zip(self.seeds, self.written, strict=True)])


def follows(seed: int, ids: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(hash((seed, ids)) % 2**31)
    return (2 * torch.randn(VOCABULARY, generator=generator)).log_softmax(0)


def found(seeds: list[int], *, beams: int, length_penalty: float = 0.0, forbidden: tuple[int, ...] = ()) -> list[Found]:
    options = {"length_penalty": length_penalty, "forbidden": forbidden}
    step = Table(seeds, beams)
    return search(step, len(seeds), start=START, end=END, beams=beams, max_tokens=LONGEST, **options)  # type: ignore[arg-type]


def score(seed: int, ids: tuple[int, ...]) -> float:
    return sum(float(follows(seed, (START, *ids[:i]))[token]) for i, token in enumerate(ids))


def every_target(forbidden: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """All that end, and all that are cut because they do not."""
    words = [token for token in range(VOCABULARY) if token != END and token not in forbidden]
    ended = [(*ids, END) for size in range(LONGEST) for ids in itertools.product(words, repeat=size)]
    return ended + list(itertools.product(words, repeat=LONGEST))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(), (START,), (START, 3)]))
def test_enough_beams_find_the_best_target_there_is(seed: int, forbidden: tuple[int, ...]) -> None:
    best = max(every_target(forbidden), key=lambda ids: score(seed, ids))
    (one,) = found([seed], beams=VOCABULARY**LONGEST, forbidden=forbidden)
    assert (*one.ids, END)[: len(best)] == best
    assert one.is_ended == (best[-1] == END)
    assert math.isclose(one.score, score(seed, best), abs_tol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_one_beam_takes_the_likeliest_token_each_time(seed: int) -> None:
    ids: tuple[int, ...] = ()
    while len(ids) < LONGEST and END not in ids:
        ids = (*ids, int(follows(seed, (START, *ids)).argmax()))
    (one,) = found([seed], beams=1, length_penalty=1.0)
    assert one.ids == [token for token in ids if token != END]


@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=8), st.integers(1, 4), st.sampled_from([0.0, 0.6, 1.0, 2.0])
)
def test_examples_do_not_touch_each_other(seeds: list[int], beams: int, length_penalty: float) -> None:
    together = found(seeds, beams=beams, length_penalty=length_penalty)
    assert together == [found([seed], beams=beams, length_penalty=length_penalty)[0] for seed in seeds]


def test_scores_are_divided_by_a_power_of_the_length() -> None:
    for seed in range(20):
        (one,) = found([seed], beams=3, length_penalty=1.5)
        ids = (*one.ids, END) if one.is_ended else tuple(one.ids)
        assert math.isclose(one.score, score(seed, ids) / len(ids) ** 1.5, rel_tol=1e-4)


def test_nothing_to_search_is_refused() -> None:
    with pytest.raises(ValueError, match="0 beams"):
        found([1], beams=0)
