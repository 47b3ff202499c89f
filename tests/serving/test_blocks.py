"""The memory of an engine: one budget, nothing lost, nothing mixed up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.row_pool import RowPool, row_lengths
from groundup.serving.blocks import CacheManager, extend_chain, root_digest
from groundup.serving.requests import Request, Sequence

BLOCK = 4


def pool() -> RowPool:
    """Rows of 8, 16 and 32 tokens; what token p of a sequence s leaves in them is the number 1000 s + p."""
    return RowPool(lambda slots: KeyValueCache(n_layers=2, rows=0, slots=slots, n_kv_heads=1, head_dim=2), [8, 16, 32])


def write(rows: RowPool, row: int, sequence: int, start: int, stop: int) -> None:
    cache, slot = rows.locate(row, stop)
    for layer in range(2):
        content = (1000 * sequence + torch.arange(start, stop)).float()[None, :, None, None].expand(-1, -1, 1, 2)
        cache.write(layer, [slot], torch.arange(start, stop)[None], content, -content)


def content(rows: RowPool, row: int, stop: int) -> torch.Tensor:
    saved = rows.save(row, 0, stop)
    assert torch.equal(saved[0], -saved[1]) and torch.equal(saved[:, 0], saved[:, 1])
    return saved[0, 0, 0, :, 0]


def sequence(ids: list[int], number: int = 0, root: bytes = b"root") -> Sequence:
    return Sequence(Request(id=number, ids=tuple(ids)), root=root, number=number, now=0.0)


def test_the_lengths_of_rows_are_whole_blocks_up_to_the_longest_text() -> None:
    assert row_lengths(8000, 32) == [256, 1024, 4096, 8000]
    assert row_lengths(8001, 32) == [256, 1024, 4096, 8032]
    assert row_lengths(100, 32) == [128]
    assert row_lengths(256, 32) == [256]


@given(st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_blocks_are_the_same_exactly_as_far_as_texts_are(one: list[int], other: list[int]) -> None:
    first: list[bytes] = []
    second: list[bytes] = []
    extend_chain(first, b"root", one, BLOCK)
    extend_chain(second, b"root", other, BLOCK)
    assert len(first) == len(one) // BLOCK
    for place, (a, b) in enumerate(zip(first, second, strict=False), 1):
        assert (a == b) == (one[: place * BLOCK] == other[: place * BLOCK])
    elsewhere: list[bytes] = []
    extend_chain(elsewhere, b"other", one, BLOCK)
    assert not set(first) & set(elsewhere)


def test_what_roots_are_made_of_cannot_be_shifted_between_parts() -> None:
    assert root_digest("ab", "c") != root_digest("a", "bc")
    assert root_digest("a", "", "b") != root_digest("a", "b", "")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_rows_keep_what_they_hold_wherever_they_are_moved(data: st.DataObject) -> None:
    """Sequences come, grow, go and are moved together; each finds its own numbers, and no row a stranger's."""
    rows, held = pool(), {}
    for _ in range(data.draw(st.integers(1, 30))):
        action = data.draw(st.sampled_from(["open", "write", "close", "compact", "trim"]))
        if action == "open":
            row = rows.open(data.draw(st.integers(1, 16)), room=10_000)
            assert row is not None and row not in held
            held[row] = 0
        elif action == "write" and held:
            row = data.draw(st.sampled_from(sorted(held)))
            stop = min(held[row] + data.draw(st.integers(1, 9)), 32)
            if stop > held[row]:
                assert rows.grow(row, stop, room=10_000)
                write(rows, row, row, held[row], stop)
                held[row] = stop
        elif action == "close" and held:
            row = data.draw(st.sampled_from(sorted(held)))
            rows.close(row)
            del held[row]
        elif action == "compact":
            rows.compact()
            for length in rows.lengths:
                slots = sorted(rows.locate(row, held[row])[1] for row in held if rows.capacity(row) == length)
                assert slots == list(range(len(slots)))
        elif action == "trim":
            rows.trim()
            assert rows.reserved == sum(rows.capacity(row) for row in held)
        for row, stop in held.items():
            assert content(rows, row, stop).tolist() == [1000 * row + p for p in range(stop)]
            cache, slot = rows.locate(row, stop)
            assert not cache.keys_LRGSK[:, slot, :, stop:].any() and not cache.values_LRGSK[:, slot, :, stop:].any()
    assert rows.bytes == rows.reserved * 2 * 2 * 2 * 4


def test_rows_that_do_not_fit_are_refused() -> None:
    rows = pool()
    assert rows.open(8, room=7) is None and rows.reserved == 0
    row = rows.open(8, room=8)
    assert row is not None and not rows.grow(row, 9, room=15)
    with pytest.raises(ValueError, match="room for 8"):
        rows.locate(row, 9)
    with pytest.raises(ValueError, match="not open"):
        rows.locate(row + 1, 1)
    with pytest.raises(ValueError, match="longest row"):
        rows.open(33, room=1000)


def run(manager: CacheManager, one: Sequence, stop: int | None = None) -> None:
    """Compute a sequence as far as `stop`, as an engine would."""
    assert one.row is not None
    stop = len(one.ids) if stop is None else stop
    write(manager.cache, one.row, 0, one.computed, stop)  # type: ignore[arg-type]
    one.computed = one.sound = stop


def test_a_beginning_that_was_computed_is_copied_and_at_least_one_token_is_left() -> None:
    manager = CacheManager(pool(), blocks=16, block=BLOCK)
    first = sequence(list(range(8)))
    assert manager.open(first) and first.computed == 0
    run(manager, first)
    manager.keep(first)
    manager.close(first)
    second = sequence([*range(8), 50, 51], 1)
    assert manager.open(second) and second.computed == second.cached_tokens == 8
    assert content(manager.cache, second.row, 8).tolist() == list(range(8))  # type: ignore[arg-type]
    same = sequence(list(range(8)), 2)
    assert manager.open(same) and same.computed == 4
    stranger = sequence(list(range(8)), 3, root=b"another adapter")
    assert manager.open(stranger) and stranger.computed == 0
    assert (manager.queries, manager.hits) == (8 + 10 + 8 + 8, 12)


def test_a_text_that_is_judged_reuses_only_what_nobody_asks_about() -> None:
    manager = CacheManager(pool(), blocks=16, block=BLOCK)
    first = sequence(list(range(13)))
    assert manager.open(first)
    run(manager, first)
    manager.keep(first)
    judged = Sequence(Request(id=1, ids=tuple(range(13)), score_from=9), root=b"root", number=1, now=0.0)
    assert manager.open(judged) and judged.computed == 8
    assert judged.wanted(12) == range(8, 12)


def test_what_is_not_known_to_be_numbers_is_not_kept() -> None:
    manager = CacheManager(pool(), blocks=16, block=BLOCK)
    bad = sequence(list(range(8)))
    assert manager.open(bad)
    run(manager, bad)
    bad.sound = 0
    manager.keep(bad)
    manager.close(bad)
    assert not manager.stored


def test_who_needs_what_another_is_computing_is_told_to_wait() -> None:
    manager = CacheManager(pool(), blocks=16, block=BLOCK)
    first, twin, other = sequence(list(range(8))), sequence([*range(8), 9], 1), sequence([7] * 8, 2)
    assert not manager.is_coming(twin)
    assert manager.open(first)
    assert manager.is_coming(twin) and not manager.is_coming(other)
    run(manager, first)
    manager.keep(first)
    assert not manager.is_coming(twin)
    manager.close(first)
    assert manager.open(twin) and twin.computed == 8
    manager.close(twin)
    assert not manager._coming


def test_the_longest_unused_end_goes_first() -> None:
    manager = CacheManager(pool(), blocks=6, block=BLOCK)
    texts = [[1] * 12, [2] * 12]
    for number, ids in enumerate(texts):
        one = sequence(ids, number)
        assert manager.open(one)
        run(manager, one)
        manager.keep(one)
        manager.close(one)
        manager.cache.trim()
    left = [sum(d in manager.stored for d in chain(ids)) for ids in texts]
    assert left[1] > 0 and manager.used <= 6
    for ids in texts:  # a block is there only if those before it are
        present = [digest in manager.stored for digest in chain(ids)]
        assert present == sorted(present, reverse=True)


def chain(ids: list[int]) -> list[bytes]:
    found: list[bytes] = []
    extend_chain(found, b"root", ids, BLOCK)
    return found


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_the_budget_is_never_exceeded_and_nothing_leaks(data: st.DataObject) -> None:
    """Texts of few tokens, so that many begin alike, come, grow and go in a memory that is too small for them."""
    total = data.draw(st.integers(12, 30))
    manager = CacheManager(pool(), blocks=total, shares=data.draw(st.booleans()), block=BLOCK)
    live: list[Sequence] = []
    for number in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["open", "open", "grow", "finish", "drop"]))
        if action == "open":
            ids = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=30))
            one = sequence(ids, number)
            if manager.open(one):
                live.append(one)
                run(manager, one)
                manager.keep(one)
        elif live:
            one = data.draw(st.sampled_from(live))
            if action == "grow" and len(one.ids) < 32:
                one.ids.append(data.draw(st.integers(0, 1)))
                if manager.grow(one, len(one.ids)):
                    run(manager, one)
                    continue
            if action == "finish":
                manager.keep(one)
            manager.close(one)
            live.remove(one)
        assert manager.used <= total
        for one in live:
            assert content(manager.cache, one.row, one.computed).tolist() == list(range(one.computed))  # type: ignore[arg-type]
    for one in live:
        manager.close(one)
    assert not manager._coming
    manager.cache.trim()
    assert manager.cache.reserved == 0 and manager.used == len(manager.stored)


def test_a_lone_text_always_finds_room() -> None:
    """Whatever rows and blocks were left by others: `fits` is a promise."""
    manager = CacheManager(pool(), blocks=12, block=BLOCK)
    assert manager.fits(4, 32) and not CacheManager(pool(), blocks=11, block=BLOCK).fits(4, 32)
    for number in range(6):
        small = sequence([number] * 8, number)
        assert manager.open(small)
        run(manager, small)
        manager.keep(small)
        manager.close(small)
    big = sequence([9] * 4, 10)
    assert manager.open(big)
    for _ in range(28):
        big.ids.append(9)
        assert manager.grow(big, len(big.ids))
        run(manager, big)
