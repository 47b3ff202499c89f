"""How far two predictions of one network are apart, as a sum and a count.

Axes: M trained positions or examples, K scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.nn.losses import IGNORED

if TYPE_CHECKING:
    from groundup.nn.network import Outputs


def categorical(one_MK: Tensor, two_MK: Tensor) -> Tensor:
    """KL(one‖two) + KL(two‖one) of two softmaxes, summed over rows, in nats; in fp32."""
    one, two = one_MK.float().log_softmax(-1), two_MK.float().log_softmax(-1)
    return ((one.exp() - two.exp()) * (one - two)).sum()


def bernoulli(one: Tensor, two: Tensor) -> Tensor:
    """KL(one‖two) + KL(two‖one) of yes-or-no predictions by their logits, summed over all, in nats; in fp32."""
    one, two = one.float(), two.float()
    # The log odds are the logits themselves.
    return ((one.sigmoid() - two.sigmoid()) * (one - two)).sum()


def trained(batch: Mapping[str, Tensor]) -> Tensor:
    """Where a batch trains something: bool, of the shape of its labels.

    Raises UserError for a task whose answers are neither classes of examples or tokens nor numbers.
    """
    labels = batch.get("label", batch.get("labels"))
    if labels is None:
        what = "r_drop compares predictions of classes, tags, tokens or numbers, and this task has none of these"
        raise UserError(what, fix="use the regulariser fgm or pgd, or none")
    return labels.isfinite() if labels.is_floating_point() else labels != IGNORED


def symmetric(one: Outputs, two: Outputs, batch: Mapping[str, Tensor]) -> Tensor:
    """How far two forward passes over a batch are apart where it trains something, summed.

    KL in both directions, added: of softmaxes over classes, tags or tokens, or of each of several labels.
    For a number, the squared difference of the two. Raises UserError as `trained` does.
    """
    real = trained(batch)
    labels = batch.get("label", batch.get("labels"))
    assert labels is not None, "`trained` has refused a batch without labels"
    if hasattr(one.head, "features"):
        # Scores over a vocabulary, of the trained positions only.
        return categorical(*(each.head(each.hidden[real]) for each in (one, two)))
    first, second = one.logits, two.logits
    if labels.is_floating_point():
        return F.mse_loss(first[real, 0].float(), second[real, 0].float(), reduction="sum")
    if labels.shape == first.shape:
        return bernoulli(first[real], second[real])
    return categorical(first[real], second[real])
