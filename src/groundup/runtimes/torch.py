"""PyTorch executes the model: any device torch knows, one contiguous cache per sequence.

Axes: T tokens of a call, R rows (sequences) that occur in it, B rows of equal length, V vocabulary,
D model width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from groundup.artifact import Artifact
from groundup.checkpoints import hugging_face
from groundup.errors import UserError
from groundup.nn.attention import Cached
from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.network import Network, Outputs
from groundup.runtimes._contract import Capabilities

CAPABILITIES = Capabilities(
    paged=False, mixes_phases=True, shares_prefixes=False, contiguous_rows=False, copies_rows=True
)


@dataclass(frozen=True)
class Span:
    """The tokens of one row in a call: where they stand in it, and where in the sequence."""

    row: int
    first: int
    length: int
    position: int


class TorchRuntime:
    """A network with room for `max_sequences` sequences of `max_tokens` tokens each."""

    capabilities = CAPABILITIES

    def __init__(self, network: Network, *, max_tokens: int | None = None, max_sequences: int = 1) -> None:
        self.network = network.eval()
        self.context = network.backbone.context
        self.max_tokens = min(max_tokens or self.context, self.context)
        self.max_sequences = max_sequences
        self.causal = network.backbone.causal
        self.head_kind = network.head_kind
        parameter = next(network.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

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
        config: Any = self.network.config
        return KeyValueCache(
            n_layers=config.n_layers,
            rows=sequences or self.max_sequences,
            slots=min(tokens or self.max_tokens, self.max_tokens),
            n_kv_heads=getattr(config, "n_kv_heads", config.n_heads),
            head_dim=getattr(config, "head_dim", config.d_model // config.n_heads),
            dtype=self.dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def step(
        self,
        ids: Sequence[int],
        positions: Sequence[int],
        rows: Sequence[int],
        cache: KeyValueCache,
        *,
        every: bool = False,
    ) -> Tensor:
        """The logits that follow the last token of each row, (R,V), rows in the order they first occur.

        `ids`, `positions` and `rows` are one entry per token: token i of sequence rows[i] stands at
        positions[i]. The tokens of a row stand together and their positions count up by one from what
        the cache holds of it. With `every`, the logits after every token instead, (T,V). Rows that
        bring equally many tokens are computed together. Raises ValueError for tokens that do not fit.
        """
        spans = _spans(positions, rows)
        _require_room(spans, cache)
        ids_T = torch.tensor(list(ids), device=self.device)
        hidden_TD: Tensor | None = None
        for _, group in groupby(sorted(spans, key=lambda span: span.length), key=lambda span: span.length):
            place_BT, hidden_BTD = self._together(list(group), ids_T, cache)
            if hidden_TD is None:
                hidden_TD = hidden_BTD.new_empty(len(ids_T), hidden_BTD.shape[-1])
            hidden_TD[place_BT] = hidden_BTD
        if hidden_TD is None:
            raise ValueError("a step needs at least one token")
        if not every:
            # The head is the dearest layer of a small model: only where its answer is wanted.
            hidden_TD = hidden_TD[torch.tensor([span.first + span.length - 1 for span in spans], device=self.device)]
        logits: Tensor = self.network.head(hidden_TD)
        return logits

    def _together(self, spans: list[Span], ids_T: Tensor, cache: KeyValueCache) -> tuple[Tensor, Tensor]:
        """Where in the call the tokens of equally long spans stand, (B,T), and their hidden states."""
        length = spans[0].length
        steps_T = torch.arange(length, device=self.device)
        place_BT = torch.tensor([span.first for span in spans], device=self.device)[:, None] + steps_T
        attend = Cached(cache, [span.position for span in spans], length, [span.row for span in spans])
        return place_BT, self.network.backbone(ids_T[place_BT], attend, attend.positions_BT)


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
    network = hugging_face.load(folder).to(pick_device(device))
    return TorchRuntime(network, max_tokens=max_tokens, max_sequences=max_sequences)


def pick_device(wanted: str) -> torch.device:
    """The device of that name, or the fastest there is for "auto". Raises UserError if it is not here."""
    here = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available() + ["cpu"]
    if wanted != "auto" and wanted.partition(":")[0] not in here:
        raise UserError(f"no device {wanted!r} on this machine", fix=f"devices: auto, {', '.join(here)}")
    return torch.device(here[0] if wanted == "auto" else wanted)


def _spans(positions: Sequence[int], rows: Sequence[int]) -> list[Span]:
    """The tokens of a call by row, in the order rows first occur. Raises ValueError if they are torn."""
    spans: list[Span] = []
    first = 0
    for row, members in groupby(rows):
        length = sum(1 for _ in members)
        found = list(positions[first : first + length])
        if found != list(range(found[0], found[0] + length)):
            raise ValueError(f"the positions of row {row} do not count up by one: {found}")
        spans.append(Span(row, first, length, found[0]))
        first += length
    if len({span.row for span in spans}) != len(spans):
        raise ValueError("the tokens of a row must stand together in a step")
    return spans


def _require_room(spans: list[Span], cache: KeyValueCache) -> None:
    for span in spans:
        if not 0 <= span.row < cache.rows or span.position < 0 or span.position + span.length > cache.slots:
            raise ValueError(f"{span} does not fit a cache of {cache.rows} rows of {cache.slots} tokens")
