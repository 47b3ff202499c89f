"""A linear-chain conditional random field over scores of tags: its likelihood and its best sequence.

The score of a sequence is the sum of its tags' scores and of the scores of neighbouring pairs, of its
first tag and of its last (Lafferty, McCallum & Pereira 2001; Lample et al. 2016, §2). Tags that a scheme
does not allow side by side, such as I-PER after O, have no share in any sum and are never chosen.

Axes: E sequences, L longest length, K tags.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from groundup.errors import ArtifactError

FORBIDDEN = -1e4
"""The score of a pair that is not allowed: finite, so that gradients stay numbers, and never chosen."""
RATE = 100.0
"""The stored numbers are the scores divided by this. An optimizer whose steps are as long as its learning
rate, as Adam's are, then moves scores a hundred times as fast as the weights of a pretrained model."""


class Allowed(NamedTuple):
    """Which tags a scheme allows where."""

    first: Tensor
    """(K,) bool: at the beginning of a text."""
    pairs: Tensor
    """(K,K) bool: [a, b] says whether b may follow a."""
    last: Tensor
    """(K,) bool: at the end of a text."""


class Chain(NamedTuple):
    """The scores of a chain, shaped as in `Allowed`; those that are not allowed are FORBIDDEN."""

    first: Tensor
    pairs: Tensor
    last: Tensor


class Transitions(nn.Module):
    """The trained scores of neighbouring tags. All begin at zero.

    Kept as vectors: what is decayed, or turned into orthogonal steps, are matrices that multiply states.
    """

    def __init__(self, tags: int) -> None:
        super().__init__()
        self.tags = tags
        self.first = nn.Parameter(torch.zeros(tags))
        self.pairs = nn.Parameter(torch.zeros(tags * tags))
        self.last = nn.Parameter(torch.zeros(tags))

    def chain(self, allowed: Allowed) -> Chain:
        """The scores, in fp32, with the pairs that are not allowed left out."""
        pairs_KK = self.pairs.float().view(self.tags, self.tags)
        return _masked(Chain(self.first.float() * RATE, pairs_KK * RATE, self.last.float() * RATE), allowed)


def write(path: Path, transitions: Transitions, tags: Sequence[str]) -> None:
    """Write the scores as safetensors: `first` (K,), `pairs` (K,K) from row to column, `last` (K,), and the tags."""
    pairs = transitions.pairs.view(transitions.tags, transitions.tags)
    scores = {"first": transitions.first, "pairs": pairs, "last": transitions.last}
    tensors = {name: (tensor.detach() * RATE).cpu().contiguous() for name, tensor in scores.items()}
    save_file(tensors, path, metadata={"tags": json.dumps(list(tags), ensure_ascii=False)})


@torch.no_grad()
def read(path: Path, transitions: Transitions, tags: Sequence[str]) -> None:
    """Set the scores to those of a file. Raises ArtifactError if it cannot be read or is of other tags."""
    fix = "fetch the file again, or make the model again"
    try:
        with safe_open(path, framework="pt") as file:
            known = json.loads((file.metadata() or {}).get("tags", "[]"))
            scores = {name: file.get_tensor(name) for name in ("first", "pairs", "last")}
    except (OSError, SafetensorError) as error:
        raise ArtifactError(f"the chain's scores cannot be read ({error})", where=str(path), fix=fix) from error
    if known != list(tags):
        raise ArtifactError("the chain's scores are of other tags than the model's", where=str(path), fix=fix)
    for name, tensor in scores.items():
        parameter = getattr(transitions, name)
        parameter.copy_((tensor / RATE).reshape(parameter.shape))


def without_scores(allowed: Allowed) -> Chain:
    """The chain that prefers nothing and only leaves out what is not allowed."""
    zeros = Chain(*(torch.zeros(mask.shape, device=mask.device) for mask in allowed))
    return _masked(zeros, allowed)


def _masked(chain: Chain, allowed: Allowed) -> Chain:
    pairs = zip(chain, allowed, strict=True)
    return Chain(*(scores.masked_fill(~mask.to(scores.device), FORBIDDEN) for scores, mask in pairs))


def log_likelihood(emissions_ELK: Tensor, tags_EL: Tensor, real_EL: Tensor, chain: Chain, edges_E2: Tensor) -> Tensor:
    """The logarithm of each sequence's probability given its scores, (E,) fp32.

    real_EL: bool, true for the places of a sequence, which come first; every sequence has one at least.
    tags_EL: int64, any tag where not real. edges_E2: whether the sequence begins and ends where its text
    does; one that goes on elsewhere has no first or last score there.
    """
    emissions_ELK = emissions_ELK.float()
    return _score(emissions_ELK, tags_EL, real_EL, chain, edges_E2) - _total(emissions_ELK, real_EL, chain, edges_E2)


def _score(emissions_ELK: Tensor, tags_EL: Tensor, real_EL: Tensor, chain: Chain, edges_E2: Tensor) -> Tensor:
    """The score of one sequence each, (E,)."""
    picked_EL = emissions_ELK.gather(2, tags_EL[..., None]).squeeze(2) * real_EL
    steps_EL = chain.pairs[tags_EL[:, :-1], tags_EL[:, 1:]] * real_EL[:, 1:]
    last_E = tags_EL.gather(1, real_EL.sum(1, keepdim=True) - 1).squeeze(1)
    ends_E = chain.first[tags_EL[:, 0]] * edges_E2[:, 0] + chain.last[last_E] * edges_E2[:, 1]
    return picked_EL.sum(1) + steps_EL.sum(1) + ends_E


def _total(emissions_ELK: Tensor, real_EL: Tensor, chain: Chain, edges_E2: Tensor) -> Tensor:
    """The logarithm of the sum over all sequences of exp(score), (E,): the forward algorithm."""
    alpha_EK = emissions_ELK[:, 0] + chain.first * edges_E2[:, :1]
    for place in range(1, emissions_ELK.shape[1]):
        following_EK = torch.logsumexp(alpha_EK[:, :, None] + chain.pairs, 1) + emissions_ELK[:, place]
        alpha_EK = torch.where(real_EL[:, place, None], following_EK, alpha_EK)
    return torch.logsumexp(alpha_EK + chain.last * edges_E2[:, 1:], 1)


@torch.no_grad()
def best(emissions_ELK: Tensor, real_EL: Tensor, chain: Chain, edges_E2: Tensor) -> Tensor:
    """The best sequence of each, (E,L) int64, 0 where not real (Viterbi 1967). Arguments as above."""
    emissions_ELK = emissions_ELK.float()
    best_EK = emissions_ELK[:, 0] + chain.first * edges_E2[:, :1]
    back: list[Tensor] = []
    for place in range(1, emissions_ELK.shape[1]):
        score_EK, from_EK = (best_EK[:, :, None] + chain.pairs).max(1)
        real_E1 = real_EL[:, place, None]
        stay_EK = torch.arange(emissions_ELK.shape[2], device=from_EK.device).expand_as(from_EK)
        back.append(torch.where(real_E1, from_EK, stay_EK))
        best_EK = torch.where(real_E1, score_EK + emissions_ELK[:, place], best_EK)
    tag_E = (best_EK + chain.last * edges_E2[:, 1:]).argmax(1)
    tags = [tag_E]
    for from_EK in reversed(back):
        tag_E = from_EK.gather(1, tag_E[:, None]).squeeze(1)
        tags.append(tag_E)
    return torch.stack(tags[::-1], 1) * real_EL


def allowed_by(follows: Sequence[Sequence[bool]], first: Sequence[bool], last: Sequence[bool]) -> Allowed:
    """`Allowed` from plain truth values; `follows[a][b]` says whether b may follow a."""
    return Allowed(torch.tensor(first), torch.tensor(follows), torch.tensor(last))
