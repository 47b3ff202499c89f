"""Beam search: the best few beginnings are kept and continued until none of them can win any more.

It knows no model: `step` is asked for the log-probabilities that follow each kept beginning. Scores are
divided by a power of the length, so that short targets have no advantage (Wu et al. 2016, §7, eq. 14,
whose constant 5 is left out here as in Marian and transformers; results equal those of transformers'
`generate` with `early_stopping=False`). One beam is greedy search.

Axes: E examples, W beams of each, R = E·W rows, C candidates (2·W of each example), T tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NEVER = -math.inf


class Step(Protocol):
    """What continues beginnings by one token."""

    def __call__(self, ids_R: Tensor, from_R: Tensor | None) -> Tensor:
        """Log-probabilities of what follows, (R,V), when `ids_R` has joined the beginnings.

        Row r goes on from what was row `from_R[r]` (None: each from itself). The rows of an example are
        neighbours, and never go on from another example's.
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
class _Kept:
    """The best finished targets of each example so far, best first."""

    scores: Tensor
    """(E,W)"""
    ids: Tensor
    """(E,W,T)"""
    sizes: Tensor
    """(E,W): how many of T are tokens, the last one included."""

    def merge(self, scores_EC: Tensor, ids_ECT: Tensor, size: int) -> None:
        """Keep the best of these and new ones of `size` tokens."""
        scores_EX = torch.cat((self.scores, scores_EC), 1)
        beams = self.scores.shape[1]
        self.scores, best_EW = scores_EX.topk(beams, 1)
        self.ids = _gathered(torch.cat((self.ids, ids_ECT), 1), best_EW)
        self.sizes = torch.cat((self.sizes, torch.full_like(ids_ECT[..., 0], size)), 1).gather(1, best_EW)


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
    ids_EWT = torch.full((examples, beams, max_tokens), end, device=device)
    # Only the first of an example's equal beginnings goes on at first: otherwise all would go on alike.
    scores_EW = torch.full((examples, beams), NEVER, device=device).index_fill_(1, torch.tensor([0], device=device), 0)
    kept = _Kept(torch.full_like(scores_EW, NEVER), ids_EWT.clone(), torch.zeros_like(ids_EWT[..., 0]))
    is_open_E1 = torch.ones(examples, 1, dtype=torch.bool, device=device)
    first_E1 = torch.arange(examples, device=device)[:, None] * beams
    last_R, from_R = torch.full((examples * beams,), start, device=device), None
    for size in range(1, max_tokens + 1):
        scores_EC, beam_EC, token_EC = _candidates(step(last_R, from_R), scores_EW, forbidden)
        ids_ECT = _gathered(ids_EWT, beam_EC)
        ids_ECT[..., size - 1] = token_EC
        is_done_EC = (token_EC == end) | (size == max_tokens)
        # A target that ends counts only if it is among the best W: the others stand by for beams that end.
        counts_EC = is_done_EC & (torch.arange(token_EC.shape[1], device=device) < beams) & is_open_E1
        length = size**length_penalty
        kept.merge(torch.where(counts_EC, scores_EC / length, NEVER), ids_ECT, size)
        scores_EW, best_EW = scores_EC.masked_fill(is_done_EC, NEVER).topk(beams, 1)
        ids_EWT = _gathered(ids_ECT, best_EW)
        from_R = (beam_EC.gather(1, best_EW) + first_E1).flatten()
        last_R = token_EC.gather(1, best_EW).flatten()
        is_open_E1 = is_open_E1 & (scores_EW[:, :1] / length > kept.scores[:, -1:])
        if not bool(is_open_E1.any()):
            break
    return _best(kept, end)


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


def _best(kept: _Kept, end: int) -> list[Found]:
    found = []
    for ids, size, score in zip(
        kept.ids[:, 0].tolist(), kept.sizes[:, 0].tolist(), kept.scores[:, 0].tolist(), strict=True
    ):
        is_ended = size > 0 and ids[size - 1] == end
        found.append(Found(ids[: size - is_ended], score, is_ended))
    return found
