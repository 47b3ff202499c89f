"""Adapters in PEFT's own layout, written and read: adapter_config.json and adapter_model.safetensors.

PEFT opens what is written here (`PeftModel.from_pretrained(base, folder)`), and what PEFT wrote is opened
here: LoRA, DoRA and rsLoRA, other ranks and alphas for some layers, modules that train whole, and tables
of tokens that have grown. A third file, groundup_adapter.json, says which base the adapter belongs to, by
the digest of its weights; adapters from elsewhere have none and are checked by names and shapes alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from groundup import catalog
from groundup.artifact import write_whole
from groundup.checkpoints.hugging_face import BARE
from groundup.errors import ArtifactError, UserError
from groundup.nn import token_tables
from groundup.nn.adapted import adapted_layers, digest
from groundup.nn.network import Network

CONFIG, WEIGHTS, BASE = "adapter_config.json", "adapter_model.safetensors", "groundup_adapter.json"
ROOT = "base_model.model."
"""What PEFT writes before every name."""
TASK_TYPES = {
    "language": "CAUSAL_LM",
    "sequence": "SEQ_CLS",
    "tokens": "TOKEN_CLS",
    "span": "QUESTION_ANS",
    "embedding": "FEATURE_EXTRACTION",
    "translation": "SEQ_2_SEQ_LM",
}
"""Kinds of head by PEFT's task_type; for the others it has none."""
UNSUPPORTED = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias", "monteclora_config",
    "target_parameters", "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip
"""Options of PEFT that change what is computed in ways not written here."""
BASE_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga", "eva", "mica")
"""Beginnings of init_lora_weights that need a base of their own, or may."""
_LOW_RANK = re.compile(r"^(.*)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.default)?(?:\.weight)?$")


def save_adapter(folder: Path, network: Network, *, base: str | Path) -> None:
    """Write the adapter of a network, and what trains whole beside it; the same adapter gives the same bytes.

    `base` is the path or name of the model without it, as PEFT is to find it. Raises UserError if the network
    has no adapter.
    """
    if network.adapter is None:
        raise UserError("the network has no adapter to save", fix="save the whole model, or wrap it first")
    folder.mkdir(parents=True, exist_ok=True)
    model, trained = _model_of(network), {name: p for name, p in network.named_parameters() if p.requires_grad}
    tied = {copy: trained[kept] for copy, kept in _tied(model, network).items() if kept in trained}
    weights = {
        _published(network, name): tensor.detach().cpu().contiguous().clone()
        for name, tensor in (trained | tied).items()
    }
    write_whole(folder / WEIGHTS, save(weights, metadata={"format": "pt"}))
    described = _describe(network, model, is_tied=bool(tied)) | {"base_model_name_or_path": str(base)}
    _write_json(folder / CONFIG, described)
    _write_json(folder / BASE, {"format": 1, "base_digest": base_digest(network)})


def load_adapter(network: Network, folder: Path) -> Network:
    """The same network, in place, with the adapter in `folder`, in evaluation mode; it can be trained on.

    The vocabulary grows to the adapter's where its tables are longer. Raises UserError for an adapter of
    another base or of a kind that is not supported, and ArtifactError for damaged files.
    """
    if network.adapter is not None:
        raise UserError("the network has an adapter already", where=str(folder), fix="merge it first")
    given = read_config(folder)
    weights = _read_weights(folder, network)
    changes = {name: tensor for name, tensor in weights.items() if ".lora_" in name}
    whole = _without_ties({name: tensor for name, tensor in weights.items() if name not in changes}, network, folder)
    rows = [len(whole[f"{name}.weight"]) for name in token_tables.embeddings(network) if f"{name}.weight" in whole]
    expected = network.state_dict()
    _check_names(folder, given, expected, changes, whole)
    _check_base(network, folder, whole)
    token_tables.grow(network, max(rows, default=0) or network.config.vocabulary)  # type: ignore[attr-defined]
    _check_shapes(network, folder, changes, whole)
    adapter = catalog.load("adapters", "dora" if given.get("use_dora") else "lora")
    adapter.wrap(network, _config(adapter, given, changes, whole, folder))
    network.load_state_dict(changes | whole, strict=False)
    return network.eval()


def read_changes(network: Network, folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """What an adapter adds to a network that stays as it is: A (R, I) and s · B (O, R) by full names of layers.

    Raises UserError for an adapter that does more (DoRA, modules that train whole, new tokens), besides what
    `load_adapter` raises for adapters of another base and for damaged files.
    """
    given = read_config(folder)
    changes = _read_weights(folder, network)
    whole = {name: tensor for name, tensor in changes.items() if ".lora_" not in name}
    if given.get("use_dora") or whole:
        more = "the lengths of matrices (DoRA)" if given.get("use_dora") else next(iter(whole)).removesuffix(".weight")
        fix = "merge it into its base, and serve that as a model of its own"
        raise UserError(f"the adapter changes {more}, which cannot be chosen per request", where=str(folder), fix=fix)
    _check_names(folder, given, network.state_dict(), changes, {})
    _check_base(network, folder, {})
    _check_shapes(network, folder, changes, {})
    config = _config(catalog.load("adapters", "lora"), given, changes, {}, folder)
    layers = [name.removesuffix(".lora_A") for name in changes if name.endswith(".lora_A")]
    return {name: (changes[f"{name}.lora_A"], changes[f"{name}.lora_B"] * config.scaling_of(name)) for name in layers}


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json, of a kind that can be opened. Raises UserError otherwise."""
    path = folder / CONFIG
    given = _read_json(path, fix=f"give the directory of an adapter: one that holds {CONFIG}")
    if given.get("peft_type") != "LORA":
        fix = "LoRA, DoRA and rsLoRA can be opened: merge the others with PEFT and open the whole model"
        raise UserError(f"an adapter of the type {given.get('peft_type')!r}", where=str(path), fix=fix)
    fix = "merge the adapter with PEFT, and open the whole model"
    for key in UNSUPPORTED:
        if given.get(key):
            raise UserError(f"the adapter uses {key}, which is not supported", where=str(path), fix=fix)
    if given.get("bias", "none") != "none":
        raise UserError(f"the adapter trained biases (bias: {given['bias']!r})", where=str(path), fix=fix)
    initial = given.get("init_lora_weights", True)
    if isinstance(initial, str) and initial.lower().startswith(BASE_CHANGING):
        what = f"the adapter began by changing its base (init_lora_weights: {initial!r})"
        raise UserError(what, where=str(path), fix="let PEFT convert it to a plain LoRA, or merge it")
    return given


def base_digest(network: Network, whole: Mapping[str, Any] | None = None) -> str:
    """SHA-256 in hex of the backbone without what its adapter trains: the same before wrapping and after.

    `whole` names the weights that an adapter to come trains whole; they are not the base's either.
    """
    found: dict[str, str] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        is_trained = name in whole if whole is not None else ".lora_" in name or tensor.requires_grad
        if name.startswith(f"{network.prefix}.") and not is_trained:
            found[name] = digest(tensor)
    found |= {f"{name}.weight": layer.base_digest for name, layer in adapted_layers(network) if layer.bits}
    return hashlib.sha256(json.dumps(sorted(found.items())).encode()).hexdigest()


def _describe(network: Network, model: ModuleType, *, is_tied: bool) -> dict[str, Any]:
    """adapter_config.json, but for the base."""
    assert network.adapter is not None, "only an adapter is described"
    config: Any = network.adapter.config
    whole = [_published_module(network, name) for name in network.adapter.whole]
    return {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(network.head_kind),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.rank_stabilised,
        "use_dora": any(layer.lora_magnitude_vector is not None for _, layer in adapted_layers(network)),
        "rank_pattern": {_published_module(network, end): rank for end, rank in config.ranks.items()},
        "alpha_pattern": {_published_module(network, end): alpha for end, alpha in config.alphas.items()},
        "target_modules": _target_names(network),
        "modules_to_save": whole or None,
        "ensure_weight_tying": is_tied,
        "fan_in_fan_out": bool(getattr(model, "TRANSPOSED", ())),
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
    }


def _target_names(network: Network) -> list[str]:
    """The shortest names that mean the adapted layers and no other, as PEFT matches them: by their ends."""
    adapted = {name for name, _ in adapted_layers(network)}
    linear = {name for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    within = {name: re.sub(r"^.*\.\d+\.", "", name) for name in linear}

    def shortest(name: str) -> str:
        last = name.rpartition(".")[2]
        return last if len({end for end in within.values() if end.rpartition(".")[2] == last}) == 1 else within[name]

    ends = {shortest(name) for name in adapted}
    meant = {name for name in linear if any(name == end or name.endswith(f".{end}") for end in ends)}
    return sorted(ends if meant == adapted else {_published_module(network, name) for name in adapted})


def _config(
    adapter: ModuleType, given: Mapping[str, Any], changes: Mapping[str, Tensor], whole: Mapping[str, Tensor],
    folder: Path,
) -> Any:  # fmt: skip
    """The section that gives the same layers, ranks and strengths."""
    ranks = {name.removesuffix(".lora_A"): len(t) for name, t in changes.items() if name.endswith(".lora_A")}
    alphas = {name: _by_pattern(given.get("alpha_pattern") or {}, name, given["lora_alpha"]) for name in ranks}
    try:
        return adapter.Config(
            rank=given["r"],
            alpha=given["lora_alpha"],
            dropout=given.get("lora_dropout") or 0.0,
            targets=list(ranks),
            rank_stabilised=bool(given.get("use_rslora")),
            modules_to_save=sorted({_whole_module(given, name) for name in whole}),
            ranks={name: rank for name, rank in ranks.items() if rank != given["r"]},
            alphas={name: alpha for name, alpha in alphas.items() if alpha != given["lora_alpha"]},
        )
    except (KeyError, ValueError) as error:
        fix = "fetch or write the file again"
        raise ArtifactError(
            f"its options do not make an adapter ({error})", where=str(folder / CONFIG), fix=fix
        ) from error


def _whole_module(given: Mapping[str, Any], weight: str) -> str:
    """The module that a weight was saved with: the outermost that PEFT's option names, or its own."""
    ends = tuple(given.get("modules_to_save") or ())
    parts = weight.split(".")[:-1]
    outwards = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
    return next((name for name in outwards if name.endswith(ends)), outwards[-1])


def _by_pattern(patterns: Mapping[str, float], name: str, otherwise: float) -> float:
    """PEFT's rule: the first pattern that the end of a name matches as a whole."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), otherwise)


def _read_weights(folder: Path, network: Network) -> dict[str, Tensor]:
    """Tensors by our names: `LAYER.lora_A`, `LAYER.lora_B`, and those that train whole."""
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = next(folder.glob("adapter_model.bin"), None)
        fix = "save it with PEFT as safetensors: a pickle can run any code" if pickled else "give a complete adapter"
        raise UserError(f"there is no {WEIGHTS}", where=str(folder), fix=fix)
    try:
        stored = load_file(path)
    except (SafetensorError, OSError) as error:
        fix = "fetch or write the file again: it is cut short or was changed"
        raise ArtifactError(f"the weights cannot be read ({error})", where=str(path), fix=fix) from error
    found = {}
    for name, tensor in stored.items():
        if ".original_module." in name:
            continue  # PEFT's copy of what the base had
        ours = re.sub(r"\.base_layer|\.modules_to_save(\.default)?", "", _ours(network, name.removeprefix(ROOT)))
        low_rank = _LOW_RANK.match(ours)
        if ".lora_" in ours and not low_rank:
            fix = "merge the adapter with PEFT, and open the whole model"
            raise UserError(f"the adapter changes {ours}, which is no linear layer", where=str(path), fix=fix)
        found[f"{low_rank[1]}.{low_rank[2]}" if low_rank else ours] = tensor
    return found


def _without_ties(whole: dict[str, Tensor], network: Network, folder: Path) -> dict[str, Tensor]:
    """Weights that train whole, tied ones once. Raises UserError if tied weights were trained apart."""
    kept = dict(whole)
    for copy, original in _tied(_model_of(network), network).items():
        if copy in kept and (original not in kept or not torch.equal(kept[copy], kept[original])):
            fix = "untie them in the base (tie_word_embeddings: false), or train with ensure_weight_tying"
            raise UserError(f"the adapter trained {copy} apart from {original}", where=str(folder), fix=fix)
        kept.pop(copy, None)
    return kept


def _check_names(
    folder: Path, given: Mapping[str, Any], expected: Mapping[str, Tensor], changes: Mapping[str, Tensor],
    whole: Mapping[str, Tensor],
) -> None:  # fmt: skip
    """Raise UserError for layers that the network does not have."""
    layers = {f"{name.rpartition('.')[0]}.weight" for name in changes} | set(whole)
    strange = sorted(name for name in layers if name not in expected)
    if strange:
        shown = ", ".join(name.removesuffix(".weight") for name in strange[:3])
        base, task = given.get("base_model_name_or_path"), given.get("task_type")
        fix = f"open it on its own base ({base or 'not named'}), with a head for {task or 'its task'}"
        raise UserError(f"the adapter belongs to another model: there is no {shown}", where=str(folder), fix=fix)


def _check_base(network: Network, folder: Path, whole: Mapping[str, Tensor]) -> None:
    """Raise UserError if the adapter names another base by digest."""
    if not (folder / BASE).is_file():
        return
    wanted = _read_json(folder / BASE, fix="remove it, to go without the check").get("base_digest")
    found = base_digest(network, whole)
    if wanted != found:
        what = f"the adapter belongs to another base: its digest is {str(wanted)[:12]}…, this one's {found[:12]}…"
        fix = "open the base that the adapter was trained on: another one gives other answers, and no error"
        raise UserError(what, where=str(folder / BASE), fix=fix)


def _check_shapes(network: Network, folder: Path, changes: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> None:
    """Raise UserError for a tensor that does not fit where it belongs."""
    expected = network.state_dict()
    for name, tensor in changes.items():
        layer, _, key = name.rpartition(".")
        sizes = dict(zip(("lora_B", "lora_A"), expected[f"{layer}.weight"].shape, strict=True))
        is_wrong = tensor.ndim != 2 or tensor.shape[key == "lora_A"] != sizes[key] if key in sizes else False
        if is_wrong or f"{layer}.lora_A" not in changes or f"{layer}.lora_B" not in changes:
            what = f"{name} is {tuple(tensor.shape)}, its layer {tuple(expected[f'{layer}.weight'].shape)}"
            raise UserError(f"the adapter belongs to another model: {what}", where=str(folder), fix="open its own base")
    for name, tensor in whole.items():
        if tensor.shape != expected[name].shape:
            what = f"{name} is {tuple(tensor.shape)}, expected {tuple(expected[name].shape)}"
            raise UserError(f"the adapter belongs to another model: {what}", where=str(folder), fix="open its own base")


def _tied(model: ModuleType, network: Network) -> dict[str, str]:
    """Names of tensors that readers may hold twice, and of the ones that they are."""
    expected = network.state_dict()
    ties: dict[str, str] = getattr(model, "TIED", {})
    heads = tuple(f"{name}." for name in (network.head_name, network.prefix))
    return {c: o for c, o in ties.items() if c not in expected and o in expected and c.startswith(heads)}


def _model_of(network: Network) -> ModuleType:
    # Not by name: a family that transformers computes has its own name and no file.
    return sys.modules[type(network.config).__module__]


def _published(network: Network, name: str) -> str:
    """PEFT's name of a trained tensor of ours."""
    module, _, key = name.rpartition(".")
    ending = ".weight" if key in ("lora_A", "lora_B") else ""
    return f"{ROOT}{_published_module(network, module)}.{key}{ending}"


def _published_module(network: Network, name: str) -> str:
    """The published name of a module; a bare backbone is published without its prefix."""
    return name.removeprefix(f"{network.prefix}.") if network.head_kind == BARE else name


def _ours(network: Network, name: str) -> str:
    return f"{network.prefix}.{name}" if network.head_kind == BARE else name


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
