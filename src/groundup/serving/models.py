"""What is served: a model's directory, checked in full before it is opened, and the facts the server goes by.

A path is `runs/RECIPE/STAGE`, a directory of the store, or a Hugging Face directory (a GGUF file is imported first).
Every byte that will be read is digested, and compared with the manifest where there is one; where the server is
given a public key, the manifest must be signed with it. Nothing here needs torch: the front reads facts, the engine
process opens weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from groundup import config as sections
from groundup.artifact import MANIFEST, Artifact, digest_data, digest_file, open_artifact
from groundup.config import Named
from groundup.errors import ArtifactError, UserError, nearest
from groundup.evaluation import answering
from groundup.serving.inputs import ROUTES, Inputs, inputs_of
from groundup.text.templates import read_templates

Kind = Literal["generate", "answer", "embed"]
"""What can be asked of a model: to continue texts, to answer rows, or for vectors of texts."""
READ = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*",
    "modules.json",
    "sentence_bert_config.json",
    "calibration.json",
    "*_Pooling/config.json",
)
"""The files of a directory without a manifest that are read when it is served: they make up its digest."""
ADAPTER = "adapter_config.json"
Positive = Annotated[int, Field(gt=0)]
WIDTH = 4
"""Bytes of a number in memory: weights and cache are held in fp32."""
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_DIGITS = 8
"""Bytes of the length at the head of a safetensors file."""
_MOST_HEADER = 100 << 20
_POSITIONS = ("wpe.weight", "position_embeddings.weight", "embed_positions.weight", "token_type_embeddings.weight")
HEAD = "lm_head.weight"
_TOKENS = ("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight")
"""Endings of the names of tables."""


@dataclass(frozen=True)
class Options:
    """How a model is opened. Plain data, so that it can go over the wire."""

    context: Positive | None = None
    """The longest text in tokens, prompt and answer together; the model's own context unless given."""
    cache_bytes: Positive | None = None
    """Memory for the keys and values of running and remembered texts; what `fit.need` finds unless given."""
    max_sequences: Positive = 64
    """Texts that are generated at the same time at most."""
    max_waiting: Positive = 256
    """Requests that may wait; more are refused with 429."""
    max_waiting_tokens: Positive = 262_144
    """Tokens of all requests that may wait together."""
    step_tokens: Positive = 256
    """Tokens that are computed in one step at most: what a long prompt may hold up the others."""
    shares_prefixes: bool = True
    """Whether beginnings that were computed before are reused."""
    shares_across_keys: bool = True
    """Whether also those that another key's requests computed: how fast an answer comes then tells what others ask."""
    max_batch_tokens: Positive = 8192
    """Tokens of a batch of rows at most, for models that answer or embed."""
    max_batch_rows: Positive = 64
    max_wait_ms: Annotated[float, Field(ge=0, le=1000)] = 5.0
    """How long a row waits for others while the engine is busy with other things; an idle one starts at once."""
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    """`bf16` rounds the weights of linear layers, which makes answers faster on CPUs that multiply it, and a little
    different."""
    public_key: str | None = None
    """The file of an Ed25519 public key: only what is signed with it is opened."""

    def as_data(self) -> dict[str, Any]:
        """The options as plain data."""
        return asdict(self)

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Options:
        """The options of plain data. Raises UserError for one that there is not, and for a value that is none."""
        known = {one.name for one in fields(cls)}
        strange = sorted(set(data) - known)
        if strange:
            raise UserError(f"there is no option {strange[0]!r}", fix=nearest(strange[0], known))
        try:
            return TypeAdapter(cls).validate_python(dict(data))
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(f"the option {first['loc'][0]}: {first['msg']}", fix="give another value") from error


@dataclass(frozen=True)
class Facts:
    """What the server knows of a model; equal for all who read the same files."""

    folder: str
    """Where its files are: the tokenizer too."""
    kind: Kind
    task: str
    """The task it was trained for; `language_modeling` for a published model that continues texts."""
    family: str
    digest: str
    """The artefact's digest; of a directory without a manifest, the digest of its files' digests."""
    context: int
    """The longest text it reads, in tokens."""
    vocab_size: int
    parameters: int
    weight_bytes: int
    """Of the weights in memory."""
    read_bytes: int
    """Of the weights that one token makes the machine read: all but tables of which it takes one row."""
    token_bytes: int
    """Of the keys and values of one token in the cache; 0 for models without one."""
    chats: bool
    """Whether its tokenizer has a chat template."""
    head_bytes: int = 0
    """Of `read_bytes`, those of the layer that scores tokens."""
    width: int = 0
    """Of its hidden states, where the config says so."""
    labels: tuple[str, ...] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    """The column of a row that each part is read from: `text`, `pair`, `tokens`, `question`, `passage`, `image`, …"""
    evaluation: str = ""
    """How answers of a labelled task are compared with truths, and so what is asked: see `inputs.ROUTES`."""
    media: Mapping[str, str] = field(default_factory=dict)
    """Columns of a row that hold a file: `image` or `audio`, by column."""
    form: Mapping[str, Any] = field(default_factory=dict)
    """What a form for one row has to know; see `inputs.Inputs`."""
    row_numbers: int = 0
    """Numbers of a row, where every row is an array of one shape; 0 for rows of tokens."""
    licences: Mapping[str, str] = field(default_factory=dict)
    signed_by: str | None = None
    """The id of the key that signed it, where that was asked for."""

    def as_data(self) -> dict[str, Any]:
        """The facts as plain data."""
        return asdict(self)

    @classmethod
    def of_data(cls, data: Mapping[str, Any]) -> Facts:
        """The facts of plain data."""
        return cls(**{**data, "labels": tuple(data["labels"])})


@dataclass(frozen=True)
class Checked:
    """A directory whose every byte was compared with its manifest, or digested."""

    folder: Path
    digest: str
    manifest: Mapping[str, Any]
    """Empty for a directory that is no artefact."""
    signed_by: str | None = None


def describe(path: str | Path, *, public_key: str | None = None, full: bool = True) -> Facts:
    """Check the model at a path and say what it is.

    Without `full`, files of an artefact that were not touched since it was written are not read again: enough for a
    forecast, since whoever opens the model reads them all. Raises UserError where there is no model, or one that
    cannot be served, and ArtifactError for a damaged one and for one that is not signed although a key is given.
    """
    return facts_of(check(path, public_key=public_key, full=full))


def check(path: str | Path, *, public_key: str | None = None, full: bool = True) -> Checked:
    """The directory of a model, every byte of it compared with its manifest. Raises, and may skip, as `describe`."""
    place = Path(path).expanduser()
    if place.is_dir() and not (place / MANIFEST).is_file():
        return _foreign(place, public_key)
    if place.suffix.lower() == ".gguf":
        fix = f"import it first: groundup import {place}, then serve what that links"
        raise UserError("a GGUF file is not served as it is", where=str(place), fix=fix)
    artifact = open_artifact(place)
    if artifact.kind != "model":
        fix = "name the stage that trained a model, such as runs/quickstart/base"
        raise UserError(f"a {artifact.kind} cannot be served", where=str(place), fix=fix)
    return _verified(artifact, public_key, full=full)


def check_adapter(path: str | Path, *, public_key: str | None = None) -> Path:
    """The directory of an adapter, in PEFT's layout, checked: one of its own, or `adapter` of a tuned model's artefact.

    Raises UserError if there is none, and ArtifactError for a damaged one and where a signature is missing.
    """
    place = Path(path).expanduser()
    if (place / ADAPTER).is_file() and not (place / MANIFEST).is_file():
        _refuse_unsigned(place, public_key)
        return place.resolve()
    folder = _verified(open_artifact(place), public_key).folder / "adapter"
    if not (folder / ADAPTER).is_file():
        fix = "name a stage that tuned with `adapter: lora`, or a directory with adapter_config.json"
        raise UserError("no adapter here", where=str(place), fix=fix)
    return folder


def _verified(artifact: Artifact, public_key: str | None, *, full: bool = True) -> Checked:
    if public_key is None:
        artifact.verify(full=full)
        return Checked(artifact.path, artifact.digest, artifact.manifest)
    from groundup import signing

    signed = signing.require_signed(artifact, Path(public_key))
    return Checked(artifact.path, artifact.digest, artifact.manifest, signed.key_id)


def _foreign(folder: Path, public_key: str | None) -> Checked:
    if not (folder / "config.json").is_file():
        fix = "give runs/RECIPE/STAGE of a stage that trains, or a Hugging Face model directory"
        raise UserError("no model here: there is no config.json", where=str(folder), fix=fix)
    _refuse_unsigned(folder, public_key)
    names = sorted({file for pattern in READ for file in folder.glob(pattern) if file.is_file()})
    digests = {file.relative_to(folder).as_posix(): digest_file(file) for file in names}
    return Checked(folder.resolve(), digest_data({"kind": "model", "files": digests}), {})


def _refuse_unsigned(folder: Path, public_key: str | None) -> None:
    if public_key is not None:
        fix = "import it (groundup import), look it over, and sign the artefact: groundup sign"
        raise ArtifactError("a directory without a manifest cannot be signed", where=str(folder), fix=fix)


def facts_of(checked: Checked) -> Facts:
    """What a checked directory holds, from its config.json, its manifest and the heads of its weight files."""
    folder, given = checked.folder, _json(checked.folder / "config.json")
    section = task_of(checked, given)
    asked = inputs_of(section, has_tokenizer=(folder / "tokenizer.json").is_file())
    kind = _kind(section, asked, given, folder)
    sizes = _sizes(folder)
    settings = _json(folder / "tokenizer_config.json")
    columns = {"text": "text"} if kind == "embed" and not asked.columns else asked.columns
    return Facts(
        folder=str(folder),
        kind=kind,
        task=section.name if section else {"embed": "embedding"}.get(kind, "language_modeling"),
        family=str(given.get("model_type")),
        digest=checked.digest,
        context=_context(kind, given, settings, folder),
        vocab_size=_first(given, "vocab_size"),
        parameters=sum(sizes.values()),
        weight_bytes=WIDTH * sum(sizes.values()),
        read_bytes=WIDTH * _read(sizes),
        head_bytes=WIDTH * _head(sizes) if kind == "generate" else 0,
        token_bytes=_token_bytes(given) if kind == "generate" else 0,
        chats=kind == "generate" and read_templates(folder, settings) is not None,
        width=_first(given, *_WIDTHS),
        labels=tuple(getattr(section, "labels", None) or ()),
        columns=columns,
        evaluation=asked.evaluation,
        media=asked.media,
        form=asked.form,
        row_numbers=asked.numbers,
        licences=dict(checked.manifest.get("licences", {})),
        signed_by=checked.signed_by,
    )


def task_of(checked: Checked, given: Mapping[str, Any]) -> Named | None:
    """The section of the task that a model was trained for; None for a published one that names no task.

    A published classifier is a task of its own labels. `given` is its config.json.
    """
    choices, section = checked.manifest.get("choices", {}), checked.manifest.get("section", {})
    if "task" in choices or "task" in section:
        return answering.task_section(checked.manifest, str(checked.folder))
    if any("ForSequenceClassification" in name for name in given.get("architectures") or ()):
        named = given.get("id2label") or {}
        labels = [str(named[key]) for key in sorted(named, key=int)] or ["LABEL_0", "LABEL_1"]
        kinds = {"multi_label_classification": "several", "regression": "number"}
        kind = kinds.get(str(given.get("problem_type")), "number" if len(labels) == 1 else "one")
        return sections.named("tasks", {"name": "text_classification", "labels": labels, "kind": kind})
    return None


def _kind(section: Named | None, asked: Inputs, given: Mapping[str, Any], folder: Path) -> Kind:
    """What can be asked of a model. Raises UserError for one that has nothing to say."""
    if section is not None and section.name == "embedding":
        return "embed"
    if asked.evaluation in ROUTES:
        return "answer"
    heads = [str(name) for name in given.get("architectures") or ()]
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in heads):
        return "generate"
    if any(name.endswith("Model") for name in heads):
        return "embed"
    shown = ", ".join(heads) or "no head at all"
    fix = "serve a model that continues texts, one tuned for a labelled task, or a sentence encoder"
    raise UserError(f"a model of this kind ({shown}) cannot be served", where=str(folder / "config.json"), fix=fix)


def _context(kind: Kind, given: Mapping[str, Any], settings: Mapping[str, Any], folder: Path) -> int:
    """The longest text: the model's own limit, and where rows are read at once, what they were cut to in training."""
    longest = _first(given, "max_position_embeddings", "n_positions")
    if kind == "embed":
        stated = _first(_json(folder / "sentence_bert_config.json"), "max_seq_length")
        return min(longest, stated or longest)
    return min(longest, int(settings.get("model_max_length") or longest)) if kind == "answer" else longest


def _token_bytes(given: Mapping[str, Any]) -> int:
    layers, heads = _first(given, "num_hidden_layers", "n_layer", "n_layers"), _first(given, *_HEADS)
    head_dim = given.get("head_dim") or _first(given, *_WIDTHS) // max(1, heads)
    return int(2 * layers * (given.get("num_key_value_heads") or heads) * head_dim * WIDTH)


def _first(given: Mapping[str, Any], *names: str) -> int:
    """The first of several names that a config has, as families spell it; 0 if it has none."""
    return next((int(given[name]) for name in names if given.get(name) is not None), 0)


def _sizes(folder: Path) -> dict[str, int]:
    """The number of entries of every tensor, from the heads of the weight files. Raises ArtifactError."""
    found: dict[str, int] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(_DIGITS), "little")
                header = json.loads(opened.read(min(length, _MOST_HEADER)))
            found |= {name: math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__"}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "fetch or write the file again: it is cut short or was changed"
            raise ArtifactError(f"the weights cannot be read ({error})", where=str(file), fix=fix) from error
    return found


def _read(sizes: Mapping[str, int]) -> int:
    """Entries that one token reads. A table of tokens that is also the head, tied to it, is read whole."""
    tables = _POSITIONS if _is_tied(sizes) else (*_POSITIONS, *_TOKENS)
    return sum(size for name, size in sizes.items() if not name.endswith(tables))


def _head(sizes: Mapping[str, int]) -> int:
    """Entries of the layer that scores tokens."""
    names = _TOKENS if _is_tied(sizes) else (HEAD,)
    return sum(size for name, size in sizes.items() if name.endswith(names))


def _is_tied(sizes: Mapping[str, int]) -> bool:
    return not any(name.endswith(HEAD) for name in sizes)


def _json(path: Path) -> dict[str, Any]:
    """A JSON file as a mapping, empty if it is not there. Raises ArtifactError for one that cannot be read."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"unreadable JSON ({error})", where=str(path), fix="fetch the file again") from error
    return found if isinstance(found, dict) else {}
