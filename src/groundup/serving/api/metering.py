"""Tokens set aside for a request while it runs, and billed at what they came to, however it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from groundup.serving.api.calling import Caller
from groundup.serving.api.reading import Ending


class Metered:
    """The block in which a request's tokens are computed. `completion_tokens` is counted up as they come.

    Entering raises Refused (429) where the key's rate or quota does not allow as many as were asked for.
    """

    def __init__(self, caller: Caller, prompt_tokens: int, most_new_tokens: int = 0) -> None:
        self.caller, self.prompt_tokens, self.most = caller, prompt_tokens, most_new_tokens
        self.completion_tokens = 0

    def __enter__(self) -> Self:
        if self.caller.meter is not None:
            self.caller.meter.reserve(self.prompt_tokens + self.most)
        return self

    def __exit__(self, *error: object) -> None:
        if self.caller.meter is not None:
            self.caller.meter.settle(self.prompt_tokens, self.completion_tokens)

    def usage(self, endings: Sequence[Ending] = ()) -> dict[str, Any]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in endings)},
        }
