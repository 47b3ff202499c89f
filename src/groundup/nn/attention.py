"""How tokens look at each other: the attention contexts that a model calls and never builds.

A backbone computes queries, keys and values and calls `attend(q, k, v, layer)`. What may be seen is
the context's business: everything before (`Causal`), everything (`Bidirectional`), only one's own
document (`Documents`, `Ragged`), or what a cache holds (`Cached`, `Flat`). Masks are made once, when the
context is, and shared by all layers. Targets look at their source in the same way: keys and values then come from
other tokens than queries do (`Bidirectional`, `RaggedAcross`, `Beams`).

Axes: B rows, T tokens, S cached slots, H query heads, G key-value heads (H is a multiple of G), J = H / G,
K dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from groundup.nn.buckets import Bucket, buckets, paired_buckets, split
from groundup.nn.dropout import dropout as dropped
from groundup.nn.kv_cache import KeyValueCache

HIDDEN = -1e30
"""What is added to the score of a pair that may not look at each other. Finite, so that a row made of
nothing but padding gives numbers instead of NaN, and small enough that its share is exactly zero."""

QUERY_BLOCK = 128
"""Queries worked on at once in a causal row on a CPU; the best of 64, 128 and 256 at 256 to 512 tokens."""


class Attend(Protocol):
    """What a backbone calls in each layer: (B,T,H,K), (B,S,G,K) twice and the layer give (B,T,H,K).

    S is T unless other tokens are looked at than those that look.
    """

    def __call__(
        self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, layer: int, /, *, dropout: float = 0.0
    ) -> Tensor: ...


class Causal:
    """Each token sees itself and all before it in its row."""

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        return attend_causally(q_BTHK, k_BTGK, v_BTGK, dropout=dropout)


class Bidirectional:
    """Each token sees its whole row, or what `attention_mask_BT` (True = real token) leaves of it."""

    def __init__(self, attention_mask_BT: Tensor | None = None, dtype: torch.dtype = torch.float32) -> None:
        self.mask = None if attention_mask_BT is None else additive(attention_mask_BT.bool()[:, None, None, :], dtype)

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        return scaled_dot_product(q_BTHK, k_BTGK, v_BTGK, mask=self.mask, dropout=dropout)


class Documents:
    """Each token sees only its own document: block-diagonal, for rows packed with several.

    `document_ids_BT` are equal within a document and differ between neighbours; the tokens that pad
    a row share an id of their own. With `causal`, a token also sees nothing after it.
    """

    def __init__(self, document_ids_BT: Tensor, causal: bool, dtype: torch.dtype = torch.float32) -> None:
        seen_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
        if causal:
            length = document_ids_BT.shape[1]
            seen_BTT = seen_BTT & torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
        self.mask, self.causal = additive(seen_BTT[:, None], dtype), causal

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        if self.causal:
            return attend_causally(q_BTHK, k_BTGK, v_BTGK, mask=self.mask, dropout=dropout)
        return scaled_dot_product(q_BTHK, k_BTGK, v_BTGK, mask=self.mask, dropout=dropout)


class Ragged:
    """Examples end to end in one row, (1,N), each seeing only itself.

    Neighbours of equal or near length are attended to together, so a batch sorted by length takes few calls.
    """

    def __init__(self, lengths_E: Tensor, causal: bool, dtype: torch.dtype = torch.float32) -> None:
        self.buckets, self.causal = buckets(lengths_E.tolist(), lengths_E.device), causal
        # What fills a row up comes last, so a causal token never sees it.
        self.masks = [None if causal else _unfilled(bucket, dtype) for bucket in self.buckets]

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        found = []
        parts = zip(*(split(x, self.buckets) for x in (q_BTHK, k_BTGK, v_BTGK)), strict=True)
        for bucket, mask, part in zip(self.buckets, self.masks, parts, strict=True):
            q, k, v = (bucket.rows(x) for x in part)
            if self.causal:
                out = attend_causally(q, k, v, dropout=dropout)
            else:
                out = scaled_dot_product(q, k, v, mask=mask, dropout=dropout)
            found.append(bucket.flat(out))
        return torch.cat(found)[None]


class RaggedAcross:
    """Targets end to end in one row, (1,N), each seeing all of its own source in another row, (1,M).

    Neighbours whose sources and whose targets are of equal or near length are attended to together.
    """

    def __init__(self, source_lengths_E: Tensor, target_lengths_E: Tensor, dtype: torch.dtype = torch.float32) -> None:
        lengths = list(zip(source_lengths_E.tolist(), target_lengths_E.tolist(), strict=True))
        self.sources, self.targets = paired_buckets(lengths, source_lengths_E.device)
        self.masks = [_unfilled(bucket, dtype) for bucket in self.sources]

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        found = []
        parts = zip(split(q_BTHK, self.targets), split(k_BSGK, self.sources), split(v_BSGK, self.sources), strict=True)
        for target, source, mask, (q, k, v) in zip(self.targets, self.sources, self.masks, parts, strict=True):
            out = scaled_dot_product(target.rows(q), source.rows(k), source.rows(v), mask=mask, dropout=dropout)
            found.append(target.flat(out))
        return torch.cat(found)[None]


class Beams:
    """The next token of each of several beams, (B·W,1), sees the source of its example, which is held once.

    The beams of an example stand together; `attention_mask_BS` is True where a source has a token.
    """

    def __init__(self, attention_mask_BS: Tensor, beams: int, dtype: torch.dtype = torch.float32) -> None:
        self.beams, self.across = beams, Bidirectional(attention_mask_BS, dtype)

    def __call__(self, q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        # Where a source is looked at, the order of queries means nothing: beams can stand for positions.
        q_BWHK = q_BTHK.reshape(-1, self.beams, *q_BTHK.shape[2:])
        return self.across(q_BWHK, k_BSGK, v_BSGK, layer, dropout=dropout).flatten(0, 1)[:, None]


class Cached:
    """New tokens see themselves and what the cache holds of their rows; their keys and values join it.

    `rows[i]` is the cache row of batch row i, `starts[i]` the position of its first new token, so
    several prompts of one length, one prompt in pieces, or one new token for each of many sequences
    are all one call. `positions_BT` is what the backbone needs beside. Causal.
    """

    def __init__(self, cache: KeyValueCache, starts: Sequence[int], length: int, rows: Sequence[int] | None = None):
        self.cache, self.rows = cache, list(range(len(starts)) if rows is None else rows)
        self.seen = max(starts) + length
        steps_T = torch.arange(length, device=cache.device)
        self.positions_BT = torch.tensor(list(starts), device=cache.device)[:, None] + steps_T
        self.places_N = cache.places(self.rows, self.positions_BT)
        # A prompt at the start needs no mask, nor does one new token for rows that are equally long.
        self.causal = length > 1 and not any(starts)
        self.mask = None
        if not self.causal and (length > 1 or len(set(starts)) > 1):
            slots_S = torch.arange(self.seen, device=cache.device)
            self.mask = additive((slots_S <= self.positions_BT[:, :, None])[:, None], cache.dtype)

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        self.cache.put(layer, self.places_N, k_BTGK, v_BTGK)
        k_BGSK, v_BGSK = self.cache.read(layer, self.rows, self.seen)
        k_BSGK, v_BSGK = k_BGSK.transpose(1, 2), v_BGSK.transpose(1, 2)
        if self.causal:
            return attend_causally(q_BTHK, k_BSGK, v_BSGK, dropout=dropout)
        if q_BTHK.shape[1] > 1:
            return scaled_dot_product(q_BTHK, k_BSGK, v_BSGK, mask=self.mask, dropout=dropout)
        # Heads that share keys stand for positions: one token sees the same with all of them. The keys are then
        # read as they lie; torch copies them for each head otherwise.
        rows, _, n_heads, head_dim = q_BTHK.shape
        q_BJGK = q_BTHK.reshape(rows, k_BSGK.shape[2], -1, head_dim).transpose(1, 2)
        out_BJGK = scaled_dot_product(q_BJGK, k_BSGK, v_BSGK, mask=self.mask, dropout=dropout)
        return out_BJGK.transpose(1, 2).reshape(rows, 1, n_heads, head_dim)


class Flat:
    """New tokens of many rows end to end in one row, (1,N), those of each of `pieces` in turn.

    What is done to each token alone, which is most of the work, is then done once for all of them, and only
    attention goes piece by piece. `positions_BT` is (1,N).
    """

    def __init__(self, pieces: Sequence[Cached]) -> None:
        self.pieces = pieces
        self.sizes = [piece.positions_BT.numel() for piece in pieces]
        self.positions_BT = torch.cat([piece.positions_BT.flatten() for piece in pieces])[None]

    def __call__(self, q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        if len(self.pieces) == 1:  # as while nothing but next tokens is computed: there is nothing to take apart
            (piece,) = self.pieces
            q, k, v = (x.reshape(*piece.positions_BT.shape, *x.shape[2:]) for x in (q_BTHK, k_BTGK, v_BTGK))
            out = piece(q, k, v, layer, dropout=dropout)
            return out.reshape(1, -1, *out.shape[2:])
        found = []
        parts = zip(*(torch.split(x[0], self.sizes) for x in (q_BTHK, k_BTGK, v_BTGK)), strict=True)
        for piece, part in zip(self.pieces, parts, strict=True):
            q, k, v = (x.unflatten(0, piece.positions_BT.shape) for x in part)
            found.append(piece(q, k, v, layer, dropout=dropout).flatten(0, 1))
        return torch.cat(found)[None]


def for_batch(batch: Mapping[str, Tensor], *, causal: bool, dtype: torch.dtype = torch.float32) -> Attend:
    """The context a batch asks for: by `lengths`, `document_ids` or `attention_mask`, else the plain one.

    In a causal row padded on the left or right, real tokens see only real ones before them.
    """
    documents, mask, lengths = batch.get("document_ids"), batch.get("attention_mask"), batch.get("lengths")
    if lengths is not None:
        return Ragged(lengths, causal, dtype)
    if documents is not None:
        return Documents(documents, causal, dtype)
    if causal:
        return Causal() if mask is None else Documents(mask.int(), causal, dtype)
    return Bidirectional(mask, dtype)


def across_batch(batch: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> Attend:
    """How the targets of a batch see their sources: all of its tokens, by `lengths` or `attention_mask`."""
    if "lengths" in batch:
        return RaggedAcross(batch["lengths"], batch["decoder_lengths"], dtype)
    return Bidirectional(batch.get("attention_mask"), dtype)


def _unfilled(bucket: Bucket, dtype: torch.dtype) -> Tensor | None:
    """The mask of a bucket's tokens, to add to scores; None where no example is filled up."""
    return None if bucket.seen is None else additive(bucket.seen[:, None, None, :], dtype)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of the same shape to add to scores: 0 where `seen`, HIDDEN elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, HIDDEN)


def attend_causally(
    q_BTHK: Tensor, k_BTGK: Tensor, v_BTGK: Tensor, *, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """Attention of each token to itself and those before it; a given mask is causal itself.

    torch's kernel for CPUs multiplies the whole square of rows up to 512 tokens and hides half of it
    after. There, long rows are worked through in blocks of queries with the keys up to the block's
    end, which takes 0.7 of the time, forward and backward, at 512 tokens.
    """
    length = q_BTHK.shape[1]
    if q_BTHK.device.type != "cpu" or length <= QUERY_BLOCK:
        return scaled_dot_product(q_BTHK, k_BTGK, v_BTGK, mask=mask, causal=mask is None, dropout=dropout)
    blocks = []
    for start in range(0, length, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, length)
        seen = _upto(start, end, q_BTHK) if mask is None else mask[..., start:end, :end]
        q, k, v = q_BTHK[:, start:end], k_BTGK[:, :end], v_BTGK[:, :end]
        blocks.append(scaled_dot_product(q, k, v, mask=seen, dropout=dropout))
    return torch.cat(blocks, dim=1)


def _upto(start: int, end: int, like: Tensor) -> Tensor:
    """The causal mask of queries `start` to `end` over all keys before `end`, to add to scores."""
    keys, queries = torch.arange(end, device=like.device), torch.arange(start, end, device=like.device)
    return additive(keys <= queries[:, None], like.dtype)


def scaled_dot_product(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(q kᵀ / √K + mask) v, (B,T,H,K); `mask` broadcasts to (B,H,T,S).

    Vaswani et al. 2017, §3.2.1. Query heads share key-value heads in groups (Ainslie et al. 2023).
    """
    if mask is not None and mask.dtype != q_BTHK.dtype:
        mask = mask.to(q_BTHK.dtype)  # mixed precision: scores come in a lower precision than weights
    if dropout and q_BTHK.device.type == "cpu":
        return _with_dropout(q_BTHK, k_BSGK, v_BSGK, mask=mask, causal=causal, share=dropout)
    out_BHTK = F.scaled_dot_product_attention(
        q_BTHK.transpose(1, 2),
        k_BSGK.transpose(1, 2),
        v_BSGK.transpose(1, 2),
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        enable_gqa=q_BTHK.shape[2] != k_BSGK.shape[2],
    )
    return out_BHTK.transpose(1, 2)


def _with_dropout(
    q_BTHK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, *, mask: Tensor | None, causal: bool, share: float
) -> Tensor:
    """The same with a share of the weights dropped, written out: torch has no kernel for it on a CPU.

    It writes it out itself, with more passes over the scores and a slower draw of what is dropped.
    """
    group = q_BTHK.shape[2] // k_BSGK.shape[2]
    k_BHKS, v_BHSK = k_BSGK.permute(0, 2, 3, 1), v_BSGK.transpose(1, 2)
    if group > 1:
        k_BHKS, v_BHSK = (x.repeat_interleave(group, 1) for x in (k_BHKS, v_BHSK))
    scores_BHTS = (q_BTHK * q_BTHK.shape[3] ** -0.5).transpose(1, 2) @ k_BHKS
    if causal:
        mask = _upto(0, q_BTHK.shape[1], scores_BHTS)
    if mask is not None:
        scores_BHTS = scores_BHTS + mask
    out_BHTK = dropped(scores_BHTS.softmax(-1), share) @ v_BHSK
    return out_BHTK.transpose(1, 2)
