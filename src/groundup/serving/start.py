"""What a text begins with before the first token of the prompt, so that use begins as training did."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import tokenizers as library

from groundup.artifact import MANIFEST, Artifact
from groundup.text.tokenizers import Tokenizer

GENERATION = "generation_config.json"
IMPORT = "import"
"""What the manifest of a model that was not trained here names as its stage."""


@dataclass(frozen=True)
class Beginning:
    """The tokens before a prompt, and those of a text without a prompt."""

    always: tuple[int, ...] = ()
    empty: tuple[int, ...] = ()

    def before(self, prompt: str) -> tuple[int, ...]:
        """The tokens to put before this prompt."""
        return self.always if prompt or self.always else self.empty


def beginning(folder: Path, tokenizer: Tokenizer) -> Beginning:
    """How the texts of the model in a directory begin.

    A model that groundup trained saw each document after a start token, or after the end-of-text
    token of the document before, as its manifest says (the choice `bos`); a prompt is the beginning
    of a document. A published model, imported or not, gets what its tokenizer.json puts before a
    text, which may be nothing; only an empty prompt then begins with the start or end-of-text token.
    """
    candidates = (_named_start(folder), tokenizer.bos_id, tokenizer.eos_id)
    first = next(((token,) for token in candidates if token is not None), ())
    manifest = Artifact(folder).manifest if (folder / MANIFEST).is_file() else None
    if manifest is not None and manifest.get("stage") != IMPORT:
        if manifest["choices"].get("bos") is False and tokenizer.eos_id is not None:
            first = (tokenizer.eos_id,)
        return Beginning(first, first)
    engine = library.Tokenizer.from_str(tokenizer.to_json())
    return Beginning(tuple(engine.encode("", add_special_tokens=True).ids), first)


def _named_start(folder: Path) -> int | None:
    path = folder / GENERATION
    named = json.loads(path.read_text(encoding="utf-8")).get("bos_token_id") if path.is_file() else None
    return named if isinstance(named, int) else None
