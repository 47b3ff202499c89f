"""What a runtime offers to whoever executes a model: evaluation, generation, the server.

A runtime owns its model and its caches. Work comes as one flat list of tokens with the row (sequence)
and position of each, so that a prompt, one new token for many sequences, or both together are the
same call; what a runtime cannot do at once, its capabilities say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Capabilities:
    """What a scheduler may plan for."""

    paged: bool
    """Caches are made of blocks that any sequence can take."""
    mixes_phases: bool
    """Prompts and single new tokens may share a call; without it, a prompt is read alone and whole."""
    shares_prefixes: bool
    """What a cache holds of a beginning can be kept and given to another sequence (`save`, `restore`)."""
    contiguous_rows: bool
    """The rows of a call must be neighbours in the cache."""
    copies_rows: bool
    """A row of the cache can be copied, so that a sequence can grow out of its row."""


class RowCache(Protocol):
    """Room for sequences that come, grow and go; each is known by a number. Memory is counted in tokens."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of a row, by the kinds of rows there are, shortest first."""

    @property
    def reserved(self) -> int:
        """Tokens there is memory for, used or not."""

    def row_length(self, tokens: int) -> int:
        """Tokens of the row that a sequence of `tokens` takes. Raises ValueError if none is long enough."""

    def cost(self, tokens: int) -> int:
        """Tokens of memory that one more row for `tokens` takes: none where a row is free."""

    def open(self, tokens: int, *, room: int) -> int | None:
        """A row for a new sequence of at most `tokens`; its number, or None if it takes more than `room` tokens."""

    def capacity(self, row: int) -> int:
        """How many tokens a sequence can have where it is."""

    def grow(self, row: int, tokens: int, *, room: int) -> bool:
        """Make room for `tokens` in all; False if it takes more than `room` tokens of memory."""

    def close(self, row: int) -> None:
        """Give a row back, emptied."""

    def compact(self) -> None:
        """Close the gaps that closed rows left; called before a step."""

    def trim(self) -> None:
        """Give the memory of rows that nobody has back to the system."""

    def save(self, row: int, start: int, stop: int) -> Any:
        """A copy of what a sequence has of the tokens from `start` to `stop`, where prefixes can be shared."""

    def restore(self, row: int, saved: Sequence[Any]) -> None:
        """Let a sequence begin with what `save` gave for one stretch of tokens after another."""


class Runtime(Protocol):
    """A loaded model, ready to execute."""

    @property
    def capabilities(self) -> Capabilities:
        """What may be planned for."""

    @property
    def causal(self) -> bool:
        """Whether the model reads from left to right, and so can continue a text."""

    @property
    def context(self) -> int:
        """The longest sequence the model was built for, in tokens."""

    @property
    def max_tokens(self) -> int:
        """The longest sequence a cache of this runtime holds."""

    @property
    def vocab_size(self) -> int:
        """The length of a row of logits."""

    def forward(self, batch: Mapping[str, Tensor]) -> Any:
        """Hidden states with their head for a batch of rows, without a cache."""

    def new_cache(self, *, sequences: int | None = None, tokens: int | None = None) -> Any:
        """An empty cache; only this runtime looks inside it."""

    def step(
        self, ids: Sequence[int], positions: Sequence[int], rows: Sequence[int], cache: Any, *, every: bool = False
    ) -> Tensor:
        """The logits that follow the given tokens, which join the cache."""


class ServingRuntime(Runtime, Protocol):
    """A runtime that can serve many sequences which come and go."""

    @property
    def token_bytes(self) -> int:
        """Memory that one token takes in a cache."""

    def new_rows(self, *, block: int, most_tokens: int = 0) -> RowCache:
        """An empty cache for sequences that come and go, its rows whole blocks of so many tokens.

        It will be asked for `most_tokens` in all, if that is said.
        """

    def step(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        cache: Any,
        *,
        every: bool = False,
        wanted: Sequence[int] | None = None,
        adapters: Mapping[int, str] | None = None,
    ) -> Tensor:
        """The logits after the `wanted` tokens of the call, each row read with the adapter named for it."""

    def load_adapter(self, name: str, folder: Path) -> str:
        """Make an adapter available by a name; returns the digest of what it changes."""

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter."""
