"""Beam search: the best few beginnings are kept and continued until none of them can win any more.

It knows no model: `step` is asked for the log-probabilities that follow each kept beginning. Scores are
divided by a power of the length, so that short targets have no advantage (Wu et al. 2016, §7, eq. 14,
whose constant 5 is left out here as in Marian and transformers; results equal those of transformers'
`generate` with `early_stopping=False`). One beam is greedy search. Examples that are decided leave, so
nothing is computed for them while others go on.

Axes: E examples, W beams of each, R = E·W rows, C candidates (2·W of each example), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

import torch
from torch import Tensor

NEVER = -math.inf
LEAVING = 0.25
"""Share of examples that must be decided before they leave: what a step keeps for the others is then copied."""


class Step(Protocol):
    """What continues beginnings by one token."""

    def __call__(self, ids_R: Tensor, from_R: Tensor | None) -> Tensor:
        """Log-probabilities of what follows, (R,V), when `ids_R` has joined the beginnings.

        Row r goes on from what was row `from_R[r]` (None: each from itself). The rows of an example are
        neighbours and never go on from another example's; examples whose rows are not named are done.
        """


@dataclass(frozen=True)
class Found:
    """The best target of an example."""

    ids: list[int]
    """Its tokens, without the one that ends it."""
    score: float
    """The sum of its log-probabilities, over its length with the end to the power of `length_penalty`."""
    is_ended: bool
    """Whether it was ended, and not cut at `max_tokens`."""


@dataclass
class _State:
    """The beginnings of the examples that are not decided, and what they have finished so far."""

    example: Tensor
    """(E,): which example it is."""
    scores: Tensor
    """(E,W): of the beginnings, best first."""
    ids: Tensor
    """(E,W,T)"""
    done_scores: Tensor
    """(E,W): of the best finished targets, best first."""
    done_ids: Tensor
    """(E,W,T)"""
    done_sizes: Tensor
    """(E,W): how many of T are tokens, the last one included."""
    is_open: Tensor
    """(E,): whether a beginning may still become better than all that is finished."""

    @classmethod
    def first(cls, examples: int, beams: int, max_tokens: int, device: torch.device | str) -> _State:
        """Empty beginnings. Only the first of an example goes on at first: otherwise all would go on alike."""
        scores_EW = torch.full((examples, beams), NEVER, device=device)
        ids_EWT = torch.zeros((examples, beams, max_tokens), dtype=torch.int64, device=device)
        done = torch.full_like(scores_EW, NEVER), ids_EWT.clone(), ids_EWT[..., 0].clone()
        scores_EW[:, 0] = 0.0
        is_open_E = torch.ones(examples, dtype=torch.bool, device=device)
        return cls(torch.arange(examples, device=device), scores_EW, ids_EWT, *done, is_open_E)

    def finish(self, scores_EC: Tensor, ids_ECT: Tensor, size: int) -> None:
        """Keep the best of the finished targets and new ones of `size` tokens."""
        beams = self.scores.shape[1]
        self.done_scores, best_EW = torch.cat((self.done_scores, scores_EC), 1).topk(beams, 1)
        self.done_ids = _gathered(torch.cat((self.done_ids, ids_ECT), 1), best_EW)
        sizes_EX = torch.cat((self.done_sizes, torch.full_like(ids_ECT[..., 0], size)), 1)
        self.done_sizes = sizes_EX.gather(1, best_EW)

    def only(self, which_E: Tensor) -> _State:
        """The state of some of the examples."""
        return _State(*(getattr(self, one.name)[which_E] for one in fields(self)))

    def best(self, end: int) -> dict[int, Found]:
        """The best finished target by example."""
        firsts = self.done_ids[:, 0].tolist(), self.done_sizes[:, 0].tolist(), self.done_scores[:, 0].tolist()
        found = {}
        for example, ids, size, score in zip(self.example.tolist(), *firsts, strict=True):
            is_ended = size > 0 and ids[size - 1] == end
            found[example] = Found(ids[: size - is_ended], score, is_ended)
        return found


@torch.no_grad()
def search(
    step: Step,
    examples: int,
    *,
    start: int,
    end: int,
    beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    forbidden: Sequence[int] = (),
    device: torch.device | str = "cpu",
) -> list[Found]:
    """The best target of each example, by at most `max_tokens` steps of `step`.

    Targets begin with the token `start` (not part of the result) and finish with `end` or at `max_tokens`;
    tokens of `forbidden` never occur. A larger `length_penalty` prefers longer targets; 0 compares plain
    sums. Raises ValueError for less than one beam or token.
    """
    if beams < 1 or max_tokens < 1:
        raise ValueError(f"{beams} beams of {max_tokens} tokens: both must be at least one")
    state, found = _State.first(examples, beams, max_tokens, device), dict[int, Found]()
    last_R, from_R = torch.full((examples * beams,), start, device=device), None
    for size in range(1, max_tokens + 1):
        scores_EC, beam_EC, token_EC = _candidates(step(last_R, from_R), state.scores, forbidden)
        ids_ECT = _gathered(state.ids, beam_EC)
        ids_ECT[..., size - 1] = token_EC
        is_done_EC = (token_EC == end) | (size == max_tokens)
        # A target that ends counts only if it is among the best W: the others stand by for beams that end.
        counts_EC = is_done_EC & (torch.arange(token_EC.shape[1], device=device) < beams) & state.is_open[:, None]
        length = size**length_penalty
        state.finish(torch.where(counts_EC, scores_EC / length, NEVER), ids_ECT, size)
        state.scores, best_EW = scores_EC.masked_fill(is_done_EC, NEVER).topk(beams, 1)
        state.ids = _gathered(ids_ECT, best_EW)
        from_EW = beam_EC.gather(1, best_EW) + torch.arange(len(beam_EC), device=device)[:, None] * beams
        last_EW = token_EC.gather(1, best_EW)
        state.is_open = state.is_open & (state.scores[:, 0] / length > state.done_scores[:, -1])
        open_E = state.is_open.nonzero()[:, 0]
        if not len(open_E):
            break
        if len(open_E) <= (1 - LEAVING) * len(state.is_open):
            found |= state.only(~state.is_open).best(end)
            state, from_EW, last_EW = state.only(open_E), from_EW[open_E], last_EW[open_E]
        last_R, from_R = last_EW.flatten(), from_EW.flatten()
    found |= state.best(end)
    return [found[example] for example in range(examples)]


def _candidates(log_probs_RV: Tensor, scores_EW: Tensor, forbidden: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The best 2·W continuations of each example, best first: scores, beams and tokens, (E,C) each."""
    examples, beams = scores_EW.shape
    vocabulary = log_probs_RV.shape[-1]
    totals_EWV = log_probs_RV.float().view(examples, beams, vocabulary) + scores_EW[..., None]
    if forbidden:
        totals_EWV[..., torch.tensor(forbidden, device=totals_EWV.device)] = NEVER
    scores_EC, place_EC = totals_EWV.flatten(1).topk(min(2 * beams, beams * vocabulary), 1)
    return scores_EC, place_EC // vocabulary, place_EC % vocabulary


def _gathered(ids_EXT: Tensor, which_EC: Tensor) -> Tensor:
    return ids_EXT.gather(1, which_EC[..., None].expand(-1, -1, ids_EXT.shape[-1]))
