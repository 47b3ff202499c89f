"""The router: one beginning meets one cache, no replica drowns, and none is asked that should not be."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.serving.router import BLOCK, SLACK, NoReplica, Router, beginnings


def prompt(seed: int, length: int = 200) -> list[int]:
    return random.Random(seed).choices(range(1000), k=length)


def place(router: Router, ids: list[int], **more: object) -> str:
    """Where a request goes when nothing else runs."""
    found = router.take("m", ids, **more)  # type: ignore[arg-type]
    router.done(found)
    return found


def test_the_same_beginning_goes_to_the_same_replica_and_others_spread() -> None:
    router = Router("abcd")
    places = {seed: place(router, prompt(seed)) for seed in range(400)}
    assert all(place(router, prompt(seed)) == where for seed, where in places.items())
    counts = Counter(places.values())
    assert len(counts) == 4 and max(counts.values()) < 2.0 * min(counts.values())


def test_a_chat_that_grows_stays_where_it_began() -> None:
    router = Router("abcdef")
    for seed in range(50):
        chat = prompt(seed, 140)
        first = place(router, chat)
        for turn in range(6):
            chat = [*chat, *prompt(1000 + seed * 10 + turn, 37)]
            assert place(router, chat) == first


def test_chats_with_one_long_system_prompt_spread_and_then_stay() -> None:
    router, system = Router("abcd"), prompt(7, 600)
    chats = {seed: [*system, *prompt(seed, 400)] for seed in range(100)}
    places = {seed: router.take("m", chat) for seed, chat in chats.items()}  # all at once
    assert max(router.loads.values()) <= math.ceil(SLACK * len(chats) / 4)
    for where in places.values():
        router.done(where)
    again = {seed: place(router, [*chat, *prompt(seed + 500, 50)]) for seed, chat in chats.items()}
    assert sum(again[seed] == places[seed] for seed in chats) >= 95


def test_adapters_and_models_do_not_share_a_beginning() -> None:
    ids = prompt(1, 64)
    assert len({beginnings("m", None, ids)[0], beginnings("m", "a", ids)[0], beginnings("n", None, ids)[0]}) == 3
    assert beginnings("m", None, ids[: BLOCK - 1]) == []
    assert len(beginnings("m", None, prompt(1, 8 * BLOCK))) == 8  # 1, 2, 3, 4, 5, 6, 7 and 8 blocks
    assert len(beginnings("m", None, prompt(1, 8192))) < 30


def test_when_a_replica_leaves_only_its_own_prompts_move() -> None:
    fresh, smaller = Router("abcde"), Router("abcd")
    moved = sum(place(fresh, prompt(seed)) not in ("e", place(smaller, prompt(seed))) for seed in range(300))
    assert moved == 0


def test_a_short_prompt_goes_to_whoever_has_least_to_do() -> None:
    router = Router("ab")
    assert [router.take("m", [1, 2]) for _ in range(4)] == ["a", "b", "a", "b"]


def test_none_is_asked_that_left_or_failed() -> None:
    router = Router("ab")
    busy = router.take("m", prompt(1))
    router.remove(busy)
    assert router.replicas == sorted({"a", "b"} - {busy}) and router.loads[busy] == 1
    assert all(place(router, prompt(seed)) != busy for seed in range(50))
    router.done(busy)
    assert busy not in router.loads
    with pytest.raises(NoReplica):
        router.take("m", prompt(1), avoid=router.replicas)
    router.add(busy)
    assert {place(router, prompt(seed)) for seed in range(50, 100)} == {"a", "b"}


@given(
    st.integers(1, 6),
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=200),
)
def test_no_replica_has_more_than_its_share_and_a_little_more(count: int, requests: list[tuple[int, bool]]) -> None:
    router, running = Router([str(n) for n in range(count)]), []
    for seed, ends in requests:
        total = sum(router.loads.values()) + 1
        running.append(router.take("m", prompt(seed, 64)))
        assert router.loads[running[-1]] <= math.ceil(SLACK * total / count)
        if ends:
            router.done(running.pop(0))
    for where in running:
        router.done(where)
    assert set(router.loads.values()) <= {0}
