"""Learning from preferences: which of two answers is better, or whether one is good.

All of these compare log-probabilities of whole answers under the model that is trained, most of them
with those under the model that training began from (the reference). They are functions of such sums
alone, one number an answer, so a batch may be cut anywhere between pairs.

Notation of the papers: x a question, y_w the answer preferred ("chosen"), y_l the other ("rejected"),
π the model, π_ref the reference, σ the logistic function, β the strength of the reference.

Axes: P pairs, E sequences (answers with their questions), M trained positions, C positions of a chunk,
D width, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from groundup.nn import losses, products
from groundup.nn.losses import IGNORED

if TYPE_CHECKING:
    from groundup.nn.network import Outputs


def dpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimisation, (P,): -log σ(β h).

    chosen, rejected: log π(y|x) - log π_ref(y|x), summed over the answer's tokens; h is their difference
    (Rafailov et al. 2023, equation 7). With label smoothing ε, labels are taken to be wrong that often:
    -(1-ε) log σ(βh) - ε log σ(-βh) (Mitchell 2023, "conservative DPO").
    """
    h_P = beta * (chosen_P - rejected_P)
    return -(1 - label_smoothing) * F.logsigmoid(h_P) - label_smoothing * F.logsigmoid(-h_P)


def ipo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Identity preference optimisation, (P,): (h - 1/(2β))², h as in `dpo` (Azar et al. 2023, equation 17, τ = β).

    h is of whole answers, as the paper has it; some implementations divide it by the answers' lengths.
    """
    return (chosen_P - rejected_P - 1 / (2 * beta)).square()


def simpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float, gamma: float) -> Tensor:
    """Simple preference optimisation, (P,): -log σ(β (a_w - a_l) - γ).

    chosen, rejected: the mean log-probability of the answer's tokens, without a reference
    (Meng et al. 2024, equation 6).
    """
    return -F.logsigmoid(beta * (chosen_P - rejected_P) - gamma)


def orpo(chosen_P: Tensor, rejected_P: Tensor, *, beta: float) -> Tensor:
    """Odds ratio preference optimisation, (P,): -a_w - β log σ(log odds(y_w) - log odds(y_l)).

    chosen, rejected: mean log-probabilities a as in `simpo`; odds(y) = p / (1 - p) with p = exp(a).
    The first term is the ordinary loss of the chosen answer (Hong et al. 2024, equations 6 and 7; λ = β).
    """
    return -chosen_P - beta * F.logsigmoid(log_odds(chosen_P) - log_odds(rejected_P))


def log_odds(mean_log_prob: Tensor) -> Tensor:
    """log(p / (1 - p)) of p = exp(mean_log_prob) < 1, without leaving the logarithm."""
    below_one = mean_log_prob.clamp(max=-torch.finfo(mean_log_prob.dtype).eps)
    return below_one - torch.log(-torch.expm1(below_one))


def kto(
    ratio_E: Tensor,
    is_desirable_E: Tensor,
    point: Tensor,
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Kahneman-Tversky optimisation, (E,): λ_y - v(x, y) (Ethayarajh et al. 2024, equation 8).

    v = λ_D σ(β (r - z)) of a desirable answer and λ_U σ(β (z - r)) of an undesirable one, where r is the
    log-ratio of model and reference and z the reference point, which passes no gradient.
    """
    gap_E = beta * (ratio_E - point.detach())
    signed_E = torch.where(is_desirable_E, gap_E, -gap_E)
    weight_E = torch.where(is_desirable_E, desirable_weight, undesirable_weight).to(signed_E.dtype)
    return weight_E * (1 - torch.sigmoid(signed_E))


def reference_point(mismatched: Tensor) -> Tensor:
    """The point z of `kto`, (): the mean log-ratio of answers to questions they do not belong to, at least 0.

    Ethayarajh et al. 2024, section 4.1: an estimate of the divergence of model and reference.
    """
    return mismatched.detach().mean().clamp(min=0)


def sequence_log_probs(outputs: Outputs, labels: Tensor, *, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """Of every sequence of a batch the summed log-probability of its labels, and their number; (E,) each.

    labels: of the shape of `input_ids`, -100 where nothing counts. Differentiable; the scores of a chunk
    of positions are computed again in the backward pass, so those of all positions never exist at once.
    """
    features_ND, labels_N = outputs.head.features(outputs.hidden).flatten(0, -2), labels.flatten()
    index_M = (labels_N != IGNORED).nonzero().squeeze(1)
    weight_VD, bias_V = outputs.head.weight, outputs.head.bias
    rows = chunk or max(losses.CHUNK_ROWS, losses.CHUNK_SCORES // weight_VD.shape[0])
    options = products.recomputed()
    pieces = [
        checkpoint(
            _log_probs, features_ND[index_C], weight_VD, bias_V, labels_N[index_C], use_reentrant=False, **options
        )
        for index_C in _chunks(index_M, rows)
    ]
    log_probs_M = torch.cat(pieces)
    return _by_sequence(outputs, index_M, log_probs_M), _by_sequence(outputs, index_M, torch.ones_like(index_M))


@torch.no_grad()
def sequence_scores(outputs: Outputs, labels: Tensor, *, chunk: int | None = None) -> dict[str, Tensor]:
    """Of every sequence `nats`, `labels` and `right` (labels that scored highest), (E,) each. No gradient."""
    features_ND, labels_N = outputs.head.features(outputs.hidden).flatten(0, -2), labels.flatten()
    index_M = (labels_N != IGNORED).nonzero().squeeze(1)
    weight_VD, bias_V = outputs.head.weight, outputs.head.bias
    rows = chunk or max(losses.CHUNK_ROWS, losses.CHUNK_SCORES // weight_VD.shape[0])
    nats, right = [], []
    for index_C in _chunks(index_M, rows):
        scores_CV = _scores(features_ND[index_C], weight_VD, bias_V)
        nats.append(F.cross_entropy(scores_CV, labels_N[index_C], reduction="none").double())
        right.append((scores_CV.argmax(1) == labels_N[index_C]).long())
    found = {"nats": torch.cat(nats), "labels": torch.ones_like(index_M), "right": torch.cat(right)}
    return {name: _by_sequence(outputs, index_M, values) for name, values in found.items()}


def _log_probs(features_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, labels_C: Tensor) -> Tensor:
    return -F.cross_entropy(_scores(features_CD, weight_VD, bias_V), labels_C, reduction="none")


def _scores(features_CD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    """Scores in fp32 or above, as in `linear_cross_entropy`."""
    with torch.autocast(features_CD.device.type, enabled=False):
        weight_VD = weight_VD.to(features_CD.dtype)
        scores_CV = F.linear(features_CD, weight_VD, None if bias_V is None else bias_V.to(features_CD.dtype))
        return scores_CV if scores_CV.dtype == torch.float64 else scores_CV.float()


def _chunks(index_M: Tensor, rows: int) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = torch.split(index_M, rows)
    return found


def _by_sequence(outputs: Outputs, index_M: Tensor, values_M: Tensor) -> Tensor:
    """Values at positions of the batch, added up by the sequence they belong to, (E,)."""
    start_E, _ = outputs.places
    owner_M = torch.searchsorted(start_E, index_M, right=True) - 1
    return values_M.new_zeros(len(start_E)).index_add(0, owner_M, values_M)
