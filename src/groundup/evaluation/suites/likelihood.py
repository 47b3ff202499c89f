"""How likely a causal model finds each of several continuations of a prompt.

Continuations that differ in their last token only are told by one forward pass, so a question whose
choices are letters costs one pass, not four. Rows are padded on the right, where a causal model does
not look.

Axes: B rows, T tokens, D width, N wanted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from groundup.errors import Interrupted
from groundup.progress import Reporter, interrupt_requested

Encode = Callable[[str], list[int]]
Forward = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Likelihood:
    """Of one continuation: its log-probability in nats, and whether greedy decoding would give it."""

    nats: float
    is_greedy: bool


@dataclass
class _Row:
    """What the model reads, and the continuations it is asked about: their place, and their tokens."""

    ids: tuple[int, ...]
    asked: list[tuple[tuple[int, int], list[int]]] = field(default_factory=list)


def log_likelihoods(
    requests: Sequence[tuple[str, Sequence[str]]],
    encode: Encode,
    forward: Forward,
    *,
    start: Callable[[str], Sequence[int]],
    context: int,
    batch_tokens: int = 8192,
    reporter: Reporter | None = None,
) -> list[list[Likelihood]]:
    """For each (prompt, continuations) the likelihood of every continuation.

    encode: text to token ids, no special tokens added. start: the tokens a text with this prompt begins
    with; there must be some for an empty prompt. forward: a batch with `input_ids` (B,T) to outputs with
    `hidden` (B,T,D) and `head`. context: the model's limit; of longer prompts the beginning is cut.
    Raises Interrupted.
    """
    pairs = []
    for prompt, continuations in requests:
        cut = [split(prompt, continuation, encode) for continuation in continuations]
        pairs.append([([*start(prompt), *before], after) for before, after in cut])
    return token_likelihoods(pairs, forward, context=context, batch_tokens=batch_tokens, reporter=reporter)


def token_likelihoods(
    requests: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]],
    forward: Forward,
    *,
    context: int,
    batch_tokens: int = 8192,
    reporter: Reporter | None = None,
) -> list[list[Likelihood]]:
    """The same for requests of (tokens before, tokens that follow); both must hold some. Raises Interrupted."""
    rows = _rows(requests, context)
    found: list[list[Likelihood | None]] = [[None] * len(asked) for asked in requests]
    rows.sort(key=lambda row: -len(row.ids))
    done = 0
    while done < len(rows):
        batch = rows[done : done + max(1, batch_tokens // len(rows[done].ids))]
        for (request, choice), likelihood in _score(batch, forward):
            found[request][choice] = likelihood
        done += len(batch)
        if reporter is not None:
            reporter.advance("asking", done, len(rows))
        if interrupt_requested():
            raise Interrupted("stopped while asking", fix="run again: it starts afresh")
    return [[one for one in row if one is not None] for row in found]


def split(prompt: str, continuation: str, encode: Encode) -> tuple[list[int], list[int]]:
    """The tokens of a prompt and of what follows, cut where the prompt's own tokens end.

    Spaces at the end of a prompt go to the continuation, as a token often begins with its space.
    """
    kept = prompt.rstrip()
    whole = encode(prompt + continuation)
    before = encode(kept)
    return whole[: len(before)], whole[len(before) :]


def _rows(requests: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]], context: int) -> list[_Row]:
    rows: dict[tuple[int, ...], _Row] = {}
    for request, asked in enumerate(requests):
        for choice, (before, after) in enumerate(asked):
            if not before or not after:
                raise ValueError(f"nothing to score, or nothing before it: request {request}, continuation {choice}")
            if len(after) > context:
                raise ValueError(f"a continuation of {len(after)} tokens does not fit a context of {context}")
            ids = tuple([*before, *after][:-1][-context:])
            rows.setdefault(ids, _Row(ids)).asked.append(((request, choice), list(after)))
    return list(rows.values())


def _score(batch: Sequence[_Row], forward: Forward) -> list[tuple[tuple[int, int], Likelihood]]:
    longest = len(batch[0].ids)
    padded = [[*row.ids, *[0] * (longest - len(row.ids))] for row in batch]
    outputs = forward({"input_ids": torch.tensor(padded)})
    places: list[int] = []
    owners: list[tuple[tuple[int, int], int]] = []
    targets: list[int] = []
    for number, row in enumerate(batch):
        for place, after in row.asked:
            first = number * longest + len(row.ids) - len(after)
            places += range(first, first + len(after))
            owners.append((place, len(after)))
            targets += after
    hidden_BTD: Tensor = outputs.hidden
    wanted_N = torch.tensor(places, device=hidden_BTD.device)
    # The head is the dearest layer of a small model: only where its answer is wanted.
    logits_NV = outputs.head(hidden_BTD.flatten(0, 1)[wanted_N]).float()
    targets_N = torch.tensor(targets, device=logits_NV.device)
    nats_N = logits_NV.log_softmax(-1).gather(1, targets_N[:, None])[:, 0].double().tolist()
    greedy_N = (logits_NV.argmax(-1) == targets_N).tolist()
    found, at = [], 0
    for place, length in owners:
        found.append((place, Likelihood(sum(nats_N[at : at + length]), all(greedy_N[at : at + length]))))
        at += length
    return found
