"""Answer in a chat: supervised fine-tuning on conversations, learning what the assistant says.

A conversation is rendered by the tokenizer's own chat template (`text/prompt.py`); the loss counts the
assistant's turns, each with the token that ends it, and nothing else. Rows may keep their chats in any
layout of `text/conversations.py`: many turns, system prompts, tool calls.

Batch: `input_ids` in one of the layouts of `data/layout.py` and `labels` of the same shape: the token
after each position where it is trained, -100 elsewhere.

Axes: B rows, T tokens, E examples, N tokens of a flat batch.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from groundup.artifact import digest_data
from groundup.config import Named
from groundup.data.packing import IGNORED, Columns, Row
from groundup.data.pieces import Pieces, columns
from groundup.errors import DataError, UserError
from groundup.evaluation.metrics.ratios import Ratio, perplexity
from groundup.tasks._contract import Answer
from groundup.text.conversations import Conversation, Message, conversation
from groundup.text.prompt import Prompt, Rendered
from groundup.text.rendering import Piece, markup
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "perplexity": Ratio("nats", "labels", perplexity),
    "token_accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""Over the trained tokens, by the sums of `Task.scores`."""


class Part(NamedTuple):
    """A piece of a chat that becomes a row."""

    ids: list[int]
    trained: list[bool]
    """For each token whether it is trained."""
    lost: int = 0
    """Tokens that were cut off."""


class Config(Named):
    """Supervised fine-tuning on conversations."""

    train_on: Literal["assistant", "last", "all"] = "assistant"
    """What is learned: every turn of the `assistant`, only its `last`, or `all` tokens, questions included."""
    overlong: Literal["split", "truncate", "drop"] = "split"
    """What becomes of chats longer than the context. `split`: several rows, cut between rounds, each with the
    system prompt (with train_on `last`: the earliest rounds are left out); a single round that is too long is
    cut at its end. `truncate`: cut at the end. `drop`: left out. Counted in the label ledger in every case."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template beside the messages, such as `enable_thinking: false`."""
    today: datetime.date = datetime.date(2026, 1, 1)
    """The date that templates are told which ask for it, so that the same rows give the same tokens every day."""
    label_smoothing: Share = 0.0
    """Share of the target spread evenly over the vocabulary while training; never in evaluation."""
    loss_chunk: PositiveCount | None = None
    """Positions whose scores over the vocabulary are held at once; by the vocabulary's size unless given."""


class Task:
    """Chats with one tokenizer at one context length. Can be sent to other processes."""

    head = "language"
    outputs: int | None = None
    labels: list[str] = []  # noqa: RUF012
    baseline = "none"
    metrics = METRICS
    evaluation = "sums"
    reported = METRICS
    """The scores that the sums of `answer` make."""

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """A tokenizer without a chat template gets the default one: `tokenizer` of the task then has more tokens."""
        self.config, self.context = config, context
        self.prompt = Prompt.settled(tokenizer, variables=config.template, today=config.today)
        self.tokenizer = self.prompt.tokenizer
        pad, eos = self.tokenizer.pad_id, self.tokenizer.eos_id
        self.pad_id: int = pad if pad is not None else eos if eos is not None else 0

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        kept = {"train_on": c.train_on, "overlong": c.overlong, "variables": c.template, "today": str(c.today)}
        template = digest_data(self.prompt.template)
        return {"task": c.name, "version": VERSION, **kept, "context": self.context, "template": template}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        chosen = {"added_tokens": list(self.prompt.added)} if self.prompt.added else {}
        return {"chat_template": "ChatML, the default" if self.prompt.added else "the tokenizer's own", **chosen}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What generation_config.json has to say of a model that learned this: where its answers end."""
        return {"eos_token_id": self.prompt.stop_ids}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "generation"}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """The pieces of a chat, as `data/pieces.py` reads them: `input_ids`, `trained`, `pieces`, `cropped`, `answers`.

        Raises DataError, naming the row, for one that holds no chat, a turn of the assistant that renders
        empty, and messages that the template refuses.
        """
        chat = conversation(example)
        try:
            whole = self.part(chat.messages, chat.tools)
            parts = self._fitted(chat, whole)
        except DataError:
            raise
        except UserError as error:
            raise DataError(error.what, where=str(example.get("source", "")), fix=error.fix) from error
        kept = [(part.ids, part.trained) for part in parts if any(part.trained[1:])]
        lost = sum(part.lost for part in parts) if parts else len(whole.ids)
        return columns(kept, cut=lost, answers=sum(whole.trained))

    def part(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, *, after: int = 0) -> Part:
        """The ids of a rendered chat, and which of them are trained: nothing before message `after`, counted from 0.

        Where the template leaves the last answer open, the end-of-text token closes it and is learned.
        """
        rendered = self.prompt.render(messages, tools, mark_turns=self.config.train_on != "all")
        rendered = replace(rendered, turns=tuple(turn for turn in rendered.turns if turn.message >= after))
        ids, trained = list(rendered.ids), self._trained(rendered)
        is_open = bool(rendered.turns) and not rendered.turns[-1].is_closed
        if is_open and rendered.turns[-1].stop == len(ids) and self.tokenizer.eos_id is not None:
            return Part([*ids, self.tokenizer.eos_id], [*trained, True])
        # What follows the last trained token (a line break, as a rule) would be computed for nothing.
        stop = max((place for place, flag in enumerate(trained, start=1) if flag), default=len(ids))
        return Part(ids[:stop], trained[:stop])

    def _trained(self, rendered: Rendered) -> list[bool]:
        if self.config.train_on == "all":
            return [True] * len(rendered.ids)
        if self.config.train_on == "assistant" or not rendered.turns:
            return rendered.trained
        last = rendered.turns[-1]
        return [last.first <= place < last.stop for place in range(len(rendered.ids))]

    def _fitted(self, chat: Conversation, whole: Part) -> list[Part]:
        """The chat in pieces that fit: T inputs and one more token, which is only predicted."""
        if self._fits(whole):
            return [whole]
        if self.config.overlong == "drop":
            return []
        if self.config.overlong == "truncate":
            return [self.cut(whole)]
        opening, rounds = _rounds(chat.messages)
        if self.config.train_on == "last":
            part = self._latest(opening, rounds, chat.tools)
            return [part._replace(lost=len(whole.ids) - len(part.ids))]
        return list(self._split(opening, rounds, chat.tools))

    def _split(self, opening: list[Message], rounds: list[list[Message]], tools: Any) -> list[Part]:
        """As many rounds together as fit, each piece after the opening messages."""
        parts: list[Part] = []
        held: list[Message] = []
        fitting: Part | None = None
        for one in rounds:
            tried = self.part([*opening, *held, *one], tools)
            if self._fits(tried):
                held, fitting = [*held, *one], tried
                continue
            parts += [fitting] if fitting is not None else []
            alone = self.part([*opening, *one], tools) if held else tried
            held, fitting = (one, alone) if self._fits(alone) else ([], None)
            parts += [] if fitting is not None else [self.cut(alone)]
        return [*parts, fitting] if fitting is not None else parts

    def _latest(self, opening: list[Message], rounds: list[list[Message]], tools: Any) -> Part:
        """The last rounds, as many as fit, after the opening messages."""
        for first in range(1, len(rounds)):
            tried = self.part([*opening, *(message for one in rounds[first:] for message in one)], tools)
            if self._fits(tried):
                return tried
        return self.cut(self.part([*opening, *rounds[-1]], tools))

    def _fits(self, part: Part) -> bool:
        return len(part.ids) <= self.context + 1

    def cut(self, part: Part) -> Part:
        """The part cut at its end to what fits."""
        most = self.context + 1
        return Part(part.ids[:most], part.trained[:most], len(part.ids) - most)

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Pieces:
        """One row a piece, the same in every epoch and for every `seed`.

        Raises DataError if held-out rows have no labels; training asks the ledger, which names the rows.
        """
        rows = Pieces(shards)
        if held_out:
            rows.ledger().require_labels()
        return rows

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(rows, fill={"input_ids": self.pad_id}, is_flat=flat)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: cross-entropy in nats summed over trained tokens, and their number."""
        from groundup.nn.losses import linear_cross_entropy

        summed = linear_cross_entropy(
            outputs.head.features(outputs.hidden),
            outputs.head.weight,
            batch["labels"],
            bias_V=outputs.head.bias,
            label_smoothing=self.config.label_smoothing,
            chunk=self.config.loss_chunk,
        )
        return {"loss": summed}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained tokens, from a batch alone."""
        return {"loss": int((batch["labels"] != IGNORED).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `METRICS` divide: `nats`, `labels` and `right`, (E,) each. No gradient."""
        from groundup.nn.preference_losses import sequence_scores

        return sequence_scores(outputs, batch["labels"], chunk=self.config.loss_chunk)

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each example, how well its answers were foreseen: `nats`, `labels` (tokens) and `right` (likeliest)."""
        scores = {name: values.tolist() for name, values in self.scores(outputs, batch).items()}
        return [dict(zip(scores, row, strict=True)) for row in zip(*scores.values(), strict=True)]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The sums of `answers` over all pieces of a chat; the surer, the better its answers were foreseen."""
        sums = {name: sum(piece[name] for piece in found) for name in ("nats", "labels", "right")}
        return Answer(sums, confidence=-sums["nats"] / sums["labels"] if sums["labels"] else None)

    def truth(self, example: Mapping[str, Any]) -> str:
        """What the assistant says in the last turn. Raises DataError for a row that is no chat."""
        return said(conversation(example).messages, "assistant")

    def shown(self, example: Mapping[str, Any]) -> str:
        """The last question."""
        return said(conversation(example).messages, "user")

    def render(self, row: Row) -> str:
        """The chat as rich markup: trained tokens highlighted, those that are only read dim."""
        inputs, labels = row["input_ids"].tolist(), row["labels"].tolist()
        pieces = [Piece(inputs[0], trained=False)]
        for place, label in enumerate(labels):
            if label != IGNORED:
                pieces.append(Piece(label, trained=True))
            elif place + 1 < len(inputs):
                pieces.append(Piece(inputs[place + 1], trained=False))
        return markup(self.tokenizer, pieces)


def said(messages: Sequence[Message], role: str) -> str:
    """What a role says last."""
    found = next((message for message in reversed(messages) if message["role"] == role), {})
    return str(found.get("content") or found.get("tool_calls") or "")


def _rounds(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages that open a chat, and its rounds: from a user's message up to the next one's question."""
    first = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    opening: list[Message] = list(messages[:first])
    rounds: list[list[Message]] = []
    for place in range(first, len(messages)):
        begins = messages[place]["role"] == "user" and messages[place - 1]["role"] != "user"
        if begins or not rounds:
            rounds.append([])
        rounds[-1].append(messages[place])
    return opening, rounds
