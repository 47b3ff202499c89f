"""Which character encoding a file is in, found from its bytes.

Text in the wild is UTF-8, UTF-16 (with or without a byte order mark) or, for Chinese, GB18030 and
its subsets GBK and GB2312. UTF-8 is nearly impossible to hit by accident, so whatever decodes as
UTF-8 is UTF-8. UTF-16 shows by its zero bytes or, for Chinese, by reading as plausible characters;
GB18030 is accepted only if most of it reads as common Chinese, because nearly any run of Latin-1
bytes is also valid GB18030. Anything else is not guessed at: the recipe names it with `encoding`.
"""

from __future__ import annotations

import codecs
import unicodedata

PROBE_BYTES = 1 << 18
"""How much of a file's beginning is enough to tell its encoding."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_COMMON_GB_LEADS = frozenset([0xA1, 0xA3, *range(0xB0, 0xD8)])
"""Lead bytes of GB 2312: punctuation, full-width forms, and the 3,755 commonest characters."""


def detect(head: bytes, *, whole: bool = False) -> str | None:
    """The codec name of a file that begins with `head`, or None for bytes that are no known text.

    `ascii` is returned for plain ASCII, which says nothing yet about the rest of a longer file.
    `whole` says that `head` is the entire file, so that a character cut at its end is an error.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if _decodes(head, "utf-8", whole) and b"\0" not in head:
        return "ascii" if head.isascii() else "utf-8"
    sample = head[: 1 << 14]
    wide = _utf_16(sample)
    if wide is not None:
        return wide
    if b"\0" not in head and _reads_as_chinese(_from_first_high_byte(head)) and _decodes(head, "gb18030", whole):
        return "gb18030"
    return None


def is_binary(head: bytes) -> bool:
    """Whether bytes are no text in any encoding that is recognised: they hold zeros or control codes."""
    if detect(head) is not None:
        return False
    controls = sum(head.count(code) for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 14, 15, 16, 17, 18, 19))
    return controls > len(head) // 200


def _decodes(data: bytes, encoding: str, whole: bool) -> bool:
    """Whether bytes decode strictly; unless `whole`, a character cut off at the end is no fault."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(data, final=whole)
    except UnicodeDecodeError:
        return False
    return True


def _utf_16(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark, told by which byte order reads as plausible text."""
    if len(sample) < 4:
        return None
    shares = {}
    for name in ("utf-16-le", "utf-16-be"):
        text = sample[: len(sample) // 2 * 2].decode(name, "replace")
        shares[name] = _plausible(text)
    best = max(shares, key=lambda name: shares[name])
    other = min(shares.values())
    return best if shares[best] > 0.97 and other < 0.9 and _has_zeros_or_ascii(sample, best) else None


def _has_zeros_or_ascii(sample: bytes, encoding: str) -> bool:
    """Whether a UTF-16 reading contains line ends, spaces or Latin text, as all longer text does."""
    return any(byte == 0 for byte in (sample[1::2] if encoding == "utf-16-le" else sample[0::2]))


def _plausible(text: str) -> float:
    """The share of characters that ordinary Latin, CJK, Cyrillic or Greek text is made of."""
    good = sum(1 for c in text if c in "\t\n\r" or (_is_common(ord(c)) and unicodedata.category(c)[0] != "C"))
    return good / len(text)


def _is_common(code: int) -> bool:
    return (
        0x20 <= code < 0x530  # Latin, Greek, Cyrillic
        or 0x590 <= code < 0x700  # Hebrew, Arabic
        or 0x2010 <= code < 0x2040  # punctuation
        or 0x3000 <= code < 0x3100  # CJK punctuation, kana
        or 0x4E00 <= code < 0x9FA6  # Chinese characters
        or 0xAC00 <= code < 0xD7A4  # Hangul
        or 0xFF01 <= code < 0xFF5F  # full-width forms
    )


def _from_first_high_byte(head: bytes) -> bytes:
    """The part of the bytes that says something: a long text may begin with plain ASCII."""
    start = len(head) - len(head.lstrip(bytes(range(128))))
    return head[start : start + (1 << 14)]


def _reads_as_chinese(sample: bytes) -> bool:
    """Whether most pairs of high bytes are punctuation or common characters of GB 2312."""
    pairs = common = position = 0
    while position < len(sample) - 1:
        if sample[position] < 0x80:
            position += 1
            continue
        pairs += 1
        common += sample[position] in _COMMON_GB_LEADS and sample[position + 1] >= 0xA1
        position += 2
    return pairs > 0 and common / pairs >= 0.6
