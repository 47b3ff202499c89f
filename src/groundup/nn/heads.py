"""Heads that score examples or positions instead of the vocabulary, and one that gives vectors.

A head says what it reads: every position (`all`), or one vector an example: its first token's
(`first`), its last token's (`last`), the mean of its tokens' (`mean`), or the first half of its last token's
and the second half of its first token's (`ends`: where each direction of a recurrent network has read all).
`Outputs` picks it, for padded and flat batches alike. A head is itself the linear layer, so that its weights
have the published names (`classifier.weight`, `score.weight`, `qa_outputs.bias`).

Axes: B rows, T tokens, E examples, D model width, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from groundup.nn.dropout import dropout as dropped

Reads = Literal["all", "first", "last", "mean", "ends"]


class LinearHead(nn.Linear):
    """Dropout, then one linear layer: scores of classes, tags, or span ends."""

    def __init__(
        self,
        d_model: int,
        outputs: int,
        *,
        published: str,
        reads: Reads,
        dropout: float = 0.0,
        bias: bool = True,
        before: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`before` is applied to what is read, such as a pooler; it is registered elsewhere."""
        super().__init__(d_model, outputs, bias=bias)
        self.published, self.reads, self.dropout = published, reads, dropout
        # A tuple hides a module from registration: its weights belong to the backbone's names.
        self.before = (before,)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B,T,D) to (B,T,K), or (E,D) to (E,K), by what is read."""
        first = self.before[0]
        hidden = hidden if first is None else first(hidden)
        return super().forward(dropped(hidden, self.dropout, self.training))


def classifier(kind: str, *, reads: Reads = "first", drops: bool = False) -> Callable[..., LinearHead]:
    """What makes a head that scores whole examples by one linear layer, published as `classifier`.

    The backbone tells its `width`; with `drops`, the config's dropout acts before the layer.
    """

    def make(config: Any, backbone: Any, outputs: int | None) -> LinearHead:
        share = config.dropout if drops else 0.0
        wanted = required(outputs, kind)
        return LinearHead(backbone.width, wanted, published="classifier", reads=reads, dropout=share)

    return make


def embedding(reads: Reads = "first") -> Callable[..., EmbeddingHead]:
    """What makes a head that gives one vector an example; see `EmbeddingHead`."""
    return lambda config, backbone, outputs: EmbeddingHead(reads)


class EmbeddingHead(nn.Module):
    """One vector an example, of length one; without weights, so the backbone is published alone."""

    published = "embedding"

    def __init__(self, reads: Reads = "mean") -> None:
        super().__init__()
        self.reads = reads

    def forward(self, hidden_ED: Tensor) -> Tensor:
        """(E,D), each vector divided by its norm."""
        return F.normalize(hidden_ED, dim=-1)


def required(outputs: int | None, kind: str) -> int:
    """The number of outputs of a head of a kind, which must be given. Raises ValueError otherwise."""
    if outputs is None:
        raise ValueError(f"a head of kind {kind!r} needs its number of outputs")
    return outputs
