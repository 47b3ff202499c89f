"""Exact resume: whatever stops a run, run it again and the final weights are the same bytes.

Every cell trains once without interruption. Then a second, separate run of the same recipe is killed
at a random instant, stopped by SIGTERM, killed while it writes a state, and robbed of the end of its
newest state file, each followed by `groundup run` again.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

SIZES = {"n_layers": 1, "d_model": 32, "n_heads": 2, "context": 32, "dropout": 0.1}
STEPS = 110
MATRIX = [(m, a, p) for m in ("gpt", "bert") for a in (1, 3) for p in ("packed", "plain")]
SMOKE = [("gpt", 3, "packed")]


def section(material: Any, model: str, accumulation: int, packing: str) -> dict[str, Any]:
    """A recipe section that uses much of what has state: averages, momentum, dropout, early stopping."""
    tasks: dict[tuple[str, str], dict[str, Any]] = {
        ("gpt", "packed"): {"name": "language_modeling", "packing": "documents"},
        ("gpt", "plain"): {"name": "language_modeling", "packing": "concatenate"},
        ("bert", "packed"): {"name": "masked_language_modeling", "packing": "documents"},
        ("bert", "plain"): {"name": "masked_language_modeling", "next_sentence": True},
    }
    return {
        "data": str(material.corpus),
        "tokenizer": str(material.tokenizers[model]),
        "task": tasks[model, packing],
        "model": {"name": model, **SIZES},
        "tokens": STEPS * 6 * 32,
        "batch_tokens": 6 * 32,
        "micro_batch_rows": 6 // accumulation,
        "optimizer": {"name": "muon" if packing == "packed" else "adamw", "lr": 3e-3},
        "ema": 0.9,
        "early_stopping": {"patience": 50},
        "evaluate_every": 25,
        "validation_rows": 8,
        "save_every": 4,
        "keep_states": 3,
        "device": "cpu",
    }


@pytest.mark.parametrize(
    ("model", "accumulation", "packing"),
    [pytest.param(*cell, marks=pytest.mark.smoke) if cell in SMOKE else cell for cell in MATRIX],
)
def test_a_run_that_was_stopped_ends_in_the_same_bytes(
    model: str, accumulation: int, packing: str, material: Any, new_cell: Any, tmp_path: Path
) -> None:
    wanted = section(material, model, accumulation, packing)
    whole = new_cell(tmp_path / "whole", wanted)
    digest = whole.finish()

    broken = new_cell(tmp_path / "broken", wanted)
    chance = random.Random(f"{model} {accumulation} {packing}")
    broken.stop_anywhere(chance, 1, 30)
    broken.stop_gently(chance, 35, 50)
    broken.kill_while_saving(after=chance.randint(60, 75))
    broken.truncate_newest()
    resumed = broken.finish()

    print(f"\n{model}, accumulation {accumulation}, {packing}: whole   {digest}")
    print(f"{model}, accumulation {accumulation}, {packing}: resumed {resumed} after {broken.starts} starts")
    assert resumed == digest
    assert broken.artifact.digest == whole.artifact.digest
    assert broken.metrics() == whole.metrics(), "a step is missing, doubled or different"
    assert [line["step"] for line in whole.metrics() if "lr" in line] == list(range(1, STEPS + 1))
    assert any("is damaged" in note for note in broken.notes), "the truncated state was not noticed"
