"""Dropout drops the share it is told to, and draws the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from groundup.nn.attention import scaled_dot_product
from groundup.nn.dropout import dropout


@pytest.mark.smoke
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9])
def test_a_share_is_dropped_and_the_mean_stays(share: float) -> None:
    x = torch.ones(200, 1001)
    found = dropout(x, share)
    deviation = (share * (1 - share) / x.numel()) ** 0.5
    assert float((found == 0).double().mean()) == pytest.approx(share, abs=5 * deviation)
    torch.testing.assert_close(found[found > 0], torch.full_like(found[found > 0], 1 / (1 - share)), rtol=1e-4, atol=0)


def test_decisions_of_neighbours_are_independent() -> None:
    """Four decisions come from one draw: they must have nothing to do with each other."""
    dropped = (dropout(torch.ones(200_000), 0.5) == 0).double() - 0.5
    for distance in (1, 2, 3, 4, 8):
        correlation = float((dropped[:-distance] * dropped[distance:]).mean() * 4)
        assert abs(correlation) < 5 / dropped.numel() ** 0.5


def test_the_seed_decides_whatever_the_shape() -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(3, 5, 7), 0.3)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


def test_nothing_is_dropped_in_evaluation_or_without_a_share() -> None:
    x = torch.randn(4, 5)
    assert dropout(x, 0.5, training=False) is x and dropout(x, 0.0) is x
    assert not dropout(x, 1.0).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_dropped_with_the_number(dtype: torch.dtype) -> None:
    x = torch.ones(50, 20, dtype=dtype, requires_grad=True)
    found = dropout(x, 0.25)
    assert found.dtype == dtype
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slope, found.detach())


@pytest.mark.parametrize("causal", [False, True])
def test_dropped_attention_is_attention_on_average(causal: bool) -> None:
    torch.manual_seed(3)
    q, k, v = torch.randn(1, 6, 4, 8), torch.randn(1, 6, 2, 8), torch.rand(1, 6, 2, 8)
    rows = [x.expand(20_000, -1, -1, -1) for x in (q, k, v)]
    mean = scaled_dot_product(*rows, causal=causal, dropout=0.1).mean(0)
    torch.testing.assert_close(mean, scaled_dot_product(q, k, v, causal=causal)[0], atol=0.015, rtol=0)
