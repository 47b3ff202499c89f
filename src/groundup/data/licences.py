"""Whether a licence, as a data set or model states it, keeps its users from something.

Licences are carried as the words of their sources: an SPDX name, a link, a sentence. This reads enough
of them to warn aloud; it is no legal advice, and a licence that it does not know passes in silence.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_NON_COMMERCIAL = re.compile(
    r"\bnc\b|non[-\s]?commercial|not\s+for\s+commercial|no\s+commercial\s+use|(?:academic|research|evaluation|personal"
    r"|educational)[-\s]+(?:use[-\s]+|purposes?[-\s]+)?only|only\s+for\s+(?:academic|research|personal|educational)"
    r"|^(?:for\s+)?(?:academic|research)\b|for\s+(?:academic|research)(?:\s+use|\s+purposes)\s+only|非商业|禁止商用|不得商用|不可商用|仅[限供](?:于)?(?:学术|研究|科研)",
    re.IGNORECASE,
)
_COMMUNITY = re.compile(
    r"\bllama[-\s]?\d|llama.*community|\bgemma\b|openrail|\brail\b|falcon-\w*-?license|deepseek.*licen[cs]e"
    r"|tongyi|qianwen|qwen[-\s\w]*licen[cs]e|mrl\b|mistral.*research|community\s+licen[cs]e|acceptable\s+use",
    re.IGNORECASE,
)
_UNSAID = re.compile(r"^(?:other|custom|unknown|see\s.*|proprietary|all rights reserved)$", re.IGNORECASE)


def is_restricted(text: str) -> str | None:
    """Why a licence needs a second look before its data or weights are used, or None.

    Non-commercial licences (CC BY-NC and its kin, "research only"), licences of a community with
    conditions of their own (Llama, Gemma, OpenRAIL), and those that say nothing ("other").
    """
    stated = text.strip()
    if _NON_COMMERCIAL.search(re.sub(r"[-_/]", " ", stated)) or _NON_COMMERCIAL.search(stated):
        return "allows no commercial use"
    if _COMMUNITY.search(stated):
        return "is a community's own, with conditions on use"
    if _UNSAID.search(stated):
        return "is none of the usual ones: read it before you use what it covers"
    return None


def warnings(licences: Mapping[str, str]) -> list[str]:
    """One line for each licence that needs a second look, naming what it covers."""
    found = ((covered, text, is_restricted(text)) for covered, text in licences.items())
    return [f"the licence of {covered} ({text}) {reason}" for covered, text, reason in found if reason]
