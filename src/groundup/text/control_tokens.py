"""Text with special tokens in it, where only those that a template wrote are special.

A rendered chat is one string in which `<|im_end|>` may have been written by the template or typed by
a user. Before rendering, what users typed is *guarded*: a character that occurs nowhere else is put
into each special token inside their strings, so that afterwards the two can be told apart. The
template's own are then encoded as tokens and the users' as ordinary text, in one pass over the whole
string: the ids on either side are what they would be anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import tokenizers as library

if TYPE_CHECKING:
    from groundup.text.tokenizers import Tokenizer

MARKS, GUARDS = range(0xF0000, 0xFF000), range(0xFF000, 0xFFFFE)
"""Private-use characters for marks; those that the data itself holds are left out."""
ALIASES = range(0x100000, 0x10FFFE)
"""Private-use characters that stand for special tokens."""


class Sealed(NamedTuple):
    """A text with its ids and the characters that each of them covers; the two lists are equally long."""

    text: str
    ids: list[int]
    offsets: list[tuple[int, int]]


class ControlTokens:
    """The tokens of a tokenizer that only a template may write."""

    def __init__(self, tokenizer: Tokenizer, structural: Collection[str] = ()) -> None:
        """All special tokens; beside them those that merely have an entry of their own and are `structural`."""
        self._data = json.loads(tokenizer.to_json()) | {"post_processor": None, "truncation": None, "padding": None}
        self._tokenizer = tokenizer
        self._entries = {
            token["content"]: token
            for token in self._data["added_tokens"]
            if (token["special"] or token["content"] in structural) and len(token["content"]) > 1
        }
        self.special_ids = frozenset(int(token["id"]) for token in self._entries.values())
        self.pattern = one_of(self._entries)

    @property
    def names(self) -> list[str]:
        """The tokens as text."""
        return list(self._entries)

    def guard(self, value: Any, mark: str) -> Any:
        """Nested data with a mark in every control token that a string of it holds, or might help to make.

        The text of a message may be put together with another's, so a beginning of a token at the end
        of a string, and an end of one at its beginning, are marked as well. Roles are left alone.
        """
        if isinstance(value, str):
            broken = self.pattern.sub(lambda found: f"{found[0][0]}{mark}{found[0][1:]}", value)
            return f"{mark * self._is_tail(broken)}{broken}{mark * self._is_head(broken)}"
        if isinstance(value, Mapping):
            return {
                self.guard(key, mark): item if key == "role" else self.guard(item, mark) for key, item in value.items()
            }
        return [self.guard(item, mark) for item in value] if isinstance(value, list) else value

    def encode(self, text: str, mark: str | None = None) -> Sealed:
        """The text without marks, its ids and their places in it."""
        if mark is None or mark not in text:
            found = self._engine.encode(text, add_special_tokens=False)
            return Sealed(text, list(found.ids), list(found.offsets))
        aliases, engine, ids = self._aliased(next(base for base in ALIASES[::4096] if _is_free(base, text)))
        written, places, clean = self._written(text, mark, aliases)
        found = engine.encode(written, add_special_tokens=False)
        offsets = [(places[start], places[end]) for start, end in found.offsets]
        return Sealed(clean, [ids.get(token, token) for token in found.ids], offsets)

    def _written(self, text: str, mark: str, aliases: Mapping[str, str]) -> tuple[str, list[int], str]:
        """The text with aliases for the template's tokens, the place of each character, and the clean text."""
        written: list[str] = []
        places: list[int] = []
        position = 0
        for piece, is_control in self._pieces(text, mark):
            written.append(aliases[piece] if is_control else piece)
            places += [position] if is_control else range(position, position + len(piece))
            position += len(piece)
        return "".join(written), [*places, position], text.replace(mark, "")

    def _pieces(self, text: str, mark: str) -> Iterator[tuple[str, bool]]:
        """The text without marks in pieces, and whether each is a control token of the template's."""
        last = 0
        for found in self.pattern.finditer(text):
            yield text[last : found.start()].replace(mark, ""), False
            yield found[0], True
            last = found.end()
        yield text[last:].replace(mark, ""), False

    def _is_head(self, text: str) -> bool:
        """Whether the text ends with a beginning of a control token."""
        return any(text[-size:] in self._heads for size in range(1, min(len(text), self._longest) + 1))

    def _is_tail(self, text: str) -> bool:
        """Whether the text begins with an end of a control token."""
        return any(text[:size] in self._tails for size in range(1, min(len(text), self._longest) + 1))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._entries), default=0)

    @cached_property
    def _heads(self) -> frozenset[str]:
        return frozenset(name[:size] for name in self._entries for size in range(1, len(name)))

    @cached_property
    def _tails(self) -> frozenset[str]:
        return frozenset(name[size:] for name in self._entries for size in range(1, len(name)))

    @cached_property
    def _engine(self) -> library.Tokenizer:
        return library.Tokenizer.from_str(json.dumps(self._data))

    def _aliased(self, base: int) -> tuple[dict[str, str], library.Tokenizer, dict[int, int]]:
        """Aliases by token, an engine that knows the tokens by these only, and its ids that are not ours."""
        if base not in self._aliased_engines:
            kept = [token for token in self._data["added_tokens"] if token["content"] not in self._entries]
            engine = library.Tokenizer.from_str(json.dumps(self._data | {"added_tokens": kept}))
            aliases = {name: chr(base + place) for place, name in enumerate(self._entries)}
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            engine.add_tokens(
                [
                    library.AddedToken(alias, **{flag: self._entries[name][flag] for flag in flags})
                    for name, alias in aliases.items()
                ]
            )
            real = {alias: name for name, alias in aliases.items()}
            ids = {
                theirs: self._tokenizer.token_id(real.get(token.content, token.content))
                for theirs, token in engine.get_added_tokens_decoder().items()
            }
            known = {theirs: ours for theirs, ours in ids.items() if ours is not None}
            self._aliased_engines[base] = (aliases, engine, known)
        return self._aliased_engines[base]

    @cached_property
    def _aliased_engines(self) -> dict[int, tuple[dict[str, str], library.Tokenizer, dict[int, int]]]:
        return {}


def one_of(names: Collection[str]) -> re.Pattern[str]:
    """A pattern that finds any of the names, the longest first; it finds nothing where there are none."""
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)) or "(?!)")


def unused_marks(data: Any, count: int, among: range = MARKS) -> list[str]:
    """Characters that occur nowhere in nested plain data."""
    used = set(json.dumps(data, ensure_ascii=False))
    return list(islice((chr(code) for code in among if chr(code) not in used), count))


def _is_free(base: int, text: str) -> bool:
    return not any(base <= ord(character) < base + 4096 for character in text)
