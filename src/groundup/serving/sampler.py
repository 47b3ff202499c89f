"""How the next token is chosen from a model's logits.

The order of the steps is fixed and is that of transformers' `generate`: repetition penalty,
temperature, top-k, top-p, min-p, then one draw. Each filter keeps a set of tokens and leaves their
relative probabilities alone. Every sequence draws from a generator of its own, so its text depends on
its seed and not on what else is being generated.

Axes: V vocabulary; a leading … stands for any number of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from groundup.config import Section, parse
from groundup.errors import GroundupError, Mistakes, Problem
from groundup.units import Count


class Sampling(Section):
    """How to continue a text. `temperature: 0` is greedy; a filter that is null is off."""

    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """Logits are divided by it: below 1 sharper, above 1 flatter, 0 always the most likely token."""
    top_k: Annotated[int, Field(ge=0)] | None = None
    """Keep the k most likely tokens (and those tied with the k-th); 0 keeps all, as null does."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the smallest set of most likely tokens whose probabilities reach this sum."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep tokens at least this many times as likely as the most likely one."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens that already occur (prompt included) become less likely."""
    seed: int = 0
    """Seed of the draws; the same seed, model and prompt give the same text."""
    max_new_tokens: Count = 256
    """Stop after this many tokens."""
    stop: tuple[str, ...] = ()
    """Stop before any of these strings; they are not shown, also when they span several tokens."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Report the log-probability of each chosen token, and of this many most likely ones beside it."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _no_empty(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "" in value:
            raise ValueError("a stop string cannot be empty: it would stop before the first character")
        return value


def sampling(values: Mapping[str, Any]) -> Sampling:
    """Settings from plain data. Raises UserError with every mistake, for callers without a recipe."""
    found, mistakes = parse(Sampling, values)
    if found is None:
        raise Mistakes([Problem(m.what, ".".join(map(str, m.path)), m.fix) for m in mistakes])
    return found


@dataclass(frozen=True)
class Choice:
    """One chosen token. `logprob` and `alternatives` (id, logprob) are filled in when asked for."""

    id: int
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class Sampler:
    """The choices of one sequence: its settings, its generator and the tokens it has seen."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        # Drawn on the CPU whatever the device, so that a seed means the same text everywhere.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.seen_V: Tensor | None = None

    def see(self, ids: list[int], vocab_size: int) -> None:
        """Count tokens as having occurred: the prompt, once, before the first choice."""
        if self.settings.repetition_penalty == 1.0:
            return
        if self.seen_V is None:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool)
        self.seen_V[ids] = True

    def choose(self, logits_V: Tensor) -> Choice:
        """The next token, given the logits after the sequence so far.

        logits_V: (vocab,) any float type; computed in float32. Log-probabilities are the model's own,
        before any penalty, temperature or filter. Raises GroundupError if no logit is finite.
        """
        logits_V = logits_V.detach().float().cpu()
        if torch.isnan(logits_V).any() or not torch.isfinite(logits_V).any():
            raise GroundupError("the model's logits are not numbers", fix="its weights are damaged: `groundup verify`")
        chosen = draw(process(logits_V, self.settings, self.seen_V), self.settings.temperature, self.generator)
        self.see([chosen], logits_V.shape[-1])
        return self._describe(chosen, logits_V)

    def _describe(self, chosen: int, logits_V: Tensor) -> Choice:
        if self.settings.logprobs is None:
            return Choice(chosen)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(self.settings.logprobs, logprobs_V.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Choice(chosen, float(logprobs_V[chosen]), tuple(pairs))


def process(logits_V: Tensor, settings: Sampling, seen_V: Tensor | None = None) -> Tensor:
    """Logits ready to draw from: penalised, scaled, and -inf outside the kept set. Shape (…, V).

    seen_V: (…, V) bool, the tokens that have occurred, or None where there is no penalty. With
    temperature 0 only the penalty applies, since no filter ever removes the most likely token.
    """
    if seen_V is not None and settings.repetition_penalty != 1.0:
        logits_V = penalise(logits_V, seen_V, settings.repetition_penalty)
    if settings.temperature == 0:
        return logits_V
    logits_V = logits_V / settings.temperature
    if settings.top_k:
        logits_V = keep_top_k(logits_V, settings.top_k)
    if settings.top_p is not None and settings.top_p < 1:
        logits_V = keep_top_p(logits_V, settings.top_p)
    if settings.min_p is not None:
        logits_V = keep_min_p(logits_V, settings.min_p)
    return logits_V


def draw(logits_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    """One token: the first most likely for temperature 0, else drawn from softmax(logits). (V,) → id.

    The inverse of the cumulative distribution in float64: one uniform number is one token, so the
    generator advances by the same amount whatever the vocabulary and the filters.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    cumulative_V = logits_V.double().softmax(-1).cumsum(-1)
    uniform = torch.rand((), generator=generator, dtype=torch.float64)
    # The first entry *above* the point: a token of probability zero raises nothing and is never met.
    place = int(torch.searchsorted(cumulative_V, uniform * cumulative_V[-1], right=True))
    last = int(torch.nonzero(torch.isfinite(logits_V))[-1])
    return min(place, last)


def penalise(logits_V: Tensor, seen_V: Tensor, penalty: float) -> Tensor:
    """Logits with those of seen tokens divided by `penalty` where positive, multiplied where negative.

    Keskar et al. 2019 (CTRL), section 4.1, with the sign rule that later practice added.
    """
    penalised_V = torch.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
    return torch.where(seen_V, penalised_V, logits_V)


def keep_top_k(logits_V: Tensor, k: int) -> Tensor:
    """Logits with everything below the k-th largest set to -inf; ties with the k-th stay."""
    kth = logits_V.topk(min(k, logits_V.shape[-1])).values[..., -1:]
    return logits_V.masked_fill(logits_V < kth, -torch.inf)


def keep_top_p(logits_V: Tensor, p: float) -> Tensor:
    """Logits with everything outside the nucleus set to -inf (Holtzman et al. 2020, section 3.1).

    The nucleus is the smallest set of most likely tokens whose probabilities sum to at least p; a
    token is in it when the tokens before it (more likely, or as likely with a smaller id) sum to less.
    """
    ordered_V, index_V = logits_V.sort(descending=True, stable=True)
    probability_V = ordered_V.softmax(-1)
    before_V = probability_V.cumsum(-1) - probability_V
    outside_V = before_V >= p
    outside_V[..., 0] = False
    return logits_V.masked_fill(outside_V.scatter(-1, index_V, outside_V), -torch.inf)


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Logits with tokens less likely than min_p times the best set to -inf (Nguyen et al. 2024)."""
    probability_V = logits_V.softmax(-1)
    return logits_V.masked_fill(probability_V < min_p * probability_V.amax(-1, keepdim=True), -torch.inf)
