"""The order of rows: a permutation by formula, unlike another, and as near at the millionth step as at the first."""

import math
import time
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.data.order import Order, Stretches, generator, mix, mix_one

ROWS = st.one_of(st.integers(1, 300), st.integers(1, 5000))
SEEDS = st.integers(0, 2**63)
unhurried = settings(deadline=None)


@unhurried
@given(ROWS, SEEDS, st.integers(0, 10**6))
def test_every_epoch_visits_every_row_once(rows: int, seed: int, epoch: int) -> None:
    epochs, found = Order(rows, seed).span(epoch * rows, rows)
    assert set(epochs) == {epoch}
    assert sorted(found) == list(range(rows))


@unhurried
@given(ROWS, SEEDS, st.integers(0, 10**9), st.integers(1, 40))
def test_a_span_is_its_positions_one_by_one_and_crosses_epochs(rows: int, seed: int, start: int, count: int) -> None:
    order = Order(rows, seed)
    epochs, found = order.span(start, count)
    one_by_one = [order.at(position) for position in range(start, start + count)]
    assert one_by_one == list(zip(epochs.tolist(), found.tolist(), strict=True))
    assert epochs.tolist() == [position // rows for position in range(start, start + count)]


@unhurried
@given(st.integers(1, 60), SEEDS, st.integers(1, 50), st.lists(st.tuples(st.integers(0, 200), st.integers(0, 40))))
def test_an_order_read_in_stretches_is_the_same(
    rows: int, seed: int, length: int, spans: list[tuple[int, int]]
) -> None:
    order = Order(rows, seed)
    read = Stretches(order, length)
    for start, count in spans:
        for found, expected in zip(read.span(start, count), order.span(start, count), strict=True):
            assert found.tolist() == expected.tolist()


@unhurried
@given(st.integers(1, 10**15), SEEDS, st.integers(0, 10**6), st.data())
def test_the_place_of_a_row_is_found_again(rows: int, seed: int, epoch: int, data: st.DataObject) -> None:
    order = Order(rows, seed)
    place = data.draw(st.integers(0, rows - 1))
    assert order.place_of(epoch, order.row_at(epoch, place)) == place


@pytest.mark.parametrize("rows", [3, 4, 5])
def test_all_permutations_of_a_few_rows_come_equally_often(rows: int) -> None:
    epochs = 12_000
    found = Order(rows, seed=11).span(0, rows * epochs)[1].reshape(epochs, rows)
    counts = Counter(map(tuple, found.tolist()))
    expected = epochs / math.factorial(rows)
    chi_square = sum((counts[p] - expected) ** 2 / expected for p in permutations(range(rows)))
    degrees = math.factorial(rows) - 1
    assert chi_square < degrees + 5 * math.sqrt(2 * degrees), "a uniform draw exceeds this once in a million"


@pytest.mark.parametrize("rows", [100, 1000, 4096, 100_003])
def test_an_epoch_has_no_pattern(rows: int) -> None:
    found = Order(rows, seed=3).span(0, rows)[1]
    places = np.arange(rows)
    bound = 5 / math.sqrt(rows)
    assert abs(np.corrcoef(places, found)[0, 1]) < bound
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < bound
    assert (found == places).sum() < 8, "one row in an epoch keeps its place on average"
    grid, _, _ = np.histogram2d(places, found, bins=8)
    assert ((grid - rows / 64) ** 2 / (rows / 64)).sum() < 49 + 5 * math.sqrt(2 * 49)
    steps = np.diff(found) % rows
    assert Counter(steps.tolist()).most_common(1)[0][1] < 12, "neighbours differ by no favourite distance"


def test_epochs_and_seeds_give_unrelated_orders() -> None:
    rows = 2000
    orders = [Order(rows, seed).span(epoch * rows, rows)[1] for seed in (0, 1, 2**64 - 1) for epoch in (0, 1, 2)]
    for i, first in enumerate(orders):
        for second in orders[:i]:
            assert (first == second).sum() < 10
            assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(rows)


@unhurried
@given(st.integers(0, 2**64 - 1))
def test_one_number_is_mixed_as_in_an_array(number: int) -> None:
    assert mix_one(number) == int(mix(np.array([number], np.uint64))[0])


def test_the_mixer_is_the_published_one() -> None:
    # The first outputs of splitmix64 seeded with 1234567, as published with the algorithm.
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(mix_one(state))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_millionth_step_is_as_near_as_the_tenth() -> None:
    order, batch = Order(10**9 + 7, seed=1), 512
    order.span(0, batch)
    spent = {}
    for step in (10, 1_000_000):
        begin = time.perf_counter()
        order.span(step * batch, batch)
        spent[step] = (time.perf_counter() - begin) * 1000
    print({step: f"{ms:.2f} ms" for step, ms in spent.items()})
    assert max(spent.values()) < 50


def test_choices_of_a_row_depend_on_nothing_but_their_numbers() -> None:
    base = generator(1, 2, 3, 4).random(5).tolist()
    assert generator(1, 2, 3, 4).random(5).tolist() == base
    for other in ((0, 2, 3, 4), (1, 0, 3, 4), (1, 2, 0, 4), (1, 2, 3, 0)):
        assert set(generator(*other).random(5).tolist()).isdisjoint(base)


def test_numbers_outside_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        Order(0, seed=0)
    with pytest.raises(IndexError, match="7 of 7 rows"):
        Order(7, seed=0).row_at(0, 7)
