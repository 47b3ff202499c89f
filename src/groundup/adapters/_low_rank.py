"""What LoRA and DoRA share: which layers are changed, what else trains, and how a change is merged.

Axes: B rows, T tokens, V scores.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from groundup.config import Named
from groundup.errors import StageFailed, UserError, nearest
from groundup.nn import token_tables
from groundup.nn.adapted import Adaptation, AdaptedLinear, adapted_layers
from groundup.nn.network import Network
from groundup.units import PositiveCount

POOLER = "pooler"
"""The published name of the layer between an encoder and the head of a whole row."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-6}
"""How far merged logits may be from the adapter's, as a share of the largest: some roundings of each type."""


class LowRank(Named):
    """A trained change of low rank beside frozen linear layers."""

    rank: PositiveCount = 8
    """Rank of the change: the width between the two trained matrices of a layer."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """Strength of the change: it is multiplied by alpha / rank (by alpha / √rank if `rank_stabilised`)."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of inputs to the change that is dropped in training."""
    targets: Literal["attention", "all"] | list[str] = "all"
    """Which linear layers are changed: those of the attention, all of the backbone, or these published names
    (`q_proj`, `mlp.c_fc`, …: whole names, or their ends)."""
    rank_stabilised: bool = False
    """Multiply by alpha / √rank, so that large ranks learn as fast as small ones (rsLoRA, Kalajdzievski 2023)."""
    base_bits: Literal[4, 8] | None = None
    """Keep the matrices of the changed layers in so many bits (QLoRA): 8 (a scale for each output) or 4 (NF4). Less
    memory, more time. null: as they are."""
    modules_to_save: Literal["auto"] | list[str] = "auto"
    """Published names of modules that train whole and are saved with the adapter; auto: a new head (a classifier and
    its pooler, not a language head), and the token embeddings where the tokenizer has grown."""
    ranks: dict[str, PositiveCount] = Field(default_factory=dict)
    """Other ranks for layers whose name ends so, e.g. {down_proj: 4}."""
    alphas: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other alphas for layers whose name ends so."""

    def rank_of(self, layer: str) -> int:
        """The rank of a layer by its full name."""
        return int(_for_layer(self.ranks, layer, self.rank))

    def scaling_of(self, layer: str) -> float:
        """What the change of a layer is multiplied by."""
        alpha, rank = _for_layer(self.alphas, layer, self.alpha), self.rank_of(layer)
        return float(alpha / rank**0.5 if self.rank_stabilised else alpha / rank)


def wrap(
    network: Network, config: LowRank, *, seed: int = 0, new_tokens: bool = False, trains_magnitude: bool = False
) -> Network:
    """The same network, changed in place: its layers frozen, with a trained change beside each target.

    At first the network computes what it did before (the change is zero). Heads made for the task train whole,
    and with `new_tokens` the tables of the tokens do too. The same seed draws the same numbers on every device.
    Raises UserError for targets that do not exist, or a network that has an adapter already.
    """
    if network.adapter is not None:
        raise UserError("the network has an adapter already", fix="merge it first")
    whole = _whole_modules(network, config, new_tokens=new_tokens)
    layers = _targets(network, config, whole)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, layer in layers.items():
        adapted = AdaptedLinear(
            layer,
            rank=config.rank_of(name),
            scaling=config.scaling_of(name),
            dropout=config.dropout,
            trains_magnitude=trains_magnitude,
            bits=config.base_bits,
            generator=generator,
        )
        adapted.train(layer.training)
        network.set_submodule(name, adapted)
    for name in whole:
        network.get_submodule(name).requires_grad_(True)
    network.adapter = Adaptation(config, tuple(whole))
    return network


def merge(network: Network) -> Network:
    """The same network, in place, without adapters: the changes are added to the matrices, types kept.

    Where the base was kept in few bits it is unpacked first and stays as the adapter saw it, which is not
    exactly the checkpoint (`describe` says by how much): the merged model computes what the trained one did.
    Everything can be trained again afterwards. Raises UserError if there is no adapter.
    """
    if network.adapter is None:
        raise UserError("the network has no adapter to merge", fix="wrap it first, or use it as it is")
    for name, layer in list(adapted_layers(network)):
        network.set_submodule(name, layer.merged())
    network.adapter = None
    return network.requires_grad_(True)


def trainable(network: nn.Module) -> list[str]:
    """The names of the weights that train."""
    return [name for name, p in network.named_parameters() if p.requires_grad]


@dataclass(frozen=True)
class Description:
    """An adapter in figures."""

    layers: int
    """How many layers are changed."""
    trained: int
    """Numbers that train, those of whole modules included."""
    total: int
    """Numbers of the whole network, the adapter included."""
    base_bits: int | None
    base_error: float
    """How far the base's matrices in few bits are from the checkpoint's: the mean share of their size."""

    def __str__(self) -> str:
        share = (
            f"{self.trained} of {self.total} weights train ({self.trained / self.total:.2%}), in {self.layers} layers"
        )
        kept = f"; the base in {self.base_bits} bits differs from the checkpoint by {self.base_error:.2%}"
        return share + (kept if self.base_bits else "")


def describe(network: nn.Module) -> Description:
    """The adapter of a network in figures."""
    layers = [layer for _, layer in adapted_layers(network)]
    packed = sum(layer.in_features * layer.out_features for layer in layers if layer.bits)
    errors = [layer.base_error for layer in layers if layer.bits]
    return Description(
        layers=len(layers),
        trained=sum(p.numel() for p in network.parameters() if p.requires_grad),
        total=sum(p.numel() for p in network.parameters()) + packed,
        base_bits=next((layer.bits for layer in layers if layer.bits), None),
        base_error=sum(errors) / len(errors) if errors else 0.0,
    )


@dataclass(frozen=True)
class MergeCheck:
    """How a merged network compares with the one it was merged from."""

    largest: float
    """The largest difference of two logits."""
    relative: float
    """The same as a share of the largest logit."""
    tolerance: float
    """What `relative` may be."""

    def __str__(self) -> str:
        return (
            f"merged logits differ by {self.largest:.2g} at most, {self.relative:.2g} of the largest "
            f"(allowed {self.tolerance:g})"
        )


def check_merge(before_BTV: Tensor, after_BTV: Tensor, *, dtype: torch.dtype = torch.float32) -> MergeCheck:
    """How far the logits of a merged network are from those before merging, on the same batch.

    `dtype` is that of the merged weights: the tolerance is some of its roundings. Raises StageFailed beyond it.
    """
    before, after = before_BTV.detach().float(), after_BTV.detach().float()
    largest = float((before - after).abs().max())
    relative = largest / max(float(before.abs().max()), 1e-30)
    found = MergeCheck(largest, relative, TOLERANCES[dtype])
    if not relative <= found.tolerance:  # also true of a number that is none
        fix = "serve the adapter unmerged, or merge into a base of more bits"
        raise StageFailed(f"merging changed what the network computes: {found}", fix=fix)
    return found


def _for_layer(given: Mapping[str, float], layer: str, otherwise: float) -> float:
    return next((value for end, value in given.items() if _ends_with(layer, end)), otherwise)


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _whole_modules(network: Network, config: LowRank, *, new_tokens: bool) -> list[str]:
    """Names of the modules that train whole."""
    found: list[str] = []
    if isinstance(config.modules_to_save, list):
        found = _named(config.modules_to_save, [name for name, _ in network.named_modules() if name], "module")
    elif not hasattr(network.head, "features"):
        # Heads over a vocabulary come with the checkpoint; the others begin at random.
        poolers = [name for name, _ in network.named_modules() if _ends_with(name, POOLER)]
        siblings = getattr(network.head, "siblings", {})
        beside = [network.head_name, *(name for name, found in siblings.items() if isinstance(found, nn.Module))]
        found = beside + [name for name in poolers if name.partition(".")[0] not in beside]
    if new_tokens:
        found += [name for name in _token_modules(network) if name not in found]
    return [name for name in found if any(True for _ in network.get_submodule(name).parameters())]


def _token_modules(network: Network) -> list[str]:
    return [*token_tables.embeddings(network), *token_tables.outputs(network)]


def _targets(network: Network, config: LowRank, whole: Iterable[str]) -> dict[str, nn.Linear]:
    """The layers to change, by full name, in their order."""
    inside = tuple(f"{name}." for name in whole)
    layers = {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{network.prefix}.") and not f"{name}.".startswith(inside)
    }
    wanted = config.targets
    if isinstance(wanted, list):
        named = _named(wanted, list(layers), "linear layer of the backbone")
        return {name: layer for name, layer in layers.items() if name in named}
    if wanted == "attention":
        layers = {name: layer for name, layer in layers.items() if re.search("attn|attention", name.lower())}
    if not layers:
        fix = "train all of its weights: leave out `adapter`"
        raise UserError(f"the model {network.config.name!r} has no linear layers to adapt ({wanted})", fix=fix)
    return layers


def _named(ends: Iterable[str], names: list[str], kind: str) -> list[str]:
    """The names that end as asked for. Raises UserError for an end that none has."""
    found: list[str] = []
    for end in ends:
        matching = [name for name in names if _ends_with(name, end)]
        if not matching:
            known = {name.rpartition(".")[2] for name in names} - {str(number) for number in range(len(names))}
            raise UserError(f"the model has no {kind} named {end!r}", fix=nearest(end, known))
        found += [name for name in matching if name not in found]
    return found
