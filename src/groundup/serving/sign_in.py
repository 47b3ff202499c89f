"""The page a browser gets without a key: one field, no script, nothing about what is served here."""

from __future__ import annotations

import base64
import hashlib
import html
from string import Template

TEXTS = {
    "en": {
        "title": "Sign in · groundup",
        "ask": "API key",
        "hint": "It was printed when the server first started. <code>groundup keys create</code> makes another.",
        "send": "Sign in",
        "wrong": "That key is not valid here.",
        "often": "Too many wrong keys. Wait a minute and try again.",
    },
    "zh": {
        "title": "登录 · groundup",
        "ask": "API 密钥",
        "hint": "服务首次启动时打印过密钥；<code>groundup keys create</code> 可另建一个。",
        "send": "登录",
        "wrong": "此密钥在这里无效。",
        "often": "错误的密钥太多，请等一分钟再试。",
    },
}
STYLE = """:root{color-scheme:light dark}body{font:16px/1.5 system-ui,sans-serif;display:grid;min-height:100vh;
place-items:center;margin:0}form{width:min(22rem,90vw);display:grid;gap:.75rem}label{font-weight:600}
input,button{font:inherit;padding:.6rem .8rem;border:1px solid #8888;border-radius:.5rem}
button{background:#1a5fb4;color:#fff;border:0;cursor:pointer}small{opacity:.75}
[role=alert]{color:#c01c28;margin:0}@media(prefers-color-scheme:dark){[role=alert]{color:#ff7b7b}}"""
PAGE = Template("""<!doctype html><html lang="$lang"><meta charset="utf-8"><title>$title</title>
<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="robots" content="noindex">
<style>$style</style>
<main><form method="post" action="$action"><h1>groundup</h1>$alert
<label for="key">$ask</label>
<input id="key" name="key" type="password" required autofocus autocomplete="current-password" spellcheck="false"
 aria-describedby="hint"><small id="hint">$hint</small><button>$send</button></form></main></html>
""")
_STYLE_DIGEST = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    "content-security-policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_DIGEST}'; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    "x-frame-options": "DENY",
    # Not no-referrer: browsers would then send `Origin: null` with the form, which is refused.
    "referrer-policy": "same-origin",
}
"""Sent with the page: nothing but its own style is loaded, and no other page may frame it."""


def page(action: str, *, languages: str = "", problem: str = "") -> bytes:
    """The page in the reader's language (of the `Accept-Language` header), with a problem: `wrong`, `often` or none."""
    lang = "zh" if languages.lower().lstrip().startswith("zh") else "en"
    texts = TEXTS[lang]
    alert = f'<p role="alert">{texts[problem]}</p>' if problem else ""
    values = texts | {"lang": lang, "style": STYLE, "action": html.escape(action), "alert": alert}
    return PAGE.substitute(values).encode("utf-8")
