"""Examples end to end see what they would see alone, however they are put together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.nn import buckets
from groundup.nn.attention import Ragged, RaggedAcross, scaled_dot_product

quick = settings(deadline=None, max_examples=25)
LENGTHS = st.lists(st.integers(1, 24), min_size=1, max_size=7)
WASTE = st.sampled_from([0, 60, 1024])


def rows(count: int, heads: int) -> Tensor:
    return torch.randn(1, count, heads, 4, dtype=torch.float64).requires_grad_()


def agree(ours: Callable[[], Tensor], alone: Callable[[], Tensor], tensors: list[Tensor]) -> None:
    """The same values and gradients."""
    found, expected = ours(), alone()
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, tensors, direction), torch.autograd.grad(expected, tensors, direction), strict=True
    ):
        torch.testing.assert_close(one, other)


@quick
@given(LENGTHS, WASTE, st.booleans(), st.booleans())
def test_ragged_examples_are_attended_to_as_if_alone(
    lengths: list[int], waste: int, causal: bool, is_sorted: bool
) -> None:
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    q, k, v = rows(sum(lengths), 4), rows(sum(lengths), 2), rows(sum(lengths), 2)

    def alone() -> Tensor:
        parts = zip(*(torch.split(x, lengths, dim=1) for x in (q, k, v)), strict=True)
        return torch.cat([scaled_dot_product(*part, causal=causal) for part in parts], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "WASTED_PAIRS", waste)
        attend = Ragged(torch.tensor(lengths), causal, torch.float64)
    agree(lambda: attend(q, k, v, 0), alone, [q, k, v])


@quick
@given(st.lists(st.tuples(st.integers(1, 24), st.integers(1, 24)), min_size=1, max_size=7), WASTE)
def test_targets_see_their_own_source(pairs: list[tuple[int, int]], waste: int) -> None:
    sources, targets = (list(side) for side in zip(*pairs, strict=True))
    q, k, v = rows(sum(targets), 4), rows(sum(sources), 4), rows(sum(sources), 4)

    def alone() -> Tensor:
        parts = zip(*(torch.split(x, n, dim=1) for x, n in ((q, targets), (k, sources), (v, sources))), strict=True)
        return torch.cat([scaled_dot_product(*part) for part in parts], dim=1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "WASTED_PAIRS", waste)
        attend = RaggedAcross(torch.tensor(sources), torch.tensor(targets), torch.float64)
    agree(lambda: attend(q, k, v, 0), alone, [q, k, v])


@pytest.mark.smoke
def test_near_lengths_share_a_bucket_and_far_ones_do_not() -> None:
    found = buckets.buckets([200, 60, 60, 59, 12, 12])
    assert [(b.count, b.width, b.tokens, b.seen is None) for b in found] == [
        (1, 200, 200, True),
        (3, 60, 179, False),
        (2, 12, 24, True),
    ]
    assert buckets.wasted_pairs([(60, 60), (59, 59)]) == 60 * 60 - 59 * 59
