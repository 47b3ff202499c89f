"""Losses of what comes next, beside the softmax over the whole catalogue (`losses.linear_cross_entropy`).

Each is the sum over the labels and their number, as all losses are; a label of -100 is not trained. The vector of a
position and that of an item give a score by their product.

The softmax over all items is what a catalogue of up to some ten thousands of items is best trained with: by it SASRec
surpasses BERT4Rec, which had surpassed SASRec with one drawn negative a label; drawn negatives come near only where
they are many (Klenitskiy & Vasilev 2023). The two losses here are SASRec's own, and one that knows of no other items
than the batch's.

Axes: N positions, M trained positions, K negatives of a position, D width, V entries of the table.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from groundup.nn.losses import IGNORED


def sampled_binary(
    features_ND: Tensor, table_VD: Tensor, labels_N: Tensor, negatives_NK: Tensor
) -> tuple[Tensor, Tensor]:
    """Each label's item as a yes, and each of its negatives as a no (Kang & McAuley 2018, §3.5).

    All may carry more leading axes. The nats of a label and of its negatives are added, as in the paper.
    """
    labels_N, real = _trained(labels_N)
    picked_MD = features_ND.reshape(len(labels_N), -1)[real]
    wrong_MK = negatives_NK.reshape(len(labels_N), -1)[real]
    yes_M = (picked_MD * F.embedding(labels_N[real], table_VD)).sum(-1).float()
    no_MK = torch.einsum("md,mkd->mk", picked_MD, F.embedding(wrong_MK, table_VD)).float()
    return F.softplus(-yes_M).sum() + F.softplus(no_MK).sum(), real.sum()


def in_batch_softmax(
    features_ND: Tensor, table_VD: Tensor, labels_N: Tensor, log_share_V: Tensor
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of each label's item among the items of all labels of the batch.

    An item is as often a candidate as it is a label, so that popular ones would be pushed away most; subtracting
    the logarithm of its share of all events, `log_share_V`, from its score sets that right (Yi et al. 2019, eq. 3;
    Bengio & Senécal 2008). A candidate that is the label's own item again is left out. `features` and `labels` may
    carry more leading axes.
    """
    labels_N, real = _trained(labels_N)
    picked_MD, labels_M = features_ND.reshape(len(labels_N), -1)[real], labels_N[real]
    scores_MM = (picked_MD @ F.embedding(labels_M, table_VD).T).float() - log_share_V[labels_M]
    again_MM = labels_M == labels_M[:, None]
    again_MM.fill_diagonal_(False)
    scores_MM = scores_MM.masked_fill(again_MM, -torch.inf)
    places_M = torch.arange(len(labels_M), device=labels_M.device)
    return F.cross_entropy(scores_MM, places_M, reduction="sum"), real.sum()


def _trained(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The labels in one row, (N,), and which of them are trained."""
    labels_N = labels.reshape(-1)
    return labels_N, labels_N != IGNORED
