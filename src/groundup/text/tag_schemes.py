"""How tags mark where a named thing begins and ends, and which tags may stand side by side.

A tag is `O` or a prefix and a kind, `B-PER`. In BIO (IOB2) a thing begins with B and goes on with I. In
IOB1, of CoNLL-2003, it begins with I, and with B only right after another of its kind. BIOES and BMES
also mark the end (E) and a thing of one token (S); BMES says M where BIOES says I. `plain` tags, such as
parts of speech, mean what they say.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

Scheme = Literal["bio", "iob1", "bioes", "bmes", "plain"]
OUTSIDE = "O"
_PREFIXES: dict[str, frozenset[str]] = {
    "bio": frozenset("BI"),
    "iob1": frozenset("BI"),
    "bioes": frozenset("BIES"),
    "bmes": frozenset("BMES"),
}


def parts(tag: str) -> tuple[str, str]:
    """Prefix and kind of a tag: `B-PER` is B of PER, `O` is O of nothing."""
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def detect(sentences: Iterable[Sequence[str]]) -> Scheme:
    """The scheme of tagged sentences: `plain` if their tags have none."""
    seen: set[str] = set()
    begins_with_i = begins_with_b = False
    for tags in sentences:
        before = ("", "")
        for tag in tags:
            prefix, kind = parts(tag)
            if prefix not in ("O", "B", "I", "M", "E", "S") or (prefix == "O" and kind):
                return "plain"
            seen.add(prefix)
            continues = before[1] == kind and before[0] in ("B", "I")
            begins_with_i |= prefix == "I" and not continues
            begins_with_b |= prefix == "B" and not continues
            before = (prefix, kind)
    if not seen & {"B", "I", "S"}:
        return "plain"
    if "M" in seen:
        return "bmes"
    if seen & {"E", "S"}:
        return "bioes" if "I" in seen else "bmes"
    return "iob1" if begins_with_i and not begins_with_b else "bio"


def may_begin(tag: str, scheme: Scheme) -> bool:
    """Whether a text may begin with the tag."""
    return scheme in ("plain", "iob1") or parts(tag)[0] in ("O", "B", "S")


def may_end(tag: str, scheme: Scheme) -> bool:
    """Whether a text may end with the tag."""
    return scheme in ("plain", "iob1", "bio") or parts(tag)[0] in ("O", "E", "S")


def may_follow(tag: str, before: str, scheme: Scheme) -> bool:
    """Whether the tag may stand right after another."""
    if scheme in ("plain", "iob1"):
        return True
    (prefix, kind), (prefix_before, kind_before) = parts(tag), parts(before)
    goes_on = prefix in ("I", "M", "E")
    if goes_on:
        return prefix_before in ("B", "I", "M") and kind == kind_before
    return scheme == "bio" or prefix_before not in ("B", "I", "M")


def fault(tags: Sequence[str], scheme: Scheme) -> str:
    """What breaks the scheme in a sentence, with the token's number from 1; empty if nothing does."""
    allowed = _PREFIXES.get(scheme)
    for place, tag in enumerate(tags):
        prefix, kind = parts(tag)
        if allowed is not None and not (prefix == OUTSIDE and not kind) and prefix not in allowed:
            return f"the tag {tag!r} of token {place + 1} is none of {scheme.upper()}"
        if place == 0 and not may_begin(tag, scheme):
            return f"token 1 has the tag {tag!r}, with which nothing begins in {scheme.upper()}"
        if place and not may_follow(tag, tags[place - 1], scheme):
            before = tags[place - 1]
            return f"token {place + 1} has the tag {tag!r} after {before!r}, which {scheme.upper()} does not allow"
    if tags and not may_end(tags[-1], scheme):
        return f"the last token has the tag {tags[-1]!r}, which leaves something open in {scheme.upper()}"
    return ""


def to_bio(tags: Sequence[str]) -> list[str]:
    """Tags of BIO or IOB1 with every thing beginning with B: an I that continues nothing becomes one."""
    found: list[str] = []
    before = ("O", "")
    for tag in tags:
        prefix, kind = parts(tag)
        continues = prefix == "I" and before[0] in ("B", "I") and before[1] == kind
        found.append(f"B{tag[1:]}" if prefix == "I" and not continues else tag)
        before = (prefix, kind)
    return found


def repaired(tags: Sequence[str], scheme: Scheme) -> list[str]:
    """The nearest tags that keep to the scheme: things read as leniently as CoNLL's script does, written anew."""
    if scheme == "plain":
        return list(tags)
    if scheme in ("bio", "iob1"):
        return to_bio(tags)
    found = [OUTSIDE] * len(tags)
    inside = "M" if scheme == "bmes" else "I"
    for start, stop, kind in _things(tags):
        letters = ["S"] if stop - start == 1 else ["B", *[inside] * (stop - start - 2), "E"]
        found[start:stop] = [f"{letter}-{kind}" if kind else letter for letter in letters]
    return found


def _things(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """First token, token after the last, and kind of everything that is marked."""
    found: list[tuple[int, int, str]] = []
    start, before = -1, ("O", "")
    for place, tag in enumerate([*tags, OUTSIDE]):
        prefix, kind = parts(tag)
        goes_on = prefix in ("I", "M", "E") and before[0] in ("B", "I", "M") and before[1] == kind and start >= 0
        if not goes_on:
            if start >= 0:
                found.append((start, place, before[1]))
            start = -1 if prefix == OUTSIDE else place
        before = (prefix, kind)
    return found
