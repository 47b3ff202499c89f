"""Filling the gaps of a text with a masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from groundup.errors import UserError
from groundup.runtimes._contract import Runtime
from groundup.serving.decoding import require_text
from groundup.text.tokenizers import Tokenizer

MASK = "[MASK]"
"""How a gap is written, whatever the tokenizer calls its mask token."""


@dataclass(frozen=True)
class Filled:
    """One gap: its likeliest tokens as text, each with its probability, best first."""

    position: int
    """Which token of the input it is."""
    best: tuple[tuple[str, float], ...]


def fill_masks(runtime: Runtime, tokenizer: Tokenizer, text: str, *, best: int = 5) -> list[Filled]:
    """For each `[MASK]` in a text, its likeliest tokens.

    Raises UserError for a model that continues texts instead, a tokenizer without a mask token, a
    text without a mask, and one longer than the context.
    """
    require_text(text)
    if tokenizer.mask_id is None or runtime.causal:
        fix = "use generate(…) to continue a text; to fill masks, train a bert with masked_language_modeling"
        raise UserError("this model does not fill masks", fix=fix)
    mask = tokenizer.specials.mask or MASK
    opening, closing = frame(tokenizer)
    ids = [*opening, *tokenizer.encode(text.replace(MASK, mask), allow_special=True), *closing]
    gaps = [place for place, token in enumerate(ids) if token == tokenizer.mask_id]
    if not gaps:
        raise UserError("the text has no gap to fill", fix=f"write {MASK} where a token is missing")
    if len(ids) > runtime.context:
        fix = f"shorten it by {len(ids) - runtime.context} tokens"
        raise UserError(f"the text is {len(ids)} tokens long and the model reads {runtime.context}", fix=fix)
    return [
        _filled(tokenizer, place, row) for place, row in zip(gaps, probabilities(runtime, ids, gaps, best), strict=True)
    ]


def frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The tokens that open and close an input; start and end of text serve where there is no [CLS] or [SEP]."""
    cls = tokenizer.bos_id if tokenizer.cls_id is None else tokenizer.cls_id
    sep = tokenizer.eos_id if tokenizer.sep_id is None else tokenizer.sep_id
    return ([] if cls is None else [cls]), ([] if sep is None else [sep])


def probabilities(
    runtime: Runtime, ids: Sequence[int], gaps: Sequence[int], best: int
) -> list[list[tuple[int, float]]]:
    """For each gap its `best` likeliest (token, probability) pairs, best first."""
    outputs = runtime.forward({"input_ids": torch.tensor([list(ids)])})
    probabilities_GV = outputs.head(outputs.hidden[0, list(gaps)]).float().softmax(-1)
    found = probabilities_GV.topk(min(best, probabilities_GV.shape[-1]))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    return [list(zip(indices, values, strict=True)) for indices, values in pairs]


def _filled(tokenizer: Tokenizer, place: int, row: list[tuple[int, float]]) -> Filled:
    return Filled(place, tuple((tokenizer.decode([token]), probability) for token, probability in row))
