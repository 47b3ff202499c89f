"""A few outputs to read beside the scores: the same seed gives the same samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from groundup.runtimes._contract import Runtime
from groundup.serving.decoding import Continuation
from groundup.serving.filling import frame, probabilities
from groundup.serving.sampler import Sampling
from groundup.serving.start import Beginning
from groundup.text.tokenizers import Tokenizer

PROMPT_TOKENS = 48
NEW_TOKENS = 120
HEAD = 4000
"""Characters of a document that are looked at for a prompt."""
GAP_EVERY = 7
"""One token in so many is hidden in a sample of a masked model."""


def continuations(
    runtime: Runtime, tokenizer: Tokenizer, beginning: Beginning, documents: Sequence[str], *, count: int, seed: int
) -> list[dict[str, Any]]:
    """Beginnings of test documents continued by the model, beside what their authors wrote; the last free.

    Prompts are the first tokens of documents drawn by seed, at most a quarter of the context.
    """
    rng = np.random.default_rng(seed)
    length = max(1, min(PROMPT_TOKENS, runtime.context // 4))
    drawn = [documents[i] for i in rng.permutation(len(documents))]
    prompts = [_beginning_of(tokenizer, text, length) for text in drawn[: max(0, count - 1)]]
    prompts += [("", "")] if count else []
    samples = []
    for number, (prompt, truth) in enumerate(prompts):
        new = min(NEW_TOKENS, max(1, runtime.context - length - 1))
        settings = Sampling(temperature=0.8, top_p=0.95, seed=seed + number, max_new_tokens=new)
        done = Continuation(runtime, tokenizer, prompt, settings, start_ids=beginning.before(prompt)).finish()
        described = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
        found = {"kind": "continuation", "prompt": prompt, "text": done.text, "truth": truth[: len(done.text)]}
        samples.append(found | {"ended": done.detail, "settings": described})
    return samples


def _beginning_of(tokenizer: Tokenizer, text: str, length: int) -> tuple[str, str]:
    """A text cut after its first tokens, but never leaving nothing to continue."""
    head = text[:HEAD]
    offsets = tokenizer.encode_with_offsets(head).offsets
    keep = min(length, max(1, len(offsets) // 2))
    cut = offsets[keep - 1][1] if offsets else 0
    return head[:cut], head[cut:]


def fillings(
    runtime: Runtime, tokenizer: Tokenizer, documents: Sequence[str], *, count: int, seed: int
) -> list[dict[str, Any]]:
    """Beginnings of test documents with tokens hidden, what the model puts there, and what stood there."""
    rng = np.random.default_rng(seed)
    length = max(2, min(2 * PROMPT_TOKENS, runtime.context - 2))
    return [_filling(runtime, tokenizer, documents[i], length, rng) for i in rng.permutation(len(documents))[:count]]


def _filling(
    runtime: Runtime, tokenizer: Tokenizer, text: str, length: int, rng: np.random.Generator
) -> dict[str, Any]:
    opening, closing = frame(tokenizer)
    encoded = tokenizer.encode_with_offsets(text[:HEAD])
    ids, offsets = encoded.ids[:length], encoded.offsets[:length]
    hidden = sorted(rng.permutation(len(ids))[: max(1, len(ids) // GAP_EVERY)].tolist()) if ids else []
    assert tokenizer.mask_id is not None, "a masked model's tokenizer has a mask token"
    read = [tokenizer.mask_id if place in hidden else token for place, token in enumerate(ids)]
    rows = probabilities(runtime, [*opening, *read, *closing], [len(opening) + p for p in hidden], 3) if hidden else []
    gaps = [
        {
            "start": offsets[place][0],
            "end": offsets[place][1],
            "truth": text[slice(*offsets[place])],
            "best": [[tokenizer.decode([token]), round(p, 4)] for token, p in row],
            "right": row[0][0] == ids[place],
        }
        for place, row in zip(hidden, rows, strict=True)
    ]
    return {"kind": "filling", "text": text[: offsets[-1][1] if offsets else 0], "gaps": gaps}
