"""Answering in a chat: messages in, the assistant's next turn out.

What is asked is rendered by `text/prompt.py`, as the chats were that the model learned from, so that
use and training cannot drift apart. The turn ends at the token that ends turns in the rendering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundup.runtimes._contract import Runtime
from groundup.serving.decoding import Continuation
from groundup.serving.sampler import Sampling
from groundup.text.conversations import turns
from groundup.text.prompt import Prompt

Messages = str | Sequence[Mapping[str, Any]]
"""A chat, or the one question that begins it."""


def answering(
    runtime: Runtime,
    prompt: Prompt,
    messages: Messages,
    settings: Sampling,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Continuation:
    """The assistant's next turn, ready to be iterated over or finished.

    Raises UserError for messages that the template refuses, and what `Continuation` raises.
    """
    chat = turns(messages) if isinstance(messages, str) else messages
    rendered = prompt.render(chat, tools, add_generation_prompt=True)
    stops = tuple(dict.fromkeys((*settings.stop, *prompt.stop_strings)))
    return Continuation(
        runtime,
        prompt.tokenizer,
        rendered.text,
        settings.model_copy(update={"stop": stops}),
        prompt_ids=rendered.ids,
        stop_ids=prompt.stop_ids,
    )
