"""What a tokenizer is like: how much text a token holds, what it cannot spell, what it never uses.

Bytes per token are told by script, since one vocabulary may serve English well and Chinese badly.
A token belongs to the script of its first letter; one without letters is `other`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from groundup.text.tokenizers import Tokenizer

SCRIPTS = ("latin", "han", "other")
LONGEST = 20
"""How many of the longest entries a report shows."""
NEVER_USED = 50
"""How many of the entries that are never used a report shows."""
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")
_LATIN = re.compile(
    "[A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff\uff21-\uff3a\uff41-\uff5a]"
)
_LETTER = re.compile(r"[^\W\d_]")


@dataclass
class Usage:
    """Counts over some text, filled by `measure`."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    unknown: int = 0
    by_script: dict[str, Counter[str]] = field(default_factory=lambda: {script: Counter() for script in SCRIPTS})
    by_token: Counter[int] = field(default_factory=Counter)

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text for each token; 0 for no text."""
        return self.bytes / self.tokens if self.tokens else 0.0


def measure(tokenizer: Tokenizer, texts: Iterable[str], *, limit_bytes: int, scripts: bool = True) -> Usage:
    """Counts of encoding the first `limit_bytes` of some texts; `scripts` also by script, which is slower."""
    usage = Usage()
    for group in _groups(texts, limit_bytes):
        sizes = [len(text.encode("utf-8")) for text in group]
        usage.documents, usage.bytes = usage.documents + len(group), usage.bytes + sum(sizes)
        for text, ids in zip(group, tokenizer.encode_batch(group), strict=True):
            usage.tokens += len(ids)
            usage.by_token.update(ids)
            if scripts:
                _by_script(tokenizer, text, usage.by_script)
    usage.unknown = 0 if tokenizer.unk_id is None else usage.by_token[tokenizer.unk_id]
    return usage


def _groups(texts: Iterable[str], limit_bytes: int) -> Iterator[list[str]]:
    stream, seen = iter(texts), 0
    while seen < limit_bytes and (group := list(islice(stream, 32))):
        seen += sum(len(text.encode("utf-8")) for text in group)
        yield group


def _by_script(tokenizer: Tokenizer, text: str, counts: dict[str, Counter[str]]) -> None:
    """Add the tokens of a text, and the bytes they stand for, to their scripts."""
    shown = 0
    for start, end in tokenizer.encode_with_offsets(text).offsets:
        script = _script(text[start:end])
        counts[script]["tokens"] += 1
        # Several tokens may share one character; its bytes count once.
        counts[script]["bytes"] += len(text[max(start, shown) : end].encode("utf-8"))
        shown = max(shown, end)


def _script(piece: str) -> str:
    letter = _LETTER.search(piece)
    if letter is None:
        return "other"
    return "han" if _HAN.match(letter[0]) else "latin" if _LATIN.match(letter[0]) else "other"


def report(tokenizer: Tokenizer, held_out: Usage, training: Usage) -> dict[str, Any]:
    """The figures of a report: `held_out` text for what a token holds, `training` text for what is used."""
    own = {number: token for token, number in tokenizer.vocabulary().items() if number not in tokenizer.special_ids}
    unused = [number for number in own if not training.by_token[number]]
    scripts = {script: c["bytes"] / c["tokens"] for script, c in held_out.by_script.items() if c["tokens"]}
    used = (len(own) - len(unused)) / len(own) if own else 0.0
    return {
        "vocab_size": tokenizer.vocab_size,
        "bytes_per_token": held_out.bytes_per_token,
        "bytes_per_token_by_script": scripts,
        "tokens_by_script": {script: c["tokens"] for script, c in held_out.by_script.items()},
        "unknown_rate": held_out.unknown / held_out.tokens if held_out.tokens else 0.0,
        "vocabulary_used": used,
        "entries_never_used": len(unused),
        "never_used": _longest_first(map(tokenizer.spelling, unused))[:NEVER_USED],
        "longest_tokens": _longest(tokenizer, own, training),
        "measured_on": {
            "bytes": held_out.bytes,
            "documents": held_out.documents,
            "tokens": held_out.tokens,
            "training_bytes": training.bytes,
        },
    }


def _longest(tokenizer: Tokenizer, own: dict[int, str], training: Usage) -> list[dict[str, Any]]:
    spelled = {tokenizer.spelling(number): number for number in own}
    longest = _longest_first(spelled)[:LONGEST]
    return [{"token": text, "characters": len(text), "used": training.by_token[spelled[text]]} for text in longest]


def _longest_first(texts: Iterable[str]) -> list[str]:
    return sorted(texts, key=lambda text: (-len(text), text))


def markdown(figures: dict[str, Any], title: str) -> str:
    """A report as a page to read."""
    rows = [
        ("entries", f"{figures['vocab_size']:,}"),
        ("bytes per token", f"{figures['bytes_per_token']:.3f}"),
        *((f"bytes per token, {name}", f"{value:.3f}") for name, value in figures["bytes_per_token_by_script"].items()),
        ("unknown tokens", f"{figures['unknown_rate']:.3%}"),
        ("entries in use", f"{figures['vocabulary_used']:.1%}"),
        ("entries never used", f"{figures['entries_never_used']:,}"),
    ]
    on = figures["measured_on"]
    lines = [f"# {title}", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
    lines += [
        f"Bytes per token and unknown tokens: {on['split']} split, {on['documents']:,} documents, "
        f"{on['bytes']:,} bytes. Use of entries: {on['training_bytes']:,} bytes of the training split.",
        "",
        "## Longest tokens",
        "",
        "| token | characters | used |",
        "|---|---|---|",
        *(f"| {_cell(row['token'])} | {row['characters']} | {row['used']:,} |" for row in figures["longest_tokens"]),
        "",
    ]
    if figures["never_used"]:
        lines += ["## Some entries never used", "", ", ".join(_cell(token) for token in figures["never_used"]), ""]
    return "\n".join(lines)


def _cell(token: str) -> str:
    """A token as inline code that survives a Markdown table."""
    shown = repr(token)[1:-1].replace("|", "\\|").replace("`", "'")
    return f"`{shown}`"
