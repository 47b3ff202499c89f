"""Models that answer rows at once, without a cache: labelled tasks, and vectors of texts.

Each encodes one row by itself, so that a bad row fails alone and before anything is computed, and computes many
encoded rows together. They run in the engine process.

Axes: E texts of a batch, D width.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from groundup.errors import DataError, GroundupError, UserError
from groundup.evaluation import answering
from groundup.runtimes.torch import TorchRuntime
from groundup.serving.unpacking import Unpacker
from groundup.text.framing import Frame
from groundup.text.tokenizers import Tokenizer

POOLINGS = {
    "pooling_mode_cls_token": "first",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt",
    "pooling_mode_lasttoken": "last",
}
"""How sentence-transformers names what is made one vector of a text's hidden states."""

MOST_RECOMMENDED = 200
"""Items that are ranked for a history at most; some of them may be left out on request."""


class NotNumbers(GroundupError):
    """A model's scores are not numbers: its weights are damaged, or the row is such that they overflow."""

    def __init__(self) -> None:
        super().__init__("the model's scores are not numbers", fix="its weights are damaged: groundup verify")


class Encoded(NamedTuple):
    """A row that is ready to be computed."""

    content: Any
    tokens: int
    """Tokens that are read of it."""


class Answerer(Protocol):
    """A model that answers rows."""

    def encode(self, row: Any, key: str = "") -> Encoded | Future[Encoded]:
        """A row, ready to be computed, or that in a while. Raises GroundupError for one that cannot be read.

        `key` is whose row it is. Raises Full where rows that are read in a while have no place to wait.
        """

    def answer(self, rows: Sequence[Encoded]) -> list[Any]:
        """The answers to rows computed together, in order, as plain data."""


class TaskAnswerer:
    """Answers of a labelled task: those of `groundup.load(…).predict(rows)`."""

    def __init__(
        self,
        task: Any,
        runtime: TorchRuntime,
        *,
        temperature: float,
        batch_tokens: int,
        media: Mapping[str, str] = {},
        unpacker: Unpacker | None = None,
    ) -> None:
        """`temperature` is what probabilities are shown at.

        `media` are columns that hold a file, `image` or `audio`; rows with these are encoded by the `unpacker`.
        """
        self.task, self.runtime, self.temperature, self.batch_tokens = task, runtime, temperature, batch_tokens
        self.media, self.unpacker = media, unpacker

    def encode(self, row: Any, key: str = "") -> Encoded | Future[Encoded]:
        """The rows of an example. Raises DataError for a column that is missing or of another kind."""
        require_plain(row)
        example = answering.example_of(self.task, row, 0)
        for column, medium in self.media.items():
            # Only ever bytes: a text might be the path of a file of this machine.
            if not isinstance(example.get(column), bytes):
                raise DataError(
                    f"no {medium} in the column {column!r}", fix=f"give the bytes of an {medium} file there"
                )
        if not self.media or self.unpacker is None:
            return self._encoded(example, None)
        return self.unpacker.submit(self.task.config, example, partial(self._encoded, example), key=key)

    def _encoded(self, example: Mapping[str, Any], columns: Mapping[str, Any] | None) -> Encoded:
        alone = answering.encode_alone(self.task, example, columns)
        without_files = {name: value for name, value in example.items() if name not in self.media}
        return Encoded(alone._replace(example=without_files), sum(alone.lengths))

    @torch.inference_mode()
    def answer(self, rows: Sequence[Encoded]) -> list[Any]:
        """For each example its `label`, `labels`, `number`, `tags` or `text`, with probabilities or a confidence."""
        given = answering.answer_together(
            self.task,
            [row.content for row in rows],
            self.runtime.forward,
            batch_tokens=self.batch_tokens,
            is_flat=self.runtime.device.type in ("cpu", "cuda"),
        )
        return [answering.shown(self.task, one, self.temperature) for one in given]


class Recommender(TaskAnswerer):
    """Items that may come next in histories, best first, with their scores: more of them than `predict` gives."""

    @torch.inference_mode()
    def answer(self, rows: Sequence[Encoded]) -> list[Any]:
        """For each history its `items` and their `scores`."""
        is_flat = self.runtime.device.type in ("cpu", "cuda")
        alone = [row.content for row in rows]
        found = answering.answer_together(
            _Ranked(self.task), alone, self.runtime.forward, batch_tokens=self.batch_tokens, is_flat=is_flat
        )
        return [{"items": list(one["best"]), "scores": list(one["scores"])} for one in found]


class _Ranked:
    """A task of histories whose answers are all that was found."""

    def __init__(self, task: Any) -> None:
        task.recommended = MOST_RECOMMENDED
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Mapping[str, Any]:
        """The best items of the last row, with their scores."""
        if not found:
            raise DataError("a history without any item", fix="give at least one")
        return found[-1]


@dataclass(frozen=True)
class Pooling:
    """How a sentence encoder makes one vector of a text, as its directory says (sentence-transformers' files)."""

    mode: str = "mean"
    is_normalised: bool = True
    max_tokens: int | None = None
    lowers: bool = False
    """Whether texts are put in lower case before the tokenizer sees them."""
    prefix: str = ""
    """What is put before every text."""

    @classmethod
    def of(cls, folder: Path) -> Pooling:
        """What a directory states; without a statement the mean of all tokens, of length one.

        Raises UserError for steps and ways of pooling that are not known here.
        """
        where = folder / "modules.json"
        if not where.is_file():
            return cls()
        modules = {str(one["type"]).rpartition(".")[2]: str(one["path"]) for one in _json(where)}
        unknown = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
        if unknown:
            fix = "serve an encoder that is made of a Transformer, Pooling and Normalize"
            raise UserError(f"the encoder has a step of its own, {unknown[0]!r}", where=str(where), fix=fix)
        pooled = _json(folder / modules.get("Pooling", "1_Pooling") / "config.json")
        wanted = [name for name in pooled if name.startswith("pooling_mode_") and pooled[name]]
        if len(wanted) != 1 or wanted[0] not in POOLINGS:
            known = ", ".join(POOLINGS)
            what = f"the encoder pools by {' and '.join(wanted) or 'nothing'}"
            raise UserError(what, where=str(folder), fix=f"exactly one of these is known: {known}")
        cut, more = _json(folder / "sentence_bert_config.json"), _json(folder / "config_sentence_transformers.json")
        return cls(
            mode=POOLINGS[wanted[0]],
            is_normalised="Normalize" in modules,
            max_tokens=cut.get("max_seq_length"),
            lowers=bool(cut.get("do_lower_case")),
            prefix=str((more.get("prompts") or {}).get(more.get("default_prompt_name")) or ""),
        )


class SentenceEncoder:
    """Vectors of texts, by the model's own pooling: those of sentence-transformers."""

    def __init__(self, runtime: TorchRuntime, tokenizer: Tokenizer, pooling: Pooling, *, column: str = "text") -> None:
        self.runtime, self.tokenizer, self.pooling, self.column = runtime, tokenizer, pooling, column
        longest = min(pooling.max_tokens or runtime.context, runtime.context)
        self.frame = Frame.of(tokenizer, pair=False, context=longest)

    def encode(self, row: Any, key: str = "") -> Encoded:
        """The framed tokens of a text, cut to the longest the encoder reads. Raises DataError for what is no text."""
        text = row if isinstance(row, str) else row.get(self.column) if isinstance(row, Mapping) else None
        if not isinstance(text, str):
            raise DataError(f"no text in the column {self.column!r}", fix="give a string")
        require_plain(text)
        text = self.pooling.prefix + text
        framed = self.frame(self.tokenizer.encode(text.lower() if self.pooling.lowers else text))
        return Encoded(framed, len(framed.ids))

    @torch.inference_mode()
    def answer(self, rows: Sequence[Encoded]) -> list[Any]:
        """For each text its `vector`: float32, little-endian, in base64, as OpenAI's client asks for it.

        Raises NotNumbers.
        """
        # Equal lengths side by side: attention takes one call for each run of them.
        order = sorted(range(len(rows)), key=lambda place: -rows[place].tokens)
        vectors_ED = self._vectors([rows[place] for place in order]).float().cpu().contiguous()
        if not vectors_ED.isfinite().all():
            raise NotNumbers
        found: list[Any] = [None] * len(rows)
        for place, vector_D in zip(order, vectors_ED, strict=True):
            found[place] = {"vector": packed(vector_D)}
        return found

    def _vectors(self, rows: Sequence[Encoded]) -> Tensor:
        """(E,D) of framed texts."""
        lengths_E = torch.tensor([row.tokens for row in rows])
        batch = {
            "input_ids": torch.tensor([[token for row in rows for token in row.content.ids]]),
            "token_type_ids": torch.tensor([[kind for row in rows for kind in row.content.types]]),
            "positions": torch.cat([torch.arange(row.tokens) for row in rows])[None],
            "lengths": lengths_E,
        }
        pooled_ED = _pooled(self.runtime.forward(batch), self.pooling.mode)
        return F.normalize(pooled_ED, dim=-1) if self.pooling.is_normalised else pooled_ED


def _pooled(outputs: Any, mode: str) -> Tensor:
    """One vector a text, (E,D), of a flat batch's `nn.network.Outputs`."""
    if mode == "max":
        _, length_E = outputs.places
        return torch.stack([part.amax(0) for part in outputs.hidden[0].split(length_E.tolist())])
    if mode == "mean_sqrt":
        _, length_E = outputs.places
        scaled_ED: Tensor = outputs.examples("mean") * length_E[:, None].sqrt()
        return scaled_ED
    pooled_ED: Tensor = outputs.examples(mode)
    return pooled_ED


def packed(vector_D: Tensor) -> str:
    """A vector as base64 of little-endian float32."""
    return base64.b64encode(vector_D.numpy().astype("<f4").tobytes()).decode("ascii")


def require_plain(row: Any) -> None:
    """Raise DataError for a row with a lone surrogate anywhere: it stands for no character, and no tokenizer reads it.

    Walked without recursion: how deep a row is nested is the sender's choice.
    """
    pending = [row]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as error:
                what = f"the text holds U+{ord(value[error.start]):04X} at character {error.start}, half of a pair"
                raise DataError(what, fix="it was cut or decoded wrongly: read it as UTF-8") from error
        elif isinstance(value, Mapping):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
