"""Prefer better answers: tuning on pairs of answers to one question, or on answers judged good or bad.

Each pair is two sequences, question and answer, rendered by the chat template; only the answers count.
The losses (`nn/preference_losses.py`) compare whole answers' log-probabilities with those under the model
that training began from. These never change, so `prepare` computes them once before the first step and
no second model is held in memory.

Batch: `input_ids` and `labels` as in `tasks/chat.py`, the sequences of an example next to each other;
`side` (E,) int64 says what each sequence is (see `data/pairs.py`), `reference` (E,) float32 its
log-probability before training, NaN where it is not known.

Axes: B rows, T tokens, E sequences, P pairs, R rows of a split, S sequences of a row.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from groundup.config import Named
from groundup.data.packing import Columns, Row
from groundup.data.pairs import CHOSEN, REFERENCE, REJECTED, SIDE, STRANGE, Judged, Pairs, apart
from groundup.data.pieces import columns
from groundup.errors import DataError, UserError
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks import chat
from groundup.tasks._contract import Answer
from groundup.text.conversations import LAYOUTS, Message, conversation, reply, tools
from groundup.units import PositiveCount, Share

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Network, Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("losses", "examples"),
    "accuracy": Ratio("right", "examples", higher_is_better=True),
    "margin": Ratio("margins", "examples", higher_is_better=True),
}
"""Of the implicit reward, which each loss defines: how often the better answer has the larger one (of answers
judged alone: whether the reward is on the right side of the reference point), and by how much on average."""
STRENGTHS = {"dpo": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0, "kto": 0.1}
"""β unless given: what each paper uses most."""
REFERENCED = ("dpo", "ipo", "kto")
"""The losses that compare with the model that training began from."""


class Config(Named):
    """Preference tuning."""

    loss: Literal["dpo", "ipo", "orpo", "simpo", "kto"] = "dpo"
    """dpo, ipo: pairs against a reference; simpo, orpo: pairs without one; kto: single answers judged good or bad."""
    beta: float | None = Field(default=None, gt=0)
    """How strongly the model is held to the reference (dpo, ipo, kto), the scale of the reward (simpo), or the
    weight of the preference beside the ordinary loss (orpo). Unless given: 0.1, for simpo 2."""
    gamma: float = Field(default=1.0, ge=0)
    """The margin by which the better answer is to win. simpo only."""
    label_smoothing: Share = 0.0
    """Share of pairs taken to be labelled the wrong way round; never in evaluation. dpo only."""
    desirable_weight: float = Field(default=1.0, gt=0)
    """What a good answer weighs. kto only."""
    undesirable_weight: float = Field(default=1.0, gt=0)
    """What a bad answer weighs. kto only."""
    chosen: str = "chosen"
    """The column of the better answer: a string, a message, or messages."""
    rejected: str = "rejected"
    """The column of the other answer."""
    label: str = "label"
    """The column that says whether the last answer of a chat is good (true, 1). kto only."""
    overlong: Literal["drop", "truncate"] = "drop"
    """What becomes of examples with a sequence longer than the context: left out, or answers cut at their end
    (left out still where nothing of an answer would remain). Counted in the label ledger in either case."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Variables for the chat template beside the messages, such as `enable_thinking: false`."""
    today: datetime.date = datetime.date(2026, 1, 1)
    """The date that templates are told which ask for it, so that the same rows give the same tokens every day."""
    loss_chunk: PositiveCount | None = None
    """Positions whose scores over the vocabulary are held at once; by the vocabulary's size unless given."""

    @property
    def strength(self) -> float:
        """`beta`, settled."""
        return STRENGTHS[self.loss] if self.beta is None else self.beta


class Task:
    """Preferences with one tokenizer at one context length. Can be sent to other processes."""

    head = "language"
    outputs: int | None = None
    labels: list[str] = []  # noqa: RUF012
    baseline = "none"
    metrics = METRICS
    evaluation = "sums"
    reported = {name: metric for name, metric in METRICS.items() if name != "loss"}  # noqa: RUF012
    """The scores that the sums of `answer` make; without a reference there is no loss to report."""

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """A tokenizer without a chat template gets the default one: `tokenizer` of the task then has more tokens."""
        self.config, self.context = config, context
        rendering = chat.Config(template=config.template, today=config.today)
        self.chat = chat.Task(rendering, tokenizer, context)
        self.prompt, self.tokenizer, self.pad_id = self.chat.prompt, self.chat.tokenizer, self.chat.pad_id

    @property
    def needs_reference(self) -> bool:
        """Whether `prepare` must be called on all rows before training."""
        return self.config.loss in REFERENCED

    @property
    def needs_whole_batch(self) -> bool:
        """Whether a step must be one micro-batch: KTO's reference point is a mean over it."""
        return self.config.loss == "kto"

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        kept = {"chosen": c.chosen, "rejected": c.rejected, "label": c.label, "overlong": c.overlong}
        judged = {"judged": c.loss == "kto"}
        return self.chat.encoding | {"task": c.name, "version": [chat.VERSION, VERSION], **kept, **judged}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return self.chat.choices | {"beta": self.config.strength}

    @cached_property
    def generation(self) -> dict[str, Any]:
        """What generation_config.json has to say of a model that learned this: where its answers end."""
        return self.chat.generation

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """The sequences of an example, as `data/pairs.py` reads them; none where both answers are the same.

        Raises DataError, naming the row, for one that holds no pair, and for an answer that renders empty.
        """
        where = str(example.get("source", ""))
        try:
            if self.config.loss == "kto":
                return self._judged(example)
            question, chosen, rejected = self._pair(example)
            if chosen == rejected:  # it prefers nothing: left out, and counted as a row that yields none
                return columns([], cut=0, answers=0)
            given = tools(example.get("tools"))
            return self._columns([self._part(question, answer, given) for answer in (chosen, rejected)])
        except DataError:
            raise
        except (UserError, ValueError) as error:
            fix = getattr(error, "fix", "") or "repair or remove the row"
            raise DataError(getattr(error, "what", str(error)), where=where, fix=fix) from error

    def _pair(self, example: Mapping[str, Any]) -> tuple[list[Message], list[Message], list[Message]]:
        """The question and two answers; where the answers are whole chats, the question is what they share."""
        chosen, rejected = reply(example, self.config.chosen), reply(example, self.config.rejected)
        if not any(example.get(layout) is not None for layout in LAYOUTS):
            shared = 0
            while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
                shared += 1
            return chosen[:shared], chosen[shared:], rejected[shared:]
        question = conversation(example, needs_answer=False).messages
        return question, _without(question, chosen), _without(question, rejected)

    def _judged(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        found = conversation(example)
        last = max((i for i, m in enumerate(found.messages) if m["role"] != "assistant"), default=-1) + 1
        label = example.get(self.config.label)
        if label not in (True, False):
            what = f"the label {label!r} in the column {self.config.label!r} says neither true nor false"
            raise DataError(what, where=str(example.get("source", "")), fix="give true or false (1 or 0)")
        part = self._part(found.messages[:last], found.messages[last:], found.tools)
        return self._columns([part]) | {SIDE: [CHOSEN if label else REJECTED]}

    def _part(self, question: list[Message], answer: list[Message], given: Any) -> chat.Part:
        """Question and answer as one sequence in which only the answer is trained."""
        part = self.chat.part([*question, *answer], given, after=len(question))
        fits = len(part.ids) <= self.context + 1
        return part if fits or self.config.overlong == "drop" else self.chat.cut(part)

    def _columns(self, parts: list[chat.Part]) -> dict[str, list[int]]:
        """The columns of an example, without any sequence if one of them does not fit."""
        fits = all(len(part.ids) <= self.context + 1 and any(part.trained[1:]) for part in parts)
        kept = [(part.ids, part.trained) for part in parts] if fits else []
        lost = sum(part.lost if fits else len(part.ids) for part in parts)
        return columns(kept, cut=lost, answers=sum(sum(part.trained) for part in parts))

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Pairs:
        """One row an example, the same in every epoch and for every `seed`.

        Raises DataError if there are no held-out rows; training asks the ledger, which names the rows.
        """
        rows = Judged(shards) if self.config.loss == "kto" else Pairs(shards)
        if held_out:
            rows.ledger().require_labels()
        return rows

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch, their sequences next to each other; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(list(apart(rows)), fill={"input_ids": self.pad_id}, is_flat=flat)

    def prepare(self, network: Network, rows: Pairs, *, batch_rows: int = 8, flat: bool = False) -> NDArray[np.float32]:
        """The log-probabilities of all answers under a network, (R,S): what `rows.reference` has to be set to.

        To be called once, with the network that training begins from, for the training rows and for the
        held-out ones. The network is put into evaluation for it and back.
        """
        import torch

        from groundup.nn.preference_losses import sequence_log_probs

        was_training, device = network.training, next(network.parameters()).device
        network.eval()
        found = np.zeros((len(rows), rows.sequences), np.float32)
        order = np.argsort(-rows.lengths, kind="stable")
        for start in range(0, len(order), batch_rows):
            chosen = order[start : start + batch_rows]
            batch = self.collate([rows.row(int(index), 0) for index in chosen], flat=flat)
            batch = {key: value.to(device) for key, value in batch.items()}
            with torch.no_grad():
                log_probs, _ = sequence_log_probs(network(batch), batch["labels"], chunk=self.config.loss_chunk)
            found[chosen] = log_probs.float().cpu().numpy().reshape(len(chosen), -1)
        network.train(was_training)
        return found

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over examples, and their number. NaN where a reference is needed and not known."""
        each = self._losses(self._rewarded(outputs, batch), batch)
        return {"loss": (each.sum(), each.new_tensor(len(each)).long())}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of examples, from a batch alone."""
        sides = batch[SIDE]
        if self.config.loss == "kto":
            return {"loss": int((sides != STRANGE).sum())}
        return {"loss": min(int((sides == CHOSEN).sum()), int((sides == REJECTED).sum()))}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `METRICS` divide: `losses`, `examples`, `right`, `margins`. No gradient."""
        rewarded = self._rewarded(outputs, batch).detach()
        margins = self._margins(rewarded, batch)
        found = {"losses": self._losses(rewarded, batch), "margins": margins}
        return found | {"examples": (margins == margins).long(), "right": (margins > 0).long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each example `margins`, by how much the implicit reward is on the right side, and whether it is `right`.

        Where the reference is not known, answers are compared by their log-probabilities alone.
        """
        known = {**batch, REFERENCE: batch[REFERENCE].nan_to_num()}
        margins = self._margins(self._rewarded(outputs, known).detach(), known)
        return [{"margins": margin, "right": float(margin > 0), "examples": 1} for margin in margins.tolist()]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The sums of `answers`: nothing at all for an example that has no row (too long, or two equal answers)."""
        sums = {name: sum(row[name] for row in found) for name in ("margins", "right", "examples")}
        return Answer(sums, confidence=abs(sums["margins"]))

    def truth(self, example: Mapping[str, Any]) -> str:
        """`chosen`; of answers judged alone `good` or `bad`."""
        return "chosen" if self.config.loss != "kto" else ("good" if example.get(self.config.label) else "bad")

    def shown(self, example: Mapping[str, Any]) -> str:
        """The question, or as much of it as the row tells."""
        if any(example.get(layout) is not None for layout in LAYOUTS):
            return chat.said(conversation(example, needs_answer=False).messages, "user")
        return chat.said(reply(example, self.config.chosen), "user")

    def _rewarded(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
        """What the loss compares, (E,): log-ratios with the reference, or mean log-probabilities."""
        from groundup.nn.preference_losses import sequence_log_probs

        log_probs_E, counts_E = sequence_log_probs(outputs, batch["labels"], chunk=self.config.loss_chunk)
        if self.needs_reference:
            return log_probs_E - batch[REFERENCE].to(log_probs_E.dtype)
        return log_probs_E / counts_E.clamp(min=1)

    def _losses(self, rewarded_E: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """The loss of each example, (P,), or (E,) of answers judged alone."""
        from groundup.nn import preference_losses as losses

        c, sides = self.config, batch[SIDE]
        if c.loss == "kto":
            own = sides != STRANGE
            weights = {"desirable_weight": c.desirable_weight, "undesirable_weight": c.undesirable_weight}
            point = self._point(rewarded_E, sides)
            return losses.kto(rewarded_E[own], sides[own] == CHOSEN, point, beta=c.strength, **weights)
        chosen_P, rejected_P = _matched(rewarded_E, sides)
        match c.loss:
            case "dpo":
                return losses.dpo(chosen_P, rejected_P, beta=c.strength, label_smoothing=c.label_smoothing)
            case "ipo":
                return losses.ipo(chosen_P, rejected_P, beta=c.strength)
            case "simpo":
                return losses.simpo(chosen_P, rejected_P, beta=c.strength, gamma=c.gamma)
        return losses.orpo(chosen_P, rejected_P, beta=c.strength)

    def _margins(self, rewarded_E: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
        """By how much the reward of each example is on the right side."""
        from groundup.nn.preference_losses import log_odds

        sides = batch[SIDE]
        if self.config.loss == "kto":
            own = sides != STRANGE
            gap = self.config.strength * (rewarded_E[own] - self._point(rewarded_E, sides))
            return gap * (2 * sides[own] - 1)
        if self.config.loss == "orpo":
            rewarded_E = log_odds(rewarded_E)
        chosen_P, rejected_P = _matched(rewarded_E, sides)
        return (1.0 if self.config.loss == "orpo" else self.config.strength) * (chosen_P - rejected_P)

    def _point(self, rewarded_E: Tensor, sides: Tensor) -> Tensor:
        from groundup.nn.preference_losses import reference_point

        strange = rewarded_E[sides == STRANGE]
        return reference_point(strange) if len(strange) else rewarded_E.new_zeros(())

    def render(self, row: Row) -> str:
        """The sequences of an example as rich markup, each after what it is."""
        names = {CHOSEN: "chosen", REJECTED: "rejected", STRANGE: "question with another row's answer"}
        if self.config.loss == "kto":
            names |= {CHOSEN: "good", REJECTED: "bad"}
        shown = []
        for one, side in zip(apart([row]), row[SIDE], strict=True):
            shown.append(f"[cyan]{names[int(side)]}:[/]\n{self.chat.render(one)}")
        return "\n".join(shown)


def _matched(values_E: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
    """The values of chosen and rejected answers, (P,) each; a sequence that came without its partner is left out."""
    chosen, rejected = values_E[sides == CHOSEN], values_E[sides == REJECTED]
    pairs = min(len(chosen), len(rejected))
    return chosen[:pairs], rejected[:pairs]


def _without(question: Sequence[Message], answer: list[Message]) -> list[Message]:
    """The answer alone, where it repeats the question first."""
    repeats = len(answer) > len(question) and answer[: len(question)] == list(question)
    return answer[len(question) :] if repeats else answer
