"""Families without a file here, opened through transformers: slower, and the same in every other way.

No recipe names this file. A checkpoint of a family that no file in `models/` opens comes through here if
transformers (the extra `bridges`) knows it, for training, evaluation and serving alike. transformers
computes; this makes its modules a `Network` with the published names.

Nothing is assumed of a family's head: after loading, a few tokens go through both ways, and a model that
computes more than hidden states and a head of them (Gemma 2 bends its scores) is refused.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import torch
from pydantic import Field
from safetensors import SafetensorError

from groundup.errors import ArtifactError, UserError
from groundup.models._bridge_network import Bridged, is_causal, transformers_for
from groundup.nn.network import Network
from groundup.nn.shape import TransformerSection

VERSION = 1
CLASSES = {
    "language": "AutoModelForCausalLM",
    "masked_language": "AutoModelForMaskedLM",
    "sequence": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "span": "AutoModelForQuestionAnswering",
    "embedding": "AutoModel",
}
"""Kind of head to the class of transformers that opens it."""
ARCHITECTURES = CLASSES
LABELLED = ("sequence", "tokens")
UNKNOWN_CONTEXT = 2048
"""The context of a family whose config names none, in tokens."""
TOLERANCE = 1e-3
_log = logging.getLogger("groundup")


class Config(TransformerSection):
    """A model of a family that transformers computes."""

    published: dict[str, Any] = Field(default_factory=dict)
    """Its config.json."""

    @property
    def name(self) -> str:
        """The family's name in its config.json."""
        return str(self.published.get("model_type", "transformers"))

    @property
    def n_kv_heads(self) -> int:
        """A cache keeps one number a token: its id."""
        return 1

    @property
    def head_dim(self) -> int:
        """A cache keeps one number a token: its id."""
        return 1

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a published config.json. Raises UserError for a family that has not one stack of blocks."""
        family, theirs = given.get("model_type"), described(given)
        if getattr(theirs, "is_encoder_decoder", False):
            what = f"no model opens the family {family!r}, and encoder–decoders do not come through transformers"
            raise UserError(what, fix="choose an encoder or a decoder")
        sizes = {
            "vocab_size": getattr(theirs, "vocab_size", None),
            "d_model": getattr(theirs, "hidden_size", None),
            "n_layers": getattr(theirs, "num_hidden_layers", None),
        }
        missing = [key for key, value in sizes.items() if not isinstance(value, int)]
        if missing:
            what = f"no model opens the family {family!r}, and its config names no {missing[0]} for transformers"
            raise UserError(what, fix="choose a model of text alone")
        heads, context = getattr(theirs, "num_attention_heads", None), getattr(theirs, "max_position_embeddings", None)
        options: dict[str, Any] = {
            "n_heads": heads if isinstance(heads, int) else 1,
            "context": context if isinstance(context, int) else UNKNOWN_CONTEXT,
        }
        return cls(**sizes, **options, published=given)

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """The config.json that it came with."""
        return dict(self.published)


def knows(family: Any) -> bool:
    """Whether transformers has this family. Raises MissingExtra if transformers is not here."""
    return family in transformers_for(str(family)).CONFIG_MAPPING


def described(given: Mapping[str, Any]) -> Any:
    """The config of transformers for a config.json."""
    family = str(given["model_type"])
    rest = {key: value for key, value in given.items() if key not in ("model_type", "transformers_version")}
    try:
        return transformers_for(family).AutoConfig.for_model(family, **rest)
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"transformers cannot read the config of the family {family!r} ({error})", fix="repair it"
        ) from error


def stored_head(given: Mapping[str, Any]) -> str | None:
    """The kind of head in a checkpoint, by the name of its class; None if that does not tell."""
    for name in map(str, given.get("architectures") or []):
        if "LMHead" in name:
            return "language" if is_causal(str(given["model_type"])) else "masked_language"
        if name.endswith("Model"):
            return "embedding"
        for kind, published in CLASSES.items():
            if "For" in name and name.partition("For")[2] == published.partition("For")[2]:
                return kind
    return None


def load(
    folder: Path,
    config: Config,
    kind: str,
    *,
    known: Sequence[str],
    is_whole: bool,
    labels: Sequence[str] | None,
    outputs: int | None,
    dtype: torch.dtype,
    seed: int,
) -> Network:
    """The network in a directory. `known` are the labels it has, `is_whole` whether its own head is wanted.

    Raises UserError for a kind of head that the family has not, or one that does more than the bridge
    carries, and ArtifactError for weights that are damaged, missing or unexpected.
    """
    family, library = config.name, transformers_for(config.name)
    say_once(family)
    options: dict[str, Any] = {}
    if kind in LABELLED:
        names = list(labels or known if is_whole else labels or [f"LABEL_{i}" for i in range(outputs or 2)])
        options = {"num_labels": len(names) or outputs or 2, "ignore_mismatched_sizes": not is_whole}
        options |= {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    try:
        with torch.random.fork_rng(devices=[]), _quietly():
            torch.manual_seed(seed)
            theirs, report = getattr(library, CLASSES[kind]).from_pretrained(
                folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True,
                output_loading_info=True, **options,
            )  # fmt: skip
            network = Bridged(theirs.eval(), config, kind, outputs)
            if not is_whole and known:
                network.forget_head(seed)
    except (OSError, RuntimeError, SafetensorError) as error:
        fix = "fetch or write the directory again"
        raise ArtifactError(f"the weights cannot be read ({error})", where=str(folder), fix=fix) from error
    except ValueError as error:
        what = f"transformers has no head for {kind!r} of the family {family!r}"
        raise UserError(what, where=str(folder), fix="choose another task or model") from error
    prefix = "" if kind == "embedding" else f"{network.prefix}."
    own = [name for name in report["missing_keys"] if is_whole or (name.startswith(prefix) and "pooler" not in name)]
    wrong = [*own, *(report["unexpected_keys"] if is_whole else ())]
    if wrong:
        fix = "config.json and the weights do not belong together: fetch or write both again"
        what = f"{len(wrong)} tensors are missing or unexpected: {', '.join(sorted(wrong)[:4])}"
        raise ArtifactError(what, where=str(folder), fix=fix)
    check(network, folder)
    return network


def save(folder: Path, network: Bridged, described: Mapping[str, Any]) -> None:
    """Write weights and config.json as transformers does; `described` is laid over the config."""
    network.synchronise()
    theirs = network.theirs
    theirs.config.vocab_size = network.config.vocab_size  # type: ignore[attr-defined]
    with _quietly():
        theirs.save_pretrained(folder, max_shard_size="1000GB")
    path = folder / "config.json"
    kept = json.loads(path.read_text(encoding="utf-8")) | dict(described)
    path.write_text(json.dumps(kept, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@cache
def say_once(family: str) -> None:
    """Say that transformers computes this family; once in a process."""
    _log.warning("the family %r has no model file here: transformers computes it, more slowly", family)


@torch.no_grad()
def check(network: Bridged, folder: Path) -> None:
    """Raise UserError if the network's own way to its scores does not give those of transformers."""
    size = cast(Config, network.config).vocabulary
    ids = (torch.arange(6, device=next(network.parameters()).device)[None] * 7 + size // 3) % size
    mask = torch.ones_like(ids)
    try:
        expected = network.theirs(input_ids=ids, attention_mask=mask)
        found = network({"input_ids": ids})
        match network.head_kind:
            case "embedding":
                ours, theirs = found.hidden, expected.last_hidden_state
            case "span":
                ours, theirs = found.logits[..., 0], expected.start_logits
            case _:
                ours, theirs = found.logits, expected.logits
        is_same = ours.shape == theirs.shape and bool(
            (ours - theirs).abs().max() <= TOLERANCE * max(1.0, float(theirs.abs().max()))
        )
    except (AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
        _log.info("the bridge failed: %s", error)
        is_same = False
    if not is_same:
        what = f"the bridge cannot carry the head {network.head_kind!r} of the family {network.config.name!r}"
        raise UserError(what, where=str(folder), fix="choose another head or model")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' progress bars and tables: what is wrong is raised here."""
    theirs: Any = importlib.import_module("transformers.utils.logging")
    had_bars, verbosity = theirs.is_progress_bar_enabled(), theirs.get_verbosity()
    theirs.disable_progress_bar()
    theirs.set_verbosity_error()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if had_bars:
            theirs.enable_progress_bar()
