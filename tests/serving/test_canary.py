"""The canary by simulation: what it decides, how often it errs, and that nothing is lost on the way."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.config import parse
from groundup.serving.canary import Arm, Canary, Judgement, Outcome, Plan


def simulate(
    seed: int,
    *,
    errors: float = 0.01,
    slower: float = 1.0,
    agreement: float = 0.95,
    requests: int = 12_000,
    plan: Plan | None = None,
) -> Canary:
    """A canary over so many requests; the current model fails 1 in 100 and takes about 0.3 s."""
    draw = random.Random(seed)
    canary = Canary(plan or Plan(), salt=str(seed))
    for number in range(requests):
        if canary.state != "running":
            break
        arm, counts = canary.arm(str(number))
        assert counts
        rate, factor = (errors, slower) if arm == "candidate" else (0.01, 1.0)
        canary.observe(arm, Outcome(draw.random() >= rate, factor * draw.lognormvariate(-1.2, 0.4)))
        if arm == "current" and canary.shadows(str(number)):
            canary.agree(min(1.0, draw.betavariate(2, 2 * (1 - agreement) / agreement)))
    return canary


def test_an_equal_candidate_is_promoted() -> None:
    made = [simulate(seed) for seed in range(30)]
    assert sum(canary.state == "promoted" for canary in made) >= 28  # alpha is 5 %
    assert all(canary.cause == "evidence" for canary in made if canary.state == "promoted")
    assert max(canary.pairs for canary in made) < 1500


@pytest.mark.parametrize(
    ("what", "fault"), [("errors", {"errors": 0.15}), ("latency", {"slower": 2.0}), ("agreement", {"agreement": 0.5})]
)
def test_a_worse_candidate_is_rolled_back_for_what_is_worse(what: str, fault: dict[str, float]) -> None:
    made = [simulate(seed, **fault) for seed in range(30)]
    assert {canary.state for canary in made} == {"rolled_back"}
    assert sum(canary.cause == what for canary in made) >= 28


def test_a_candidate_that_always_fails_is_gone_after_a_dozen_requests() -> None:
    canary = simulate(1, errors=1.0)
    assert canary.state == "rolled_back" and canary.cause == "errors"
    assert canary.judged["errors"].count <= 12


def test_one_just_beyond_a_threshold_is_hardly_ever_promoted_and_one_on_it_hardly_ever_judged() -> None:
    plan = Plan(most_pairs=800)
    beyond = [simulate(seed, agreement=0.79, plan=plan) for seed in range(50)]
    assert sum(canary.state == "promoted" for canary in beyond) <= 6  # beta is 5 %: 6 is its 98 % quantile
    on_it = [simulate(seed, errors=0.03, plan=plan, requests=6000) for seed in range(50)]
    assert sum(canary.cause == "errors" for canary in on_it) <= 3  # a third of alpha
    assert all(canary.cause in ("undecided", "errors", "evidence") for canary in on_it if canary.state != "running")


@given(st.floats(0.05, 0.95), st.integers(0, 10_000))
def test_a_stake_never_vanishes_and_a_fair_game_rarely_multiplies_it(mean: float, seed: int) -> None:
    draw, judgement = random.Random(seed), Judgement(mean, bad_above=True)
    for _ in range(200):
        judgement.add(float(draw.random() < mean))
    assert not judgement.is_bad(1e-9) and not judgement.is_good(1e-9)


def test_looking_after_every_request_does_not_spoil_the_stated_error() -> None:
    """Peeking at a fair coin 300 times: a fixed-size test at 5 % would be fooled every third time or so."""
    fooled = 0
    for seed in range(400):
        draw, judgement = random.Random(seed), Judgement(0.5, bad_above=True)
        for _ in range(300):
            judgement.add(float(draw.random() < 0.5))
            if judgement.is_bad(0.05):
                fooled += 1
                break
    assert fooled <= 28  # 5 % of 400 is 20, and 28 its 97 % quantile


def test_values_outside_zero_and_one_are_refused() -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError):
            Judgement(0.5, bad_above=True).add(value)


def test_the_share_rises_step_by_step() -> None:
    canary = Canary(Plan(steps=(0.1, 0.3, 0.6), step_pairs=10))
    weights = []
    for number in range(2000):
        arm, _ = canary.arm(str(number))
        canary.observe(arm, Outcome(True, 1.0))
        weights.append(canary.weight)
        if canary.pairs >= 40:
            break
    assert sorted(set(weights)) == [0.1, 0.3, 0.6] and weights == sorted(weights)


def test_each_request_has_one_arm_and_the_arms_have_their_shares() -> None:
    canary = Canary(Plan(steps=(0.2,)), salt="a")
    arms = [canary.arm(str(number))[0] for number in range(5000)]
    assert arms == [canary.arm(str(number))[0] for number in range(5000)]
    assert 0.18 < arms.count("candidate") / len(arms) < 0.22
    other = Canary(Plan(steps=(0.2,)), salt="b")
    assert arms != [other.arm(str(number))[0] for number in range(5000)]


def test_a_header_chooses_and_does_not_count() -> None:
    canary = Canary(Plan(steps=(0.01,)))
    assert canary.arm("x", "candidate") == ("candidate", False)
    assert canary.arm("x", "current") == ("current", False)
    canary.roll_back()
    assert canary.arm("x", "candidate") == ("current", False)  # what was rolled back is not to be had


@pytest.mark.parametrize(("end", "arm"), [("promote", "candidate"), ("roll_back", "current")])
def test_the_operator_has_the_last_word(end: str, arm: Arm) -> None:
    canary = Canary(Plan())
    getattr(canary, end)()
    assert {canary.arm(str(number)) for number in range(200)} == {(arm, False)}
    assert canary.cause == "operator" and not canary.shadows("1")
    before = canary.as_data()
    canary.observe("candidate", Outcome(False, 9.0))
    canary.agree(0.0)
    canary.engine_restarted()
    assert canary.as_data() == before | {"restarts": 1}


def test_an_engine_that_dies_twice_ends_it() -> None:
    canary = Canary(Plan())
    canary.engine_restarted()
    assert canary.state == "running"
    canary.engine_restarted()
    assert (canary.state, canary.cause) == ("rolled_back", "restarts")


def test_what_nothing_decides_is_rolled_back() -> None:
    canary = Canary(Plan(most_pairs=30, step_pairs=10))
    for number in range(30):
        canary.observe("current", Outcome(True, 1.0))
        canary.observe("candidate", Outcome(True, 1.0 if number % 2 else 2.0))
    assert (canary.state, canary.cause) == ("rolled_back", "undecided")


def test_a_canary_goes_on_where_it_was_stopped() -> None:
    whole, parts = Canary(Plan(), salt="s"), Canary(Plan(), salt="s")
    draw = random.Random(1)
    for number in range(600):
        outcome = Outcome(draw.random() > 0.02, draw.random())
        for arm in ("current", "candidate"):
            whole.observe(arm, outcome)
            parts.observe(arm, outcome)
        if number % 10 == 0:
            whole.agree(0.9)
            parts.agree(0.9)
            parts = Canary.of_data(json.loads(json.dumps(parts.as_data())))
    assert whole.as_data() == parts.as_data()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": [0.5, 0.1]}, "rise"),
        ({"steps": []}, "rise"),
        ({"steps": [0.0]}, "greater than 0"),
        ({"agreement": "150%"}, "not between"),
        ({"slower": 0.5}, "greater than or equal to 1"),
        ({"shadow": 0}, "greater than 0"),
        ({"weight": 0.1}, "unknown key"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(settings: dict[str, object], said: str) -> None:
    plan, mistakes = parse(Plan, settings)
    assert plan is None and said in str(mistakes)
