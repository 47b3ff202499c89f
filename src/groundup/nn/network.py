"""A whole network: a backbone, and the head a task asked for, under their published names.

The model's file says what the modules are; here they meet a batch. `state_dict()` has exactly the
names of the published layout (`model.layers.0.…`, `lm_head.weight`; `bert.…`, `cls.…`), tied weights
once.

Axes: B rows, T tokens, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from groundup.config import Named
from groundup.errors import UserError, nearest
from groundup.nn.attention import Attend, for_batch
from groundup.nn.initialisers import initialise
from groundup.nn.shape import TransformerSection

INPUTS = ("input_ids", "positions", "document_ids", "attention_mask", "token_type_ids")
"""The keys of a batch that a backbone reads; the others are the loss's."""


class Backbone(Protocol):
    """What `build` of a model file returns, beside being an nn.Module."""

    causal: bool
    """Whether a token may see only what is before it."""
    context: int
    """The longest row, in tokens."""
    checkpoint_activations: bool
    """Whether layers are computed again in the backward pass instead of kept."""

    def __call__(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor: ...


class Head(Protocol):
    """A language head: features, then one linear layer over the vocabulary, so a loss can join in."""

    published: str
    """The module's name in the published layout: lm_head, cls, classifier, …"""

    @property
    def weight(self) -> Tensor: ...

    @property
    def bias(self) -> Tensor | None: ...

    def features(self, hidden_BTD: Tensor) -> Tensor: ...

    def __call__(self, hidden_BTD: Tensor) -> Tensor: ...


class ModelFile(Protocol):
    """The part of a file in `models/` that a network needs."""

    PREFIX: str
    HEADS: Mapping[str, Callable[..., nn.Module]]

    def build(self, config: Named) -> nn.Module: ...


@dataclass(frozen=True)
class Outputs:
    """What a forward pass gives: hidden states, and the head to apply where it is worth it."""

    hidden: Tensor
    """(B, T, D)"""
    head: Head

    @property
    def logits(self) -> Tensor:
        """Scores of every position, (B, T, V); a loss that can should use `head.features` instead."""
        return self.head(self.hidden)

    @property
    def next_sentence_logits(self) -> Tensor:
        """Scores of the pair of sentences, (B, 2), from a head of kind `pretraining`."""
        score = cast(Callable[[Tensor], Tensor], getattr(self.head, "next_sentence"))  # noqa: B009
        return score(self.hidden)


class Network(nn.Module):
    """The backbone of a model and one of its heads, in evaluation of a batch.

    `model` is a file of `models/`. Raises UserError for a head that it does not have.
    """

    def __init__(self, model: ModelFile, config: Named, head_kind: str) -> None:
        super().__init__()
        if head_kind not in model.HEADS:
            fix = nearest(head_kind, model.HEADS)
            raise UserError(f"the model {config.name!r} has no head for {head_kind!r}", fix=fix)
        self.config, self.head_kind, self.prefix = config, head_kind, model.PREFIX
        backbone = model.build(config)
        head = model.HEADS[head_kind](config, backbone)
        self.head_name = cast(Head, head).published
        self.add_module(self.prefix, backbone)
        self.add_module(self.head_name, head)

    @property
    def backbone(self) -> Backbone:
        """The model without its head."""
        return cast(Backbone, getattr(self, self.prefix))

    @property
    def head(self) -> Head:
        """The head."""
        return cast(Head, getattr(self, self.head_name))

    def forward(self, batch: Mapping[str, Tensor], attend: Attend | None = None) -> Outputs:
        """Hidden states (B,T,D) of a batch with its head; see `INPUTS` for the keys that are read.

        `attend` replaces the attention context that the batch asks for, as a cache does.
        """
        if attend is None:
            attend = for_batch(batch, causal=self.backbone.causal)
        hidden_BTD = self.backbone(batch["input_ids"], attend, batch.get("positions"), batch.get("token_type_ids"))
        return Outputs(hidden_BTD, self.head)


def create(
    model: ModelFile, config: TransformerSection, head_kind: str, *, seed: int, device: torch.device | str = "cpu"
) -> Network:
    """A network with fresh weights by the config's initialiser and a seed: the same on every device."""
    with torch.device("meta"):
        network = Network(model, config, head_kind)
    materialise(network, device)
    initialise(network, name=config.initialiser, std=config.initialiser_std, n_layers=config.n_layers, seed=seed)
    return network


def materialise(network: nn.Module, device: torch.device | str) -> None:
    """Give every parameter that has only a shape its (unset) memory, and move tables to the device."""
    for module in network.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                empty = torch.empty_like(parameter, device=device)
                setattr(module, key, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    network.to(device)
