"""Reading and writing the options of a published config.json.

A model supports some values of an option and must say so by name about the others: a checkpoint
that opens and computes something else is the worst outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groundup.config import Named, dump
from groundup.errors import UserError
from groundup.nn.positions import RopeScaling

OWN_CLASSES = {
    "image": "ForImageClassification",
    "features": "ForFeatureClassification",
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "language": "ForCausalLM",
    "click": "ForClickPrediction",
    "embedding": "Model",
}
"""By kind of head, how the class of a family of ours is called in a config.json."""
OURS = "groundup"
"""The key of config.json under which options live that the published layout has no word for."""
_REFUSED = "open it with transformers, or choose a checkpoint of the plain kind"


def required(given: dict[str, Any], key: str) -> Any:
    """The value of a key that a config.json must have. Raises UserError if it is missing or null."""
    if given.get(key) is None:
        fix = "complete the file from where the checkpoint was published"
        raise UserError(f"config.json has no value for {key!r}", fix=fix)
    return given[key]


def only(given: dict[str, Any], key: str, supported: Sequence[Any], default: Any = None) -> Any:
    """The value of a key, or the default. Raises UserError for one that is not supported."""
    value = given.get(key, default)
    if value not in supported:
        listed = ", ".join(repr(item) for item in supported)
        what = f"config.json sets {key!r} to {value!r}, which this model does not support (it supports {listed})"
        raise UserError(what, fix=_REFUSED)
    return value


def ours(given: dict[str, Any]) -> dict[str, Any]:
    """The options groundup wrote beside the published ones; none in a foreign checkpoint."""
    kept = given.get(OURS) or {}
    if not isinstance(kept, dict):
        raise UserError(f"config.json sets {OURS!r} to {kept!r}, expected a mapping", fix="remove that key")
    return dict(kept)


def own_format(config: Named, head: str) -> dict[str, Any]:
    """A config.json for a family without a published layout; transformers refuses its model_type by name."""
    family = config.name.title().replace("_", "")
    architecture = f"Groundup{family}{OWN_CLASSES[head]}"
    options = {key: value for key, value in dump(config).items() if key != "name"}
    return {"architectures": [architecture], "model_type": f"groundup_{config.name}", OURS: options}


def own_architectures(name: str, heads: Sequence[str]) -> dict[str, str]:
    """By kind of head, what `own_format` calls the class of a family."""
    return {head: f"Groundup{name.title().replace('_', '')}{OWN_CLASSES[head]}" for head in heads}


def read_rope(given: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling of rotary positions, as transformers 5 (`rope_parameters`) or 4 wrote them.

    Raises UserError for kinds that are not supported (yarn, dynamic, longrope, …) and for
    positions that turn only a part of each head.
    """
    rope = dict(given.get("rope_parameters") or given.get("rope_scaling") or {})
    theta = float(rope.get("rope_theta") or given.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    only({"rope_type": kind}, "rope_type", ("default", "linear", "llama3"))
    only({"partial_rotary_factor": 1.0} | given | rope, "partial_rotary_factor", (1.0, None))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=required(rope, "factor"))
    return theta, RopeScaling(
        kind="llama3",
        factor=required(rope, "factor"),
        low_freq_factor=required(rope, "low_freq_factor"),
        high_freq_factor=required(rope, "high_freq_factor"),
        original_context=required(rope, "original_max_position_embeddings"),
    )


def write_rope(theta: float, scaling: RopeScaling | None) -> dict[str, Any]:
    """The keys of config.json for rotary positions, for readers of the new form and of the old one."""
    described: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        described = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        described |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    old = {"rope_theta": theta, "rope_scaling": None if scaling is None else dict(described)}
    return old | {"rope_parameters": {"rope_theta": theta, **described}}
