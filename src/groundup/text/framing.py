"""A text, or two, as one input of a model: cut to fit, between the special tokens the tokenizer puts there.

`[CLS] A [SEP] B [SEP]` for BERT, `<s> A </s></s> B </s>` for RoBERTa: what stands around the texts is the
tokenizer's own business and is asked of it. A tokenizer for models that read from left to right often
puts nothing there; then two texts are divided by a line end, and the end-of-text token comes last, as
the place where the model has read everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from groundup.errors import DataError
from groundup.text.tokenizers import Tokenizer


class Framed(NamedTuple):
    """One input: ids and token types of equal length, and how many tokens of the texts were cut off."""

    ids: list[int]
    types: list[int]
    cropped: int


@dataclass(frozen=True)
class Frame:
    """What stands before, between and after the texts, each token with its type; None is a text."""

    parts: tuple[tuple[int | None, int], ...]
    context: int

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, pair: bool, context: int) -> Frame:
        """The frame of a tokenizer for inputs of at most `context` tokens.

        Raises DataError for a context that leaves no room for a token of each text.
        """
        parts = list(tokenizer.around(pair=pair))
        if tokenizer.cls_id is None and all(token is None for token, _ in parts[1:]):
            if pair:
                second = next(i for i in range(len(parts) - 1, -1, -1) if parts[i][0] is None)
                parts[second:second] = [(token, 0) for token in tokenizer.encode("\n")]
            parts += [] if tokenizer.eos_id is None else [(tokenizer.eos_id, 0)]
        room = context - sum(token is not None for token, _ in parts)
        if room < 1 + pair:
            raise DataError(
                f"a context of {context} tokens leaves no room for text beside the special tokens",
                fix="set a longer max_length",
            )
        return cls(tuple(parts), context)

    @property
    def room(self) -> int:
        """Tokens left for the texts."""
        return self.context - sum(token is not None for token, _ in self.parts)

    def __call__(self, *texts: Sequence[int]) -> Framed:
        """The texts' ids in their frame; of two that are too long together, the longer one is cut first."""
        kept = _fitted([len(ids) for ids in texts], self.room)
        ids: list[int] = []
        types: list[int] = []
        left = iter(zip(texts, kept, strict=True))
        for token, kind in self.parts:
            if token is None:
                text, size = next(left)
                ids += text[:size]
                types += [kind] * size
            else:
                ids.append(token)
                types.append(kind)
        return Framed(ids, types, sum(map(len, texts)) - sum(kept))


def _fitted(sizes: list[int], room: int) -> list[int]:
    """The sizes, cut until they fit together: always the longest of them, the last one of equals."""
    if sum(sizes) <= room:
        return sizes
    if len(sizes) == 1:
        return [room]
    first, second = sizes
    half = room // 2
    if first <= half:
        return [first, room - first]
    if second <= half:
        return [room - second, second]
    return [room - half, half]
