"""Give every token of a text its tag: the names in it, or what part of speech each word is.

An example has tokens and tags. Each token is spelled in the vocabulary by itself, and its first piece
carries its tag (Devlin et al. 2019, §5.3), so Chinese characters, sub-words and whole words are treated
alike. A sentence longer than the context is read in several windows, each token tagged in one of them.
With `crf` the tags of a sentence are scored together by a chain of transitions; either way no sequence is
given that the scheme does not allow.

Batch: `input_ids`, `token_type_ids`, `labels` (-100 where no token begins), `marks` (1 where one does), in
one of the layouts of `data/layout.py`, and `edges` (E,2): whether a row begins and ends where its sentence does.

Axes: B rows, T tokens of the vocabulary, E rows of a batch, L tokens of the longest sentence, K tags.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from groundup.config import Named
from groundup.data.examples import CROPPED
from groundup.data.packing import IGNORED, Columns, Row
from groundup.data.windows import WINDOWS, Windows
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.ratios import Ratio
from groundup.evaluation.metrics.tagging import entities
from groundup.tasks._contract import Answer
from groundup.text import tag_schemes, tagged
from groundup.text.rendering import Piece, markup
from groundup.text.tag_schemes import Scheme
from groundup.text.token_windows import Cutter

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.nn.crf import Allowed, Chain
    from groundup.nn.network import Network, Outputs
    from groundup.nn.ragged import Picked
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
    "entity_f1": Ratio("matched", "entities", higher_is_better=True),
}
"""What is watched while training. accuracy: of tags. entity_f1: twice the names found whole, over those there are
and those that were given; only where tags have a scheme."""
MOST_TAGS = 1000
"""More different tags than this are taken for a mistake."""
CHAIN = "crf.safetensors"
"""The file of a chain's scores beside a model; see `nn/crf.py`."""


class Config(Named):
    """The tag of every token."""

    tokens: str = "tokens"
    """The column of the tokens, a list of strings."""
    tags: str = "tags"
    """The column of their tags, a list of strings of the same length."""
    labels: tuple[str, ...] | None = None
    """The tags, in the order of the model's outputs; as found in the training rows unless given."""
    scheme: Scheme | None = None
    """How tags mark where a name begins and ends: `bio` (IOB2), `iob1` (as CoNLL-2003, read as bio), `bioes`,
    `bmes`, or `plain` for tags of single tokens. As the training rows have it unless given."""
    broken: Literal["stop", "repair"] = "stop"
    """What becomes of a sentence whose tags break the scheme: `stop` with its row, or `repair` it as CoNLL's
    script reads it (what continues nothing begins)."""
    crf: bool = False
    """Whether tags are scored together by a linear-chain conditional random field (Lafferty et al. 2001)."""
    constrained: bool = True
    """Whether only sequences that the scheme allows are answered. A conditional random field always keeps to it."""
    overlong: Literal["split", "truncate", "drop"] = "split"
    """What becomes of training sentences longer than the context: read in several rows, cut, or left out. Counted
    in the label ledger either way. When answering they are always split."""
    overlap: int = 32
    """Tokens that a row of a split sentence shares with the one before, as surroundings."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with the scheme and the tags of the training rows.

    Raises DataError, naming the row, for tokens and tags of different number and for tags that break the
    scheme; for names in `labels` that never occur; and for an implausible number of tags.
    """
    sentences: Counter[tuple[str, ...]] = Counter()
    where: dict[tuple[str, ...], str] = {}
    for example in examples:
        count = len(tagged.tokens(config.tokens, example, required=True))
        tags = tuple(tagged.tags(config.tags, example, count) or ())
        sentences[tags] += 1
        where.setdefault(tags, str(example.get("source", "")))
    scheme = config.scheme or tag_schemes.detect(sentences)
    counts: Counter[str] = Counter()
    for tags, times in sentences.items():
        for tag in _in_scheme(config, scheme, tags, where[tags]):
            counts[tag] += times
    if len(counts) > MOST_TAGS:
        what = f"more than {MOST_TAGS} different tags in the column {config.tags!r}"
        raise DataError(what, fix="name the column of the tags: task.tags")
    labels = config.labels or tuple(sorted(counts, key=_order))
    absent, unnamed = [t for t in labels if not counts[t]], [t for t in counts if t not in labels]
    if config.labels is not None and absent:
        what = f"tags that never occur in the training rows: {', '.join(map(repr, absent[:5]))}"
        raise DataError(what, fix=f"take them out of task.labels; found: {', '.join(sorted(counts)[:20])}")
    if unnamed:
        what = f"training rows have the tag {unnamed[0]!r}, which task.labels does not name"
        raise DataError(what, fix=nearest(unnamed[0], labels))
    if len(labels) < 2:
        found = f"only the tag {labels[0]!r}" if labels else "no tag at all"
        what = f"{found} in the column {config.tags!r} of the training rows: there is nothing to tell apart"
        raise DataError(what, fix="name the column of the tags: task.tags")
    return config.model_copy(update={"labels": labels, "scheme": scheme})


def _order(tag: str) -> tuple[bool, str, str]:
    """O first, then by kind."""
    prefix, kind = tag_schemes.parts(tag)
    return tag != tag_schemes.OUTSIDE, kind, prefix


def _in_scheme(config: Config, scheme: Scheme, tags: Sequence[str], where: str) -> list[str]:
    """The tags as they are trained. Raises DataError, naming the row, where they break the scheme."""
    if scheme == "iob1":
        return tag_schemes.to_bio(tags)
    fault = tag_schemes.fault(tags, scheme)
    if fault and config.broken == "stop":
        raise DataError(fault, where=where, fix="mend the row, name another task.scheme, or set task.broken: repair")
    return tag_schemes.repaired(tags, scheme) if fault else list(tags)


class Task:
    """Tagging with one tokenizer at one context length. Can be sent to other processes."""

    head = "tokens"
    evaluation = "tags"
    baseline = "features"

    def __init__(self, config: Config, tokenizer: Tokenizer, context: int) -> None:
        """`config` is settled. Raises DataError for a context too short."""
        self.config, self.tokenizer, self.context = config, tokenizer, context
        self.labels = list(config.labels or ())
        self.outputs = len(self.labels)
        self.scheme: Scheme = config.scheme or "plain"
        self._ids = {tag: i for i, tag in enumerate(self.labels)}
        self._cutter = Cutter(tokenizer, context, config.overlap)
        self.pad_id = tokenizer.pad_id if tokenizer.pad_id is not None else tokenizer.eos_id or 0

    @property
    def metrics(self) -> dict[str, Ratio]:
        """Those of `METRICS` that apply."""
        return {name: m for name, m in METRICS.items() if self.scheme != "plain" or name != "entity_f1"}

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on beside the tokenizer: the key of encoded shards."""
        c = self.config
        columns = {"tokens": c.tokens, "tags": c.tags, "broken": c.broken, "overlap": c.overlap}
        labels = {"scheme": self.scheme, "labels": self.labels, "context": self.context}
        return {"task": c.name, "version": VERSION, **columns, **labels}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"scheme": self.scheme, "labels": self.labels}

    def encode(self, example: Mapping[str, Any]) -> dict[str, list[int]]:
        """The windows of a sentence end to end: `input_ids`, `token_type_ids`, `labels`, `marks`; `edges`, two
        numbers a window; `windows`, their sizes; `cropped`, the pieces of tokens too long for the context.

        Raises DataError naming the row for tags that are unknown, break the scheme or do not fit the tokens.
        """
        tokens = tagged.tokens(self.config.tokens, example)
        given = tagged.tags(self.config.tags, example, len(tokens))
        where = str(example.get("source", ""))
        labels = [IGNORED] * len(tokens)
        if given is not None:
            labels = [self._id(tag, where) for tag in self._settled(given, where)]
        cut = self._cutter(tokens)
        found: dict[str, list[int]] = {name: [] for name in ("input_ids", "token_type_ids", "labels", "marks", "edges")}
        for window in cut.windows:
            found["input_ids"] += window.ids
            found["token_type_ids"] += window.types
            found["labels"] += [IGNORED if token is None else labels[token] for token in window.tokens]
            found["marks"] += [int(token is not None) for token in window.tokens]
            found["edges"] += [int(window.begins), int(window.ends)]
        return found | {WINDOWS: [len(window.ids) for window in cut.windows], CROPPED: [cut.cropped]}

    def _settled(self, tags: Sequence[str], where: str) -> list[str]:
        """Tags as they are trained: rows of IOB1 were settled to be read as BIO."""
        return _in_scheme(self.config, self.scheme, tags, where)

    def _id(self, tag: str, where: str) -> int:
        if tag not in self._ids:
            what = f"the tag {tag!r} is not among those of the training rows"
            raise DataError(what, where=where, fix=nearest(tag, self.labels))
        return self._ids[tag]

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Windows:
        """The windows of a split. Raises DataError if none has a tag. `seed` changes nothing."""
        left_out: Sequence[int] = ()
        if self.config.overlong != "split" and not held_out:
            left_out = _several(shards)
        return Windows(
            shards,
            labels="labels",
            tokens=("input_ids", "token_type_ids", "labels", "marks"),
            vectors={"edges": 2},
            left_out=left_out if self.config.overlong == "drop" else (),
            first_only=self.config.overlong == "truncate" and not held_out,
        )

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        from groundup.data.layout import collate

        return collate(rows, fill={"input_ids": self.pad_id}, is_flat=flat)

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: the cross-entropy of tags, or the chain's negative log-likelihood, summed, and the number of tags."""
        from groundup.nn import losses

        if not self.config.crf:
            return {"loss": losses.cross_entropy(outputs.logits, batch["labels"])}
        nats_E, tags_E = self._chain_nats(outputs, batch)
        return {"loss": (nats_E.sum(), tags_E.sum())}

    def _chain_nats(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of each row's tags and their number, (E,) each; 0 for a row without tags."""
        from groundup.nn import crf

        picked, chain = self._picked(outputs, batch), self._chain(outputs)
        tags_EL = picked.take(batch["labels"], IGNORED)
        tagged_E = ((tags_EL != IGNORED) | ~picked.real).all(1) & picked.real.any(1)
        # A row without tokens of its own is given one for the arithmetic, and no share in the sum.
        real_EL = picked.real.clone()
        real_EL[:, 0] = True
        emissions_ELK = picked.take(outputs.logits)
        nats_E = -crf.log_likelihood(emissions_ELK, tags_EL.clamp(min=0), real_EL, chain, batch["edges"])
        return nats_E * tagged_E, picked.counts * tagged_E

    def _picked(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> Picked:
        from groundup.nn.ragged import pick

        return pick(batch["marks"] == 1, outputs.places)

    def _chain(self, outputs: Outputs) -> Chain:
        """The scores of neighbouring tags on the device of the outputs."""
        from groundup.nn import crf

        allowed = crf.Allowed(*(mask.to(outputs.hidden.device) for mask in self._allowed()))
        if not self.config.crf:
            return crf.without_scores(allowed)
        transitions = getattr(outputs.head, "beside", None)
        assert isinstance(transitions, crf.Transitions), "a network for a chain has been through `extend` or `restore`"
        return transitions.chain(allowed)

    def _allowed(self) -> Allowed:
        """What the scheme allows, where answers keep to it; with a chain always."""
        from groundup.nn import crf

        scheme: Scheme = self.scheme if self.config.constrained or self.config.crf else "plain"
        scheme = "bio" if scheme == "iob1" else scheme
        follows = [[tag_schemes.may_follow(b, a, scheme) for b in self.labels] for a in self.labels]
        first = [tag_schemes.may_begin(tag, scheme) for tag in self.labels]
        return crf.allowed_by(follows, first, [tag_schemes.may_end(tag, scheme) for tag in self.labels])

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained tags, from a batch alone."""
        return {"loss": int((batch["labels"] != IGNORED).sum())}

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per row, the sums that `metrics` divide: `nats`, `labels`, `right`, `matched`, `entities`. No gradient."""
        import torch

        with torch.no_grad():
            picked = self._picked(outputs, batch)
            tags_EL, best_EL = picked.take(batch["labels"], IGNORED), self._best(outputs, picked, batch)
            real_EL = tags_EL != IGNORED
            right_E = ((best_EL == tags_EL) & real_EL).sum(1)
            matched = [self._matches(*pair) for pair in zip(tags_EL.tolist(), best_EL.tolist(), strict=True)]
            two = torch.tensor(matched, dtype=torch.int64, device=right_E.device).reshape(-1, 2)
            nats_E = self._nats(outputs, batch, picked, tags_EL)
        return {
            "nats": nats_E.double(), "labels": real_EL.sum(1), "right": right_E, "matched": two[:, 0],
            "entities": two[:, 1],
        }  # fmt: skip

    def _nats(self, outputs: Outputs, batch: Mapping[str, Tensor], picked: Picked, tags_EL: Tensor) -> Tensor:
        import torch

        if self.config.crf:
            return self._chain_nats(outputs, batch)[0]
        scores_EKL = picked.take(outputs.logits.float()).transpose(1, 2)
        return torch.nn.functional.cross_entropy(scores_EKL, tags_EL, ignore_index=IGNORED, reduction="none").sum(1)

    def _matches(self, truth: list[int], answer: list[int]) -> tuple[int, int]:
        """Twice the names found whole, and how many names there are in truth and answer together."""
        size = sum(tag != IGNORED for tag in truth)
        there = set(entities([self.labels[tag] for tag in truth[:size]]))
        given = set(entities([self.labels[tag] for tag in answer[:size]]))
        return 2 * len(there & given), len(there) + len(given)

    def _best(self, outputs: Outputs, picked: Picked, batch: Mapping[str, Tensor]) -> Tensor:
        """The best allowed tags of each row, (E,L) int64."""
        from groundup.nn import crf

        return crf.best(picked.take(outputs.logits), picked.real, self._chain(outputs), batch["edges"])

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """For each row the `tags` of the tokens it owns, and `nats`, how unlikely the model finds them."""
        import torch

        with torch.no_grad():
            picked = self._picked(outputs, batch)
            best_EL = self._best(outputs, picked, batch)
            labels_BT = torch.full_like(batch["input_ids"], IGNORED)
            labels_BT.view(-1)[picked.where[picked.real]] = best_EL[picked.real]
            tags_EL = picked.take(labels_BT, IGNORED)
            nats = self._nats(outputs, {**batch, "labels": labels_BT}, picked, tags_EL).tolist()
        counts = picked.counts.tolist()
        named = ([self.labels[i] for i in row[:n]] for row, n in zip(best_EL.tolist(), counts, strict=True))
        return [{"tags": tags, "nats": value} for tags, value in zip(named, nats, strict=True)]

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """One tag a token; where the windows of a long sentence meet, mended to keep the scheme."""
        tags = [tag for part in found for tag in part["tags"]]
        if len(found) > 1 and self.config.constrained:
            tags = tag_schemes.repaired(tags, "bio" if self.scheme == "iob1" else self.scheme)
            tags = [tag if tag in self._ids else tag_schemes.OUTSIDE for tag in tags]
        nats = sum(float(part["nats"]) for part in found)
        return Answer(tags, confidence=-nats / max(1, len(tags)))

    def truth(self, example: Mapping[str, Any]) -> list[str]:
        """One tag a token, as they are trained. Raises DataError, naming the row, if they are missing or broken."""
        where = str(example.get("source", ""))
        count = len(tagged.tokens(self.config.tokens, example, required=True))
        tags = tagged.tags(self.config.tags, example, count)
        if tags is None:
            raise DataError("a row without tags", where=where, fix="tag it, or leave it out")
        return self._settled(tags, where)

    def shown(self, example: Mapping[str, Any]) -> str:
        """The tokens with a space between each."""
        return " ".join(tagged.tokens(self.config.tokens, example))

    def inputs(self, example: Mapping[str, Any]) -> list[str]:
        """The tokens: what a classical rival reads."""
        return tagged.tokens(self.config.tokens, example)

    def extend(self, network: Network) -> None:
        """Give a network that was made for this task its chain, with every score at zero."""
        if self.config.crf:
            from groundup.nn.crf import Transitions

            device = next(network.parameters()).device
            network.head.beside = Transitions(self.outputs).to(device)  # type: ignore[attr-defined]

    def save(self, folder: Path, network: Network) -> None:
        """Write what transformers' layout has no place for: the chain's scores."""
        if self.config.crf:
            from groundup.nn import crf

            crf.write(folder / CHAIN, network.head.beside, self.labels)  # type: ignore[attr-defined]

    def restore(self, folder: Path, network: Network) -> None:
        """Take back what `save` wrote. Raises ArtifactError if it is missing or of other tags."""
        if self.config.crf:
            from groundup.nn import crf

            self.extend(network)
            crf.read(folder / CHAIN, network.head.beside, self.labels)  # type: ignore[attr-defined]

    def render(self, row: Row) -> str:
        """The row as rich markup: tokens that carry a tag highlighted, and their tags below."""
        labels = row["labels"].tolist()
        pieces = [Piece(int(i), trained=tag != IGNORED) for i, tag in zip(row["input_ids"], labels, strict=True)]
        tags = " ".join(self.labels[tag] for tag in labels if tag != IGNORED)
        return f"{markup(self.tokenizer, pieces)}\n[cyan]tags: {tags or 'none (trains nothing)'}[/]"


def _several(shards: Columns) -> list[int]:
    """The examples that need more than one window."""
    offsets = shards.column(WINDOWS)[1].tolist()
    return [i for i, (start, stop) in enumerate(pairwise(offsets)) if stop - start > 1]
