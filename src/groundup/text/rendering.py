"""A row of token ids as a person can read it, with what is trained in colour.

Tokens are shown as the text they stand for. A character that several tokens share (byte-level
vocabularies cut Chinese characters in pieces) is shown once, in the style of the last of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from rich.markup import escape

from groundup.text.streaming import StreamDecoder

if TYPE_CHECKING:
    from groundup.text.tokenizers import Tokenizer

TRAINED, READ, SPECIAL, READ_AS, BORDER = "bold green", "dim", "cyan", "red", "yellow"
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
    runs = [*_runs(tokenizer, shown), (f" … {padding} padding" if padding else "", READ)]
    joined = ((style, "".join(text for text, _ in group)) for style, group in groupby(runs, key=lambda run: run[1]))
    return f"{LEGEND}\n" + "".join(_styled(text, style) for style, text in joined if text)


def pieces(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The text of each token; a character that several share stands with the last of them."""
    decoder, found = StreamDecoder(tokenizer), [""]
    for token in ids:
        if token in tokenizer.special_ids:
            found[-1] += decoder.flush()
            decoder = StreamDecoder(tokenizer)
            found.append(_name(tokenizer, token))
        else:
            found.append(decoder.push(token))
    found[-1] += decoder.flush()
    return found[1:]


def _runs(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Texts in order, each with its style."""
    decoder = StreamDecoder(tokenizer)
    for piece in pieces:
        style = TRAINED if piece.trained else READ
        if piece.token in tokenizer.special_ids:
            yield decoder.flush(), style
            decoder = StreamDecoder(tokenizer)
        if piece.begins:
            yield " │ ", BORDER
        if piece.token in tokenizer.special_ids:
            yield _name(tokenizer, piece.token), f"{style} {SPECIAL}"
        else:
            yield decoder.push(piece.token), style
        if piece.seen_as is not None:
            yield f"⟨{_name(tokenizer, piece.seen_as).strip()}⟩", READ_AS
    yield decoder.flush(), READ


def _without_padding(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[Sequence[Piece], int]:
    end = len(pieces)
    while end and pieces[end - 1].token == tokenizer.pad_id and not pieces[end - 1].trained:
        end -= 1
    return pieces[:end], len(pieces) - end


def _name(tokenizer: Tokenizer, token: int) -> str:
    return tokenizer.decode([token], skip_special=False)


def _styled(text: str, style: str) -> str:
    """The text in a style; a line break is marked, and kept."""
    marked = text.replace("\n", "⏎\n")
    body = marked.rstrip("\\")
    # rich reads two backslashes before a tag as one, and one as an escape of the tag.
    return f"[{style}]{escape(body)}{chr(92) * 2 * (len(marked) - len(body))}[/]"
