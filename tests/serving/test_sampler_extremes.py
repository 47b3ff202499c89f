"""Settings at the edge of what numbers hold draw a token all the same, or are refused."""

from __future__ import annotations

import pytest
import torch

from groundup.errors import Mistakes
from groundup.serving.sampler import Sampler, sampling


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6, 1e-5, 100.0])
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_a_token_of_the_vocabulary_is_drawn(temperature: float, penalty: float) -> None:
    given = {"temperature": temperature, "repetition_penalty": penalty, "logit_bias": {3: 100.0}}
    sampler = Sampler(sampling(given))
    sampler.see([1, 2], 40)
    for scale in (1e-30, 1.0, 1e4):
        logits_V = scale * torch.randn(40)
        for _ in range(5):
            assert 0 <= sampler.choose(logits_V).id < 40


def test_the_coldest_are_the_likeliest() -> None:
    logits_V = torch.randn(40)
    assert Sampler(sampling({"temperature": 1e-40})).choose(logits_V).id == int(logits_V.argmax())


@pytest.mark.parametrize("given", [{"repetition_penalty": 1e-320}, {"repetition_penalty": 1e9}, {"temperature": -1}])
def test_what_leads_beyond_numbers_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(Mistakes):
        sampling(given)
