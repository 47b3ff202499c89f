"""One vector for a text, so that texts that belong together are near: for search and for grouping.

An example has a text and its partner (a question and its answer, two wordings of one thing), and perhaps
texts that look alike and are not; or a text and a label, whose partner is then any other text with that label.
Every partner in the batch is a negative for all other texts (van den Oord et al. 2018), unless it says
the same. The vector is the mean of the last hidden states (Reimers & Gurevych 2019), of length one.

How hard the loss is depends on how many texts are compared, which is why it is over the whole step: where a
step is cut into micro-batches, `joint` compares their vectors (see `training/joint.py`).

Batch, one entry a text: `input_ids` and `token_type_ids` in one of the layouts of `data/layout.py`, `owner` (E,)
the example it is from, `role` (E,) 0 for the text itself, 1 for its partner, 2 for a negative, `group` (E,)
what it says, as a number.

Axes: E texts of a batch, D width, A examples, C candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import Field

from groundup.config import Named
from groundup.data.contrast import GROUPS, SIZES, Contrast, apart
from groundup.data.examples import CROPPED
from groundup.data.packing import Columns, Row
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.ratios import Ratio
from groundup.tasks._contract import Answer
from groundup.text.framing import Frame
from groundup.text.rendering import Piece, markup

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.contrastive import Compared
    from groundup.nn.network import Network, Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training. accuracy: texts whose partner is the nearest of all candidates of their batch."""
RANKED = 100
"""How many candidates an answer names, nearest first."""


class Config(Named):
    """Vectors of texts by what belongs together."""

    text: str = "text"
    """The column of the text."""
    positive: str = "positive"
    """The column of its partner."""
    negative: str = "negative"
    """The column of texts that it is to be told from, one or a list; rows need none."""
    label: str = "label"
    """The column of the label, where texts with the same label belong together."""
    kind: Literal["pairs", "labels"] | None = None
    """Whether partners are given or follow from labels. Unless given: as the training rows have it."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """What cosines are divided by: the smaller, the more the nearest wrong candidates count."""
    symmetric: bool = False
    """Whether partners are also to find their texts."""
    negatives: Annotated[int, Field(ge=0)] = 1
    """How many of its own negatives a row uses at most; of more, others are drawn in every epoch."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: whether partners are given or follow from labels.

    Raises DataError for rows that have neither, and for labels of which no two rows have the same.
    """
    labels: dict[str, int] = {}
    rows = 0
    for example in examples:
        rows += 1
        kind = config.kind or ("pairs" if config.positive in example else "labels")
        if config.kind is None:
            config = config.model_copy(update={"kind": kind})
        if kind == "pairs":
            _text(config.positive, example)
        elif config.label not in example:
            what = f"the corpus has neither a column {config.positive!r} nor a column {config.label!r}"
            fix = f"{nearest(config.positive, example)}; prepare carries the columns that its source names under `keep`"
            raise DataError(what, fix=fix)
        else:
            labels[str(example[config.label])] = labels.get(str(example[config.label]), 0) + 1
    if labels and max(labels.values()) < 2:
        what = f"no two of {rows} rows have the same label in the column {config.label!r}"
        raise DataError(what, fix="name the column of the labels: task.label")
    if len(labels) == 1:
        what = f"only the label {next(iter(labels))!r} in the column {config.label!r}: there is nothing to tell apart"
        raise DataError(what, fix="name the column of the labels: task.label")
    return config


def _text(column: str, example: Mapping[str, Any]) -> str:
    found = example.get(column)
    if not isinstance(found, str) or not found.strip():
        what = f"no text in the column {column!r}"
        fix = nearest(column, example) if column not in example else "repair or leave out the row"
        raise DataError(what, where=str(example.get("source", "")), fix=fix)
    return found


def _number(what: str) -> int:
    """A number for what a text says: the same for equal texts, on every machine."""
    return int.from_bytes(hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 2


class Task:
    """Vectors with one tokenizer at one context length. Can be sent to other processes."""

    head = "embedding"
    evaluation = "ranking"
    baseline = "bm25"
    outputs = None
    labels: list[str] = []  # noqa: RUF012 - vectors have no labels

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """`config` is settled. Raises DataError for a context too short."""
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.metrics = METRICS
        self.by_label = config.kind == "labels"
        self._frame = Frame.of(tokenizer, pair=False, context=context)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id or 0

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        columns = {"text": c.text, "positive": c.positive, "negative": c.negative, "label": c.label}
        return {"task": c.name, "version": VERSION, **columns, "kind": c.kind, "context": self.context}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"kind": self.config.kind or "pairs"}

    def texts(self, example: Mapping[str, Any]) -> list[str]:
        """The text, its partner if it has one, and what it is to be told from. Raises DataError, naming the row."""
        found = [_text(self.config.text, example)]
        if self.by_label or example.get(self.config.positive) is None:
            return found
        found.append(_text(self.config.positive, example))
        others = example.get(self.config.negative) or []
        others = [others] if isinstance(others, str) else others
        if not all(isinstance(other, str) for other in others):
            what = f"the column {self.config.negative!r} is neither a text nor a list of texts"
            raise DataError(what, where=str(example.get("source", "")), fix="repair or leave out the row")
        return found + [other for other in others if other.strip()]

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """The texts of an example end to end: `input_ids` and `token_type_ids`; `texts`, the tokens of each;
        `groups`, what each says (its label, or the text itself, as a number); `cropped`, tokens cut off."""
        texts = self.texts(example)
        framed = [self._frame(ids) for ids in self.tokenizer.encode_batch(texts)]
        label = example.get(self.config.label)
        return {
            "input_ids": [token for one in framed for token in one.ids],
            "token_type_ids": [kind for one in framed for kind in one.types],
            SIZES: [len(one.ids) for one in framed],
            GROUPS: [_number(str(label) if self.by_label else text) for text in texts],
            CROPPED: [sum(one.cropped for one in framed)],
        }

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Contrast:
        """The examples of a split that have a partner, one row each. Raises DataError if there are none.

        `seed` decides which partners and negatives are drawn in an epoch.
        """
        return Contrast(shards, seed, by_label=self.by_label, negatives=self.config.negatives)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """The texts of the rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(list(apart(rows)), fill={"input_ids": self.pad_id}, is_flat=flat)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: the cross-entropy of each text's partner among the batch's candidates, summed, and their number."""
        return self.joint([outputs.logits], [batch])

    def joint(
        self, vectors: Sequence[Tensor], batches: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """The loss of several micro-batches together, from the vectors (E,D) of each: every text against all."""
        import torch

        nats_A = self._nats(self._compared(vectors, batches))
        return {"loss": (nats_A.sum(), torch.tensor(len(nats_A), device=nats_A.device))}

    def _nats(self, compared: Compared) -> Tensor:
        from groundup.nn import contrastive

        return contrastive.info_nce(compared, temperature=self.config.temperature, symmetric=self.config.symmetric)

    def _compared(self, vectors: Sequence[Tensor], batches: Sequence[Mapping[str, Tensor]]) -> Compared:
        from groundup.nn import contrastive

        columns = ([batch[name] for batch in batches] for name in ("owner", "role", "group"))
        return contrastive.compare(*contrastive.together(list(vectors), *columns))

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of texts that have a partner, from a batch alone."""
        return {"loss": int((batch["role"] == 0).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide: `nats`, `labels` and `right`, (A,) each. No gradient."""
        import torch

        with torch.no_grad():
            compared = self._compared([outputs.logits], [batch])
            nats_A = self._nats(compared)
            right_A = compared.scores.argmax(1) == compared.targets
        return {"nats": nats_A.double(), "labels": torch.ones_like(right_A).long(), "right": right_A.long()}

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each example its `vectors`: the text's, its partner's, those of its negatives."""
        vectors, owner, role = outputs.logits.float().tolist(), batch["owner"].tolist(), batch["role"].tolist()
        found: dict[int, list[tuple[int, int, list[float]]]] = {}
        for place in range(len(owner)):
            found.setdefault(owner[place], []).append((role[place], place, vectors[place]))
        return [{"vectors": [v for *_, v in sorted(found[i], key=lambda one: one[:2])]} for i in sorted(found)]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The text's vector. What is near it only a whole split can tell: see `answer_all`."""
        return Answer(found[0]["vectors"][0] if found else [])

    def answer_all(
        self, found: Mapping[int, Sequence[Mapping[str, Any]]], examples: Sequence[Mapping[str, Any]]
    ) -> list[Answer]:
        """For each example the candidates nearest to its text, best first, RANKED at most.

        Of pairs the candidates are all different partners of the split, told by their text. Of labels they are
        the labels of all other examples, each as near as its nearest example.
        """
        queries = [found[i][0]["vectors"][0] if i in found else None for i in range(len(examples))]
        if self.by_label:
            names = [str(example.get(self.config.label)) for example in examples]
            places = [i for i, vector in enumerate(queries) if vector is not None]
            return _ranked(queries, [queries[i] for i in places], [names[i] for i in places], places)
        items: dict[str, list[float]] = {}
        for i, example in enumerate(examples):
            if i in found:
                items.setdefault(self.texts(example)[1], found[i][0]["vectors"][1])
        return _ranked(queries, list(items.values()), list(items), None)

    def truth(self, example: Mapping[str, Any]) -> list[str]:
        """The partner's text, or the label. Raises DataError, naming the row, if there is none."""
        if self.by_label:
            found = example.get(self.config.label)
            if found is None:
                where = str(example.get("source", ""))
                raise DataError("a row without a label", where=where, fix="label it, or leave it out")
            return [str(found)]
        return [_text(self.config.positive, example)]

    def shown(self, example: Mapping[str, Any]) -> str:
        """The text."""
        return _text(self.config.text, example)

    def inputs(self, example: Mapping[str, Any]) -> tuple[str, ...]:
        """The text and its partner: what a classical rival reads."""
        return tuple(self.texts(example)[:2])

    def save(self, folder: Path, network: Network) -> None:
        """Write the files by which sentence-transformers opens the model: mean of tokens, then length one."""
        kind = "sentence_transformers.models"
        layers = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        modules = [{"idx": i, "name": str(i), "path": p, "type": f"{kind}.{t}"} for i, (p, t) in enumerate(layers)]
        pooling = {
            "word_embedding_dimension": int(network.config.d_model),  # type: ignore[attr-defined]
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        }
        files = {
            "modules.json": modules,
            "1_Pooling/config.json": pooling,
            "sentence_bert_config.json": {"max_seq_length": self.context, "do_lower_case": False},
            "config_sentence_transformers.json": {"similarity_fn_name": "cosine"},
        }
        for name, content in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def render(self, row: Row) -> str:
        """The texts of the row as rich markup, one below the other; its partner highlighted."""
        lines, start = [], 0
        for place, size in enumerate(row[SIZES].tolist()):
            ids = row["input_ids"][start : start + size].tolist()
            lines.append(markup(self.tokenizer, [Piece(token, trained=place == 1) for token in ids]))
            start += size
        return "\n".join(lines)


def _ranked(
    queries: Sequence[list[float] | None], candidates: Sequence[Any], names: Sequence[str], own: Sequence[int] | None
) -> list[Answer]:
    """The names of the candidates nearest to each query, each name once; `own` are queries that are candidates too."""
    table = np.array(candidates, np.float32).reshape(len(candidates), -1)
    place_of = {query: place for place, query in enumerate(own or ())}
    found: list[Answer] = []
    for number, query in enumerate(queries):
        if query is None or not len(table):
            found.append(Answer([]))
            continue
        scores = table @ np.array(query, np.float32)
        if number in place_of:
            scores[place_of[number]] = -np.inf
        order = np.argsort(-scores, kind="stable")
        if number in place_of:
            order = order[:-1]
        best = list(dict.fromkeys(names[i] for i in order.tolist()))[:RANKED]
        found.append(Answer(best, confidence=float(scores[order[0]]) if len(order) else None))
    return found
