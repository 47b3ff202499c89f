"""A model of transformers as one of our networks: its own modules under their own names.

Batches of any layout are padded before transformers sees them. Generation keeps the ids of tokens
instead of their keys and values, and reads the whole text again for each new one. A head is what
transformers computes after its backbone: the backbone is replaced for a moment by one that gives the
hidden states at hand.

Axes: B rows, T tokens, E texts, S tokens of the longest text, D model width, V vocabulary, K outputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from groundup.errors import MissingExtra, UserError
from groundup.nn.attention import Attend, Cached
from groundup.nn.heads import EmbeddingHead
from groundup.nn.initialisers import initialise
from groundup.nn.network import Network, Outputs
from groundup.nn.shape import TransformerSection

OVER_VOCABULARY = ("language", "masked_language")


class Bridged(Network):
    """A model of transformers as a network: the same modules under the same names."""

    def __init__(self, theirs: Any, config: TransformerSection, head_kind: str, outputs: int | None = None) -> None:
        nn.Module.__init__(self)
        self.config, self.head_kind, self.outputs = config, head_kind, outputs
        self.adapter = None
        self.prefix = str(theirs.base_model_prefix)
        # A tuple hides it from registration: its modules are registered one by one, under their names.
        self._theirs = (theirs,)
        if head_kind == "embedding":
            self.add_module(self.prefix, theirs)
        else:
            for name, module in theirs.named_children():
                self.add_module(name, module)
        scored = [
            name for name, m in self.named_children() if name != self.prefix and any(True for _ in m.parameters())
        ]
        self.head_name = scored[-1] if scored else "embedding"
        if not scored:
            self.add_module("embedding", EmbeddingHead("last" if is_causal(config.name) else "mean"))
        last = None if head_kind not in OVER_VOCABULARY else theirs.get_output_embeddings()
        self._last = next((name for name, module in self.named_modules() if module is last and last is not None), "")
        self._backbone, self._head = Backbone(self), Head(self)

    @property
    def theirs(self) -> Any:
        """The model of transformers."""
        return self._theirs[0]

    @property
    def last(self) -> nn.Module:
        """The layer over the vocabulary, as it stands now: an adapter may have replaced it."""
        return self.get_submodule(self._last)

    @property
    def backbone(self) -> Any:
        """The model without its head."""
        return self._backbone

    @property
    def head(self) -> Any:
        """The head."""
        return getattr(self, "embedding") if self.head_kind == "embedding" else self._head  # noqa: B009

    def forward(self, batch: Mapping[str, Tensor], attend: Attend | None = None) -> Outputs:
        """Hidden states (B,T,D) of a batch of any layout, with its head."""
        hidden_BTD = self._backbone.of_batch(batch)
        return Outputs(hidden_BTD, self.head, batch)

    def synchronise(self) -> None:
        """Let the model of transformers hold what this network holds, where modules were replaced."""
        theirs = self.theirs
        theirs.training = self.training
        if self.head_kind == "embedding":
            return
        for name, module in self.named_children():
            if name in theirs._modules:
                theirs._modules[name] = module
        if self._last and getattr(theirs.config, "tie_word_embeddings", False):
            table: Any = theirs.get_input_embeddings()
            last: Any = self.last
            if last.weight is not table.weight and last.weight.shape == table.weight.shape:
                last.weight = table.weight

    def forget_head(self, seed: int) -> None:
        """Begin the head anew, by a seed: its outputs mean something else."""
        config = cast(TransformerSection, self.config)
        for name, module in self.named_children():
            if name != self.prefix:
                initialise(module, name="normal", std=config.initialiser_std, n_layers=config.n_layers, seed=seed)


class Backbone:
    """The backbone of a bridged network, as tasks and runtimes call it."""

    def __init__(self, network: Bridged) -> None:
        self._network = (network,)
        self.causal, self.context = is_causal(network.config.name), cast(TransformerSection, network.config).context
        self._takes, self._checkpoints = _parameters_of(self.base), False

    @property
    def base(self) -> Any:
        """The module of transformers."""
        return self._network[0]._modules[self._network[0].prefix]  # by name it may be hidden: Mamba's is `backbone`

    @property
    def checkpoint_activations(self) -> bool:
        """Whether layers are computed again in the backward pass instead of kept."""
        return self._checkpoints

    @checkpoint_activations.setter
    def checkpoint_activations(self, wanted: bool) -> None:
        if wanted == self._checkpoints:
            return
        if not self.base.supports_gradient_checkpointing:
            what = f"the family {self._network[0].config.name!r} cannot compute its layers again"
            raise UserError(what, fix="leave activation_checkpointing out, or set it to false")
        end = "enable" if wanted else "disable"
        # Early versions of transformers 5 know the second name only.
        switch = getattr(self.base, f"activation_checkpointing_{end}", None)
        (switch or getattr(self.base, f"gradient_checkpointing_{end}"))()
        self._checkpoints = wanted

    def __call__(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B,T,D): of whole rows, or of new tokens after what a cache holds of theirs."""
        if isinstance(attend, Cached):
            return self._after(input_ids_BT, attend)
        return self._run(input_ids_BT, torch.ones_like(input_ids_BT, dtype=torch.bool), token_type_ids_BT)

    def of_batch(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states (B,T,D) of a batch; those of padding are zero."""
        ids_BT, types_BT = batch["input_ids"], batch.get("token_type_ids")
        owner_BT = _texts(batch)
        if owner_BT is None:
            return self._run(ids_BT, torch.ones_like(ids_BT, dtype=torch.bool), types_BT)
        real_BT = owner_BT >= 0
        length_E = torch.bincount(owner_BT[real_BT])
        place_BT = _places(owner_BT)
        real_ES = torch.arange(int(length_E.max()), device=ids_BT.device) < length_E[:, None]
        ids_ES = ids_BT.new_zeros(real_ES.shape)
        ids_ES[owner_BT[real_BT], place_BT[real_BT]] = ids_BT[real_BT]
        types_ES = None if types_BT is None else torch.zeros_like(ids_ES)
        if types_ES is not None and types_BT is not None:
            types_ES[owner_BT[real_BT], place_BT[real_BT]] = types_BT[real_BT]
        hidden_ESD = self._run(ids_ES, real_ES, types_ES)
        hidden_BTD = hidden_ESD.new_zeros(*ids_BT.shape, hidden_ESD.shape[-1])
        hidden_BTD[real_BT] = hidden_ESD[owner_BT[real_BT], place_BT[real_BT]]
        return hidden_BTD

    def _run(self, ids_ES: Tensor, real_ES: Tensor, types_ES: Tensor | None) -> Tensor:
        if ids_ES.shape[1] > self.context:
            fix = f"cut or pack rows to at most {self.context} tokens"
            raise UserError(
                f"a row of {ids_ES.shape[1]} tokens is longer than the model's context of {self.context}", fix=fix
            )
        network = self._network[0]
        network.synchronise()
        options: dict[str, Any] = {"use_cache": False} if "use_cache" in self._takes else {}
        if types_ES is not None and "token_type_ids" in self._takes:
            types = int(getattr(network.theirs.config, "type_vocab_size", 0) or 0)
            options |= {"token_type_ids": types_ES} if types > 1 else {}
        mask = None if bool(real_ES.all()) else real_ES.long()
        hidden_ESD: Tensor = self.base(input_ids=ids_ES, attention_mask=mask, **options).last_hidden_state
        return hidden_ESD

    def _after(self, ids_BT: Tensor, attend: Cached) -> Tensor:
        """Hidden states of new tokens: the cache holds the ids before them, and all are read again."""
        cache_, positions_BT = attend.cache, attend.positions_BT
        if cache_.dtype != torch.float32:
            raise ValueError("a cache of ids must be float32: shorter numbers cannot hold large ids")
        kept = ids_BT[:, :, None, None].float()
        cache_.write(0, attend.rows, positions_BT, kept, kept)
        ids_BS = cache_.read(0, attend.rows, attend.seen)[0][:, 0, :, 0].long()
        real_BS = torch.arange(attend.seen, device=ids_BS.device) <= positions_BT[:, -1:]
        hidden_BSD = self._run(ids_BS * real_BS, real_BS, None)
        return hidden_BSD.gather(1, positions_BT[:, :, None].expand(-1, -1, hidden_BSD.shape[-1]))


class Head:
    """The head of a bridged network: hidden states to scores, as the model of transformers computes them."""

    def __init__(self, network: Bridged) -> None:
        self._network = (network,)
        self.published = network.head_name
        first = "last" if is_causal(network.config.name) else "first"
        self.reads = first if network.head_kind == "sequence" else "all"

    def __getattr__(self, name: str) -> Any:
        # Only heads over the vocabulary have features; that is how others tell them apart.
        if name == "features" and self._network[0].head_kind in OVER_VOCABULARY:
            return self._features
        raise AttributeError(name)

    @property
    def weight(self) -> Tensor:
        """The last layer's, (V,D)."""
        return cast(Tensor, self._network[0].last.weight)

    @property
    def bias(self) -> Tensor | None:
        """The last layer's, (V,), if it has one."""
        return cast("Tensor | None", getattr(self._network[0].last, "bias", None))

    def __call__(self, hidden: Tensor) -> Tensor:
        """Scores of hidden states with any leading axes."""
        network = self._network[0]
        if network.head_kind in OVER_VOCABULARY:
            return nn.functional.linear(self._features(hidden), self.weight, self.bias)
        rows = hidden[:, None] if network.head_kind == "sequence" else hidden
        with self._given(rows):
            found = network.theirs(input_ids=rows.new_zeros(rows.shape[:2], dtype=torch.long))
        if network.head_kind == "span":
            return torch.stack([found.start_logits, found.end_logits], dim=-1)
        return cast(Tensor, found.logits)

    def _features(self, hidden: Tensor) -> Tensor:
        """What the last layer multiplies with `weight`; any leading axes."""
        network = self._network[0]
        if network.head_kind == "language":
            return hidden
        rows, caught = hidden.reshape(1, -1, hidden.shape[-1]), []
        handle = network.last.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        try:
            with self._given(rows):
                network.theirs(input_ids=rows.new_zeros(rows.shape[:2], dtype=torch.long))
        finally:
            handle.remove()
        return cast(Tensor, caught[0]).reshape(*hidden.shape[:-1], -1)

    @contextmanager
    def _given(self, hidden_BTD: Tensor) -> Iterator[None]:
        """Let the model of transformers find these hidden states where its backbone would compute them."""
        network = self._network[0]
        network.synchronise()
        modules = network.theirs._modules
        base = modules[network.prefix]
        modules[network.prefix] = _Given(hidden_BTD, pooled(base, hidden_BTD))
        try:
            yield
        finally:
            modules[network.prefix] = base


class _Given(nn.Module):
    """Stands where a backbone stood, and gives what it was given."""

    def __init__(self, hidden_BTD: Tensor, pooled_BD: Tensor | None) -> None:
        super().__init__()
        self.given: dict[str, Any] = {"last_hidden_state": hidden_BTD, "pooler_output": pooled_BD}

    def forward(self, *given: Any, **options: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        return BaseModelOutputWithPoolingAndCrossAttentions(**self.given)


def pooled(base: Any, hidden_BTD: Tensor) -> Tensor | None:
    """What a backbone's pooler makes of hidden states, (B,D); None if it has none."""
    pooler = getattr(base, "pooler", None)
    if pooler is None:
        return None
    if isinstance(pooler, nn.Linear):  # ALBERT's
        return cast(Tensor, getattr(base, "pooler_activation", torch.tanh)(pooler(hidden_BTD[:, 0])))
    return cast(Tensor, pooler(hidden_BTD))


def _texts(batch: Mapping[str, Tensor]) -> Tensor | None:
    """The number of the text that each token belongs to, (B,T), and -1 for padding; None if a row is a text."""
    ids_BT = batch["input_ids"]
    if (lengths := batch.get("lengths")) is not None:
        owner_N = torch.repeat_interleave(torch.arange(len(lengths), device=ids_BT.device), lengths)
        return owner_N[None]
    if (documents := batch.get("document_ids")) is not None:
        begins_BT = torch.ones_like(documents, dtype=torch.bool)
        begins_BT[:, 1:] = documents[:, 1:] != documents[:, :-1]
        return begins_BT.flatten().cumsum(0).reshape(documents.shape) - 1
    if (mask := batch.get("attention_mask")) is not None:
        row_BT = torch.arange(len(ids_BT), device=ids_BT.device)[:, None].expand_as(ids_BT)
        return torch.where(mask.bool(), row_BT, -1)
    return None


def _places(owner_BT: Tensor) -> Tensor:
    """Where in its text each token stands; the tokens of a text stand in their order, padding among them or not."""
    flat_N = owner_BT.flatten()
    order_N = flat_N.argsort(stable=True)
    counts = torch.bincount(flat_N + 1)
    start = counts.cumsum(0) - counts
    place_N = torch.empty_like(flat_N)
    place_N[order_N] = torch.arange(len(flat_N), device=flat_N.device) - start[flat_N[order_N] + 1]
    return place_N.reshape(owner_BT.shape)


def _parameters_of(base: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(base).forward).parameters)


def is_causal(family: str) -> bool:
    """Whether a family reads from left to right."""
    auto = transformers_for(family).models.auto.modeling_auto
    return family in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES


def transformers_for(family: str) -> Any:
    """The package. Raises MissingExtra, naming the family, if it is not here."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "bridges", needed_for=f"the family {family!r}") from error
    return transformers
