"""Hugging Face model directories, read and written: what transformers writes we open, and back.

A directory holds config.json, the weights as safetensors (one file, or several with an index),
generation_config.json and the tokenizer's files. Nothing is ever unpickled. Which names a family uses
is its model file's business; here they are checked, and matrices that a family publishes transposed
are turned. Tied weights are written once.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from groundup import catalog
from groundup.artifact import write_whole
from groundup.checkpoints.naming import as_ours, as_published
from groundup.errors import ArtifactError, MissingExtra, UserError, nearest
from groundup.models import _bridge
from groundup.models._bridge_network import Bridged
from groundup.nn import batch_norm
from groundup.nn.network import ModelFile, Network, begin, materialise, shapes_alone
from groundup.nn.shape import AnySection

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
BARE = "embedding"
"""The kind of head without weights: the backbone is published alone, its names without their prefix."""
SCORED = ("sequence", "tokens", "span", "image", "features")
"""Kinds of head whose number of outputs is the task's."""
COUNTS = (f".{batch_norm.COUNT}",)
"""Endings of the names of tensors that are whole numbers: how many batches a batch norm has seen."""
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The types of weights that are opened, as safetensors name them."""
GENERATION = "generation_config.json"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def save(
    folder: Path,
    network: Network,
    *,
    tokenizer_folder: Path | None = None,
    generation: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    problem: str | None = None,
) -> None:
    """Write a network as a Hugging Face directory; the same network gives the same bytes.

    `labels` are the names of a head's outputs, `problem` transformers' problem_type.

    `generation` is what goes into generation_config.json (bos_token_id, eos_token_id, pad_token_id,
    temperature, …); the three ids go into config.json too, null where not given, because readers
    otherwise assume their family's.
    """
    assert network.adapter is None, "merge the adapter first, or write it alone (checkpoints/peft.py)"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(network, Bridged):
        _save_bridged(folder, network, tokenizer_folder, dict(generation or {}), _describe_labels(labels, problem))
        return
    model = catalog.load("models", network.config.name)
    # What a task keeps beside a head, such as a chain of tags, it writes itself: readers would not know it.
    weights = {name: tensor for name, tensor in network.state_dict().items() if ".beside." not in name}
    weights = as_published(model, weights)
    if network.head_kind == BARE:
        weights = {name.removeprefix(f"{model.PREFIX}."): tensor for name, tensor in weights.items()}
    ids = {key: (generation or {}).get(key) for key in SPECIAL_IDS}
    dtype = str(next(iter(network.parameters())).dtype).removeprefix("torch.")
    if network.head_kind in SCORED and not labels:
        labels = [f"LABEL_{i}" for i in range(network.outputs or 0)]
    if network.outputs == 1:
        labels = labels[-1:]  # a single score of two classes is that of the second
    described = model.Config.to_hugging_face(network.config, network.head_kind) | _describe_labels(labels, problem)
    # What the family itself says of an id holds: RoBERTa counts its positions from that of its padding.
    # Readers before transformers 5 look for torch_dtype.
    _write_json(folder / CONFIG, ids | described | {"dtype": dtype, "torch_dtype": dtype})
    _write_json(folder / GENERATION, dict(generation or {}) | ids)
    _write_weights(folder / WEIGHTS, weights)
    _copy_tokenizer(tokenizer_folder, folder)


def _save_bridged(
    folder: Path,
    network: Bridged,
    tokenizer_folder: Path | None,
    generation: dict[str, Any],
    labels: dict[str, Any],
) -> None:
    """As `save`, for a network that transformers computes: it writes its own weights and config."""
    ids = {key: generation.get(key) for key in SPECIAL_IDS}
    _bridge.save(folder, network, {key: token for key, token in ids.items() if token is not None} | labels)
    _write_json(folder / GENERATION, generation | ids)
    _copy_tokenizer(tokenizer_folder, folder)


def _copy_tokenizer(source_folder: Path | None, folder: Path) -> None:
    for name in TOKENIZER_FILES if source_folder else ():
        source = Path(source_folder or "") / name
        if source.is_file() and source.resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)


def load(
    folder: Path,
    head: str | None = None,
    *,
    labels: Sequence[str] | None = None,
    outputs: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Network:
    """The network in a Hugging Face directory, its weights in `dtype`, in evaluation mode.

    `head` asks for another head than the stored one, `outputs` for its number of scores, `labels` for
    what they stand for; what the checkpoint does not have of it begins at random by `seed`. So does a
    stored head of the right kind whose labels are others. Raises UserError for a directory, family or
    option that is not supported, and ArtifactError for weights that are damaged, missing, unexpected
    or of the wrong shape.
    """
    given = read_config(folder)
    model, config = _recognise(folder, given)
    stored = _stored_head(model, given)
    kind = head or stored
    if kind is None:
        fix = f"name one of its heads: {', '.join(model.HEADS)}"
        raise UserError("the checkpoint is a backbone without a head", where=str(folder / CONFIG), fix=fix)
    known = read_labels(given) if stored in SCORED else []
    is_whole = kind == stored and outputs in (None, len(known)) and (labels is None or list(labels) == known)
    if isinstance(config, _bridge.Config):
        wanted: dict[str, Any] = {"labels": labels, "outputs": outputs, "dtype": dtype, "seed": seed}
        return _bridge.load(folder, config, kind, known=known, is_whole=is_whole, **wanted)
    with shapes_alone():
        network = Network(
            cast(ModelFile, model), config, kind, (outputs or len(known) or 2) if kind in SCORED else None
        )
    published = read_weights(folder, dtype, skip=tuple(getattr(model, "NOT_WEIGHTS", ())))
    weights = as_ours(model, published, network, folder)
    if not is_whole and kind == stored:
        # A head of the same shape whose outputs mean something else is no use, and would look like one.
        weights = {name: w for name, w in weights.items() if not name.startswith(f"{network.head_name}.")}
    _check(network, weights, model, folder, is_whole=is_whole)
    if set(network.state_dict()) - set(weights):
        materialise(network, "cpu")
        begin(network, config, seed)
    network.load_state_dict(weights, strict=False, assign=True)
    return network.to(dtype).eval()


def read_model(folder: Path) -> tuple[ModuleType, AnySection]:
    """The model file that opens a directory, and its Config. Raises UserError for one that is not supported."""
    return _recognise(folder, read_config(folder))


def inspect(folder: Path) -> Network:
    """The network in a Hugging Face directory without its weights, which are checked in all but their values.

    Only names, shapes and types are read, so a model larger than the memory can be checked; one that
    transformers computes is read whole. Where the checkpoint is a backbone alone, the head is the one
    without weights. Raises what `load` raises.
    """
    given = read_config(folder)
    model, config = _recognise(folder, given)
    kind = _stored_head(model, given) or BARE
    if isinstance(config, _bridge.Config):
        return load(folder, kind)
    with shapes_alone():
        network = Network(cast(ModelFile, model), config, kind, len(read_labels(given)) if kind in SCORED else None)
    stored = _read_shapes(folder, skip=tuple(getattr(model, "NOT_WEIGHTS", ())))
    _check(network, as_ours(model, stored, network, folder), model, folder, is_whole=True)
    return network.eval()


def read_labels(given: Mapping[str, Any]) -> list[str]:
    """The names of a head's outputs by config.json, in their order.

    Where it names none they are LABEL_0, LABEL_1 and so on, two unless it says how many, as transformers takes it.
    """
    named = given.get("id2label")
    if not isinstance(named, Mapping):
        return [f"LABEL_{i}" for i in range(int(given.get("num_labels") or 2))]
    return [str(named[key]) for key in sorted(named, key=int)]


def _describe_labels(labels: Sequence[str], problem: str | None) -> dict[str, Any]:
    named = {str(i): label for i, label in enumerate(labels)}
    described: dict[str, Any] = {"id2label": named, "label2id": {label: int(i) for i, label in named.items()}}
    return (described if labels else {}) | ({"problem_type": problem} if problem else {})


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping. Raises UserError if there is none that can be read."""
    return _read_json(folder / CONFIG, fix="give a Hugging Face model directory: one that holds config.json")


def read_generation(folder: Path) -> dict[str, Any]:
    """What `save` takes as `generation`: generation_config.json, with the ids of config.json beneath."""
    ids = {key: value for key, value in read_config(folder).items() if key in SPECIAL_IDS and value is not None}
    path = folder / GENERATION
    given = _read_json(path, fix="remove it, or repair it") if path.is_file() else {}
    return ids | {key: value for key, value in given.items() if value is not None}


def read_weights(folder: Path, dtype: torch.dtype = torch.float32, *, skip: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Every tensor by its published name, converted to `dtype`; one file or the shards of an index.

    Names that end in one of `skip` are left out. The tensors are copies, so the directory may go
    away. Raises ArtifactError for damaged files.
    """
    weights: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if not name.endswith(skip)]  # noqa: SIM118
                weights |= {name: _convert(file.get_tensor(name), dtype, name, path) for name in names}
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    return weights


def _read_shapes(folder: Path, *, skip: tuple[str, ...]) -> dict[str, Tensor]:
    """What `read_weights` would give, without memory behind it."""
    shapes: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for name in [name for name in file.keys() if not name.endswith(skip)]:  # noqa: SIM118
                    stored = file.get_slice(name)
                    if not name.endswith(COUNTS):
                        _require_plain(FLOATS.get(stored.get_dtype()), stored.get_dtype(), name, path)
                    shapes[name] = torch.empty(stored.get_shape(), device="meta")
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from error
    return shapes


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    fix = "fetch or write the file again: it is cut short or was changed"
    return ArtifactError(f"the weights cannot be read ({error})", where=str(path), fix=fix)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        shards = _read_json(folder / INDEX, fix="fetch the file again").get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            what = f"the index names shards that are not there: {', '.join(missing) or 'none at all'}"
            raise ArtifactError(what, where=str(folder / INDEX), fix="fetch the missing files into the same directory")
        return [folder / name for name in names]
    pickled = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pth"))
    if pickled:
        fix = "`groundup import` rewrites them as safetensors: a pickle can run any code when it is opened"
        raise UserError(f"only pickled weights ({pickled[0]}), which are never opened", where=str(folder), fix=fix)
    raise ArtifactError(f"there is no {WEIGHTS}", where=str(folder), fix="give a complete model directory")


def _convert(tensor: Tensor, dtype: torch.dtype, name: str, path: Path) -> Tensor:
    if name.endswith(COUNTS):
        return tensor.to(torch.int64, copy=True)
    _require_plain(tensor.dtype, str(tensor.dtype).removeprefix("torch."), name, path)
    return tensor.to(dtype, copy=True)


def _require_plain(dtype: torch.dtype | None, shown: str, name: str, path: Path) -> None:
    if dtype not in FLOATS.values():
        what = f"{name} is stored as {shown}, which is not a plain floating type"
        raise ArtifactError(what, where=str(path), fix="use the checkpoint that was not quantized")


def _recognise(folder: Path, given: dict[str, Any]) -> tuple[ModuleType, AnySection]:
    """The model file that opens this family, and its Config."""
    where, family = str(folder / CONFIG), given.get("model_type")
    if given.get("quantization_config"):
        fix = "use the checkpoint that was not quantized"
        raise UserError("the checkpoint is quantized, which cannot be opened here", where=where, fix=fix)
    models = [catalog.load("models", name) for name in catalog.names("models")]
    by_family = {name: model for model in models for name in getattr(model, "MODEL_TYPES", ())}
    model = by_family.get(str(family)) or _bridge_to(family, where, by_family)
    try:
        return model, model.Config.from_hugging_face(given)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"its sizes do not fit together: {'.'.join(map(str, first['loc']))} {first['msg']}"
        raise UserError(what, where=where, fix="repair the file") from error
    except UserError as error:
        error.where = error.where or where
        raise


def _bridge_to(family: Any, where: str, by_family: Mapping[str, Any]) -> ModuleType:
    """The bridge to transformers, if it has this family. Raises UserError if not, or if it is not here."""
    fix = nearest(str(family), by_family)
    try:
        if _bridge.knows(family):
            return _bridge
    except MissingExtra as error:
        fix = f"{fix}; others open through transformers: {error.fix}"
    raise UserError(f"no model opens the family {family!r}", where=where, fix=fix)


def _stored_head(model: ModuleType, given: dict[str, Any]) -> str | None:
    """The kind of head a checkpoint holds, by its class name without the family; None if it is bare."""
    if model is _bridge:
        return _bridge.stored_head(given)
    classes = [str(name) for name in given.get("architectures") or []]
    exact = {ours: kind for kind, ours in model.ARCHITECTURES.items()}
    similar = {_purpose(ours): kind for kind, ours in model.ARCHITECTURES.items()}
    found = [exact.get(name) or similar.get(_purpose(name)) for name in classes]
    return next((str(kind) for kind in found if kind), None)


def _purpose(name: str) -> str:
    return name.partition("For")[2] or ("Model" if name.endswith("Model") else name)


def _check(network: Network, weights: dict[str, Tensor], model: ModuleType, folder: Path, *, is_whole: bool) -> None:
    """Drop tensors of other heads; raise ArtifactError naming what is missing, unexpected or misshapen."""
    expected = network.state_dict()
    optional = tuple(getattr(model, "OPTIONAL", ()))

    def of_a_head(name: str) -> bool:
        return bool(optional and name.startswith(optional)) or not (is_whole or name.startswith(f"{model.PREFIX}."))

    for name in [name for name in weights if name not in expected and of_a_head(name)]:
        del weights[name]
    missing = [name for name in expected if name not in weights and (is_whole or not of_a_head(name))]
    wrong = [
        f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    ]
    unexpected = [name for name in weights if name not in expected]
    for problem, found in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", wrong)):
        if found:
            shown = ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")
            fix = "config.json and the weights do not belong together: fetch or write both again"
            raise ArtifactError(f"{len(found)} tensors are {problem}: {shown}", where=str(folder), fix=fix)


def _write_weights(path: Path, weights: dict[str, Tensor]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(weights, temporary, metadata={"format": "pt"})
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_json(path: Path, *, fix: str) -> dict[str, Any]:
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path.name} cannot be read ({error})", where=str(path.parent), fix=fix) from error
    if not isinstance(given, dict):
        raise UserError(f"{path.name} does not hold a mapping", where=str(path.parent), fix=fix)
    return given


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
