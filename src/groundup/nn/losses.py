"""Losses as a sum and a count, so that how a batch is cut into pieces never changes a gradient.

The caller adds sums and counts over micro-batches and processes and divides once. A label of -100 is
not trained: it adds nothing to either. Where `share` is given, an example weighs that much in the sum, and one in
the count: an example that was mixed of two is in two sums.

`linear_cross_entropy` joins the output layer with the loss. It works through the trained positions in
chunks and computes the gradients of a chunk while its scores are at hand, so the scores of all
positions never exist at once and untrained positions cost nothing (in masked language modelling, six
of seven). The idea is that of Wijmans et al. 2024 (Cut Your Losses) and Hsu et al. 2024 (Liger).

Axes: N positions, M trained positions, C positions of a chunk, V vocabulary, D width of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from groundup.nn import products

IGNORED = -100
CHUNK_SCORES = 2**21
"""Scores held at once by default: 8 MiB in fp32, which stays in a CPU's outer cache."""
CHUNK_ROWS = 256
"""Positions in a chunk at least: below, matrix products with a large vocabulary lose speed."""


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    share: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    weight_V: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy in nats, and the number of trained labels (int64).

    logits: (…, V); labels and share: (…), labels with -100 where nothing is trained; weight_V: what each class
    weighs in the sum, not in the number. Computed in fp32 or above.
    """
    flat, scores = labels, logits
    if labels.dim() != 1:
        flat = labels.reshape(-1)
        scores = logits.reshape(flat.numel(), -1)
    scores = scores.float() if scores.dtype in (torch.bfloat16, torch.float16) else scores
    options: dict[str, Any] = {"ignore_index": IGNORED, "label_smoothing": label_smoothing, "weight": weight_V}
    if share is None:
        return F.cross_entropy(scores, flat, reduction="sum", **options), (flat != IGNORED).sum()
    each = F.cross_entropy(scores, flat, reduction="none", **options)
    return _total(each, share), (flat != IGNORED).sum()


def binary_cross_entropy(logits: Tensor, labels: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed cross-entropy of yes-or-no questions in nats, and their number (int64).

    logits, labels: (N,…), labels 0, 1, or -100 where nothing is trained; share: (N,).
    """
    real = labels != IGNORED
    each = F.binary_cross_entropy_with_logits(logits, labels.clamp(min=0).to(logits.dtype), reduction="none")
    return _total(each * real, share), real.sum()


def squared_error(predicted: Tensor, wanted: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed squared difference, and the number of trained labels (int64).

    predicted, wanted: (N,…), wanted NaN where nothing is trained; share: (N,).
    """
    real = wanted.isfinite()
    return _total((predicted - wanted.nan_to_num()).square() * real, share), real.sum()


def hinge(logits: Tensor, labels: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed hinge loss, and the number of trained labels (int64).

    logits: (…, K); labels and share: (…), labels with -100 where nothing is trained. How far the right class is
    from leading all others by one: max(0, 1 + max over j ≠ y of s_j - s_y) (Crammer & Singer 2001, eq. 6). With a
    single score, K = 1, labels are 0 and 1 and the loss is max(0, 1 - s) or max(0, 1 + s) (Cortes & Vapnik 1995).
    """
    flat, real, scores_NK = _of_classes(logits, labels)
    if scores_NK.shape[1] == 1:
        each = (1 - (2 * flat.clamp(min=0) - 1) * scores_NK[:, 0]).clamp(min=0)
    else:
        right_N1 = flat.clamp(min=0)[:, None]
        others_NK = scores_NK.scatter(1, right_N1, -torch.inf)
        each = (1 + others_NK.amax(1) - scores_NK.gather(1, right_N1)[:, 0]).clamp(min=0)
    return _total(each * real, share), real.sum()


def class_squared_error(logits: Tensor, labels: Tensor, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The summed mean squared difference of scores and one-hot labels, and the number of trained labels (int64).

    logits: (…, K); labels and share: (…), labels with -100 where nothing is trained. The mean is over the K scores
    of an example, as in MSELoss; with a single score, K = 1, labels are 0 and 1.
    """
    flat, real, scores_NK = _of_classes(logits, labels)
    wanted = flat.clamp(min=0)
    wanted_NK = wanted[:, None] if scores_NK.shape[1] == 1 else F.one_hot(wanted, scores_NK.shape[1])
    return _total((scores_NK - wanted_NK).square().mean(1) * real, share), real.sum()


def _total(each: Tensor, share: Tensor | None) -> Tensor:
    """The sum over examples, the first axis, of which each weighs its share."""
    return (each if share is None else each * share.reshape(-1, *[1] * (each.dim() - 1))).sum()


def _of_classes(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (N,), which of them are trained, and scores (N,K) in fp32 or above."""
    flat = labels.reshape(-1)
    scores_NK = logits.reshape(flat.numel(), -1)
    return flat, flat != IGNORED, scores_NK.to(_sum_dtype(scores_NK))


FOR_CLASSES: dict[str, Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]] = {
    "cross_entropy": cross_entropy,
    "hinge": hinge,
    "squared_error": class_squared_error,
}
"""The losses of a choice among classes, by recipe name."""


def linear_cross_entropy(
    features_ND: Tensor,
    weight_VD: Tensor,
    labels_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`cross_entropy(features @ weight.T + bias, labels)` without holding all scores.

    features and labels may carry more leading axes, (B,T,D) and (B,T). `chunk` is the number of
    positions worked on at once. Differentiable once, in features, weight and bias.
    """
    features_ND, labels_N = features_ND.reshape(-1, features_ND.shape[-1]), labels_N.reshape(-1)
    device = features_ND.device.type
    if torch.is_autocast_enabled(device):  # the operator settles its own precision: that of its features
        features_ND = features_ND.to(torch.get_autocast_dtype(device))
    rows = chunk or max(CHUNK_ROWS, CHUNK_SCORES // weight_VD.shape[0])
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in (features_ND, weight_VD, bias_V)]
    total, *_ = torch.ops.groundup.linear_cross_entropy(
        features_ND, weight_VD, bias_V, labels_N, label_smoothing, rows, wanted, products.current()
    )
    return total, (labels_N != IGNORED).sum()


def token_losses(
    features_ND: Tensor, weight_VD: Tensor, labels_N: Tensor, *, bias_V: Tensor | None = None, chunk: int | None = None
) -> Tensor:
    """Each position's cross-entropy in nats, shaped as the labels; 0 where the label is -100.

    For evaluation: works in chunks and is not differentiable.
    """
    shape = labels_N.shape
    features_ND, labels_N = features_ND.reshape(-1, features_ND.shape[-1]), labels_N.reshape(-1)
    rows = chunk or max(CHUNK_ROWS, CHUNK_SCORES // weight_VD.shape[0])
    losses_N = torch.zeros(labels_N.shape, dtype=_sum_dtype(features_ND), device=features_ND.device)
    with torch.no_grad():
        for index_C in _trained(labels_N, rows):
            scores_CV = _scores(features_ND[index_C], weight_VD, bias_V)
            losses_N[index_C] = F.cross_entropy(scores_CV, labels_N[index_C], reduction="none").to(losses_N.dtype)
    return losses_N.view(shape)


OPERATOR = "groundup::linear_cross_entropy"
torch.library.define(
    OPERATOR,
    "(Tensor features, Tensor weight, Tensor? bias, Tensor labels, float label_smoothing, int chunk, bool[] wanted,"
    " str matmul) -> (Tensor, Tensor, Tensor, Tensor)",
)


# Piece by piece, since `torch.library.custom_op` would import the compiler, a second, where nothing is compiled.
@torch.library.impl(OPERATOR, "default")
def _fused(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    label_smoothing: float,
    chunk: int,
    wanted: list[bool],
    matmul: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients by features, weight and bias (those not `wanted` are empty).

    An operator of its own, so that torch.compile keeps it whole: the number of trained positions,
    which differs from batch to batch, stays inside.
    """
    with torch.autocast(features_ND.device.type, enabled=False), products.multiplying(matmul):  # type: ignore[arg-type]
        return _loss_and_gradients(features_ND, weight_VD, bias_V, labels_N, label_smoothing, chunk, wanted)


def _loss_and_gradients(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    label_smoothing: float,
    chunk: int,
    wanted: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accumulate = _sum_dtype(features_ND)
    total = torch.zeros((), dtype=accumulate, device=features_ND.device)
    by_features = torch.zeros_like(features_ND) if wanted[0] else features_ND.new_empty(0)
    by_weight = torch.zeros_like(weight_VD, dtype=accumulate) if wanted[1] else weight_VD.new_empty(0)
    by_bias = torch.zeros(weight_VD.shape[0], dtype=accumulate, device=weight_VD.device)
    weight = weight_VD.to(features_ND.dtype)
    for index_C in _trained(labels_N, chunk):
        picked_CD, target_C = features_ND[index_C], labels_N[index_C]
        loss, slope_CV = _loss_and_slope(_scores(picked_CD, weight, bias_V), target_C, label_smoothing)
        total += loss
        if wanted[2]:
            by_bias += slope_CV.sum(0)
        slope_CV = slope_CV.to(features_ND.dtype)
        if wanted[0]:
            by_features[index_C] = F.linear(slope_CV, weight.t())
        if wanted[1]:
            _add_product(by_weight, slope_CV.t(), picked_CD)
    return total, by_features, by_weight.to(weight_VD.dtype), by_bias if wanted[2] else by_bias.new_empty(0)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left @ right` in place. Lower precisions multiply as they are and are summed in fp32."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _loss_and_slope(scores_CV: Tensor, target_C: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The summed loss, and its gradient by the scores, (C,V).

    With smoothing ε the target is (1-ε)·onehot + ε/V (Szegedy et al. 2016, §7). torch's softmax is one
    pass over the scores; the logarithm of its denominator follows from the largest share, which is
    exp(largest score) over the denominator and never small.
    """
    share_CV = scores_CV.softmax(1)
    normaliser_C1 = scores_CV.amax(1, keepdim=True) - share_CV.amax(1, keepdim=True).log()
    picked_C1 = scores_CV.gather(1, target_C[:, None])
    loss = (normaliser_C1 - (1 - smoothing) * picked_C1).sum()
    if smoothing:
        loss = loss - smoothing * scores_CV.mean(1).sum()
        share_CV -= smoothing / scores_CV.shape[1]
    return loss, share_CV.scatter_add_(1, target_C[:, None], torch.full_like(picked_C1, smoothing - 1))


def _scores(features_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Scores in fp32 or above: a softmax over a vocabulary loses too much in bf16."""
    scores_CV = F.linear(features_CD, weight_VD, None if bias_V is None else bias_V.to(features_CD.dtype))
    return scores_CV.to(_sum_dtype(features_CD))


def _trained(labels_N: Tensor, chunk: int) -> Iterator[Tensor]:
    """The indices of trained positions, at most `chunk` at a time."""
    index_M = (labels_N != IGNORED).nonzero().squeeze(1)
    for start in range(0, index_M.numel(), chunk):
        yield index_M[start : start + chunk]


def _sum_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _shapes(
    features_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    label_smoothing: float,
    chunk: int,
    wanted: list[bool],
    matmul: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    accumulate = _sum_dtype(features_ND)
    return (
        features_ND.new_empty((), dtype=accumulate),
        torch.empty_like(features_ND) if wanted[0] else features_ND.new_empty(0),
        torch.empty_like(weight_VD) if wanted[1] else weight_VD.new_empty(0),
        features_ND.new_empty(weight_VD.shape[0] if wanted[2] else 0, dtype=accumulate),
    )


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.wanted = inputs[6]
    ctx.bias_dtype = None if inputs[2] is None else inputs[2].dtype
    ctx.save_for_backward(*output[1:])


def _backward(ctx, by_total, *_unused):  # type: ignore[no-untyped-def]
    by_features, by_weight, by_bias = ctx.saved_tensors
    return (
        by_features * by_total.to(by_features.dtype) if ctx.wanted[0] else None,
        by_weight * by_total.to(by_weight.dtype) if ctx.wanted[1] else None,
        (by_bias * by_total).to(ctx.bias_dtype) if ctx.wanted[2] else None,
        *[None] * 5,
    )


torch.library.register_fake(OPERATOR, _shapes)
torch.library.register_autograd(OPERATOR, _backward, setup_context=_keep)
