"""Text from tokens as they arrive, in whole characters.

A token of a byte-level vocabulary may end in the middle of a Chinese character, and an emoji may be
several characters joined. What is not yet whole is held back until the tokens that complete it are
there, so that a reader never sees half of one; `flush` gives what is left at the end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

BROKEN = "\ufffd"
_BASE = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25a0-\u27bf\u2900-\u297f\u2b00-\u2bff"
    "\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5\U0001f200-\U0001faff]"
)
_EXTENSION = "[\ufe0e\ufe0f\u20e3\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f]"
_EMOJI = f"{_BASE}{_EXTENSION}*(?:\u200d{_BASE}{_EXTENSION}*)*\u200d?"
_LAST_EMOJI = re.compile(rf"{_EMOJI}\Z")
_LAST_FLAG = re.compile("[\U0001f1e6-\U0001f1ff]+\\Z")
LONGEST_EMOJI = 32
"""Characters held back for one emoji; the longest in use has ten. Beyond it, text flows again."""


class Decodes(Protocol):
    """What can turn ids into text: a Tokenizer."""

    def decode(self, ids: list[int], skip_special: bool = False) -> str:
        """The text of ids."""
        ...


class StreamDecoder:
    """Turns ids into text one by one; the pieces put together equal the decoding of all ids at once.

    Each `push` costs the decoding of a few tokens, not of everything so far.
    """

    def __init__(self, tokenizer: Decodes, *, skip_special: bool = False) -> None:
        self._tokenizer, self._skip_special = tokenizer, skip_special
        self._ids: list[int] = []
        """Ids since a place where text was whole; the first `_context` of them are decoded and shown."""
        self._context = 0
        self._shown = ""
        """The text of those."""
        self._held = ""

    def prime(self, ids: Sequence[int]) -> None:
        """Read what stands before the text and was shown already: what a token's text is may depend on it."""
        self._ids = list(ids)
        self._context, self._held = len(self._ids), ""
        self._shown = self._decode(self._ids)

    def push(self, token_id: int) -> str:
        """The text that became whole with this id, often one token's, sometimes none."""
        self._ids.append(token_id)
        return self._emit(final=False)

    def flush(self) -> str:
        """What was held back; a character that never became whole is U+FFFD."""
        return self._emit(final=True)

    def _emit(self, *, final: bool) -> str:
        decoded = self._decode(self._ids)
        fresh = decoded[len(self._shown) :]
        if fresh.endswith(BROKEN) and not final:
            return ""
        text = self._held + fresh
        # A decoder treats the first token apart (a leading space falls away), so the tokens kept as
        # context for the next ones must show some text of their own.
        own = self._decode(self._ids[self._context :])
        if own:
            del self._ids[: self._context]
        self._context, self._shown = len(self._ids), own or decoded
        whole = len(text) if final else len(text) - _held_back(text)
        self._held = text[whole:]
        return text[:whole]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special=self._skip_special) if ids else ""


def _held_back(text: str) -> int:
    """How many characters at the end may be part of an emoji or flag that is still arriving."""
    tail = text[-LONGEST_EMOJI:]
    flags = _LAST_FLAG.search(tail)
    if flags is not None:
        return len(flags[0]) % 2
    emoji = _LAST_EMOJI.search(tail)
    return 0 if emoji is None or len(emoji[0]) >= LONGEST_EMOJI else len(emoji[0])
