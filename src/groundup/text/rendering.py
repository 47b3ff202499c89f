"""A row of token ids as a person can read it, with what is trained in colour.

Tokens are shown as the text they stand for. A character that several tokens share (byte-level
vocabularies cut Chinese characters in pieces) is shown once, in the style of the last of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape

from groundup.text.streaming import StreamDecoder

if TYPE_CHECKING:
    from groundup.text.tokenizers import Tokenizer

TRAINED, READ, SPECIAL = "bold green", "dim", "cyan"
LEGEND = f"[{TRAINED}]trained[/] [{READ}]only read[/]"


@dataclass(frozen=True)
class Piece:
    """One token of a row to show."""

    token: int
    trained: bool
    """Whether the loss counts it."""
    begins: bool = False
    """Whether another document or segment begins here."""
    seen_as: int | None = None
    """The token that the model reads in its place, where that is another one."""


def markup(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> str:
    """The pieces as rich markup, after a line that explains the colours.

    A run of padding at the end is shown as its length.
    """
    shown, padding = _without_padding(tokenizer, pieces)
    decoder, parts = StreamDecoder(tokenizer), [LEGEND, "\n"]
    for piece in shown:
        if piece.begins:
            parts.append("[yellow] │ [/]")
        style = TRAINED if piece.trained else READ
        if piece.token in tokenizer.special_ids:
            parts += [_styled(decoder.flush(), style), _styled(_name(tokenizer, piece.token), f"{style} {SPECIAL}")]
        else:
            parts.append(_styled(decoder.push(piece.token), style))
        if piece.seen_as is not None:
            parts.append(_styled(f"⟨{_name(tokenizer, piece.seen_as).strip()}⟩", "red"))
    parts.append(_styled(decoder.flush(), READ))
    return "".join([*parts, f"[{READ}] … {padding} padding[/]" if padding else ""])


def _without_padding(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[Sequence[Piece], int]:
    end = len(pieces)
    while end and pieces[end - 1].token == tokenizer.pad_id and not pieces[end - 1].trained:
        end -= 1
    return pieces[:end], len(pieces) - end


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False)


def _styled(text: str, style: str) -> str:
    """The text in a style; a line break is marked, and kept."""
    return f"[{style}]{escape(text).replace(chr(10), '⏎' + chr(10))}[/]" if text else ""
