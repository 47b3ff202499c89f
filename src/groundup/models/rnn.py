"""Recurrent network over tokens: Elman, GRU or LSTM, stacked, in one direction or both.

A recurrent layer reads a sequence from left to right and keeps a state h of what it has read. With input
x_t and gates between zero and one, σ(·):

    Elman   h_t = tanh(W x_t + U h_{t-1} + b)
    LSTM    i, f, o = σ(W x_t + U h_{t-1} + b), each with its own W, U and b;  g = tanh(…) likewise
            c_t = f ∘ c_{t-1} + i ∘ g,   h_t = o ∘ tanh(c_t)
    GRU     r, z = σ(W x_t + U h_{t-1} + b) likewise;  n = tanh(W x_t + b + r ∘ (U h_{t-1} + b'))
            h_t = (1 - z) ∘ n + z ∘ h_{t-1}

A second layer reads the states of the first. A bidirectional layer reads each sequence from right to left
as well and puts both states side by side. A sequence is never padded: `Steps` puts the first tokens of all
sequences together, then all second tokens of those that have one, and so on, so a step multiplies exactly
the tokens there are, and neighbours in a packed row know nothing of each other.

Parameters are named as those of torch.nn.RNN, GRU and LSTM; their weights can be copied as they are.

Elman 1990; Hochreiter & Schmidhuber 1997 and Gers et al. 2000 (LSTM with its forget gate); Cho et al. 2014
(GRU, with the reset gate after the product, as torch and cuDNN have it); Schuster & Paliwal 1997 (two directions).

Axes: B rows, T tokens, E sequences, N tokens of all of them, R directions, D width, G numbers of all gates,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn import heads
from groundup.nn.attention import Attend, Cached, Flat
from groundup.nn.dropout import dropout
from groundup.nn.heads import LinearHead
from groundup.nn.layers import LanguageHead, TiedLanguageHead, check_length, language_head
from groundup.nn.network import KeepsActivations, given, places
from groundup.nn.published import only, ours, own_architectures, own_format
from groundup.nn.shape import NetworkSection
from groundup.units import PositiveCount

VERSION = 2
PREFIX = "rnn"
MODEL_TYPES = ("groundup_rnn",)
TINY: dict[str, Any] = {"vocab_size": 61, "d_model": 24, "d_hidden": 32, "n_layers": 2, "context": 32}
"""Sizes with which the contract tests build it."""


class Config(NetworkSection):
    """A recurrent network. `dropout` acts on the embeddings, between layers and before the scores."""

    vocab_size: PositiveCount | None = None
    """Number of tokens; follows from the tokenizer if not given."""
    cell: Literal["elman", "gru", "lstm"] = "lstm"
    """What a layer does at each token."""
    d_model: PositiveCount = 128
    """Width of the tokens' embeddings."""
    d_hidden: PositiveCount = Field(default_factory=lambda values: values["d_model"])
    """Width of the state of a layer, in each direction; as `d_model` if not given."""
    n_layers: PositiveCount = 1
    """Number of recurrent layers, one on top of the other."""
    bidirectional: bool = False
    """Whether each layer also reads from right to left; not for language modelling, which must not read ahead."""
    pooling: Literal["last", "mean"] = "last"
    """What a whole sequence is judged by: the state after its last token (of each direction, after it has read
    all), or the mean of all states."""
    context: PositiveCount = 512
    """The longest row, in tokens."""
    tie_embeddings: bool = False
    """Whether scores over the vocabulary use the table of the token embeddings (Press & Wolf 2017)."""
    initialiser: Literal["normal", "xavier", "kaiming", "zeros"] = "xavier"
    """How weights begin, gate by gate; see `groundup.nn.initialisers`. An LSTM's forget gates begin open: their bias
    is one (Gers et al. 2000; Jozefowicz et al. 2015, §2.2)."""
    initialiser_std: float = Field(default=0.1, ge=0)
    """Standard deviation of `normal`, and of embedding tables."""

    @model_validator(mode="after")
    def _table_fits(self) -> Self:
        if self.tie_embeddings and self.d_hidden != self.d_model:
            raise ValueError(f"to tie embeddings, set d_hidden ({self.d_hidden}) to d_model ({self.d_model})")
        return self

    @property
    def vocabulary(self) -> int:
        """The vocabulary size. Raises ValueError while it is not known."""
        if self.vocab_size is None:
            raise ValueError("vocab_size is not known yet: give it, or take it from the tokenizer")
        return self.vocab_size

    @property
    def n_heads(self) -> int:
        """Vectors a token that a cache holds: the states of a layer after it, in place of keys and values."""
        return 1

    @property
    def head_dim(self) -> int:
        """Their width."""
        return self.d_hidden

    @classmethod
    def from_hugging_face(cls, given: dict[str, Any]) -> Self:
        """The Config for a config.json of ours. Raises UserError for one of another family."""
        only(given, "model_type", MODEL_TYPES)
        return cls(**ours(given))

    def to_hugging_face(self, head: str) -> dict[str, Any]:
        """A config.json for this model with a head; there is no published layout."""
        return own_format(self, head) | {"vocab_size": self.vocabulary, "max_position_embeddings": self.context}


class Steps(NamedTuple):
    """The tokens of all sequences in the order in which they are read: all first ones, all second ones, …"""

    order: Tensor
    """(N,) places among the B·T positions; within a step the longest sequence comes first."""
    sizes: list[int]
    """How many sequences have a token at each step; never more than at the step before."""


def steps(starts_E: Tensor, lengths_E: Tensor, *, reverse: bool = False) -> Steps:
    """In which order sequences are read that begin at `starts_E`; with `reverse`, each from its end."""
    lengths_E, longest_first_E = lengths_E.sort(descending=True, stable=True)
    starts_E = starts_E[longest_first_E]
    step_T1 = torch.arange(int(lengths_E[0]) if len(lengths_E) else 0, device=starts_E.device)[:, None]
    places_TE = starts_E + (lengths_E - 1 - step_T1 if reverse else step_T1)
    is_there_TE = step_T1 < lengths_E
    return Steps(places_TE[is_there_TE], is_there_TE.sum(1).tolist())


def sequences(batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Where each sequence of a batch begins among its B·T positions, and how long it is; (E,) each.

    Of a row packed with several documents, each is a sequence.
    """
    ids_BT, documents_BT = batch["input_ids"], batch.get("document_ids")
    if documents_BT is None or "lengths" in batch:
        return places(ids_BT[..., None], batch)
    begins_BT = torch.ones_like(documents_BT, dtype=torch.bool)
    begins_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
    starts_E = begins_BT.flatten().nonzero().squeeze(1)
    return starts_E, torch.diff(starts_E, append=starts_E.new_tensor([documents_BT.numel()]))


State = tuple[Tensor, ...]
Cell = Callable[[Tensor, Tensor, State], State]
"""From what the input and what h give to all gates, W x + b and U h + b' of (…,G), and the states before to those
after, (…,D); the first of them is h."""


def elman(input_G: Tensor, before_G: Tensor, state: State) -> State:
    """One step of Elman's network."""
    return (torch.tanh(input_G + before_G),)


def gru(input_G: Tensor, before_G: Tensor, state: State) -> State:
    """One step of a GRU."""
    h_D = state[0]
    width = 2 * h_D.shape[-1]
    r_D, z_D = torch.sigmoid(input_G[..., :width] + before_G[..., :width]).chunk(2, dim=-1)
    n_D = torch.tanh(input_G[..., width:] + r_D * before_G[..., width:])
    return (torch.lerp(n_D, h_D, z_D),)


def lstm(input_G: Tensor, before_G: Tensor, state: State) -> State:
    """One step of an LSTM; its second state is c."""
    i_D, f_D, g_D, o_D = (input_G + before_G).chunk(4, dim=-1)
    c_D = torch.sigmoid(f_D) * state[1] + torch.sigmoid(i_D) * torch.tanh(g_D)
    return torch.sigmoid(o_D) * torch.tanh(c_D), c_D


CELLS: dict[str, Cell] = {"elman": elman, "gru": gru, "lstm": lstm}
GATES = {"elman": 1, "gru": 3, "lstm": 4}
"""How many matrices of one kind a cell has."""


def unroll(
    cell: Cell, input_RNG: Tensor, sizes: Sequence[int], weight_RGD: Tensor, bias_RG: Tensor, state: State
) -> list[State]:
    """The states after every step, (R,sizes[t],D) each, from those before the first; the order is that of `Steps`.

    Both directions take a step at once, as they are equally long: half as many operations, each twice as large.
    """
    found = []
    weight_RDG, bias_R1G = weight_RGD.mT, bias_RG[:, None]
    for input_REG in torch.split(input_RNG, list(sizes), dim=1):
        state = tuple(each[:, : input_REG.shape[1]] for each in state)
        state = cell(input_REG, torch.baddbmm(bias_R1G, state[0], weight_RDG), state)
        found.append(state)
    return found


class Recurrent(nn.Module):
    """The recurrent layers; parameters are named as torch.nn names them."""

    unrolls = True
    """A compiler would write every step of the loop out, again for every mixture of lengths."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.cell, self.gates, self.n_layers = CELLS[config.cell], GATES[config.cell], config.n_layers
        self.states, self.dropout = 2 if config.cell == "lstm" else 1, config.dropout
        self.is_bidirectional = config.bidirectional
        self.directions = ("", "_reverse") if config.bidirectional else ("",)
        wide, width = self.gates * config.d_hidden, config.d_model
        for layer in range(config.n_layers):
            for direction in self.directions:
                self.register_parameter(f"weight_ih_l{layer}{direction}", nn.Parameter(torch.empty(wide, width)))
                shape = (wide, config.d_hidden)
                self.register_parameter(f"weight_hh_l{layer}{direction}", nn.Parameter(torch.empty(shape)))
                self.register_parameter(f"bias_ih_l{layer}{direction}", nn.Parameter(torch.empty(wide)))
                self.register_parameter(f"bias_hh_l{layer}{direction}", nn.Parameter(torch.empty(wide)))
            width = config.d_hidden * len(self.directions)

    @torch.no_grad()
    def begin(self, draw: Callable[[Tensor], None], generator: torch.Generator, std: float) -> None:
        """Each gate's matrices by themselves, as the fan of a matrix is that of one gate."""
        for name, weight in self.named_parameters():
            if name.startswith("weight"):
                for gate in weight.chunk(self.gates):
                    draw(gate)
            elif name.startswith("bias_ih") and self.gates == GATES["lstm"]:
                weight.chunk(self.gates)[1].fill_(1.0)

    def forward(self, x_ND: Tensor, starts_E: Tensor, lengths_E: Tensor) -> Tensor:
        """States of all positions, (B·T,D), zero where there is no token; x_ND are the B·T inputs."""
        reading = [steps(starts_E, lengths_E, reverse=direction != "") for direction in self.directions]
        for layer in range(self.n_layers):
            x_ND = x_ND if layer == 0 else dropout(x_ND, self.dropout, self.training)
            x_ND = self._read(x_ND, layer, [way.order for way in reading], reading[0].sizes)
        return x_ND

    def _read(self, x_ND: Tensor, layer: int, order_RN: Sequence[Tensor], sizes: list[int]) -> Tensor:
        """The states of one layer, each at its token's place, directions side by side."""
        weight_ih, bias_ih, weight_hh, bias_hh = self._weights(layer)
        # All products with inputs are one: only those with states must wait for each other.
        input_RNG = torch.stack(
            [F.linear(x_ND[order_N], *of) for order_N, *of in zip(order_RN, weight_ih, bias_ih, strict=True)]
        )
        begin = tuple(input_RNG.new_zeros(len(order_RN), sizes[0], weight_hh.shape[2]) for _ in range(self.states))
        found = unroll(self.cell, input_RNG, sizes, weight_hh, bias_hh, begin)
        h_RND = torch.cat([state[0] for state in found], dim=1)
        nowhere = h_RND.new_zeros(len(x_ND), h_RND.shape[2])
        return torch.cat(
            [nowhere.index_copy(0, order_N, h_ND) for order_N, h_ND in zip(order_RN, h_RND, strict=True)], dim=1
        )

    def go_on(self, x_BTD: Tensor, cached: Cached) -> Tensor:
        """States of T new tokens of each of B sequences, (B,T,D), from what the cache holds of the token before.

        The states after each new token join the cache, as keys and values of a Transformer would: h and c.
        """
        rows, length = x_BTD.shape[:2]
        for layer in range(self.n_layers):
            weight_ih, bias_ih, weight_hh, bias_hh = self._weights(layer)
            input_1NG = F.linear(x_BTD.transpose(0, 1).flatten(0, 1), weight_ih[0], bias_ih[0])[None]
            before = tuple(each[None] for each in self._before(cached, layer))
            found = unroll(self.cell, input_1NG, [rows] * length, weight_hh, bias_hh, before)
            x_BTD = torch.stack([state[0][0] for state in found], dim=1)
            last_BTD = torch.stack([state[-1][0] for state in found], dim=1)
            cached.cache.put(layer, cached.places_N, x_BTD[:, :, None], last_BTD[:, :, None])
        return x_BTD

    def _before(self, cached: Cached, layer: int) -> State:
        """The states of a layer before the new tokens of each sequence; zero where one begins."""
        start_B = cached.positions_BT[:, 0]
        row_B = torch.arange(len(start_B), device=start_B.device)
        held = cached.cache.read(layer, cached.rows, cached.seen)[: self.states]
        before = (kept_BGSK[row_B, 0, (start_B - 1).clamp(min=0)] for kept_BGSK in held)
        return tuple(torch.where(start_B[:, None] > 0, each_BD, 0) for each_BD in before)

    def _weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of all directions: those of inputs, (R,G,D) and (R,G), and those of states, likewise."""
        kinds = ("weight_ih", "bias_ih", "weight_hh", "bias_hh")
        first, second, third, fourth = (
            torch.stack([self.get_parameter(f"{kind}_l{layer}{direction}") for direction in self.directions])
            for kind in kinds
        )
        return first, second, third, fourth


class Rnn(KeepsActivations):
    """Token ids to the states of the last layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.context, self.causal, self.dropout = config.context, not config.bidirectional, config.dropout
        self.embeddings = nn.Embedding(config.vocabulary, config.d_model)
        self.recurrent = Recurrent(config)
        self.width = config.d_hidden * (2 if config.bidirectional else 1)

    def read(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Hidden states of the `input_ids` of a batch, padded, flat or packed, (B,T,D)."""
        ids_BT = given(batch, "input_ids")
        check_length(ids_BT.shape[1], self.context, batch.get("positions"))
        x_BTD = dropout(self.embeddings(ids_BT), self.dropout, self.training)
        hidden_ND: Tensor = self.recurrent(x_BTD.flatten(0, 1), *sequences(batch))
        return hidden_ND.view(*ids_BT.shape, -1)

    def forward(
        self,
        input_ids_BT: Tensor,
        attend: Attend,
        positions_BT: Tensor | None = None,
        token_type_ids_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states of new tokens that go on from a cache, (B,T,D). Raises UserError for what is no cache."""
        pieces = attend.pieces if isinstance(attend, Flat) else [attend]
        if self.recurrent.is_bidirectional or not all(isinstance(piece, Cached) for piece in pieces):
            what = "a recurrent network looks at nothing but its own states, and goes on only from those of a cache"
            raise UserError(what, fix="give it a batch; a bidirectional one reads whole texts only")
        found, first, ids_N = [], 0, input_ids_BT.flatten()
        for piece in cast(list[Cached], pieces):
            shape = piece.positions_BT.shape
            x_BTD = self.embeddings(ids_N[first : first + shape.numel()]).view(*shape, -1)
            found.append(self.recurrent.go_on(x_BTD, piece).flatten(0, 1))
            first += shape.numel()
        return torch.cat(found).view(*input_ids_BT.shape, -1)


def build(config: Config) -> Rnn:
    """The backbone, its weights not yet initialised."""
    return Rnn(config)


def _language(config: Config, backbone: Rnn, outputs: int | None) -> LanguageHead | TiedLanguageHead:
    if config.bidirectional:
        what = "a language model must not read ahead, and this network is bidirectional"
        raise UserError(what, fix="set `bidirectional: false`")
    if config.tie_embeddings:
        return language_head(backbone.embeddings, tie=True)
    return LanguageHead(backbone.width, config.vocabulary)


def _sequence(config: Config, backbone: Rnn, outputs: int | None) -> LinearHead:
    reads: Any = config.pooling if config.pooling == "mean" or not config.bidirectional else "ends"
    return heads.classifier("sequence", reads=reads, drops=True)(config, backbone, outputs)


HEADS = {
    "language": _language,
    "sequence": _sequence,
    "tokens": heads.classifier("tokens", reads="all", drops=True),
    "embedding": heads.embedding("mean"),
}
ARCHITECTURES = own_architectures("rnn", list(HEADS))


def parameters(config: Config) -> int:
    """Number of trained parameters, the head over the vocabulary included."""
    biases = 2 * config.n_layers * _directions(config) * GATES[config.cell] * config.d_hidden
    head = 0 if config.tie_embeddings else config.vocabulary * config.d_hidden * _directions(config)
    return config.vocabulary * config.d_model + _products(config) + biases + head


def flops_per_token(config: Config, context: int) -> float:
    """Floating-point operations of the forward pass per token, of whatever length its row is.

    Matrix products only, a multiply-add counts two; the language head at every position.
    """
    return 2.0 * (_products(config) + config.vocabulary * config.d_hidden * _directions(config))


def _directions(config: Config) -> int:
    return 2 if config.bidirectional else 1


def _products(config: Config) -> int:
    """Weights that the recurrent layers multiply each token with."""
    directions, inputs = _directions(config), config.d_model
    total = 0
    for _ in range(config.n_layers):
        total += directions * GATES[config.cell] * config.d_hidden * (inputs + config.d_hidden)
        inputs = directions * config.d_hidden
    return total
