"""What a runtime offers to whoever executes a model: evaluation, generation, the server.

A runtime owns its model and its caches. Work comes as one flat list of tokens with the row (sequence)
and position of each, so that a prompt, one new token for many sequences, or both together are the
same call; what a runtime cannot do at once, its capabilities say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Capabilities:
    """What a scheduler may plan for."""

    paged: bool
    """Caches are made of blocks that any sequence can take."""
    mixes_phases: bool
    """Prompts and single new tokens may share a call."""
    shares_prefixes: bool
    """Two sequences may read the same cached beginning."""
    contiguous_rows: bool
    """The rows of a call must be neighbours in the cache."""
    copies_rows: bool
    """A row of the cache can be copied to another."""


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
