"""Which language a text is in, told from its letters and its commonest words.

Most languages are told by their script alone. Languages that share the Latin script are told by
their function words (the, und, que, …), which make up a third to a half of running text, and by short
letter sequences for titles and fragments that have none. No model and no download; meant for sorting
documents, not for telling Czech from Slovak.
"""

from __future__ import annotations

import re
from functools import cache

import numpy as np

_SAMPLE = 4000
"""Characters that are looked at; more of them would not change the answer."""
_RANGES = (
    (0x41, 0x5B, "latin"),
    (0x61, 0x7B, "latin"),
    (0xAA, 0xD7, "latin"),
    (0xD8, 0x250, "latin"),
    (0x370, 0x400, "el"),
    (0x400, 0x530, "cyrillic"),
    (0x531, 0x590, "hy"),
    (0x591, 0x600, "he"),
    (0x600, 0x780, "ar"),
    (0x900, 0x980, "hi"),
    (0x980, 0xA00, "bn"),
    (0xB80, 0xC00, "ta"),
    (0xE00, 0xE80, "th"),
    (0x10A0, 0x1100, "ka"),
    (0x1100, 0x1200, "ko"),
    (0x1E00, 0x1F00, "latin"),
    (0x3041, 0x3100, "kana"),
    (0x3400, 0x4DC0, "han"),
    (0x4E00, 0xA000, "han"),
    (0xAC00, 0xD7A4, "ko"),
    (0xF900, 0xFB00, "han"),
    (0x20000, 0x32000, "han"),
)
_SCRIPTS = sorted({name for _, _, name in _RANGES})
_EDGES = np.array([edge for low, high, _ in _RANGES for edge in (low, high)], np.uint32)
_WEIGHTS = np.array([2.5 if name in ("han", "ko") else 1.0 for name in _SCRIPTS])
_AT_EDGE = np.array([i for _, _, name in _RANGES for i in (_SCRIPTS.index(name), -1)], np.int64)

# Function words, and letter sequences that are common in one of these languages and rare in the others.
_WORDS = {
    "en": "the of and to in is was for that it on as with be at by this are from or have an not he his they which you "
    "but had were we their has one all been if will would there what when who can more no out so up its into than "
    "about after over new says your my me do does did",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    "hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se le ce il sont avec son "
    "aux cette mais ont ou elle nous vous être été leur qu je ses comme",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
    "sobre este ya entre cuando todo esta ser son también fue había era muy años hasta desde",
    "it": "di e il la che in a per un del è una i con non le si da al dei della sono alla nel più come lo gli ma anche "
    "ha delle o ci questo se su dal mi dalla era nella stato",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem à seu "
    "sua ou ser quando muito há nos já está eu também só pelo pela até isso",
    "nl": "de van het een en in is dat op te zijn met die voor niet aan er om ook als dan maar bij of uit nog naar "
    "heeft door over ze zich werd hij wordt tot je was worden meer al had",
}
_SEQUENCES = {
    "en": "th wh gh ow ing tion ay ly sh ck oo ew y w k ed ea er",
    "de": "sch ei ß ä ö ü ung cht tz pf keit eu",
    "fr": "é è ê à ç eau oi eux ai que œ aux ez",
    "es": "ñ á í ó ú ción que ue dad ado ¿",
    "it": "gli zz che ò ì à zione tto ella",
    "pt": "ã õ ç ção lh nh á ê ão ões em",
    "nl": "ij aa ee oo ij sch oe ui cht uu dt",
}
_LETTERS = re.compile(r"[^\W\d_]+")
_CYRILLIC_MARKS = {"ru": "ыэъё", "uk": "іїєґ", "sr": "ђјљњћџ"}
LANGUAGES = sorted({*_WORDS, "zh", "ja", "ko", "ru", "uk", "sr", "el", "he", "ar", "hi", "bn", "ta", "th", "ka", "hy"})


def language_of(text: str) -> tuple[str, float]:
    """The language's two-letter code (ISO 639-1) and how sure that is, in [0, 1].

    `und` (undetermined) for text without letters. Of a longer text the first 4,000 characters count.
    Mixed text gets the language with the larger share; a Chinese character weighs as much as two and
    a half Latin letters, which is about what it says.
    """
    sample = text[:_SAMPLE]
    shares = script_shares(sample)
    if not shares:
        return "und", 0.0
    script = max(shares, key=lambda name: shares[name])
    if script in ("han", "kana"):
        asian = shares.get("han", 0.0) + shares.get("kana", 0.0)
        return ("ja" if shares.get("kana", 0.0) > 0.1 * asian else "zh"), asian
    if script == "cyrillic":
        return _cyrillic(sample), shares[script]
    if script == "latin":
        language, sure = _latin(sample)
        return language, sure * shares[script]
    return script, shares[script]


def script_shares(text: str) -> dict[str, float]:
    """The share of each script among the letters of a text, by weight; empty if it has no letters."""
    if text.isascii():
        return {"latin": 1.0} if re.search("[A-Za-z]", text) else {}
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    place = np.searchsorted(_EDGES, codes, side="right") - 1
    script = np.where(place >= 0, _AT_EDGE[place], -1)
    weights = np.bincount(script + 1, minlength=len(_SCRIPTS) + 1)[1:] * _WEIGHTS
    total = weights.sum()
    return {_SCRIPTS[i]: float(weights[i] / total) for i in np.flatnonzero(weights)}


def _latin(text: str) -> tuple[str, float]:
    """The likeliest language in Latin script: function words first, letter sequences where those fail."""
    lowered = text.lower()
    words = _LETTERS.findall(lowered)
    known = _word_table()
    votes = dict.fromkeys(_WORDS, 0.0)
    for word in words:
        for language in known.get(word, ()):
            votes[language] += 1.0 / len(known[word])
    strength = 0.15 * min(1.0, 20 / max(1, len(words)))  # sequences matter in short text only
    for language, sequences in _sequence_table().items():
        votes[language] += strength * len(sequences.findall(lowered))
    total = sum(votes.values())
    if not total:
        return "en", 0.3
    best = max(votes, key=lambda name: votes[name])
    return best, min(1.0, 0.3 + 0.7 * votes[best] / total)


@cache
def _word_table() -> dict[str, list[str]]:
    table: dict[str, list[str]] = {}
    for language, words in _WORDS.items():
        for word in set(words.split()):
            table.setdefault(word, []).append(language)
    return table


@cache
def _sequence_table() -> dict[str, re.Pattern[str]]:
    return {
        language: re.compile("|".join(sorted(s.split(), key=len, reverse=True))) for language, s in _SEQUENCES.items()
    }


def _cyrillic(text: str) -> str:
    lowered = text.lower()
    counts = {name: sum(lowered.count(mark) for mark in marks) for name, marks in _CYRILLIC_MARKS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "ru"
