"""The sampler: exact sets, exact order, the right distribution, and stop strings across tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from groundup.errors import GroundupError, UserError
from groundup.serving.sampler import Sampler, Sampling, draw, keep_min_p, keep_top_k, keep_top_p, process, sampling
from groundup.serving.stops import StopStrings

logits = st.lists(st.integers(-40, 40), min_size=1, max_size=30).map(lambda xs: torch.tensor(xs) / 4.0)
distinct = st.lists(st.integers(-60, 60), min_size=1, max_size=30, unique=True).map(lambda xs: torch.tensor(xs) / 8.0)


def kept(logits_V: torch.Tensor) -> set[int]:
    return set(torch.nonzero(torch.isfinite(logits_V)).flatten().tolist())


@settings(deadline=None)
@given(distinct, st.integers(1, 40))
def test_top_k_keeps_exactly_the_k_largest(logits_V: torch.Tensor, k: int) -> None:
    best = sorted(range(len(logits_V)), key=lambda i: -float(logits_V[i]))[:k]
    assert kept(keep_top_k(logits_V, k)) == set(best)


@settings(deadline=None)
@given(logits, st.integers(1, 40))
def test_top_k_keeps_ties_with_the_last(logits_V: torch.Tensor, k: int) -> None:
    threshold = sorted(logits_V.tolist(), reverse=True)[min(k, len(logits_V)) - 1]
    assert kept(keep_top_k(logits_V, k)) == {i for i, x in enumerate(logits_V.tolist()) if x >= threshold}


@settings(deadline=None)
@given(distinct, st.floats(0.01, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(logits_V: torch.Tensor, p: float) -> None:
    probabilities = logits_V.double().softmax(-1)
    order = sorted(range(len(logits_V)), key=lambda i: -float(probabilities[i]))
    sums = torch.cumsum(probabilities[order], 0).tolist()
    assume(all(abs(total - p) > 1e-5 for total in sums))
    size = next(i for i, total in enumerate(sums) if total >= p) + 1
    assert kept(keep_top_p(logits_V, p)) == set(order[:size])


@settings(deadline=None)
@given(logits, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough(logits_V: torch.Tensor, min_p: float) -> None:
    ratios = (logits_V.double() - logits_V.double().max()).exp()
    assume(all(abs(float(r) - min_p) > 1e-6 or float(r) == 1.0 for r in ratios))
    expected = {i for i, r in enumerate(ratios.tolist()) if r >= min_p}
    assert kept(keep_min_p(logits_V, min_p)) == expected | {int(logits_V.argmax())}


@settings(deadline=None)
@given(logits, st.integers(1, 9), st.floats(0.05, 1), st.floats(0, 1), st.floats(0.1, 3))
def test_kept_tokens_keep_their_odds(logits_V: torch.Tensor, k: int, p: float, min_p: float, t: float) -> None:
    done_V = process(logits_V, Sampling(top_k=k, top_p=p, min_p=min_p, temperature=t))
    keep = sorted(kept(done_V))
    assert keep
    torch.testing.assert_close(done_V[keep], logits_V[keep] / t)


def test_filters_work_on_many_rows_at_once() -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    for settings_ in (Sampling(top_k=3), Sampling(top_p=0.7), Sampling(min_p=0.2)):
        together = process(rows, settings_)
        assert torch.equal(together, torch.stack([process(row, settings_) for row in rows]))


def test_draws_follow_the_distribution() -> None:
    """Chi-square over 20,000 draws, for three settings; the limit is the 99.9 % point."""
    logits_V = torch.tensor([2.0, 1.5, 1.0, 0.0, -0.5, -1.0, -3.0, 0.3])
    limits = {7: 24.32, 2: 13.82, 4: 18.47}
    for settings_, freedom in (
        (Sampling(seed=1), 7),
        (Sampling(top_k=3, temperature=0.7), 2),
        (Sampling(min_p=0.1, temperature=1.3, seed=9), None),
    ):
        done_V = process(logits_V, settings_)
        expected = done_V.double().softmax(-1) * 20_000
        generator = torch.Generator().manual_seed(settings_.seed)
        counts = torch.zeros(8, dtype=torch.float64)
        for _ in range(20_000):
            counts[draw(done_V, settings_.temperature, generator)] += 1
        keep = expected > 0
        assert counts[~keep].sum() == 0
        freedom = freedom if freedom is not None else int(keep.sum()) - 1
        chi_square = float(((counts - expected)[keep] ** 2 / expected[keep]).sum())
        assert chi_square < limits.get(freedom, 24.32), (settings_, chi_square)


def test_a_seed_is_a_sequence_and_sequences_do_not_disturb_each_other() -> None:
    rows = torch.randn(50, 100, generator=torch.Generator().manual_seed(3))
    alone = [Sampler(Sampling(seed=5)).choose(rows[0]).id for _ in range(3)]
    assert len(set(alone)) == 1
    one, other = Sampler(Sampling(seed=5)), Sampler(Sampling(seed=6))
    mixed = [(one.choose(row).id, other.choose(row).id) for row in rows]
    again = Sampler(Sampling(seed=5))
    assert [a for a, _ in mixed] == [again.choose(row).id for row in rows]
    assert [a for a, _ in mixed] != [b for _, b in mixed]


def test_zero_temperature_is_the_first_best_and_logprobs_are_the_models_own() -> None:
    logits_V = torch.tensor([1.0, 3.0, 3.0, -2.0])
    choice = Sampler(Sampling(temperature=0, logprobs=2, repetition_penalty=1.1)).choose(logits_V)
    assert choice.id == 1
    expected = logits_V.log_softmax(-1)
    assert choice.logprob == pytest.approx(float(expected[1]))
    assert [i for i, _ in choice.alternatives] == [1, 2]
    assert choice.alternatives[1][1] == pytest.approx(float(expected[2]))


def test_repetition_penalty_counts_the_prompt_and_what_was_chosen() -> None:
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=2.0))
    logits_V = torch.tensor([4.0, 3.0, 2.5, -1.0])
    sampler.see([0], 4)
    assert [sampler.choose(logits_V).id for _ in range(3)] == [1, 2, 0]


def test_damaged_logits_are_an_error() -> None:
    for bad in (torch.tensor([float("nan"), 1.0]), torch.full((3,), -torch.inf)):
        with pytest.raises(GroundupError, match="not numbers"):
            Sampler(Sampling()).choose(bad)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0}, {"min_p": 1.5}, {"stop": [""]}, {"tempreature": 1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Sampling.model_validate(wrong)
    with pytest.raises(UserError, match=next(iter(wrong))):
        sampling(wrong)


def test_filters_that_are_off_change_nothing() -> None:
    logits_V = torch.randn(30, generator=torch.Generator().manual_seed(0))
    off = Sampling(top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)
    assert torch.equal(process(logits_V, off, torch.ones(30, dtype=torch.bool)), logits_V)


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=40), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings_do_not_depend_on_how_the_text_arrives(text: str, stops: list[str], data: st.DataObject) -> None:
    """Any split into pieces shows the text before the stop string that is complete first."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    watcher, shown, rest = StopStrings(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown += watcher.push(rest[:size])
        rest = rest[size:]
    shown += watcher.flush()
    if ends:
        end, start = min(ends)
        assert (shown, watcher.found) == (text[:start], text[start:end])
    else:
        assert shown == text and watcher.found is None


def test_only_a_possible_beginning_is_held_back() -> None:
    watcher = StopStrings(["END"])
    assert [watcher.push(piece) for piece in ("ab", "cE", "N", "x", "E", "ND", "more")] == [
        "ab",
        "c",
        "",
        "ENx",
        "",
        "",
        "",
    ]
    assert watcher.found == "END" and watcher.flush() == ""
