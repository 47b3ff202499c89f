"""The part of a recipe's model section that all Transformers share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from groundup.config import Named
from groundup.units import PositiveCount, Share


class TransformerSection(Named):
    """Sizes, dropout and initialisation of a Transformer."""

    vocab_size: PositiveCount | None = None
    """Number of tokens; follows from the tokenizer if not given."""
    d_model: PositiveCount = 256
    """Width of the hidden states."""
    n_layers: PositiveCount = 6
    """Number of blocks."""
    n_heads: PositiveCount = 4
    """Number of attention heads."""
    context: PositiveCount = 256
    """The longest row, in tokens."""
    dropout: Share = 0.0
    """Share of values dropped after the embeddings and before each residual sum, in training."""
    attention_dropout: Share = Field(default_factory=lambda values: values["dropout"])
    """Share of attention weights dropped in training; as `dropout` if not given. Slow on CPUs."""
    initialiser: Literal["normal", "scaled_normal", "xavier", "kaiming", "zeros"] = "scaled_normal"
    """How weights begin; see `groundup.nn.initialisers`."""
    initialiser_std: float = Field(default=0.02, ge=0)
    """Standard deviation of `normal` and `scaled_normal`, and of embedding tables."""

    @property
    def vocabulary(self) -> int:
        """The vocabulary size. Raises ValueError while it is not known."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not known yet: give it, or take it from the tokenizer")
        return self.vocab_size


def whole_heads(d_model: int, n_heads: int) -> None:
    """Raise ValueError, with the nearest widths that fit, if heads do not share the width evenly."""
    if d_model % n_heads:
        below, above = d_model // n_heads * n_heads, -(-d_model // n_heads) * n_heads
        widths = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"d_model {d_model} cannot be shared by n_heads {n_heads} evenly: "
            f"set d_model to {widths}, or n_heads to a divisor of {d_model}"
        )
