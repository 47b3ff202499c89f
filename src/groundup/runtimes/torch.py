"""PyTorch executes the model on any device torch knows.

Axes: T tokens of a call, W those of them whose logits are wanted, R rows (sequences) that occur in it, B rows of
equal length, V vocabulary, D model width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.artifact import Artifact
from groundup.checkpoints import hugging_face
from groundup.checkpoints.peft import read_changes
from groundup.errors import UserError
from groundup.models._bridge_network import Bridged
from groundup.nn import packed, products
from groundup.nn.adapted import digest
from groundup.nn.attention import Cached, Flat
from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.many_adapters import AdapterSet, LowRankChange
from groundup.nn.network import Network, Outputs
from groundup.nn.row_pool import SMALLEST, RowPool, row_lengths
from groundup.runtimes._contract import Capabilities

CAPABILITIES = Capabilities(
    paged=False, mixes_phases=True, shares_prefixes=True, contiguous_rows=False, copies_rows=True
)


@dataclass(frozen=True)
class Span:
    """The tokens of one row in a call: where they stand in it and in the sequence, and where the row lies."""

    row: int
    first: int
    length: int
    position: int
    cache: KeyValueCache
    slot: int

    def joins(self, other: Span) -> bool:
        """Whether the next row in memory can be attended to in one call with this one, without a mask of its own."""
        are_neighbours = self.cache is other.cache and self.slot + 1 == other.slot and self.length == other.length
        return are_neighbours and (self.length == 1 or self.position == other.position == 0)


class TorchRuntime:
    """A network with room for `max_sequences` sequences of `max_tokens` tokens each.

    Where sequences come and go, rows of `smallest_row` tokens are the shortest.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        network: Network,
        *,
        max_tokens: int | None = None,
        max_sequences: int = 1,
        smallest_row: int = SMALLEST,
    ) -> None:
        self.network = network.eval()
        self.smallest_row = smallest_row
        self.context = network.backbone.context
        self.max_tokens = min(max_tokens or self.context, self.context)
        self.max_sequences = max_sequences
        self.causal = network.backbone.causal
        self.head_kind = network.head_kind
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self._adapters = AdapterSet(network)

    @property
    def vocab_size(self) -> int:
        """The length of a row of logits."""
        size: int = self.network.config.vocabulary  # type: ignore[attr-defined]
        return size

    @torch.inference_mode()
    def forward(self, batch: Mapping[str, Tensor]) -> Outputs:
        """Hidden states (B,T,D) with their head, for rows that need no cache; see `Outputs`."""
        outputs: Outputs = self.network({key: value.to(self.device) for key, value in batch.items()})
        return outputs

    def new_cache(self, *, sequences: int | None = None, tokens: int | None = None) -> KeyValueCache:
        """An empty cache for `sequences` sequences of at most `tokens` tokens (the runtime's own limits)."""
        return self._cache(sequences or self.max_sequences, min(tokens or self.max_tokens, self.max_tokens))

    def new_rows(self, *, block: int, most_tokens: int = 0) -> RowPool:
        """An empty cache for sequences that come and go, its rows whole blocks of so many tokens.

        Up to `most_tokens` in all it grows without being copied, where the system allows.
        """
        lengths = row_lengths(self.max_tokens, block, self.smallest_row)
        return RowPool(lambda slots: self._cache(0, slots, reserve=most_tokens // slots), lengths)

    @cached_property
    def token_bytes(self) -> int:
        """Memory that one token takes in a cache."""
        return self._cache(1, 1).bytes

    def _cache(self, rows: int, slots: int, *, reserve: int = 0) -> KeyValueCache:
        config: Any = self.network.config
        return KeyValueCache(
            n_layers=config.n_layers,
            rows=rows,
            slots=slots,
            n_kv_heads=getattr(config, "n_kv_heads", config.n_heads),
            head_dim=getattr(config, "head_dim", config.d_model // config.n_heads),
            dtype=self.dtype,
            device=self.device,
            reserve=reserve,
        )

    @torch.inference_mode()
    def step(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        cache: KeyValueCache | RowPool,
        *,
        every: bool = False,
        wanted: Sequence[int] | None = None,
        adapters: Mapping[int, str] | None = None,
    ) -> Tensor:
        """The logits that follow the last token of each row, (R,V), rows in the order they first occur.

        `ids`, `positions` and `rows` are one entry per token: token i of sequence rows[i] stands at
        positions[i]. The tokens of a row stand together and their positions count up by one from what
        the cache holds of it. With `every`, the logits after every token instead, (T,V); with `wanted`,
        after the tokens of these places in the call. `adapters` names those that rows are read with.
        All tokens pass through the network together; only attention goes by rows. Raises ValueError for
        tokens that do not fit, and UserError for an adapter that is not loaded.
        """
        if not ids:
            raise ValueError("a step needs at least one token")
        spans = _spans(positions, rows, cache)
        pieces = _pieces(spans)
        order = [place for piece in pieces for span in piece for place in range(span.first, span.first + span.length)]
        names = [adapters.get(rows[place]) for place in order] if adapters else []
        if wanted is None:
            # The head is the dearest layer of a small model: only where its answer is wanted.
            wanted = range(len(ids)) if every else [span.first + span.length - 1 for span in spans]
        found = {place: index for index, place in enumerate(order)}
        wanted_W = torch.tensor([found[place] for place in wanted], dtype=torch.int64, device=self.device)
        ids_T = torch.tensor([ids[place] for place in order], device=self.device)
        with self._adapters.reading(names, self.device) if names else nullcontext():
            # Adapters know the tokens of a call by their places, so with them all stay to the end.
            hidden_WD = self._hidden(pieces, ids_T, wanted_W, narrow=not names and len(wanted) < len(ids))
        logits: Tensor = self.network.head(hidden_WD)
        return logits

    def _hidden(self, pieces: list[list[Span]], ids_T: Tensor, wanted_W: Tensor, *, narrow: bool) -> Tensor:
        """Hidden states (W,D) of some of T tokens, which stand in the order of the pieces.

        With `narrow`, the last layer computes no others, where the network can leave them out.
        """
        contexts = [
            Cached(piece[0].cache, [s.position for s in piece], piece[0].length, [s.slot for s in piece])
            for piece in pieces
        ]
        backbone: Any = self.network.backbone
        if isinstance(self.network, Bridged):  # it reads whole rows, and not through our attention
            parts = zip(contexts, torch.split(ids_T, [c.positions_BT.numel() for c in contexts]), strict=True)
            found = [backbone(part.view(c.positions_BT.shape), c, c.positions_BT).flatten(0, 1) for c, part in parts]
            return torch.cat(found)[wanted_W]
        attend = Flat(contexts)
        if narrow and getattr(backbone, "narrows", False):
            hidden_WD: Tensor = backbone(ids_T[None], attend, attend.positions_BT, wanted_W=wanted_W)[0]
        else:
            hidden_WD = backbone(ids_T[None], attend, attend.positions_BT)[0][wanted_W]
        return hidden_WD

    def pack(self, precision: packed.Precision = "fp32") -> None:
        """Lay the weights out for answering only, where that is faster: see `nn/packed.py`. Raises UserError.

        Networks that transformers computes stay as they are: their code may read weights in ways of its own.
        """
        products.remember_few_sizes()
        if not isinstance(self.network, Bridged):
            packed.pack(self.network, precision)
        elif precision != "fp32":
            what = f"models of the family {self.network.config.name!r} are served in fp32"
            raise UserError(what, where="precision", fix="leave it out, or serve a model of a family of our own")

    def load_adapter(self, name: str, folder: Path) -> str:
        """Make an adapter in PEFT's layout available by a name; returns the digest of what it changes.

        Raises UserError for a name in use and for an adapter that does not fit, ArtifactError for damaged files.
        """
        if isinstance(self.network, Bridged):
            fix = "merge the adapter into its base, and serve that"
            raise UserError(f"no adapters beside the family {self.network.config.name!r}", where=str(folder), fix=fix)
        changes = read_changes(self.network, folder)
        self._adapters.add(name, {layer: LowRankChange(*change) for layer, change in changes.items()})
        digests = [(layer, *(digest(tensor) for tensor in change)) for layer, change in sorted(changes.items())]
        return hashlib.sha256(repr(digests).encode()).hexdigest()

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter. Raises UserError if there is none of that name."""
        self._adapters.remove(name)


def load(
    artifact: Artifact | str | Path,
    *,
    max_tokens: int | None = None,
    max_sequences: int = 1,
    device: str = "auto",
) -> TorchRuntime:
    """The runtime of a model artefact, or of any Hugging Face model directory that groundup knows.

    `max_tokens` is the longest sequence to make room for (the model's context unless given).
    Raises UserError for a device that is not here, and what `hugging_face.load` raises.
    """
    folder = artifact.path if isinstance(artifact, Artifact) else Path(artifact)
    # What a forward pass gives cannot be kept for a backward one, so a head that is applied to it later must not try.
    network = hugging_face.load(folder).to(pick_device(device)).requires_grad_(False)
    return TorchRuntime(network, max_tokens=max_tokens, max_sequences=max_sequences)


def pick_device(wanted: str) -> torch.device:
    """The device of that name, or the fastest there is for "auto". Raises UserError if it is not here."""
    here = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if wanted != "auto" and wanted.partition(":")[0] not in here:
        raise UserError(f"no device {wanted!r} on this machine", fix=f"devices: auto, {', '.join(here)}")
    return torch.device(here[0] if wanted == "auto" else wanted)


def _spans(positions: Sequence[int], rows: Sequence[int], cache: KeyValueCache | RowPool) -> list[Span]:
    """The tokens of a call by row, in the order rows first occur. Raises ValueError if they are torn or do not fit."""
    spans: list[Span] = []
    first = 0
    for row, members in groupby(rows):
        length = sum(1 for _ in members)
        found = list(positions[first : first + length])
        if found[0] < 0 or found != list(range(found[0], found[0] + length)):
            raise ValueError(f"the positions of row {row} do not count up by one: {found}")
        spans.append(Span(row, first, length, found[0], *cache.locate(row, found[0] + length)))
        first += length
    if len({span.row for span in spans}) != len(spans):
        raise ValueError("the tokens of a row must stand together in a step")
    return spans


def _pieces(spans: list[Span]) -> list[list[Span]]:
    """Spans that are attended to in one call: those of neighbouring rows, as far as they are alike."""
    pieces: list[list[Span]] = []
    for span in sorted(spans, key=lambda span: (id(span.cache), span.slot)):
        if pieces and pieces[-1][-1].joins(span):
            pieces[-1].append(span)
        else:
            pieces.append([span])
    return pieces
