"""A whole network: a backbone, and the head a task asked for, under their published names.

The model's file says what the modules are; here they meet a batch. `state_dict()` has exactly the
names of the published layout (`model.layers.0.…`, `lm_head.weight`; `bert.…`, `cls.…`), tied weights
once.

A batch is padded, (B,T) with `attention_mask`, or flat: its examples end to end in one row, (1,N), with
their `lengths`. `Outputs` finds an example's tokens in either. Where a model reads a source and writes a
target, the keys of the target begin with `decoder_`. A backbone that reads something else than tokens by
attention (images, `pixel_values`; rows of numbers, `features`) takes what it needs of a batch by its method
`read` and gives hidden states all the same: (B,D) where an example is one vector.

Axes: B rows, T tokens, E examples, N tokens of a flat batch, D model width, V vocabulary, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from groundup.config import Named
from groundup.errors import UserError, nearest
from groundup.nn import batch_norm
from groundup.nn.adapted import Adaptation
from groundup.nn.attention import Attend, across_batch, for_batch
from groundup.nn.heads import Reads
from groundup.nn.initialisers import initialise
from groundup.nn.shape import AnySection

INPUTS = (
    *("input_ids", "positions", "document_ids", "attention_mask", "token_type_ids", "lengths"),
    *("pixel_values", "features"),
)
"""The keys of a batch that a backbone reads; the others are the loss's."""
TARGET = "decoder_"
"""What the keys of a target begin with: decoder_input_ids, and its own positions, attention_mask and lengths."""


class Backbone(Protocol):
    """What `build` of a model file returns, beside being an nn.Module.

    One that `narrows` takes `wanted_W` too, the places of some of T tokens: then it gives the hidden states of those
    alone, (B,W,D), and spares the others most of its last layer.
    """

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


class Reader(Protocol):
    """A backbone that takes what it reads out of a batch; it has `checkpoint_activations` too."""

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states, (B,T,D); (B,D) where an example is one vector. See `given`."""


class KeepsActivations(nn.Module):
    """A backbone that always keeps its activations for the backward pass: to compute them again, it has no way.

    Batch norm would take the statistics of a recomputed layer into its running means a second time.
    """

    @property
    def checkpoint_activations(self) -> bool:
        """Always false; setting it to true raises UserError."""
        return False

    @checkpoint_activations.setter
    def checkpoint_activations(self, wanted: bool) -> None:
        if wanted:
            name = type(self).__module__.rpartition(".")[2]
            what = f"the model {name!r} cannot compute its activations a second time"
            raise UserError(what, fix="leave out `activation_checkpointing`, or set a smaller `micro_batch_rows`")


class TwoSided(Protocol):
    """A backbone that reads a source and writes a target; it has `context` and `checkpoint_activations` too."""

    def encode(self, input_ids_BS: Tensor, attend: Attend, positions_BS: Tensor | None = None) -> Tensor:
        """Hidden states of sources, (B,S,D)."""

    def decode(
        self,
        input_ids_BT: Tensor,
        source: Any,
        attend: Attend,
        across: Attend,
        positions_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of targets, (B,T,D); `source` is what `encode` gave, or `remember` made of it."""

    def remember(self, source_BSD: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of sources, (B,S,H,K) each, by layer: what writing token by token needs of them."""


class Head(Protocol):
    """A language head: features, then one linear layer over the vocabulary, so a loss can join in.

    Heads of other kinds have no `features`; those that read one vector an example say so by `reads`
    (see `nn/heads.py`). Modules that are published next to the head instead of within it are its
    `siblings`: a plain mapping of their names to them. So are fixed tensors; they become the network's
    own, and a head with such finds them there: it gets a tuple of the network as its `network`.
    """

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
    """(B, T, D), of the target where the batch has one, of the source otherwise; (B, D) where an example is one."""
    head: Head
    batch: Mapping[str, Tensor] = field(default_factory=dict)
    """What went in: it tells where examples begin and end."""
    backbone: TwoSided | None = None
    """What reads sources and writes targets, for who goes on writing; None if the model is of another kind."""
    source: Tensor | None = None
    """(B, S, D): the hidden states of the source, for such a model."""

    @cached_property
    def logits(self) -> Tensor:
        """Scores of every position, (B, T, V) or (B, T, K), or of every example, (E, K), by the head.

        A loss that can should use `head.features` instead of (B, T, V).
        """
        reads: Any = getattr(self.head, "reads", "all")
        return self.head(self.hidden if reads == "all" else self.examples(reads))

    @property
    def next_sentence_logits(self) -> Tensor:
        """Scores of the pair of sentences, (B, 2), from a head of kind `pretraining`."""
        score = cast(Callable[[Tensor], Tensor], getattr(self.head, "next_sentence"))  # noqa: B009
        return score(self.hidden)

    def examples(self, reads: Reads) -> Tensor:
        """One vector an example, (E, D): its first or last token's, the mean of its tokens', or both ends'."""
        if self.hidden.dim() == 2:
            return self.hidden  # an example is one vector: there is nothing to look for
        flat_ND, (start_E, length_E) = self.hidden.flatten(0, 1), self.places
        if reads == "first":
            return flat_ND[start_E]
        if reads == "last":
            return flat_ND[start_E + length_E - 1]
        if reads == "ends":
            half = flat_ND.shape[1] // 2
            return torch.cat([flat_ND[start_E + length_E - 1, :half], flat_ND[start_E, half:]], dim=1)
        owner_N = torch.repeat_interleave(torch.arange(len(length_E), device=flat_ND.device), length_E)
        within_N = torch.arange(len(owner_N), device=flat_ND.device) - (length_E.cumsum(0) - length_E)[owner_N]
        sums_ED = flat_ND.new_zeros(len(length_E), flat_ND.shape[-1])
        return sums_ED.index_add(0, owner_N, flat_ND[start_E[owner_N] + within_N]) / length_E[:, None]

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Where each example begins among the B·T positions, and how many tokens it has; (E,) each."""
        return places(self.hidden, self.batch, TARGET if f"{TARGET}input_ids" in self.batch else "")


def places(hidden_BTD: Tensor, batch: Mapping[str, Tensor], side: str = "") -> tuple[Tensor, Tensor]:
    """Where each example begins among the B·T positions, and how many tokens it has; (E,) each.

    `side` is TARGET for hidden states of targets.
    """
    lengths = batch.get(f"{side}lengths")
    if lengths is not None:
        return lengths.cumsum(0) - lengths, lengths
    rows, width = hidden_BTD.shape[:2]
    start_B = torch.arange(rows, device=hidden_BTD.device) * width
    mask = batch.get(f"{side}attention_mask")
    return start_B, torch.full_like(start_B, width) if mask is None else mask.sum(1)


class Network(nn.Module):
    """The backbone of a model and one of its heads, in evaluation of a batch.

    `model` is a file of `models/`; `outputs` is the number of scores of a head that is not over the
    vocabulary. Raises UserError for a head that the model does not have.
    """

    def __init__(self, model: ModelFile, config: Named, head_kind: str, outputs: int | None = None) -> None:
        super().__init__()
        if head_kind not in model.HEADS:
            fix = nearest(head_kind, model.HEADS)
            raise UserError(f"the model {config.name!r} has no head for {head_kind!r}", fix=fix)
        self.config, self.head_kind, self.outputs, self.prefix = config, head_kind, outputs, model.PREFIX
        self.adapter: Adaptation | None = None
        backbone = model.build(config)
        head = model.HEADS[head_kind](config, backbone, outputs)
        self.head_name = cast(Head, head).published
        self.add_module(self.prefix, backbone)
        self.add_module(self.head_name, head)
        for name, found in getattr(head, "siblings", {}).items():
            if isinstance(found, Tensor):
                self.register_buffer(name, found)
                cast(Any, head).network = (self,)
            else:
                self.add_module(name, found)

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

        `attend` replaces the attention context that the batch asks for, as a cache does. A model that writes
        a target gives the hidden states of `decoder_input_ids`, or those of the source in a batch without.
        """
        if hasattr(self.backbone, "decode"):
            return self._of_two_sides(batch, cast(TwoSided, self.backbone))
        if hasattr(self.backbone, "read") and attend is None:
            return Outputs(cast(Reader, self.backbone).read(batch), self.head, batch)
        if attend is None:
            attend = for_batch(batch, causal=self.backbone.causal)
        ids_BT = given(batch, "input_ids")
        hidden_BTD = self.backbone(ids_BT, attend, batch.get("positions"), batch.get("token_type_ids"))
        return Outputs(hidden_BTD, self.head, batch)

    def _of_two_sides(self, batch: Mapping[str, Tensor], backbone: TwoSided) -> Outputs:
        source_BSD = backbone.encode(batch["input_ids"], for_batch(batch, causal=False), batch.get("positions"))
        target = {key.removeprefix(TARGET): value for key, value in batch.items() if key.startswith(TARGET)}
        if not target:
            return Outputs(source_BSD, self.head, batch, backbone, source_BSD)
        attend, across = for_batch(target, causal=True), across_batch(batch)
        hidden_BTD = backbone.decode(target["input_ids"], source_BSD, attend, across, target.get("positions"))
        return Outputs(hidden_BTD, self.head, batch, backbone, source_BSD)


def given(batch: Mapping[str, Tensor], *keys: str) -> Tensor:
    """The first of `keys` that a batch has. Raises UserError if it has none of them: its task is of another kind."""
    found = next((batch[key] for key in keys if key in batch), None)
    if found is None:
        what = f"the model reads {' or '.join(keys)}, and the batch has {', '.join(sorted(batch)) or 'nothing'}"
        raise UserError(what, fix="choose a model that reads what the task gives")
    return found


class _Undrawn(TorchFunctionMode):
    """Leaves out the first values that torch's modules draw for their weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Modules made here have weights without values, on the device `meta`.

    Torch would pretend to draw the values, in Python, and import its whole compiler for that: 1.5 s.
    """
    with torch.device("meta"), _Undrawn():
        yield


def create(
    model: ModelFile,
    config: AnySection,
    head_kind: str,
    *,
    outputs: int | None = None,
    seed: int,
    device: torch.device | str = "cpu",
) -> Network:
    """A network with fresh weights by the config's initialiser and a seed: the same on every device."""
    with shapes_alone():
        network = Network(model, config, head_kind, outputs)
    materialise(network, device)
    begin(network, config, seed)
    return network


def begin(network: nn.Module, config: AnySection, seed: int) -> None:
    """Set every weight in place by the config's initialiser and a seed."""
    depth = getattr(config, "n_layers", 1)
    initialise(network, name=config.initialiser, std=config.initialiser_std, n_layers=depth, seed=seed)


def materialise(network: nn.Module, device: torch.device | str) -> None:
    """Give every parameter that has only a shape its (unset) memory, and move tables to the device.

    Running means of batch norm begin at zero, and variances at one.
    """
    for module in network.modules():
        batch_norm.materialise(module, device)
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:
                # Not empty_like, which imports symbolic shapes (a second) to look at a tensor that is only a shape.
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                setattr(module, key, nn.Parameter(empty, requires_grad=parameter.requires_grad))
    network.to(device)
