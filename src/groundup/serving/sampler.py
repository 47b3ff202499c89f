"""How the next token is chosen from a model's logits.

The order of the steps is fixed: what a grammar allows, a least length, biases, the penalties for repetition,
frequency and presence (so far vLLM's order), then temperature, top-k, top-p, min-p (that of transformers'
`generate`) and one draw. Each filter keeps a set of tokens and leaves their relative probabilities alone.
Every sequence draws from a generator of its own, so its text depends on its seed and not on what else is
being generated.

Axes: V vocabulary; R sequences of a step; a leading … stands for any number of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from groundup.config import Section, parse
from groundup.errors import GroundupError, Mistakes, Problem
from groundup.units import Count

NUCLEI = (128, 1024)
"""Numbers of likeliest tokens among which a nucleus is looked for before the whole vocabulary is sorted."""


COLDEST = 1e-5
"""Below this temperature logits may become too large for a number: the likeliest token is the choice."""


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
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] = 1.0
    """Above 1, tokens that already occur (prompt included) become less likely."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] = 0
    """Seed of the draws; the same seed, model and prompt give the same text."""
    max_new_tokens: Count = 256
    """Stop after this many tokens."""
    stop: tuple[str, ...] = ()
    """Stop before any of these strings; they are not shown, also when they span several tokens."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Report the log-probability of each chosen token, and of this many most likely ones beside it."""
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] = Field(
        default_factory=dict, max_length=1024
    )
    """Added to the logits of tokens, by id: -100 all but forbids one, 100 all but forces it."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logits of tokens that were already generated."""
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    """Taken from the logits of tokens for each time they were already generated."""
    min_new_tokens: Count = 0
    """Let no token end the text before this many."""
    ignore_eos: bool = False
    """Let no token end the text at all; it then ends at a limit or a stop string."""

    @field_validator("temperature")
    @classmethod
    def _not_too_cold(cls, value: float) -> float:
        return value if value >= COLDEST else 0.0

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
    """The choices of one sequence: its settings, its generator and the tokens it has seen.

    `stop_ids` are the tokens that end the text, which `min_new_tokens` holds back.
    """

    def __init__(self, settings: Sampling, stop_ids: Collection[int] = ()) -> None:
        self.settings, self.stop_ids = settings, list(stop_ids)
        # Drawn on the CPU whatever the device, so that a seed means the same text everywhere.
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.seen_V: Tensor | None = None
        self.counts_V: Tensor | None = None
        self.chosen = 0

    @property
    def is_plain(self) -> bool:
        """Whether the likeliest token is the choice, and nothing more is to be said of it."""
        return self.settings.temperature == 0 and self.settings.logprobs is None and not self._adjusts

    def see(self, ids: Collection[int], vocab_size: int) -> None:
        """Count tokens as having occurred: the prompt, once, before the first choice."""
        if self.settings.repetition_penalty == 1.0:
            return
        if self.seen_V is None:
            self.seen_V = torch.zeros(vocab_size, dtype=torch.bool)
        self.seen_V[list(ids)] = True

    def choose(self, logits_V: Tensor, allowed_V: Tensor | None = None) -> Choice:
        """The next token, given the logits after the sequence so far; of those allowed, if that is given.

        logits_V: (vocab,) any float type; computed in float32. Log-probabilities are the model's own,
        before any penalty, temperature or filter. Raises GroundupError if one is NaN or infinite, or none is finite.
        """
        (choice,) = choose_all([self], logits_V.detach()[None], [allowed_V])
        if choice is None:
            raise GroundupError("the model's logits are not numbers", fix="its weights are damaged: `groundup verify`")
        return choice

    def adjust(self, logits_V: Tensor, allowed_V: Tensor | None = None) -> Tensor:
        """Logits (V,) in float32 after all that comes before the temperature; a copy if anything does."""
        settings = self.settings
        if allowed_V is not None:
            logits_V = logits_V.masked_fill(~allowed_V, -torch.inf)
        if self.chosen < settings.min_new_tokens and self.stop_ids:
            held_V = logits_V.index_fill(0, torch.tensor(self.stop_ids), -torch.inf)
            # A grammar that is complete allows nothing else: it goes before a least length.
            logits_V = held_V if torch.isfinite(held_V).any() else logits_V
        if settings.logit_bias:
            ids, biases = zip(*settings.logit_bias.items(), strict=True)
            logits_V = logits_V.index_add(0, torch.tensor(ids), torch.tensor(biases, dtype=logits_V.dtype))
        if self.seen_V is not None:
            logits_V = penalise(logits_V, self.seen_V, settings.repetition_penalty)
        if self.counts_V is not None:
            logits_V = logits_V - settings.frequency_penalty * self.counts_V
            logits_V = logits_V - settings.presence_penalty * (self.counts_V > 0)
        return logits_V

    @property
    def _adjusts(self) -> bool:
        settings = self.settings
        has_penalty = settings.presence_penalty or settings.frequency_penalty or settings.repetition_penalty != 1.0
        return bool(settings.logit_bias or has_penalty or self.chosen < settings.min_new_tokens)

    def _took(self, chosen: int, logits_V: Tensor | None, vocab_size: int) -> Choice:
        """The choice with what was asked of it, remembered for the next one."""
        self.chosen += 1
        self.see([chosen], vocab_size)
        if self.settings.presence_penalty or self.settings.frequency_penalty:
            if self.counts_V is None:
                self.counts_V = torch.zeros(vocab_size)
            self.counts_V[chosen] += 1
        if self.settings.logprobs is None or logits_V is None:
            return Choice(chosen)
        logprobs_V = logits_V.log_softmax(-1)
        best = logprobs_V.topk(min(self.settings.logprobs, logprobs_V.shape[-1]))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return Choice(chosen, float(logprobs_V[chosen]), tuple(pairs))


def choose_all(
    samplers: Sequence[Sampler], logits_RV: Tensor, allowed: Sequence[Tensor | None] | None = None
) -> list[Choice | None]:
    """The next token of each of R sequences, as `Sampler.choose` would choose it for each alone.

    logits_RV: any float type and device. None stands for a row whose largest logit is no number. The
    likeliest tokens of all rows are found in one go; the other rows come to the CPU in one piece, and those
    with the same filters are filtered and drawn together.
    """
    vocab_size = logits_RV.shape[-1]
    allowed = [None] * len(samplers) if allowed is None else allowed
    best = logits_RV.max(-1)  # of equals the first; a NaN is larger than all
    likeliest = best.indices.tolist()
    sound = [row for row, peak in enumerate(best.values.tolist()) if math.isfinite(peak)]
    plain = [row for row in sound if samplers[row].is_plain and allowed[row] is None]
    others = sorted(set(sound) - set(plain))
    raw = dict(zip(others, _on_cpu(logits_RV, others), strict=True))
    # All that may go wrong with one row's settings comes before anything is drawn.
    adjusted = {row: samplers[row].adjust(raw[row], allowed[row]) for row in others}
    choices: list[Choice | None] = [None] * len(samplers)
    for row in plain:
        choices[row] = samplers[row]._took(likeliest[row], None, vocab_size)
    alike: dict[tuple[Any, ...], list[int]] = {}
    for row in others:
        s = samplers[row].settings
        alike.setdefault((s.temperature, s.top_k, s.top_p, s.min_p), []).append(row)
    for members in alike.values():
        settings = samplers[members[0]].settings
        filtered_RV = keep(torch.stack([adjusted[row] for row in members]), settings)
        drawn = draw_all(filtered_RV, settings.temperature, [samplers[row].generator for row in members])
        for row, chosen in zip(members, drawn, strict=True):
            choices[row] = samplers[row]._took(chosen, raw[row], vocab_size)
    return choices


def _on_cpu(logits_RV: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows in float32 on the CPU, in one transfer; all of them without a copy where they are there already."""
    if len(rows) < len(logits_RV):
        logits_RV = logits_RV[torch.tensor(rows, dtype=torch.int64, device=logits_RV.device)]
    return logits_RV.float().cpu()


def process(logits_V: Tensor, settings: Sampling, seen_V: Tensor | None = None) -> Tensor:
    """Logits ready to draw from: penalised, scaled, and -inf outside the kept set. Shape (…, V).

    seen_V: (…, V) bool, the tokens that have occurred, or None where there is no penalty.
    """
    if seen_V is not None and settings.repetition_penalty != 1.0:
        logits_V = penalise(logits_V, seen_V, settings.repetition_penalty)
    return keep(logits_V, settings)


def keep(logits_V: Tensor, settings: Sampling) -> Tensor:
    """Logits divided by the temperature, and -inf outside the set that the filters keep. Shape (…, V).

    With temperature 0 nothing happens, since no filter ever removes the most likely token.
    """
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
    """One token: the first most likely for temperature 0, else drawn from softmax(logits). (V,) → id."""
    return draw_all(logits_V[None], temperature, [generator])[0]


def draw_all(logits_RV: Tensor, temperature: float, generators: Sequence[torch.Generator]) -> list[int]:
    """One token for each of R sequences, each by its own generator; see `draw`.

    The inverse of the cumulative distribution, summed in float64: one uniform number is one token, so the
    generator advances by the same amount whatever the vocabulary and the filters.
    """
    if temperature == 0:
        return [int(token) for token in logits_RV.argmax(-1).tolist()]
    cumulative_RV = logits_RV.softmax(-1).cumsum(-1, dtype=torch.float64)
    total_R1 = cumulative_RV[:, -1:].contiguous()
    uniform_R1 = torch.stack([torch.rand((), generator=one, dtype=torch.float64) for one in generators])[:, None]
    # The first entry *above* the point: a token of probability zero raises nothing and is never met.
    place_R1 = torch.searchsorted(cumulative_RV, uniform_R1 * total_R1, right=True)
    last_R1 = torch.searchsorted(cumulative_RV, total_R1)
    return [int(token) for token in torch.minimum(place_R1, last_R1)[:, 0].tolist()]


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
    It is looked for among the likeliest tokens first, as sorting a vocabulary takes ten times as long.
    """
    total_1 = logits_V.logsumexp(-1, keepdim=True)
    for count in (*NUCLEI, logits_V.shape[-1]):
        ordered_V = logits_V.topk(min(count, logits_V.shape[-1])).values
        sums_V = (ordered_V - total_1).exp().cumsum(-1)
        if bool((sums_V[..., -1] >= p).all()):
            break
    # How many sums are short of p, and the token with which it is reached.
    size_1 = ((sums_V < p).sum(-1, keepdim=True) + 1).clamp(max=ordered_V.shape[-1])
    smallest_1 = ordered_V.gather(-1, size_1 - 1)
    outside_V = logits_V < smallest_1
    if bool(((~outside_V).sum(-1, keepdim=True) > size_1).any()):  # tokens as likely as the last: the first of them
        equal_V = logits_V == smallest_1
        room_1 = size_1 - (logits_V > smallest_1).sum(-1, keepdim=True)
        outside_V |= equal_V & (equal_V.cumsum(-1) > room_1)
    return logits_V.masked_fill(outside_V, -torch.inf)


def keep_min_p(logits_V: Tensor, min_p: float) -> Tensor:
    """Logits with tokens less likely than min_p times the best set to -inf (Nguyen et al. 2024)."""
    if min_p == 0:
        return logits_V
    # A share of the largest probability is a distance from the largest logit.
    return logits_V.masked_fill(logits_V < logits_V.amax(-1, keepdim=True) + math.log(min_p), -torch.inf)
