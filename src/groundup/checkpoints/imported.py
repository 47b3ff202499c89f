"""A model from elsewhere, brought into the store as an artefact of its own.

A Hugging Face directory is copied as it is; a GGUF file and pickled weights are rewritten as
safetensors. What comes in is checked before it is kept: that its family is known, its tensors have the
names and shapes that its config promises, and that its tokenizer fits. The key is made of the files'
digests, so the same model is brought in once, wherever it lay.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.artifact import MANIFEST, Artifact, Draft, Store, digest_data, digest_file, open_artifact
from groundup.checkpoints import gguf, hugging_face, unpickled
from groundup.errors import ArtifactError, UserError
from groundup.models._bridge_network import Bridged
from groundup.progress import Reporter

VERSION = 1
STAGE = "import"
"""What the manifest of an imported model names as its stage."""
KEPT = (".json", ".txt", ".jinja", ".md", ".model", ".safetensors")
"""Endings of the files that are kept; weights in other formats, code and pictures stay outside."""
PAPERS = ("license", "licence", "notice", "use_policy", "copying")
"""Beginnings of the names of files that say what is allowed, in any case."""
_LICENCE = re.compile(r"^(license(?:_name|_link)?):(?:\s*\n\s*-)?[ \t]*\[?['\"]?([^'\"\]\n]*)", re.MULTILINE)
"""The licence in the head of a model card: a word, or a list of one."""
VAGUE = ("model", "hf", "checkpoint", "final", "main", "best", "output", "snapshot")
"""Names of directories that say nothing about what is in them."""


@dataclass(frozen=True)
class Source:
    """What was found at a path."""

    path: Path
    format: str
    """`hugging-face`, `gguf` or `pickle`."""
    files: dict[str, Path]
    """The files that are read, by their names in the artefact (a GGUF file's is its own)."""

    @property
    def name(self) -> str:
        """What the model is called, without saying where on this machine it lay."""
        place = self.path.resolve()
        if self.format == "gguf":
            return place.stem
        return place.parent.name if place.name.lower() in VAGUE and place.parent.name else place.name


def bring(path: str | Path, store: Store, *, licence: str = "", reporter: Reporter | None = None) -> Artifact:
    """The model at a path as an artefact of kind `model`, made once and found again by its files' digests.

    `path` is a Hugging Face directory, a GGUF file (or a directory with just one), or an artefact, which
    is given back as it is. `licence` is stated where the files state none, or overrules them. Raises
    UserError for what is no model or not supported, and ArtifactError for damaged files.
    """
    place = Path(path).expanduser()
    if (place / MANIFEST).is_file():
        return _own(place)
    source = recognise(place)
    key = digest_data(
        {
            STAGE: VERSION,
            "format": source.format,
            "files": {name: digest_file(file) for name, file in source.files.items()},
            "licence": licence,
        }
    )
    found = _sound(store, key)
    if found is None:
        described: dict[str, Any] = {
            "stage": STAGE,
            "made_by": f"groundup {__version__}, import",
            "section": {"name": source.name, "format": source.format, "licence": licence},
            "parents": {},
        }
        with store.draft("model", key, reporter=reporter, **described) as draft:
            _fill(draft, source, licence)
        found = store.find(key)
        assert found is not None, "a finished draft is in the store"
    return found


def recognise(path: Path) -> Source:
    """What kind of model lies at a path. Raises UserError if there is none."""
    if gguf.is_gguf(path):
        return Source(path, "gguf", {path.name: path})
    if path.is_file():
        fix = "give a Hugging Face directory or a GGUF file; weights alone need the config.json beside them"
        raise UserError("the file is no model", where=str(path), fix=fix)
    if not path.is_dir():
        raise UserError("there is nothing at this path", where=str(path), fix="give a model directory or a GGUF file")
    if not (path / hugging_face.CONFIG).is_file():
        single = [file for file in path.glob("*.gguf") if gguf.is_gguf(file)]
        if len(single) == 1:
            return Source(single[0], "gguf", {single[0].name: single[0]})
        which = "several GGUF files and no config.json: name one of the files" if single else "no config.json"
        inside = sorted(file.parent.name for file in path.glob(f"*/{hugging_face.CONFIG}"))
        guess = f"did you mean its folder {inside[0]!r}? " if inside else ""
        fix = f"{guess}give a Hugging Face model directory: config.json, weights and tokenizer, or a GGUF file"
        raise UserError(f"no model here: {which}", where=str(path), fix=fix)
    kept = _kept(path)
    if any(file.suffix == ".safetensors" for file in kept.values()):
        return Source(path, "hugging-face", kept)
    weights = unpickled.files(path)
    if not weights:
        fix = "fetch the whole directory: model.safetensors is missing"
        raise UserError("no weights beside config.json", where=str(path), fix=fix)
    return Source(path, "pickle", kept | {file.name: file for file in weights})


def _own(place: Path) -> Artifact:
    artifact = open_artifact(place)
    if artifact.kind != "model":
        raise ArtifactError(
            f"a {artifact.kind} is no model", where=str(place), fix="name the stage that trained a model"
        )
    artifact.verify()
    return artifact


def _sound(store: Store, key: str) -> Artifact | None:
    """The artefact of an earlier import, unless it has been damaged since."""
    found = store.find(key)
    if found is None:
        return None
    try:
        found.verify()
    except ArtifactError:
        store.forget(key)
        return None
    return found


def _kept(folder: Path) -> dict[str, Path]:
    """The files of a directory that belong to the model, by name; one level of subdirectories for small ones."""
    found = {}
    for file in sorted([*folder.glob("*"), *folder.glob("*/*.json")]):
        name = file.relative_to(folder).as_posix()
        is_paper = file.name.lower().startswith(PAPERS) and file.suffix in ("", ".md", ".txt")
        is_wanted = is_paper or (file.suffix in KEPT and not file.name.endswith((".bin.index.json", ".onnx.json")))
        if file.is_file() and is_wanted and not any(part.startswith(".") for part in Path(name).parts):
            found[name] = file
    # A directory of its own model inside this one (`onnx/config.json`, `openvino/…`) is not this model's.
    return {name: file for name, file in found.items() if "/" not in name or re.match(r"\d+_\w+/", name)}


def _fill(draft: Draft, source: Source, licence: str) -> None:
    """Write the payload, check it, and note its figures and licence."""
    stated = ""
    if source.format == "gguf":
        described = gguf.convert(source.path, draft.folder)
        stated = described["licence"]
        draft.choices["gguf"] = {"architecture": described["architecture"], "types": described["types"]}
    else:
        for name, file in source.files.items():
            if source.format != "pickle" or file.suffix in KEPT:
                shutil.copyfile(file, draft.path(name))
    if source.format == "pickle":
        weights = [file for file in source.files.values() if file.suffix not in KEPT]
        unpickled.rewrite(weights, draft.path(hugging_face.WEIGHTS))
    draft.metrics |= check(draft.folder)
    if draft.metrics["computed_by"] != "groundup":
        draft.reporter.note(f"the family {draft.metrics['family']!r} has no model file here: transformers computes it")
    stated = licence or stated or read_licence(draft.folder)
    if stated:
        draft.licences[source.name] = stated
        return
    draft.reporter.note(f"no licence is stated for {source.name}: find out before you share what comes of it")


def check(folder: Path) -> dict[str, Any]:
    """The figures of a model directory, after its weights and tokenizer were found to fit its config.

    parameters, vocab_size, context, tokens (of the tokenizer; 0 if there is none), family, head, and
    computed_by: `groundup`, or `transformers` for a family that has no model file here.
    Raises what `hugging_face.load` raises, and UserError for a tokenizer with ids that have no row.
    """
    network = hugging_face.inspect(folder)
    config: Any = network.config
    tokens = largest_id(folder) + 1
    vocabulary = getattr(config, "vocabulary", 0)  # a model of images has none
    if tokens > vocabulary:
        what = f"the tokenizer does not fit: its largest id is {tokens - 1}, and the model has {vocabulary} rows"
        raise UserError(what, where=str(folder), fix="use the tokenizer that the model was trained with")
    return {
        "family": hugging_face.read_config(folder).get("model_type"),
        "head": network.head_kind,
        "computed_by": "transformers" if isinstance(network, Bridged) else "groundup",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "vocab_size": vocabulary,
        "context": config.context,
        "tokens": tokens,
    }


def largest_id(folder: Path) -> int:
    """The largest id that the tokenizer in a directory gives, or -1 if there is no tokenizer.

    Raises ArtifactError for a tokenizer that cannot be read.
    """
    from tokenizers import Tokenizer

    try:
        if (folder / "tokenizer.json").is_file():
            engine = Tokenizer.from_file(str(folder / "tokenizer.json"))
            return max(engine.get_vocab(with_added_tokens=True).values(), default=-1)
        if (folder / "vocab.json").is_file():
            return int(max(json.loads((folder / "vocab.json").read_text(encoding="utf-8")).values(), default=-1))
        if (folder / "vocab.txt").is_file():
            return len((folder / "vocab.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")) - 1
    except Exception as error:  # the library raises bare Exception for every unreadable file
        fix = "fetch the file again: it is damaged"
        raise ArtifactError(f"the tokenizer cannot be read ({error})", where=str(folder), fix=fix) from error
    return -1


def read_licence(folder: Path) -> str:
    """The licence that a model directory states: in the head of README.md, else in a file of its own; "" if none."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    head = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    stated = dict(_LICENCE.findall(head[1])) if head else {}
    if stated.get("license") == "other" and stated.get("license_name"):
        return f"{stated['license_name']} {stated.get('license_link', '')}".strip()
    if stated.get("license"):
        return str(stated["license"]).strip()
    for file in sorted(folder.iterdir()):
        if file.name.lower().startswith(("license", "licence", "copying")) and file.is_file():
            lines = (line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
            return " ".join([line for line in lines if line][:2])[:120]
    return ""
