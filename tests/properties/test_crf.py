"""A chain of tags against every sequence counted out one by one."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from groundup.errors import ArtifactError
from groundup.nn import crf
from groundup.text import tag_schemes
from groundup.text.tag_schemes import Scheme

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


def allowed(scheme: Scheme = "bio", tags: list[str] = TAGS) -> crf.Allowed:
    follows = [[tag_schemes.may_follow(b, a, scheme) for b in tags] for a in tags]
    first = [tag_schemes.may_begin(tag, scheme) for tag in tags]
    return crf.allowed_by(follows, first, [tag_schemes.may_end(tag, scheme) for tag in tags])


def chain(scheme: Scheme = "bio") -> tuple[crf.Transitions, crf.Chain]:
    transitions = crf.Transitions(len(TAGS)).double()
    for parameter in transitions.parameters():
        torch.nn.init.normal_(parameter, std=1 / crf.RATE)
    return transitions, transitions.chain(allowed(scheme))


def by_hand(emissions_LK: Tensor, scores: crf.Chain, edges: tuple[int, int]) -> dict[tuple[int, ...], Tensor]:
    """The score of every sequence of tags."""
    found = {}
    for tags in itertools.product(range(emissions_LK.shape[1]), repeat=len(emissions_LK)):
        total = sum((emissions_LK[place, tag] for place, tag in enumerate(tags)), torch.zeros(()))
        total = total + sum((scores.pairs[a, b] for a, b in itertools.pairwise(tags)), torch.zeros(()))
        found[tags] = total + edges[0] * scores.first[tags[0]] + edges[1] * scores.last[tags[-1]]
    return found


@pytest.mark.parametrize("scheme", ["bio", "plain"])
def test_likelihood_and_best_sequence_are_those_of_counting(scheme: Scheme) -> None:
    _, scores = chain(scheme)
    lengths, edges = [4, 1, 3, 2], torch.tensor([[1, 1], [1, 1], [0, 1], [1, 0]])
    emissions = 2 * torch.randn(4, 4, len(TAGS))
    real = torch.arange(4) < torch.tensor(lengths)[:, None]
    tags = torch.tensor([[1, 2, 0, 3], [0, 0, 0, 0], [2, 2, 0, 0], [0, 3, 0, 0]])
    found = crf.log_likelihood(emissions, tags, real, scores, edges)
    best = crf.best(emissions, real, scores, edges)
    for row, length in enumerate(lengths):
        every = by_hand(emissions[row, :length], scores, (int(edges[row, 0]), int(edges[row, 1])))
        total = torch.logsumexp(torch.stack(list(every.values())), 0)
        own = every[tuple(tags[row, :length].tolist())]
        torch.testing.assert_close(found[row], own - total, atol=2e-3, rtol=1e-5)
        assert tuple(best[row, :length].tolist()) == max(every, key=lambda t: float(every[t].detach()))
        assert not best[row, length:].any()


def test_gradients_are_those_of_counting_and_leave_padding_alone() -> None:
    transitions, _ = chain("plain")
    emissions = torch.randn(2, 3, len(TAGS), dtype=torch.float64, requires_grad=True)
    real = torch.tensor([[True, True, True], [True, False, False]])
    tags, edges = torch.tensor([[1, 2, 0], [3, 0, 0]]), torch.ones(2, 2, dtype=torch.int64)
    leaves = [emissions, *transitions.parameters()]
    found = torch.autograd.grad(
        crf.log_likelihood(emissions, tags, real, transitions.chain(allowed("plain")), edges).sum(), leaves
    )
    counted = torch.zeros((), dtype=torch.float64)
    for row, length in enumerate((3, 1)):
        every = by_hand(emissions[row, :length], transitions.chain(allowed("plain")), (1, 1))
        counted = counted + every[tuple(tags[row, :length].tolist())]
        counted = counted - torch.logsumexp(torch.stack(list(every.values())), 0)
    for left, right in zip(found, torch.autograd.grad(counted, leaves), strict=True):
        torch.testing.assert_close(left, right, atol=1e-4, rtol=1e-4)
    assert not found[0][1, 1:].any()


@pytest.mark.smoke
@pytest.mark.parametrize("scheme", ["bio", "bioes", "bmes"])
def test_the_best_sequence_keeps_the_scheme_whatever_is_scored(scheme: Scheme) -> None:
    inside = "M" if scheme == "bmes" else "I"
    tags = [
        "O",
        *(f"{p}-{kind}" for kind in "XY" for p in (["B", "I"] if scheme == "bio" else ["B", inside, "E", "S"])),
    ]
    scores = crf.without_scores(allowed(scheme, tags))
    real = torch.ones(40, 9, dtype=torch.bool)
    best = crf.best(3 * torch.randn(40, 9, len(tags)), real, scores, torch.ones(40, 2, dtype=torch.int64))
    for row in best.tolist():
        assert tag_schemes.fault([tags[i] for i in row], scheme) == ""


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    transitions, _ = chain()
    transitions.float()
    crf.write(tmp_path / "crf.safetensors", transitions, TAGS)
    again = crf.Transitions(len(TAGS))
    crf.read(tmp_path / "crf.safetensors", again, TAGS)
    for before, after in zip(transitions.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(before, after)
    with pytest.raises(ArtifactError, match="other tags"):
        crf.read(tmp_path / "crf.safetensors", again, TAGS[::-1])
    (tmp_path / "crf.safetensors").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="cannot be read"):
        crf.read(tmp_path / "crf.safetensors", again, TAGS)


@pytest.mark.smoke
def test_schemes_are_told_apart_and_broken_tags_are_named() -> None:
    for tags, scheme in (
        (["B-A", "I-A", "O"], "bio"),
        (["I-A", "I-A", "B-A", "O"], "iob1"),
        (["B-A", "E-A", "S-B", "I-A"], "bioes"),
        (["B-A", "M-A", "E-A"], "bmes"),
        (["NOUN", "O"], "plain"),
        (["B", "I", "O"], "bio"),
    ):
        assert tag_schemes.detect([tags]) == scheme
    assert "token 1 has the tag 'I-A'" in tag_schemes.fault(["I-A"], "bio")
    assert "token 2 has the tag 'I-B' after 'B-A'" in tag_schemes.fault(["B-A", "I-B"], "bio")
    assert "leaves something open" in tag_schemes.fault(["B-A"], "bioes")
    assert "is none of BIO" in tag_schemes.fault(["X-A"], "bio")
    assert tag_schemes.to_bio(["I-A", "I-A", "B-A", "I-B"]) == ["B-A", "I-A", "B-A", "B-B"]
    assert tag_schemes.repaired(["I-A", "O", "I-B", "I-B"], "bmes") == ["S-A", "O", "B-B", "E-B"]
    assert tag_schemes.repaired(["B-A", "O"], "bioes") == ["S-A", "O"]
