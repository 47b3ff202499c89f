"""Learning-rate schedules, the seeds of a step, and the guard against bad losses."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.training import guard
from groundup.training.guard import Position
from groundup.training.learner import draw
from groundup.training.schedules import SCHEDULES, as_steps, factor

NAMES = sorted(SCHEDULES)
EXTENTS = st.integers(min_value=1, max_value=5000)
WARMUPS = st.one_of(st.integers(min_value=0, max_value=200), st.floats(min_value=0, max_value=0.5))


@pytest.mark.smoke
@given(name=st.sampled_from(NAMES), steps=EXTENTS, warmup=WARMUPS, data=st.data())
def test_a_rate_is_never_above_the_peak_nor_below_zero(
    name: str, steps: int, warmup: float, data: st.DataObject
) -> None:
    schedule = SCHEDULES[name](warmup=warmup)
    step = data.draw(st.integers(min_value=0, max_value=steps - 1))
    assert 0 <= factor(schedule, step, steps) <= 1


@given(name=st.sampled_from(NAMES), steps=st.integers(min_value=50, max_value=500), warmup=st.integers(1, 20))
def test_warmup_rises_in_equal_steps_to_the_peak_and_nothing_rises_after_it(name: str, steps: int, warmup: int) -> None:
    schedule = SCHEDULES[name](warmup=warmup)
    rates = [factor(schedule, step, steps) for step in range(steps)]
    assert rates[:warmup] == [(step + 1) / warmup for step in range(warmup)]
    after = rates[warmup - 1 :]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(after))


@pytest.mark.parametrize(
    ("name", "last"), [("constant", 1), ("linear", 0), ("cosine", 0.1), ("warmup_stable_decay", 0)]
)
def test_the_last_step_reaches_the_stated_end(name: str, last: float) -> None:
    assert factor(SCHEDULES[name](), 99, 100) == pytest.approx(last)


def test_cosine_is_halfway_at_half_time() -> None:
    assert factor(SCHEDULES["cosine"](warmup=0, final=0), 50, 101) == pytest.approx(0.5)


def test_inverse_square_root_halves_when_steps_quadruple() -> None:
    schedule = SCHEDULES["inverse_square_root"](warmup=100)
    assert factor(schedule, 400, 10_000) == pytest.approx(0.5 * factor(schedule, 100, 10_000))


def test_stable_decay_holds_the_peak_until_the_decay_begins() -> None:
    schedule = SCHEDULES["warmup_stable_decay"](warmup=10, decay=0.25)
    rates = [factor(schedule, step, 400) for step in range(400)]
    assert set(rates[10:300]) == {1.0}
    assert rates[350] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(("value", "steps"), [(7, 7), (0.1, 20), (1.0, 200), (0, 0)])
def test_whole_numbers_are_steps_and_fractions_are_shares(value: float, steps: int) -> None:
    assert as_steps(value, 200) == steps


def test_every_place_in_a_run_has_a_seed_of_its_own() -> None:
    seeds = {draw(seed, step, micro) for seed in range(3) for step in range(100) for micro in range(4)}
    assert len(seeds) == 1200
    assert all(0 <= seed < 2**63 for seed in seeds)


@given(skipped=st.sets(st.integers(min_value=0, max_value=40), max_size=12))
def test_skipped_batches_are_never_taken_and_no_other_is_missed(skipped: set[int]) -> None:
    position = Position(skipped=sorted(skipped))
    taken = [position.batch(step) for step in range(30)]
    assert taken == [batch for batch in range(100) if batch not in skipped][:30]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_is_trouble_at_once(loss: float) -> None:
    assert guard.trouble([], loss, 1.0, None)


def test_a_gradient_that_is_no_number_is_trouble() -> None:
    assert "gradient" in (guard.trouble([], 1.0, math.inf, None) or "")


def test_a_spike_is_told_from_noise_and_from_falling() -> None:
    noisy = [3.0 + 0.1 * math.sin(7 * i) for i in range(50)]
    assert guard.trouble(noisy, 3.3, 1.0, 12.0) is None
    assert guard.trouble(noisy, 9.0, 1.0, 12.0)
    assert guard.trouble(noisy, 0.5, 1.0, 12.0) is None
    assert guard.trouble(noisy, 9.0, 1.0, None) is None
    assert guard.trouble(noisy[:5], 9.0, 1.0, 12.0) is None, "too little to compare with"


def test_a_few_wrong_rows_are_no_trouble_where_all_else_is_learnt() -> None:
    """Tuning an encoder on headlines once stopped here: one mislabelled row of 32 cost 6.3 nats."""
    learnt = [0.015 + 0.001 * math.sin(7 * i) for i in range(64)]
    assert guard.trouble(learnt, 0.232, 1.0, 12.0), "by its deviations alone it is a spike"
    assert guard.trouble(learnt, 0.232, 1.0, 12.0, lambda: 32) is None
    assert guard.trouble(learnt, 2.0, 1.0, 12.0, lambda: 32), "more than a few rows can explain"
    noisy = [3.0 + 0.1 * math.sin(7 * i) for i in range(50)]
    assert guard.trouble(noisy, 4.5, 1.0, 12.0, lambda: 8192), "a batch of thousands of tokens is held to its noise"


def test_trouble_is_repeated_only_when_it_is_recent() -> None:
    often = [{"step": step} for step in (10, 20, 30)]
    assert guard.is_repeated(often, 30)
    assert not guard.is_repeated(often, 10 + guard.WITHIN_STEPS)
