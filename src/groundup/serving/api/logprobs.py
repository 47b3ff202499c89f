"""Log-probabilities of tokens as OpenAI's two kinds of answers tell them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from groundup.serving.api.registry import Texts
from groundup.serving.client import Token

LEAST = -9999.0
"""What stands for a token that cannot be chosen: JSON has no infinity."""


def of_chat(texts: Texts, tokens: Iterable[Token]) -> dict[str, Any]:
    """`logprobs` of a chat: for each token its text, its bytes and its log-probability, and those of the likeliest."""
    content = [
        _entry(texts, token.id, token.logprob)
        | {"top_logprobs": [_entry(texts, other, value) for other, value in token.alternatives]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def _entry(texts: Texts, token: int, logprob: float | None) -> dict[str, Any]:
    raw = texts.token_bytes(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": finite(logprob), "bytes": list(raw)}


def of_completion(texts: Texts, tokens: Sequence[Token], *, offset: int = 0) -> dict[str, Any]:
    """`logprobs` of a completion, four lists of equal length. `offset`: characters before the first token.

    A token without a log-probability (the first of an echoed prompt) has null, and no alternatives.
    """
    shown = [_text(texts, token.id) for token in tokens]
    places = [offset]
    for text in shown[:-1]:
        places.append(places[-1] + len(text))
    return {
        "tokens": shown,
        "token_logprobs": [None if token.logprob is None else finite(token.logprob) for token in tokens],
        "top_logprobs": [_likeliest(texts, token) for token in tokens],
        "text_offset": places[: len(shown)],
    }


def _likeliest(texts: Texts, token: Token) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    pairs = [*token.alternatives, (token.id, token.logprob)]
    return {_text(texts, other): finite(value) for other, value in pairs}


def _text(texts: Texts, token: int) -> str:
    return texts.token_bytes(token).decode("utf-8", "replace")


def finite(value: float | None) -> float:
    """A log-probability that JSON can hold."""
    return LEAST if value is None or not value > LEAST else value
