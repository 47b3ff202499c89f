"""Answer a question by the words of a passage that answer it, or by saying that none do.

Two scores a token say how likely an answer begins and ends there (Devlin et al. 2019, §4.2). A passage
longer than the context is read in windows that overlap; where a window does not hold the answer, its
first token stands for "not here", which is also the answer to a question that the passage does not answer
(§4.3). Answers are told as characters of the passage, so no spelling or spacing is lost in any script.

Batch: `input_ids`, `token_type_ids` and `marks` (1 for the passage's tokens) in one of the layouts of
`data/layout.py`, and `label` (E,2) int64: the positions in the row where the answer begins and ends, 0 and 0 for
none, -100 where nothing is trained.

Axes: E rows of a batch, L tokens of the longest, K = 2 scores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from groundup.config import Named
from groundup.data.examples import CROPPED
from groundup.data.packing import IGNORED, Columns, Row
from groundup.data.windows import WINDOWS, Windows
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks._contract import Answer
from groundup.text.passage_windows import Cutter, Window
from groundup.text.rendering import Piece, markup
from groundup.units import PositiveCount

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs
    from groundup.nn.ragged import Picked
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training. accuracy: rows whose answer has the very first and last token, or is rightly none."""
NOWHERE = -1e30
"""The score of a position where nothing can begin or end."""


class Config(Named):
    """The answer to a question in a passage."""

    context: str = "text"
    """The column of the passage."""
    question: str = "question"
    """The column of the question."""
    answers: str = "answers"
    """The column of the accepted answers: a list of `{text, start}`, empty where the passage has none."""
    stride: PositiveCount = 128
    """Tokens of a passage that neighbouring windows share."""
    longest_question: PositiveCount = 64
    """Tokens of a question that are read; the rest is cut off and counted in the label ledger."""
    longest_answer: PositiveCount = 30
    """Tokens that an answer may have when one is sought."""
    unanswerable: bool | None = None
    """Whether a question may have no answer in its passage. As in the training rows unless given."""
    threshold: float = 0.0
    """By how much the score of "no answer" must exceed that of the best answer to be given; only if `unanswerable`."""
    language: str | None = None
    """Language of the answers, which decides how they are compared: `zh` by characters. Found unless given."""
    unit: str | None = None
    """The column of what questions share, such as their article: they are drawn together when intervals are made.
    `article` where the rows have one, unless given."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: language, unit, and whether answers may be missing.

    Raises DataError, naming the row, for an answer that is not in its passage.
    """
    without = han = total = 0
    has_article = False
    for example in examples:
        passage, answers = _passage(config, example), _answers(config, example)
        _text(config, config.question, example)
        _place(passage, answers, example)
        without += answers == []
        has_article |= isinstance(example.get("article"), str)
        if total < 100_000:
            total += len(passage)
            han += sum("\u3400" <= character <= "\u9fff" for character in passage)
    found = {
        "unanswerable": config.unanswerable if config.unanswerable is not None else without > 0,
        "language": config.language or ("zh" if han > 0.2 * total else ""),
        "unit": config.unit or ("article" if has_article else None),
    }
    return config.model_copy(update=found)


def _text(config: Config, column: str, example: Mapping[str, Any]) -> str:
    found = example.get(column)
    if not isinstance(found, str):
        fix = "repair or leave out the row"
        if column not in example:
            fix = f"{nearest(column, example)}; prepare carries the columns that its source names under `keep`"
        raise DataError(f"no text in the column {column!r}", where=str(example.get("source", "")), fix=fix)
    return found


def _passage(config: Config, example: Mapping[str, Any]) -> str:
    return _text(config, config.context, example)


def _answers(config: Config, example: Mapping[str, Any]) -> list[tuple[str, int]] | None:
    """The accepted answers as (text, start); None for a row without the column."""
    found = example.get(config.answers)
    if found is None:
        return None
    if isinstance(found, Mapping):  # columns side by side, as tables keep them
        pairs = zip(found.get("text", ()), found.get("answer_start", found.get("start", ())), strict=False)
        return [(str(text), int(start)) for text, start in pairs]
    try:
        return [(str(one["text"]), int(one.get("start", one.get("answer_start", -1)))) for one in found]
    except (TypeError, KeyError, ValueError, AttributeError):
        what = f"the column {config.answers!r} is no list of answers with text and start"
        raise DataError(what, where=str(example.get("source", "")), fix="repair or leave out the row") from None


def _place(
    passage: str, answers: Iterable[tuple[str, int]] | None, example: Mapping[str, Any]
) -> tuple[int, int] | None:
    """The characters of an answer in the passage, as (start, end); None if there is no answer.

    The first one that stands where it should; else one that stands elsewhere, where it is nearest. Raises
    DataError, naming the row, if there are answers and none of them is in the passage.
    """
    trimmed = [(text.strip(), start + len(text) - len(text.lstrip())) for text, start in answers or ()]
    for text, start in trimmed:
        if text and start >= 0 and passage.startswith(text, start):
            return start, start + len(text)
    for text, start in trimmed:
        places = [place for place in range(len(passage)) if passage.startswith(text, place)] if text else []
        if places:
            found = min(places, key=lambda place: abs(place - start))
            return found, found + len(text)
    if trimmed:
        what = f"the answer {trimmed[0][0][:60]!r} is not in its passage"
        fix = "an answer is characters of the passage, as they stand there; repair or leave out the row"
        raise DataError(what, where=str(example.get("source", "")), fix=fix)
    return None


class Task:
    """Answering from passages with one tokenizer at one context length. Can be sent to other processes."""

    head = "span"
    evaluation = "spans"
    baseline = "overlap"
    outputs = 2
    labels: list[str] = []  # noqa: RUF012 - transformers names the two scores of a position LABEL_0 and LABEL_1

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """Raises DataError for a context too short."""
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.metrics = METRICS
        self._cutter = Cutter(tokenizer, context, overlap=config.stride, question=config.longest_question)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id or 0

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        columns = {"passage": c.context, "question": c.question, "answers": c.answers}
        sizes = {"stride": c.stride, "longest_question": c.longest_question, "context": self.context}
        return {"task": c.name, "version": VERSION, **columns, **sizes}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"unanswerable": bool(self.config.unanswerable), "language": self.config.language or ""}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """The windows of a passage end to end: `input_ids`, `token_type_ids`, `marks`; `label`, two numbers a
        window; `windows`, their sizes; `cropped`, the tokens of the question that are not read.

        Raises DataError naming the row for an answer that is not in its passage.
        """
        question, passage = _text(self.config, self.config.question, example), _passage(self.config, example)
        answers = _answers(self.config, example)
        place = _place(passage, answers, example)
        found: dict[str, list[int]] = {"input_ids": [], "token_type_ids": [], "marks": [], "label": []}
        windows = self._cutter(question, passage)
        for window in windows:
            found["input_ids"] += window.ids
            found["token_type_ids"] += window.types
            found["marks"] += _marks(window)
            span = (window.span(*place) if place else None) or (0, 0)
            found["label"] += [IGNORED, IGNORED] if answers is None else span
        cropped = self._cutter.cropped(question)
        return found | {WINDOWS: [len(window.ids) for window in windows], CROPPED: [cropped]}

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Windows:
        """The windows of a split. Raises DataError if none has a label. `seed` changes nothing."""
        return Windows(shards, labels="label", tokens=("input_ids", "token_type_ids", "marks"), vectors={"label": 2})

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(rows, fill={"input_ids": self.pad_id}, is_flat=flat)

    def _scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> tuple[Picked, Tensor]:
        """The real positions of each row, and their two scores, (E,L,2) fp32; NOWHERE beyond a row's end."""
        from groundup.nn.ragged import everything

        picked = everything(batch["input_ids"], outputs.places)
        return picked, picked.take(outputs.logits.float(), NOWHERE)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: the mean of the cross-entropies of begin and end, summed over rows, and the number of rows."""
        nats_E, real_E = self._nats(outputs, batch)
        return {"loss": (nats_E.sum(), real_E.sum())}

    def _nats(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        import torch

        _, scores_EL2 = self._scores(outputs, batch)
        label_E2 = batch["label"]
        nats_E2 = torch.nn.functional.cross_entropy(scores_EL2, label_E2, ignore_index=IGNORED, reduction="none")
        return nats_E2.mean(1), label_E2[:, 0] != IGNORED

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained rows, from a batch alone."""
        return {"loss": int((batch["label"][:, 0] != IGNORED).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per row, the sums that `metrics` divide: `nats`, `labels` and `right`, (E,) each. No gradient."""
        import torch

        with torch.no_grad():
            nats_E, real_E = self._nats(outputs, batch)
            _, scores_EL2 = self._scores(outputs, batch)
            right_E = (scores_EL2.argmax(1) == batch["label"]).all(1) & real_E
        return {"nats": nats_E.double(), "labels": real_E.long(), "right": right_E.long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each row its best span: `start` and `end`, counted from the passage's first token in the row, `score`,
        and `none`, the score of there being no answer in it. A row without passage has no `start`."""
        import torch

        with torch.no_grad():
            picked, scores_EL2 = self._scores(outputs, batch)
            inside_EL = picked.take(batch["marks"], 0) == 1
            begin_EL, end_EL = (scores_EL2[..., i].masked_fill(~inside_EL, NOWHERE) for i in (0, 1))
            steps_L = torch.arange(begin_EL.shape[1], device=begin_EL.device)
            ahead_LL = steps_L[None, :] - steps_L[:, None]
            fits_LL = (ahead_LL >= 0) & (ahead_LL < self.config.longest_answer)
            sums_ELL = (begin_EL[:, :, None] + end_EL[:, None, :]).masked_fill(~fits_LL, 2 * NOWHERE)
            score_E, place_E = sums_ELL.flatten(1).max(1)
            none_E = scores_EL2[:, 0].sum(1)
            first_E = inside_EL.long().argmax(1)
        width = len(steps_L)
        found = zip(place_E.tolist(), score_E.tolist(), none_E.tolist(), first_E.tolist(), strict=True)
        return [
            {"start": place // width - first, "end": place % width - first, "score": score, "none": none}
            if score > NOWHERE
            else {"score": NOWHERE, "none": none}
            for place, score, none, first in found
        ]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The best span over all windows as characters of the passage; empty for none.

        The score of no answer is the least over the windows: it must hold in each (Devlin et al. 2019, §4.3).
        Confidence is the probability of the answer against the other, by their scores.
        """
        import math

        spans = [(float(part["score"]), place) for place, part in enumerate(found) if "start" in part]
        if not spans:
            return Answer("", confidence=0.0)
        score, place = max(spans, key=lambda pair: pair[0])
        margin = score - min(float(part["none"]) for part in found)
        sure = 1 / (1 + math.exp(-max(-700.0, min(700.0, margin))))
        if self.config.unanswerable and margin < -self.config.threshold:
            return Answer("", confidence=1 - sure)
        passage = _passage(self.config, example)
        window = self._cutter(_text(self.config, self.config.question, example), passage)[place]
        start, end = int(found[place]["start"]), int(found[place]["end"])
        return Answer(passage[window.offsets[start][0] : window.offsets[end][1]], confidence=sure)

    def truth(self, example: Mapping[str, Any]) -> list[str]:
        """The accepted answers, none if the passage has none. Raises DataError, naming the row, without the column."""
        answers = _answers(self.config, example)
        if answers is None:
            what = f"a row without the column {self.config.answers!r}"
            raise DataError(what, where=str(example.get("source", "")), fix="label it, or leave it out")
        return [text for text, _ in answers]

    def shown(self, example: Mapping[str, Any]) -> str:
        """The question."""
        return _text(self.config, self.config.question, example)

    def inputs(self, example: Mapping[str, Any]) -> tuple[str, str]:
        """The question and the passage: what a classical rival reads."""
        return self.shown(example), _passage(self.config, example)

    def render(self, row: Row) -> str:
        """The row as rich markup, the answer highlighted."""
        start, end = (int(place) for place in row["label"])
        ids = row["input_ids"].tolist()
        pieces = [Piece(token, trained=0 < start <= place <= end) for place, token in enumerate(ids)]
        held = "in this row" if start > 0 else "none in this row" if start == 0 else "none (trains nothing)"
        return f"{markup(self.tokenizer, pieces)}\n[cyan]answer: {held}[/]"


def _marks(window: Window) -> list[int]:
    """1 for each token of the passage."""
    size = len(window.offsets)
    return [*[0] * window.first, *[1] * size, *[0] * (len(window.ids) - window.first - size)]
