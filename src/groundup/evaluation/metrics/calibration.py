"""Whether a model's confidence can be believed: calibration error, temperature, risk against coverage.

A model is calibrated if, of the answers it gives with 80 % confidence, 80 % are right (Guo et al. 2017).

Axes: E examples, K classes, B bins.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from groundup.evaluation.metrics.additive import Additive, Floats, Ints, Weighted, divided, ties

BINS = 15
TEMPERATURES = (0.02, 50.0)
"""Between these a temperature is looked for; outside them there is something wrong with the model."""
Mass = Literal["width", "equal"]
Bools = NDArray[np.bool_]


FILE = "calibration.json"
"""Where a model keeps the temperature that was fitted on its validation rows."""


def edges(confidence_E: Floats, mass: Mass, bins: int = BINS) -> Floats:
    """The inner bounds of bins over [0, 1]: of equal width, or with as many examples in each."""
    if mass == "width":
        return np.arange(1, bins) / bins
    return np.unique(np.quantile(confidence_E, np.arange(1, bins) / bins))


def calibration_error(confidence_E: Floats, right_E: Bools, *, mass: Mass = "width", bins: int = BINS) -> Additive:
    """The expected calibration error: the gap between confidence and accuracy, averaged over bins by size.

    Bins of equal width are what most papers print; bins of equal mass are steadier (Nixon et al. 2019)
    and keep their bounds when examples are drawn again.
    """
    confidence_E = np.asarray(confidence_E, np.float64)
    place_E = np.searchsorted(edges(confidence_E, mass, bins), confidence_E, side="right")
    gaps_EB = np.zeros((len(confidence_E), bins + 1))
    gaps_EB[np.arange(len(confidence_E)), place_E] = confidence_E - right_E
    gaps_EB[:, -1] = 1

    def finish(sums: Floats) -> Floats:
        return divided(np.abs(sums[..., :-1]).sum(-1), sums[..., -1])

    name = "calibration_error" if mass == "width" else "calibration_error_equal_mass"
    return Additive(name, gaps_EB, finish, higher_is_better=False)


def reliability(
    confidence_E: Floats, right_E: Bools, *, mass: Mass = "equal", bins: int = BINS
) -> list[dict[str, float]]:
    """The points of a reliability diagram: for each bin that holds examples its bounds, how many, mean
    confidence, accuracy, and a 95 % interval of the accuracy (Wilson 1927)."""
    confidence_E, right_E = np.asarray(confidence_E, np.float64), np.asarray(right_E, bool)
    inner = edges(confidence_E, mass, bins)
    place_E = np.searchsorted(inner, confidence_E, side="right")
    bounds = [0.0, *inner.tolist(), 1.0]
    found = []
    for place in np.unique(place_E):
        own = place_E == place
        low, high = wilson(int(right_E[own].sum()), int(own.sum()))
        found.append(
            {
                "from": bounds[place],
                "to": bounds[place + 1],
                "count": int(own.sum()),
                "confidence": float(confidence_E[own].mean()),
                "accuracy": float(right_E[own].mean()),
                "low": low,
                "high": high,
            }
        )
    return found


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927); (0, 1) for no examples."""
    if not count:
        return 0.0, 1.0
    share, room = right / count, z * z / count
    middle = (share + room / 2) / (1 + room)
    reach = z / (1 + room) * math.sqrt(share * (1 - share) / count + room / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def tempered(probabilities_EK: Any, temperature: float) -> Floats:
    """Probabilities with their logarithms divided by a temperature, and normalised: above 1 less sure."""
    logs_EK = np.log(np.clip(np.asarray(probabilities_EK, np.float64), 1e-300, 1.0)) / temperature
    raised_EK = np.exp(logs_EK - logs_EK.max(1, keepdims=True))
    return np.asarray(raised_EK / raised_EK.sum(1, keepdims=True))


def fit_temperature(truth_E: Ints, probabilities_EK: Any) -> float:
    """The temperature under which held-out examples are likeliest (Guo et al. 2017, section 4.2).

    To be fitted on validation examples, never on the test's. Answers stay the same; only confidence
    moves. The likelihood has one peak in 1 / temperature, which a golden-section search finds.
    """
    logs_EK = np.log(np.clip(np.asarray(probabilities_EK, np.float64), 1e-300, 1.0))
    rows = np.arange(len(truth_E))

    def nats(log_temperature: float) -> float:
        scaled_EK = logs_EK / math.exp(log_temperature)
        peak_E = scaled_EK.max(1)
        total_E = peak_E + np.log(np.exp(scaled_EK - peak_E[:, None]).sum(1))
        return float((total_E - scaled_EK[rows, truth_E]).mean())

    low, high = (math.log(bound) for bound in TEMPERATURES)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = nats(left), nats(right)
    while high - low > 1e-5:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = nats(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = nats(right)
    return math.exp((low + high) / 2)


def risk_coverage(confidence_E: Floats, right_E: Any) -> tuple[Floats, Floats]:
    """Coverage and risk when the model answers only the examples it is surest of, for every number of them.

    Coverage is the share answered, risk the share of those that is wrong (or one minus a graded score).
    Equally sure examples come in all orders, so each counts with the mean risk of its equals.
    """
    confidence_E = np.asarray(confidence_E, np.float64)
    wrong_E = 1 - np.asarray(right_E, np.float64)
    _, place_E, count = np.unique(-confidence_E, return_inverse=True, return_counts=True)
    shared_E = (np.bincount(place_E, wrong_E) / count)[place_E]
    risk = np.cumsum(shared_E[np.argsort(-confidence_E, kind="stable")])
    number = np.arange(1, len(confidence_E) + 1)
    return number / max(1, len(confidence_E)), risk / number


def area_under_risk(confidence_E: Floats, right_E: Any) -> Weighted:
    """The mean risk over all coverages (Geifman & El-Yaniv 2017): low if the model knows what it knows."""
    confidence_E, right_E = np.asarray(confidence_E, np.float64), np.asarray(right_E, np.float64)
    order, begins = ties(-confidence_E)
    wrong = 1 - right_E[order]

    def one(weights_E: NDArray[Any]) -> float:
        held = np.add.reduceat(weights_E, begins)
        shared = divided(np.add.reduceat(weights_E * wrong, begins), held)
        risk = np.cumsum(np.repeat(shared, held))
        return float((risk / np.arange(1, len(risk) + 1)).mean())

    def weigh(weights_RE: NDArray[Any]) -> Floats:
        return np.array([one(weights_E) for weights_E in weights_RE[:, order]])

    def part(rows: Ints) -> Weighted:
        return area_under_risk(confidence_E[rows], right_E[rows])

    return Weighted("area_under_risk", len(confidence_E), weigh, part, higher_is_better=False)
