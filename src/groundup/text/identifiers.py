"""Personal identifiers found in text and replaced by placeholders.

Each kind is a pattern and, where the identifier carries one, a check that a random number fails:
Chinese identity numbers their mod 11-2 digit (GB 11643-1999), card numbers their Luhn digit (ISO/IEC
7812-1) and a known issuer's first digits. A number that is part of something longer, such as another
number, a hexadecimal string, a decimal or a version, is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date
from typing import Literal, get_args

Identifier = Literal["email", "id_number", "card_number", "phone"]
IDENTIFIERS: tuple[Identifier, ...] = get_args(Identifier)
"""All kinds, in the order they are looked for: telephone numbers, the least certain, last."""

# A number stands alone if no letter, digit, underscore or decimal point touches it; ASCII only, since
# Chinese text sets numbers between characters without spaces. A dash before it belongs to it or to a
# longer code (as in a UUID) unless what precedes the dash is no letter or digit.
_ALONE = r"(?<![0-9A-Za-z_.+])(?<![0-9A-Za-z]-)"
_ENDS = r"(?![0-9A-Za-z_]|\.[0-9]|-[0-9A-Za-z])"

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])([A-Za-z0-9][A-Za-z0-9._%+-]{0,63})@((?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+"
    r"([A-Za-z]{2,18}))(?![A-Za-z0-9_(]|-[A-Za-z0-9]|\.[A-Za-z0-9])"
)
_GENERIC = """
com org net edu gov mil int info biz name pro mobi asia app dev cloud online site shop store tech
club xyz top vip wang group work live email ltd company agency blog news world life link space
website fun art bank law health academy museum travel jobs coop aero tel invalid example test local
"""
_TOP_LEVELS = frozenset(_GENERIC.split())
_FILE_ENDINGS = frozenset(["js", "ts", "cs", "vb", "db", "px"])
"""Two-letter endings that are file names or code far more often than countries."""

_ID_NUMBER = re.compile(
    _ALONE + r"([1-9]\d{5})((?:18|19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))(\d{3}[0-9Xx])" + _ENDS
)
_CARD = re.compile(_ALONE + r"(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})" + _ENDS)
_ISSUERS = re.compile(
    r"4|5[1-5]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)|3[47]|3(?:0[0-5]|[689])|35|6(?:011|4[4-9]|5)|62|81"
)
_CARD_LENGTHS = {
    "3": (14, 15, 16, 17, 18, 19),
    "4": (13, 16, 19),
    "5": (16,),
    "2": (16,),
    "6": (16, 17, 18, 19),
    "8": (16, 17, 18, 19),
}

_PHONES = re.compile(
    _ALONE + r"(?:"
    r"(?:\+?86[ -]?)?1[3-9]\d[ -]?\d{4}[ -]?\d{4}"  # Chinese mobile
    r"|(?:\+?86[ -]?)?(?:0(?:10|2\d|[3-9]\d{2})[ -]|\(0(?:10|2\d|[3-9]\d{2})\) ?)\d{7,8}"  # landline in China
    r"|\+\d{8,15}|\+[1-9]\d{0,2}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]\d{2,8}){1,4}"  # international
    r"|(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ -])[2-9]\d{2}[ -]\d{4}"  # North American
    r")" + _ENDS
)
_PROVINCES = frozenset(
    [*range(11, 16), *range(21, 24), *range(31, 38), *range(41, 47), *range(50, 55), *range(61, 66), 71, 81, 82, 83, 91]
)
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CHECKS = "10X98765432"
_DIGITS = re.compile(r"\d[\d().+ -]{6}")


def redact(text: str, kinds: Iterable[Identifier]) -> tuple[str, dict[str, int]]:
    """The text with identifiers replaced by `<EMAIL>`, `<PHONE>`, `<ID_NUMBER>`, `<CARD_NUMBER>`, and their counts.

    Identity and card numbers are looked for before phone numbers, which are shorter and less certain.
    """
    counts: dict[str, int] = {}
    numbers = _DIGITS.search(text) is not None
    for kind in IDENTIFIERS:
        if kind not in kinds or (kind == "email" and "@" not in text) or (kind != "email" and not numbers):
            continue
        text, count = _replace(text, kind)
        if count:
            counts[kind] = count
    return text, counts


def _replace(text: str, kind: Identifier) -> tuple[str, int]:
    pattern, length = _FINDERS[kind]
    mark, count = f"<{kind.upper()}>", 0

    def swap(match: re.Match[str]) -> str:
        nonlocal count
        taken = length(match)
        if not taken:
            return match[0]
        count += 1
        return mark + pattern.sub(swap, match[0][taken:])

    return pattern.sub(swap, text), count


def is_id_number(number: str) -> bool:
    """Whether 18 characters are a Chinese identity number: province, birthday and check digit (GB 11643)."""
    if len(number) != 18 or not number[:17].isdecimal() or int(number[:2]) not in _PROVINCES:
        return False
    try:
        date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_WEIGHTS, number, strict=False))
    return _CHECKS[total % 11] == number[17].upper()


def is_card_number(number: str) -> bool:
    """Whether digits (spaces and dashes aside) are a payment card's: issuer, length and Luhn digit."""
    digits = re.sub(r"[ -]", "", number)
    if not digits.isdecimal() or not _ISSUERS.match(digits) or len(digits) not in _CARD_LENGTHS[digits[0]]:
        return False
    return len(set(digits)) > 1 and luhn_sum(digits) % 10 == 0


def luhn_sum(digits: str) -> int:
    """The Luhn sum of a string of digits; a multiple of ten if the last digit is right."""
    doubled = [int(d) * (2 if i % 2 else 1) for i, d in enumerate(reversed(digits))]
    return sum(d - 9 if d > 9 else d for d in doubled)


def _email_length(match: re.Match[str]) -> int:
    local, top = match[1], match[3].lower()
    if local.endswith(".") or ".." in local:
        return 0
    return len(match[0]) if (len(top) == 2 and top not in _FILE_ENDINGS) or top in _TOP_LEVELS else 0


def _phone_length(match: re.Match[str]) -> int:
    """How much of a match is one telephone number; E.164 allows fifteen digits.

    Groups of digits after a plus sign may run on into the next number; they are given back.
    """
    number = match[0]
    while sum(c.isdecimal() for c in number) > 15 and re.search(r"[ .-]", number):
        number = re.sub(r"[ .-][^ .-]*$", "", number)
    digits = sum(c.isdecimal() for c in number)
    return len(number) if (8 if number.startswith("+") else 10) <= digits <= 15 else 0


_FINDERS: dict[Identifier, tuple[re.Pattern[str], Callable[[re.Match[str]], int]]] = {
    "email": (_EMAIL, _email_length),
    "id_number": (_ID_NUMBER, lambda match: len(match[0]) if is_id_number(match[0]) else 0),
    "card_number": (_CARD, lambda match: len(match[0]) if is_card_number(match[0]) else 0),
    "phone": (_PHONES, _phone_length),
}
