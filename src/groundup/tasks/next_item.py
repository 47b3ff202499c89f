"""Say what a user will choose next, from what the user chose so far.

A catalogue takes the place of a vocabulary: item 1 is its first, and 0 stands for every item that no training row
holds. Any network with a causal head over a vocabulary learns it: `sasrec`, `two_tower`, `rnn` with `cell: gru`
(GRU4Rec, Hidasi et al. 2016). Every item of the catalogue is ranked for every target, none is sampled, and items
the user has chosen before are left out, unless told otherwise.

Batch: `input_ids` and `labels` in one of the layouts of `data/layout.py`; in training with `loss: binary`
`negatives`; held out `seen` (E,S), 0 where a row has fewer, and `target` (E,). See `data/histories.py`.

Axes: E examples of a batch, T items of a row, I items of the catalogue, V = I + 1 entries of the table.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field
from rich.markup import escape

from groundup.artifact import digest_data
from groundup.config import Named
from groundup.data.histories import HISTORY, NEGATIVES, NO_TARGET, SEEN, TARGET, UNKNOWN, Histories
from groundup.data.packing import IGNORED, Columns, Row
from groundup.data.sources import as_text
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics import recommending
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks._contract import Answer

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "ndcg_at_10": Ratio("gain", "labels", higher_is_better=True),
}
"""What is watched while training, over the whole catalogue."""
RECOMMENDED = 20
"""How many items an answer names, best first, unless told otherwise."""
MOST_ITEMS = 200_000
"""More items than this are not all ranked for every user in reasonable time; nor would one softmax hold them."""
SHOWN_ITEMS = 8


class Config(Named):
    """What comes next in a history. The columns are those that a source of `kind: interactions` gives."""

    user: str = "user"
    """The column that names the user."""
    items: str = "items"
    """The column with the list of what the user chose, oldest first."""
    targets: str = "targets"
    """The column with the list of what came next; training rows need none."""
    features: tuple[str, ...] = ()
    """Columns with a list beside the items (and targets) that tells of each: year, genres. For models that read
    them, such as `two_tower`."""
    titles: str | None = None
    """The column with a list beside the items that says what people call each, where items are named by numbers: a
    server looks for items by their titles, and tells them."""
    loss: Literal["softmax", "binary", "in_batch"] = "softmax"
    """`softmax` over the whole catalogue; `binary`, each label against drawn negatives, as SASRec's paper has it;
    `in_batch`, a softmax over the labels of the batch, corrected for how often items occur."""
    negatives: Annotated[int, Field(ge=1)] = 1
    """How many items are drawn for each label with `loss: binary`."""
    seen: Literal["leave_out", "keep"] = "leave_out"
    """Whether items that a user has chosen before are left out of what is recommended, and of what is ranked."""
    catalogue: tuple[str, ...] | None = None
    """Every item, in the order of the table; follows from the training rows."""
    counts: tuple[int, ...] | None = None
    """How often each was chosen; follows from the training rows."""
    described: tuple[tuple[int, ...], ...] | None = None
    """The numbers of each item's features, from 1; follows from the training rows."""
    called: tuple[str, ...] | None = None
    """The title of each item, with `titles`; follows from the training rows."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: the catalogue, how often each item occurs, its features.

    A section that has its catalogue keeps it. Raises DataError for columns that are missing or hold no lists, and
    for a catalogue of one item or of too many.
    """
    if config.catalogue is not None:
        return config
    counts: Counter[str] = Counter()
    numbers: dict[tuple[str, str], int] = {}
    described: dict[str, tuple[int, ...]] = {}
    called: dict[str, str] = {}
    for example in examples:
        items = _items(config.items, example)
        counts.update(items)
        if config.titles is not None:
            own_titles = _beside(config.titles, items, example)[: len(items)]
            called |= {item: " ".join(title) for item, title in zip(items, own_titles, strict=True)}
        beside = [_beside(name, items, example) for name in config.features]
        for place, item in enumerate(items if beside else ()):
            if item not in described:
                own = [(name, value) for name, row in zip(config.features, beside, strict=True) for value in row[place]]
                described[item] = tuple([numbers.setdefault(one, len(numbers) + 1) for one in own])
        if len(counts) > MOST_ITEMS:
            what = f"more than {MOST_ITEMS:,} different items in the column {config.items!r}"
            raise DataError(what, fix="leave out rare ones, or group items: each is ranked for every user")
    if len(counts) < 2:
        what = f"{len(counts)} different items in the column {config.items!r}: there is nothing to choose from"
        raise DataError(what, fix="name the column of the lists of items: task.items")
    catalogue = tuple(sorted(counts, key=_natural))
    found: dict[str, Any] = {"catalogue": catalogue, "counts": tuple([counts[item] for item in catalogue])}
    if config.features:
        found["described"] = tuple([described[item] for item in catalogue])
    if config.titles is not None:
        found["called"] = tuple([called[item] for item in catalogue])
    return config.model_copy(update=found)


def _natural(name: str) -> tuple[int, float, str]:
    """Numbers by their value, before all other names."""
    try:
        value = float(name)
    except ValueError:
        return 1, 0.0, name
    return (0, value, name) if math.isfinite(value) else (1, 0.0, name)


def _items(column: str, example: Mapping[str, Any]) -> list[str]:
    """The names of a list of items. Raises DataError, naming the row, if there is no such list."""
    where = str(example.get("source", ""))
    if column not in example:
        fix = f"{nearest(column, example)}; a source of `kind: interactions` gives user, items and targets"
        raise DataError(f"the row has no column {column!r}", where=where, fix=fix)
    found = example[column]
    if not isinstance(found, list | tuple) or any(isinstance(one, list | dict) or one is None for one in found):
        what = f"the column {column!r} is no list of items but {str(found)[:60]!r}"
        raise DataError(what, where=where, fix="give a list of names, oldest first, such as [50, 172, 133]")
    return [as_text(one) for one in found]


def _beside(column: str, items: Sequence[str], example: Mapping[str, Any]) -> list[list[str]]:
    """What a column tells of each item: one value, or several. Raises DataError if it is no list beside the items."""
    found = example.get(column)
    if not isinstance(found, list) or len(found) < len(items):
        what = f"the column {column!r} is no list beside the {len(items)} items"
        fix = nearest(column, example) if column not in example else "give one entry an item"
        raise DataError(what, where=str(example.get("source", "")), fix=fix)
    return [[as_text(value) for value in (cell if isinstance(cell, list) else [cell])] for cell in found]


class Task:
    """Histories over one catalogue. Can be sent to other processes."""

    head = "language"
    evaluation = "recommending"
    baseline = "item_knn"
    packs = True
    recommended = RECOMMENDED
    """How many items an answer names; a server asks for more, of which some are left out on request."""
    outputs = None
    labels: list[str] = []  # noqa: RUF012 - scores stand for items, which a vocabulary of their own names

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, context: int = 200) -> None:
        """`config` is settled. `context` is the most items of a history; `tokenizer` is of no account."""
        assert config.catalogue is not None, "a section is settled before it becomes a task"
        assert config.counts is not None, "a catalogue comes with its counts"
        self.config, self.context = config, context
        self.tokenizer: Any = tokenizer
        self.catalogue, self.metrics = config.catalogue, METRICS
        self._numbers = {name: number for number, name in enumerate(config.catalogue, 1)}
        shares = np.array([1, *config.counts], np.float64) / sum(config.counts)
        self._log_share: list[float] = np.log(shares).tolist()

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss compares the examples of a step with each other, so that a step is not cut."""
        return self.config.loss == "in_batch"

    @property
    def known(self) -> dict[str, Any]:
        """What an open model section is filled with."""
        described = self.config.described
        features = None if described is None else ((), *described)
        return {"vocab_size": len(self.catalogue) + 1, "item_features": features}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on: the key of encoded shards."""
        c = self.config
        columns = {"items": c.items, "targets": c.targets, "catalogue": digest_data(list(self.catalogue))}
        return {"task": c.name, "version": VERSION, **columns}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"items": len(self.catalogue)}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """`input_ids`, the numbers of history and targets end to end, and `history`, how many are history.

        Raises DataError, naming the row, for one without any history: nothing tells what comes next.
        """
        items = _items(self.config.items, example)
        if not items:
            what = f"an empty list in the column {self.config.items!r}: nothing tells what comes next"
            raise DataError(what, where=str(example.get("source", "")), fix="give at least one item")
        both = [*items, *self._targets(example)]
        return {"input_ids": [self._numbers.get(item, UNKNOWN) for item in both], HISTORY: [len(items)]}

    def _targets(self, example: Mapping[str, Any]) -> list[str]:
        return _items(self.config.targets, example) if example.get(self.config.targets) is not None else []

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Histories:
        """Windows of histories; held out one row a target, or one for what comes next where no target is given."""
        negatives = self.config.negatives if self.config.loss == "binary" else 0
        options: dict[str, Any] = {"context": self.context, "n_items": len(self.catalogue), "negatives": negatives}
        return Histories(shards, seed, held_out=held_out, **options)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        if SEEN in rows[0]:
            width = max(len(row[SEEN]) for row in rows)
            rows = [row | {SEEN: np.pad(row[SEEN], (0, width - len(row[SEEN])))} for row in rows]
        return collate(rows, fill={"input_ids": UNKNOWN}, is_flat=flat)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over the labels, and their number. Held-out rows are always judged by the whole softmax."""
        import torch

        from groundup.nn import item_losses, losses

        features, table, labels = outputs.head.features(outputs.hidden), outputs.head.weight, batch["labels"]
        match self.config.loss if SEEN not in batch else "softmax":
            case "binary":
                return {"loss": item_losses.sampled_binary(features, table, labels, batch[NEGATIVES])}
            case "in_batch":
                shares = torch.tensor(self._log_share, device=table.device)
                return {"loss": item_losses.in_batch_softmax(features, table, labels, shares)}
        return {"loss": losses.linear_cross_entropy(features, table, labels, bias_V=outputs.head.bias)}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels, from a batch alone."""
        return {"loss": int((batch["labels"] != IGNORED).sum())}

    def _scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The scores of all items after the last item of each row, (E,I), and each row's target as the place in the
        catalogue, (E,): UNKNOWN - 1 for an item that it lacks, NO_TARGET - 1 where there is none.

        What the user has seen scores -inf, for it may not be recommended.
        """
        start_E, length_E = outputs.places
        last_E = start_E + length_E - 1
        hidden_ED = outputs.hidden.flatten(0, 1)[last_E]
        scores_EV = outputs.head(hidden_ED[:, None])[:, 0].float()
        if SEEN in batch and self.config.seen == "leave_out":
            scores_EV.scatter_(1, batch[SEEN], -math.inf)
        target_E = batch[TARGET] if TARGET in batch else batch["labels"].flatten()[last_E]
        return scores_EV[:, 1:], target_E - 1

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide: `nats`, `gain` and `labels`, (E,) each. No gradient."""
        import torch

        with torch.no_grad():
            scores_EI, target_E = self._scores(outputs, batch)
            asked_E, known_E = target_E >= UNKNOWN - 1, target_E >= 0
            above_E, tied_E = recommending.places(_array(scores_EI), _array(target_E))
            gain = recommending.expected(recommending.discounted(10), above_E, tied_E)
            logs_E = scores_EI.log_softmax(-1).gather(1, target_E.clamp(min=0)[:, None])[:, 0]
            # What is left out has no chance at all; it counts in the rank and not in the nats.
            nats_E = torch.where(known_E & logs_E.isfinite(), -logs_E, 0.0).double()
        gain_E = torch.from_numpy(gain).to(nats_E.device) * asked_E
        return {"nats": nats_E, "gain": gain_E, "labels": asked_E.long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Of each row `best`, what is recommended, with its `scores`, and `place`: how many items stand above its
        target and how many beside it; None without a target."""
        scores_EI, target_E = (_array(found.detach()) for found in self._scores(outputs, batch))
        above_E, tied_E = recommending.places(scores_EI, target_E)
        best_EK = recommending.best(scores_EI, self.recommended)
        found = []
        for row, target in enumerate(target_E.tolist()):
            chosen = [item for item in best_EK[row].tolist() if math.isfinite(scores_EI[row, item])]
            place = None if target == NO_TARGET - 1 else [int(above_E[row]), int(tied_E[row])]
            names = [self.catalogue[item] for item in chosen]
            found.append({"best": names, "scores": scores_EI[row, chosen].tolist(), "place": place})
        return found

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The items to recommend now, best first. Raises DataError for an example without any history."""
        if not found:
            where = str(example.get("source", ""))
            raise DataError("an example without any history", where=where, fix="give at least one item")
        return Answer(list(found[-1]["best"]))

    def answer_all(
        self, found: Mapping[int, Sequence[Mapping[str, Any]]], examples: Sequence[Mapping[str, Any]]
    ) -> list[Answer]:
        """For each example the places of its targets and what was recommended before each."""
        answers = []
        for place in range(len(examples)):
            rows = [row for row in found.get(place, ()) if row["place"] is not None]
            held = {"places": [row["place"] for row in rows], "best": [row["best"] for row in rows]}
            answers.append(Answer(held | {"items": len(self.catalogue)}))
        return answers

    def truth(self, example: Mapping[str, Any]) -> list[str]:
        """What was chosen next. Raises DataError, naming the row, where that is missing."""
        found = self._targets(example)
        if not found:
            where = str(example.get("source", ""))
            raise DataError(f"no item in the column {self.config.targets!r}", where=where, fix="leave the row out")
        return found

    def shown(self, example: Mapping[str, Any]) -> str:
        """The user and the newest items of the history."""
        items = _items(self.config.items, example)
        before = "… " if len(items) > SHOWN_ITEMS else ""
        return f"{example.get(self.config.user, 'user')}: {before}{', '.join(items[-SHOWN_ITEMS:])}"

    def render(self, row: Row) -> str:
        """The items of a row as rich markup, and the last of its labels."""
        items = [self._name(number) for number in row["input_ids"].tolist()]
        last = int(row.get(TARGET, row["labels"][-1]))
        return f"{escape(', '.join(items))}\n[cyan]next: {escape(self._name(last))}[/]"

    def _name(self, number: int) -> str:
        return self.catalogue[number - 1] if number > UNKNOWN else "unknown" if number == UNKNOWN else "none"


def _array(tensor: Tensor) -> Any:
    return tensor.cpu().numpy()
