"""The contrastive loss: a text's own partner is to be nearer than everybody else's.

Axes: E vectors, D width, A anchors, C candidates.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ANCHOR, POSITIVE, NEGATIVE = range(3)
"""What a vector is in its example: the text itself, its partner, or what it is to be told from."""


class Compared(NamedTuple):
    """Anchors against candidates."""

    scores: Tensor
    """(A,C): cosine similarities; of candidates that are no fair negatives, -inf."""
    targets: Tensor
    """(A,) int64: the candidate that is each anchor's partner."""


def compare(vectors_ED: Tensor, owner_E: Tensor, role_E: Tensor, group_E: Tensor) -> Compared:
    """Every anchor against every candidate of the batch, its examples in the order of `owner`.

    vectors_ED have length one. owner_E is the example of each vector; each has one anchor and one positive
    (an example of which only one is here is left out), and any number of negatives. A candidate that says
    the same as the anchor or its partner (their groups are equal), or that is the partner of an equal text,
    is left out unless it is the partner.
    """
    anchors_A, partners_A = _by_owner(role_E == ANCHOR, owner_E), _by_owner(role_E == POSITIVE, owner_E)
    whole = torch.isin(owner_E[anchors_A], owner_E[partners_A]), torch.isin(owner_E[partners_A], owner_E[anchors_A])
    anchors_A = anchors_A[whole[0]]
    candidates_C = torch.cat([partners_A[whole[1]], _by_owner(role_E == NEGATIVE, owner_E)])
    scores_AC = vectors_ED[anchors_A].float() @ vectors_ED[candidates_C].float().T
    targets_A = torch.arange(len(anchors_A), device=vectors_ED.device)  # positives come first, one an example
    group_C = group_E[candidates_C]
    group_A = group_E[anchors_A]
    same_AC = (group_C == group_A[:, None]) | (group_C == group_C[targets_A][:, None])
    same_AC[:, : len(group_A)] |= group_A == group_A[:, None]  # the partner of an equal text is no stranger
    same_AC[targets_A, targets_A] = False
    return Compared(scores_AC.masked_fill(same_AC, -torch.inf), targets_A)


def _by_owner(chosen_E: Tensor, owner_E: Tensor) -> Tensor:
    """The places of the chosen vectors, in the order of their examples."""
    places = chosen_E.nonzero().squeeze(1)
    return places[torch.argsort(owner_E[places], stable=True)]


def info_nce(compared: Compared, *, temperature: float, symmetric: bool = False) -> Tensor:
    """The cross-entropy in nats of each anchor's partner among all candidates, (A,) fp32.

    van den Oord et al. 2018 (InfoNCE), with the negatives of the batch as in Chen et al. 2020 and a
    temperature on cosines. With `symmetric`, the mean with the same loss of partners among anchors
    (Radford et al. 2021).
    """
    scores_AC = compared.scores / temperature
    nats_A = F.cross_entropy(scores_AC, compared.targets, reduction="none")
    if not symmetric:
        return nats_A
    back_AA = scores_AC[:, : len(compared.targets)].T
    return (nats_A + F.cross_entropy(back_AA, compared.targets, reduction="none")) / 2


def together(
    vectors: list[Tensor], owners: list[Tensor], roles: list[Tensor], groups: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Several batches as one: (vectors, owners, roles, groups), the examples numbered through."""
    counts = [int((role == ANCHOR).sum()) for role in roles]
    shifts = [sum(counts[:i]) for i in range(len(counts))]
    shifted = [owner + shift for owner, shift in zip(owners, shifts, strict=True)]
    return torch.cat(vectors), torch.cat(shifted), torch.cat(roles), torch.cat(groups)
