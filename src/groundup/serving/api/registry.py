"""The models and adapters that can be asked, by the names that requests use.

What the front needs of a model is opened here when the engine has loaded it: its tokenizer, how its texts begin,
its chat template. An adapter is a name of its own that shares all of these with its model.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from groundup.errors import GroundupError, UserError, nearest
from groundup.serving.api.errors import ApiError, bad
from groundup.serving.api.tools import CallForm, form_of
from groundup.serving.client import Client
from groundup.serving.grammar import token_bytes
from groundup.serving.models import Facts, Kind, Options
from groundup.serving.start import Beginning, beginning
from groundup.text.prompt import Prompt
from groundup.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from groundup.serving.telemetry import Telemetry

MOST_PROMPTS = 16
"""Renderers that are kept for one model, one for each set of template variables in use."""
LONG_TEXT = 4096
"""Characters from which a text is tokenized in a thread, so that nobody waits for it."""


class Texts:
    """How a model's texts become ids and back; shared by its adapters."""

    def __init__(self, facts: Facts) -> None:
        """Of a model that reads no tokens there is no more than the context."""
        folder = Path(facts.folder)
        self.context = facts.context
        self.found = Tokenizer.find(folder)
        self.beginning = beginning(folder, self.tokenizer) if facts.kind == "generate" else Beginning()
        self.chats = facts.chats
        self._prompts: dict[tuple[tuple[str, Any], ...], Prompt] = {}
        if facts.chats:
            with suppress(GroundupError):  # compiled now; a template that wants other messages is asked with them later
                self.prompt().render([{"role": "user", "content": "."}], add_generation_prompt=True)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises UserError for a model that reads no tokens."""
        if self.found is None:
            raise UserError("the model reads no tokens", fix="ask it for answers to rows: /v1/classify, /v1/recommend")
        return self.found

    def prompt(self, variables: Mapping[str, Any] | None = None) -> Prompt:
        """The renderer of chats with these template variables. Raises UserError for a model without a template."""
        key = tuple(sorted((variables or {}).items(), key=lambda pair: pair[0]))
        found = self._prompts.get(key)
        if found is None:
            found = Prompt(self.tokenizer, variables=variables)
            if len(self._prompts) >= MOST_PROMPTS:
                self._prompts.pop(next(iter(self._prompts)))
            self._prompts[key] = found
        return found

    @cached_property
    def call_form(self) -> CallForm | None:
        """How the template writes calls of functions, or None if it writes none."""
        return form_of(self.prompt())

    async def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises ApiError for one that cannot fit, whatever its tokens."""
        self.require_short(text)
        if len(text) < LONG_TEXT:
            return self.tokenizer.encode(text)
        return await asyncio.to_thread(self.tokenizer.encode, text)

    def require_short(self, text: str) -> None:
        """Raise ApiError for a text that is too long even if all its tokens were the longest there are."""
        if len(text) > self.context * self._longest:
            raise too_long(f"at least {len(text) // self._longest}", self.context)

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest entry."""
        return max(map(len, self.tokenizer.vocabulary()), default=1)

    def token_bytes(self, token: int) -> bytes:
        """What a token adds to a text: a piece of a character is no text by itself, but these bytes are."""
        return self._bytes[token] if token < len(self._bytes) else b""

    @cached_property
    def _bytes(self) -> list[bytes]:
        try:
            return token_bytes(self.tokenizer)
        except UserError:  # WordPiece writes spaces by rules of its own: what it shows alone is all there is
            return [self.tokenizer.spelling(token).encode() for token in range(self.tokenizer.vocab_size)]


@dataclass(frozen=True)
class Served:
    """One name that requests may use."""

    name: str
    model: str
    """The engine's name of the model; that of the base where this is an adapter."""
    facts: Facts
    texts: Texts
    digest: str
    adapter: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def as_data(self) -> dict[str, Any]:
        """The entry of `/v1/models`."""
        facts = self.facts
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "groundup",
            "root": self.model,
            "parent": self.model if self.adapter else None,
            "digest": self.digest,
            "kind": facts.kind,
            "task": facts.task,
            "labels": list(facts.labels),
            "evaluation": facts.evaluation,
            "columns": dict(facts.columns),
            "media": dict(facts.media),
            "form": dict(facts.form),
            "max_model_len": facts.context,
            "parameters": facts.parameters,
            "chats": facts.chats,
            "licences": dict(facts.licences),
        }


class Registry:
    """What is served now. Loading and unloading go through here, so that the names and the engine agree."""

    def __init__(self, client: Client, *, options: Options | None = None, telemetry: Telemetry | None = None) -> None:
        self.client, self.options, self.telemetry = client, options or Options(), telemetry
        self.served: dict[str, Served] = {}
        self._changing = asyncio.Lock()

    async def load(self, name: str, path: str, options: Options | None = None) -> Served:
        """Serve the model at a path under a name. Raises ApiError for a taken name, and EngineFault."""
        async with self._changing:
            self._require_free(name)
            try:
                facts = await self.client.load(name, path, options or self.options)
                texts = await self._texts(name, facts)
            except Exception as error:
                self._failed(name, error)
                raise
            found = self.served[name] = Served(name, name, facts, texts, facts.digest)
            if self.telemetry is not None:
                self.telemetry.model_loaded(name, digest=facts.digest, task=facts.task)
            return found

    async def load_adapter(self, name: str, path: str, model: str | None = None) -> Served:
        """Serve an adapter of a model under a name of its own; the only model that generates unless one is named."""
        async with self._changing:
            self._require_free(name)
            base = self._base(model)
            facts = await self.client.load_adapter(base.model, name, path)
            digest = str(facts.get("digest", base.digest))
            found = self.served[name] = Served(name, base.model, base.facts, base.texts, digest, adapter=name)
            return found

    async def unload(self, name: str) -> None:
        """Let a model go with its adapters, or an adapter alone."""
        async with self._changing:
            found = self.get(name)
            if found.adapter is not None:
                del self.served[name]
                await self.client.unload_adapter(found.model, found.adapter)
                return
            self.served = {key: one for key, one in self.served.items() if one.model != found.model}
            await self.client.unload(found.model)
            if self.telemetry is not None:
                self.telemetry.model_unloaded(name)

    def get(self, name: str, *kinds: Kind) -> Served:
        """What is served under a name. Raises ApiError (404) for an unknown one, (400) for one of another kind."""
        found = self.served.get(name)
        if found is None:
            what = f"there is no model {name[:128]!r} here"
            raise ApiError(404, "model_not_found", what, param="model", fix=nearest(name[:128], self.served))
        if kinds and found.facts.kind not in kinds:
            fitting = [one.name for one in self.served.values() if one.facts.kind in kinds]
            what = f"{name!r} is a model of the task {found.facts.task} and cannot be asked this"
            raise bad(what, "model", fix=f"models that can: {', '.join(fitting) or 'none'}", code="wrong_model_kind")
        return found

    @property
    def digests(self) -> str:
        """The digests of everything served, for answers that are about no one model."""
        return ",".join(one.digest for one in self.served.values())

    async def _texts(self, name: str, facts: Facts) -> Texts:
        """The texts of a model that the engine has just loaded; it lets the model go if they cannot be opened."""
        try:
            return await asyncio.to_thread(Texts, facts)
        except BaseException:
            await self.client.unload(name)
            raise

    def _base(self, model: str | None) -> Served:
        if model is not None:
            return self.get(model, "generate")
        found = [one for one in self.served.values() if one.adapter is None and one.facts.kind == "generate"]
        if len(found) != 1:
            names = ", ".join(one.name for one in found) or "none"
            raise bad(f"{len(found)} models could take the adapter", "model", fix=f"name one of: {names}")
        return found[0]

    def _require_free(self, name: str) -> None:
        if name in self.served:
            fix = "unload it first, or choose another name"
            raise ApiError(409, "name_taken", f"the name {name!r} is in use", param="name", fix=fix)

    def _failed(self, name: str, error: Exception) -> None:
        if self.telemetry is None:
            return
        text = str(error)
        causes = {"signature": "sign", "integrity": "damaged", "memory": "memory"}
        cause = next((cause for cause, word in causes.items() if word in text), "error")
        self.telemetry.model_load_failed(name, cause)


def too_long(tokens: int | str, context: int) -> ApiError:
    """The refusal of a prompt that does not fit; OpenAI's code for it."""
    what = f"the prompt has {tokens} tokens and the model reads {context}"
    return bad(what, "messages", fix="shorten it, or ask a model with a longer context", code="context_length_exceeded")


def require_chat(served: Served) -> None:
    """Raise ApiError for a model that has no chat template."""
    if not served.texts.chats:
        fix = "use /v1/completions, or a model that was trained to chat"
        raise bad(f"{served.name!r} has no chat template", "model", fix=fix, code="no_chat_template")
