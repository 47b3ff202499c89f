"""Between our names of tensors and those a family publishes, by the tables in its model file.

`RENAMED` gives beginnings of our names and what is published instead, `OLD_NAMES` endings of names in early
checkpoints and what they are called since, `TRANSPOSED` endings of matrices that are published turned, `TIED`
tensors that some checkpoints hold twice, `OPTIONAL` beginnings of what belongs to other heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from groundup.errors import ArtifactError
from groundup.nn.network import Network


def as_published(model: ModuleType, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors as the family publishes them: contiguous, on the CPU, some transposed or under other names."""
    turned = {name: _turn(model, name, tensor.detach().cpu()).contiguous() for name, tensor in weights.items()}
    renamed: dict[str, str] = getattr(model, "RENAMED", {})
    return {_with_beginning(name, renamed): tensor for name, tensor in turned.items()}


def as_ours(model: ModuleType, weights: dict[str, Tensor], network: Network, folder: Path) -> dict[str, Tensor]:
    """Published tensors under the names of `network`, without those it has no use for."""
    weights = {_renamed(model, name): _turn(model, name, tensor).contiguous() for name, tensor in weights.items()}
    expected = network.state_dict()
    if not any(name.startswith(f"{model.PREFIX}.") for name in weights):
        # A checkpoint of the backbone alone is published without its prefix.
        optional = tuple(getattr(model, "OPTIONAL", ()))
        own = {name for name in weights if (full := f"{model.PREFIX}.{name}") in expected or full.startswith(optional)}
        weights = {f"{model.PREFIX}.{name}" if name in own else name: tensor for name, tensor in weights.items()}
    for copy, original in getattr(model, "TIED", {}).items():
        if copy in weights and copy not in expected and original in weights:
            if not weights[copy].is_meta and not torch.equal(weights[copy], weights[original]):
                fix = "set tie_word_embeddings to false in config.json if the two are meant to differ"
                what = f"{copy} should be tied to {original} and is not the same"
                raise ArtifactError(what, where=str(folder / "config.json"), fix=fix)
            del weights[copy]
    return weights


def _renamed(model: ModuleType, name: str) -> str:
    for old, new in getattr(model, "OLD_NAMES", {}).items():
        if name.endswith(old):
            return name.removesuffix(old) + str(new)
    return _with_beginning(name, {new: old for old, new in getattr(model, "RENAMED", {}).items()})


def _with_beginning(name: str, renamed: Mapping[str, str]) -> str:
    """The name with the first beginning that fits replaced."""
    for old, new in renamed.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _turn(model: ModuleType, name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if name.endswith(getattr(model, "TRANSPOSED", ())) else tensor
