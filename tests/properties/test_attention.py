"""What a token may see, and where it stands, under generated shapes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from groundup.nn.attention import Bidirectional, Cached, Causal, Documents, for_batch, scaled_dot_product
from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.positions import Rotary, rotate, sinusoids

quick = settings(deadline=None, max_examples=30)

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]))


def heads(shape: tuple[int, int, tuple[int, int]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rows, length, (n_heads, n_kv_heads) = shape
    generator = torch.Generator().manual_seed(seed)
    counts = (n_heads, n_kv_heads, n_kv_heads)
    q, k, v = (torch.randn(rows, length, n, 4, generator=generator) for n in counts)
    return q, k, v


def by_hand(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention written out: one softmax for each row, head and token over what it may see, (B,T,T)."""
    out = torch.zeros_like(q)
    group = q.shape[2] // k.shape[2]
    for b, h, t in itertools.product(range(q.shape[0]), range(q.shape[2]), range(q.shape[1])):
        keys, values = k[b, seen[b, t], h // group], v[b, seen[b, t], h // group]
        out[b, t, h] = (keys @ q[b, t, h] / 2.0).softmax(0) @ values
    return out


def close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@quick
@given(SHAPES)
def test_causal_and_bidirectional_are_softmax_over_what_is_seen(shape: tuple[int, int, tuple[int, int]]) -> None:
    q, k, v = heads(shape)
    everything = torch.ones(shape[0], shape[1], shape[1], dtype=torch.bool)
    close(Bidirectional()(q, k, v, 0), by_hand(q, k, v, everything))
    close(Causal()(q, k, v, 0), by_hand(q, k, v, everything.tril()))


@quick
@given(SHAPES, st.data(), st.booleans())
def test_documents_see_only_themselves(
    shape: tuple[int, int, tuple[int, int]], data: st.DataObject, causal: bool
) -> None:
    q, k, v = heads(shape)
    rows = st.lists(st.integers(0, 2), min_size=shape[1], max_size=shape[1])
    documents = torch.tensor([sorted(data.draw(rows)) for _ in range(shape[0])], dtype=torch.int32)
    seen = documents[:, :, None] == documents[:, None, :]
    close(Documents(documents, causal)(q, k, v, 0), by_hand(q, k, v, seen.tril() if causal else seen))


@pytest.mark.parametrize("length", [128, 129, 300, 512])
@pytest.mark.parametrize("packed", [False, True])
def test_long_causal_rows_worked_in_blocks_equal_the_whole_square(length: int, packed: bool) -> None:
    tensors = [tensor.double().requires_grad_() for tensor in heads((2, length, (4, 2)))]
    q, k, v = tensors
    documents = (torch.arange(length) // (100 if packed else length)).expand(2, -1)
    seen = (documents[:, :, None] == documents[:, None, :]).tril()
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    whole = scaled_dot_product(q, k, v, mask=mask[:, None])
    ours = (Documents(documents, True, torch.float64) if packed else Causal())(q, k, v, 0)
    torch.testing.assert_close(ours, whole)
    direction = torch.randn_like(whole)
    for one, other in zip(
        torch.autograd.grad(ours, tensors, direction), torch.autograd.grad(whole, tensors, direction), strict=True
    ):
        torch.testing.assert_close(one, other)


@quick
@given(SHAPES, st.data())
def test_padding_is_not_seen(shape: tuple[int, int, tuple[int, int]], data: st.DataObject) -> None:
    q, k, v = heads(shape)
    lengths = torch.tensor([data.draw(st.integers(1, shape[1])) for _ in range(shape[0])])
    mask = torch.arange(shape[1]) < lengths[:, None]
    seen = mask[:, None, :].expand(-1, shape[1], -1)
    close(for_batch({"attention_mask": mask}, causal=False)(q, k, v, 0), by_hand(q, k, v, seen))
    ours = for_batch({"attention_mask": mask}, causal=True)(q, k, v, 0)
    close(ours[mask], by_hand(q, k, v, seen.tril())[mask])


def test_a_row_of_nothing_but_padding_gives_numbers() -> None:
    q, k, v = heads((2, 5, (4, 2)))
    mask = torch.tensor([[True] * 5, [False] * 5])
    assert Bidirectional(mask)(q, k, v, 0).isfinite().all()


@quick
@given(st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]), st.data())
def test_a_cache_filled_in_any_pieces_gives_the_whole(counts: tuple[int, int], data: st.DataObject) -> None:
    length = 9
    q, k, v = heads((1, length, counts))
    expected = Causal()(q, k, v, 0)
    cache = KeyValueCache(n_layers=2, rows=3, slots=12, n_kv_heads=counts[1], head_dim=4)
    row, start = data.draw(st.integers(0, 2)), 0
    while start < length:
        count = data.draw(st.integers(1, length - start))
        span = slice(start, start + count)
        out = Cached(cache, [start], count, [row])(q[:, span], k[:, span], v[:, span], 1)
        close(out, expected[:, span])
        start += count


def test_a_copied_row_continues_like_its_source() -> None:
    q, k, v = heads((1, 5, (4, 2)))
    cache = KeyValueCache(n_layers=1, rows=4, slots=8, n_kv_heads=2, head_dim=4)
    Cached(cache, [0], 4, [0])(q[:, :4], k[:, :4], v[:, :4], 0)
    cache.copy_row(0, 2)
    both = Cached(cache, [4, 4], 1, [0, 2])
    out = both(*(tensor[:, 4:].expand(2, -1, -1, -1) for tensor in (q, k, v)), 0)
    assert torch.equal(out[0], out[1])
    close(out[:1], Causal()(q, k, v, 0)[:, 4:])


@quick
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_rotated_products_depend_only_on_the_distance(first: int, second: int, shift: int) -> None:
    rotary = Rotary(8, 64, 10_000.0)
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def product(at: int, to: int) -> Tensor:
        return (
            rotate(q, *rotary(torch.tensor([[at]]), 1, q.dtype)) * rotate(k, *rotary(torch.tensor([[to]]), 1, k.dtype))
        ).sum()

    torch.testing.assert_close(product(first, second), product(first + shift, second + shift), atol=1e-4, rtol=1e-4)


def test_given_positions_equal_the_running_ones() -> None:
    rotary = Rotary(8, 16, 10_000.0)
    for running, given_ones in zip(
        rotary(None, 5, torch.float32), rotary(torch.arange(5)[None], 5, torch.float32), strict=True
    ):
        assert torch.equal(running, given_ones[0])


def test_sinusoids_are_those_of_the_paper() -> None:
    table = sinusoids(50, 6)
    assert torch.equal(table[0], torch.tensor([0.0, 1.0] * 3))
    close(table[7, 2], torch.tensor(7 / 10000 ** (2 / 6)).sin())
    close(table[7, 5], torch.tensor(7 / 10000 ** (4 / 6)).cos())
