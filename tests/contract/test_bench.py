"""The arithmetic and the pages of the benchmarks; the benchmarks themselves run by `make bench`."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.smoke


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import harness

    return harness


def test_a_ratio_is_taken_within_rounds(harness: ModuleType) -> None:
    """A machine that slows down for both sides in one round does not widen the interval."""
    middle, low, high = harness.ratio([120, 60, 240], [100, 50, 200])
    assert middle == pytest.approx(1.2) and low == pytest.approx(1.2) and high == pytest.approx(1.2)


def test_the_interval_is_students(harness: ModuleType) -> None:
    """Logs 0.0, 0.1, 0.2: mean 0.1, standard deviation 0.1, t with 2 degrees of freedom 4.303."""
    found = harness.ratio([math.exp(x) for x in (0.0, 0.1, 0.2)], [1.0, 1.0, 1.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found == pytest.approx((math.exp(0.1), math.exp(0.1 - half), math.exp(0.1 + half)))


def test_one_round_says_nothing_of_the_spread(harness: ModuleType) -> None:
    assert harness.ratio([2.0], [1.0]) == (2.0, 0.0, math.inf)


def test_the_section_of_a_model_is_a_table(harness: ModuleType) -> None:
    import pretrain

    def rival(rates: list[float], version: str) -> dict[str, object]:
        facts = {"seconds": 1.0, "first_steps_s": 2.0, "version": version, "torch": "2.13.0"}
        return {"tokens_s": rates, "peak_bytes": 2**30, "last_loss": 3.5, "facts": facts}

    model = pretrain.MODELS["gpt2-14m"]
    text = pretrain.section(
        {
            "model": "gpt2-14m",
            "sizes": pretrain.asdict(model),
            "device": "cpu",
            "precision": "fp32",
            "threads": 2,
            "rounds": 3,
            "steps": 8,
            "busy": False,
            "machine": "a machine",
            "date": "2026-11-22",
            "gemm_flops": [1e11, 1e11],
            "rivals": {"groundup": rival([1200.0, 1200.0, 1200.0], "0.1"), "litgpt": rival([1000.0] * 3, "0.5")},
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and "1.20 [1.20, 1.20]" in rows[2]
    assert f"{1200 * model.flops_per_token / 1e11:.0%}" in rows[1]
    assert "not idle" not in text
