"""Writing targets token by token: an encoder–decoder's step for a search, with what it has seen kept.

Sources are computed once: each decoder layer's keys and values of them are made before the first step and
shared by all beams of an example. Keys and values of the targets so far lie in a cache, and move when
beams do.

Axes: E examples, W beams of each, R = E·W rows, S source tokens of the longest, D model width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from groundup.nn.attention import Beams, Cached
from groundup.nn.kv_cache import KeyValueCache
from groundup.nn.network import Outputs, places
from groundup.nn.ragged import everything


class Writer:
    """Continues the targets of a batch; see `beam_search.Step`."""

    def __init__(self, outputs: Outputs, *, beams: int, max_tokens: int) -> None:
        """`outputs` are those of an encoder–decoder for the sources, padded or flat, with targets or without."""
        assert outputs.backbone is not None, "only an encoder–decoder writes targets"
        assert outputs.source is not None, "only an encoder–decoder writes targets"
        self.backbone, self.head = outputs.backbone, outputs.head
        picked = everything(outputs.source[..., 0], places(outputs.source, outputs.batch))
        source_ESD = picked.take(outputs.source)
        self.examples, self.beams, self.length = len(source_ESD), beams, 0
        self.seen, self.real_ES = self.backbone.remember(source_ESD), picked.real
        self.across = Beams(self.real_ES, beams, source_ESD.dtype)
        _, _, heads, size = self.seen[0][0].shape
        self.cache = KeyValueCache(
            n_layers=len(self.seen),
            rows=self.examples * beams,
            slots=max_tokens,
            n_kv_heads=heads,
            head_dim=size,
            dtype=source_ESD.dtype,
            device=source_ESD.device,
        )

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.cache.device

    def __call__(self, ids_R: Tensor, from_R: Tensor | None) -> Tensor:
        """Log-probabilities of what follows, (R,V) float32, when `ids_R` has joined the targets."""
        if from_R is not None:
            self.cache.reorder(from_R, self.length)
            self._leave(from_R)
        attend = Cached(self.cache, [self.length] * len(ids_R), 1)
        hidden_R1D = self.backbone.decode(ids_R[:, None], self.seen, attend, self.across, attend.positions_BT)
        self.length += 1
        return self.head(hidden_R1D[:, 0]).float().log_softmax(-1)

    def _leave(self, from_R: Tensor) -> None:
        """Forget the sources of examples that are done."""
        if len(from_R) == len(self.real_ES) * self.beams:
            return
        stays_E = from_R[:: self.beams] // self.beams
        self.seen = [(keys[stays_E], values[stays_E]) for keys, values in self.seen]
        self.real_ES = self.real_ES[stays_E]
        self.across = Beams(self.real_ES, self.beams, self.cache.dtype)
