"""The parts of a recipe's model section that families share: all Transformers of tokens, and the classic networks.

What follows from the data (a vocabulary, the size of the images, the number of features) may be left open
in a recipe; `filled` closes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, WithJsonSchema

from groundup.config import Named
from groundup.errors import UserError
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


def _height_and_width(given: Any) -> Any:
    return given if isinstance(given, list | tuple) or given is None else (given, given)


ImageSize = Annotated[
    tuple[PositiveCount, PositiveCount],
    BeforeValidator(_height_and_width),
    WithJsonSchema({"type": ["integer", "string", "array"], "examples": [224, [32, 128]]}),
]
"""Height and width in pixels; one number for both."""


class NetworkSection(Named):
    """Dropout and initialisation of a network that is no Transformer of tokens."""

    dropout: Share = 0.0
    """Share of values dropped in training; where, the model's own page says."""
    initialiser: Literal["normal", "xavier", "kaiming", "zeros"] = "kaiming"
    """How weights begin; see `groundup.nn.initialisers`."""
    initialiser_std: float = Field(default=0.02, ge=0)
    """Standard deviation of `normal`, and of embedding tables."""


class ImageSection(NetworkSection):
    """A network that reads images."""

    image_size: ImageSize | None = None
    """Height and width of the images in pixels, or one number for both; follows from the data if not given."""
    channels: PositiveCount | None = None
    """Numbers a pixel: 1 for grey, 3 for colour; follows from the data if not given."""

    @property
    def context(self) -> int:
        """The longest input in positions: an image is one."""
        return 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image. Raises UserError while they are not known."""
        if self.image_size is None or self.channels is None:
            what = f"the model {self.name!r} does not know the size of its images"
            raise UserError(what, fix="give `image_size` and `channels`, or take them from the data")
        return self.channels, *self.image_size


AnySection = TransformerSection | NetworkSection
"""The section of any family that `create` makes."""
S = TypeVar("S", bound=Named)


def filled(section: S, known: Mapping[str, Any]) -> S:
    """The section, with the values the data gives (`vocab_size`, `image_size`, `n_features`, …) where it has none.

    What the section does not know is left out: not every model asks for everything that is known.
    """
    open_keys = [key for key in known if key in type(section).model_fields and getattr(section, key) is None]
    given = {key: getattr(section, key) for key in section.model_fields_set}
    return type(section)(**given | {key: known[key] for key in open_keys}) if open_keys else section


def whole_heads(d_model: int, n_heads: int) -> None:
    """Raise ValueError, with the nearest widths that fit, if heads do not share the width evenly."""
    if d_model % n_heads:
        below, above = d_model // n_heads * n_heads, -(-d_model // n_heads) * n_heads
        widths = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"d_model {d_model} cannot be shared by n_heads {n_heads} evenly: "
            f"set d_model to {widths}, or n_heads to a divisor of {d_model}"
        )
