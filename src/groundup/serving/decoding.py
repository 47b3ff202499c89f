"""Continuing one text with a causal model: prompt in, whole characters out, and why it ended.

The prompt is computed in one call and each new token in one more, with the past kept in a cache. Text
appears as soon as it is whole: a character whose bytes are spread over several tokens, or what may be
the beginning of a stop string, waits. Where the context is full the text ends and says so; nothing
slides out of it silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from groundup.errors import UserError
from groundup.runtimes._contract import Runtime
from groundup.serving.sampler import Choice, Sampler, Sampling
from groundup.serving.stops import StopStrings
from groundup.text.streaming import StreamDecoder
from groundup.text.tokenizers import Tokenizer

Reason = Literal["stop", "length"]
PRIMING = 64
"""Tokens of the prompt that the decoder reads before it shows what follows."""


@dataclass(frozen=True)
class Generation:
    """A finished continuation. `text` is what follows the prompt, without the stop string."""

    prompt: str
    text: str
    ids: list[int]
    """The tokens that were chosen, the end-of-text token included."""
    reason: Reason
    """`stop`: the model or a stop string ended it; `length`: a limit did."""
    detail: str
    """The same in words."""
    settings: Sampling
    prompt_tokens: int
    choices: list[Choice] = field(default_factory=list, repr=False)
    """One per token, with log-probabilities where they were asked for."""

    def as_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = {
            "prompt": self.prompt,
            "text": self.text,
            "ids": self.ids,
            "finish_reason": self.reason,
            "finish_detail": self.detail,
            "prompt_tokens": self.prompt_tokens,
            "sampling": self.settings.model_dump(mode="json"),
        }
        if self.settings.logprobs is not None:
            data["logprobs"] = [
                {"id": c.id, "logprob": c.logprob, "alternatives": [list(pair) for pair in c.alternatives]}
                for c in self.choices
            ]
        return data


class Continuation:
    """A text being continued. Iterate for its pieces; afterwards `result` is the whole of it.

    start_ids are the tokens a text begins with (start or end-of-text token), put before the prompt.
    prompt_ids, where they are given, are the whole prompt (a rendered chat), and `prompt` is only what it
    reads like. stop_ids end the text beside those that the tokenizer names. Raises UserError for a model
    that does not continue texts, for a prompt that is no text, and for one that does not fit the context.
    """

    def __init__(
        self,
        runtime: Runtime,
        tokenizer: Tokenizer,
        prompt: str,
        settings: Sampling,
        *,
        start_ids: Sequence[int] = (),
        prompt_ids: Sequence[int] | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        _require_causal(runtime)
        require_text(prompt)
        self.runtime, self.tokenizer, self.prompt, self.settings = runtime, tokenizer, prompt, settings
        self.prompt_ids = [*start_ids, *(tokenizer.encode(prompt) if prompt_ids is None else prompt_ids)]
        self.stop_ids = frozenset((*tokenizer.stop_ids, *stop_ids))
        _require_fit(self.prompt_ids, runtime.max_tokens)
        self.choices: list[Choice] = []
        """What has been chosen so far."""
        self.result: Generation | None = None

    def __iter__(self) -> Iterator[str]:
        """The pieces of text, each of whole characters, never empty."""
        stops = StopStrings(self.settings.stop)
        self.choices, parts = [], []
        for piece in self._pieces(stops):
            parts.append(piece)
            yield piece
        reason, detail = self._ending(stops.found)
        ids = [choice.id for choice in self.choices]
        self.result = Generation(
            self.prompt, "".join(parts), ids, reason, detail, self.settings, len(self.prompt_ids), list(self.choices)
        )

    def finish(self) -> Generation:
        """The whole continuation, at once."""
        for _ in self:
            pass
        assert self.result is not None, "iterating to the end sets the result"
        return self.result

    def _pieces(self, stops: StopStrings) -> Iterator[str]:
        decoder = self._primed_decoder()
        for choice in self._tokens():
            self.choices.append(choice)
            if self._ends(choice):
                break
            shown = stops.push(decoder.push(choice.id))
            if shown:
                yield shown
            if stops.found is not None:
                return
        tail = stops.push(decoder.flush()) + stops.flush()
        if tail:
            yield tail

    def _primed_decoder(self) -> StreamDecoder:
        """A decoder that has read the prompt's end: what a token's text is may depend on the one before."""
        decoder = StreamDecoder(self.tokenizer, skip_special=True)
        for token in self.prompt_ids[-PRIMING:]:
            decoder.push(token)
        decoder.flush()
        return decoder

    def _tokens(self) -> Iterator[Choice]:
        """Choices until a limit is reached: max_new_tokens, or a full context."""
        # A token at the last position can still be followed by one that is never read.
        most = min(self.settings.max_new_tokens, self.runtime.max_tokens - len(self.prompt_ids) + 1)
        if most <= 0:
            return
        cache = self.runtime.new_cache(sequences=1, tokens=len(self.prompt_ids) + most - 1)
        sampler = Sampler(self.settings, self.stop_ids)
        sampler.see(self.prompt_ids, self.runtime.vocab_size)
        ids, position = self.prompt_ids, 0
        for _ in range(most):
            places = range(position, position + len(ids))
            choice = sampler.choose(self.runtime.step(ids, places, [0] * len(ids), cache)[0])
            yield choice
            position += len(ids)
            ids = [choice.id]

    def _ends(self, choice: Choice) -> bool:
        return choice.id in self.stop_ids and not self.settings.ignore_eos

    def _ending(self, stop: str | None) -> tuple[Reason, str]:
        if stop is not None:
            return "stop", f"the stop string {stop!r}"
        if self.choices and self._ends(self.choices[-1]):
            return "stop", "the model ended the text"
        return self._limit()

    def _limit(self) -> tuple[Reason, str]:
        if len(self.choices) >= self.settings.max_new_tokens:
            return "length", f"max_new_tokens ({self.settings.max_new_tokens}) reached"
        return "length", f"the context of {self.runtime.max_tokens} tokens is full"


def require_text(prompt: str) -> None:
    """Raise UserError if a string holds a lone surrogate, which stands for no character."""
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        code = f"U+{ord(prompt[error.start]):04X}"
        raise UserError(
            f"the prompt holds {code} at character {error.start}, half of a pair that stands for one character",
            fix="it was cut or decoded wrongly on its way here: read it as UTF-8, and cut between characters",
        ) from error


def _require_causal(runtime: Runtime) -> None:
    if not runtime.causal:
        raise UserError(
            "this model reads a whole text at once and cannot continue one",
            fix="ask it to fill masks: load(…).fill('a text with [MASK]'); to continue texts, train a gpt or gpt2",
        )


def _require_fit(prompt_ids: list[int], room: int) -> None:
    if not prompt_ids:
        raise UserError(
            "an empty prompt needs a start or end-of-text token, and the tokenizer has neither",
            fix="give at least one character",
        )
    if len(prompt_ids) > room:
        raise UserError(
            f"the prompt is {len(prompt_ids)} tokens long (start token included) and the model reads {room}",
            fix=f"shorten it by {len(prompt_ids) - room} tokens, or train with a longer context",
        )
