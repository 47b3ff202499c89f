"""Exact resume of tasks whose rows are no text: what is drawn for a row follows from its place alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundup.artifact import Store, digest_data
from groundup.config import parse
from groundup.data.audio import to_wav
from groundup.stages import prepare

STEPS = 120
"""Many more than those at which a run is stopped: a step of a small network takes a millisecond or two."""


def images(folder: Path) -> dict[str, Any]:
    """Lines of pixels, and every change that there is."""
    draw = np.random.default_rng(0)
    pictures = draw.integers(0, 256, (40, 64))
    lines = (",".join(map(str, [i % 3, *picture])) for i, picture in enumerate(pictures))
    (folder / "pixels.csv").write_text("\n".join(lines), encoding="utf-8")
    return {
        "source": {"kind": "pixels", "paths": str(folder / "pixels.csv")},
        "task": {
            "name": "image_classification",
            "augment": {"crop": 2, "resized_crop": {}, "flip": "50%", "randaugment": {}, "erase": {}},
            "mixup": 0.4,
            "cutmix": 1.0,
            "mix_share": "80%",
        },
        "model": {"name": "cnn", "filters": [4], "dense": [10], "batch_norm": True, "dropout": 0.2},
    }


def table(folder: Path) -> dict[str, Any]:
    """Numbers, some of them missing, and categories."""
    draw = np.random.default_rng(1)
    lines = [f"{x:.3f},{'' if x > 1 else y},{'abc'[y]},{x * 10 + y:.2f}"
             for x, y in zip(draw.normal(size=80), draw.integers(0, 3, 80), strict=True)]  # fmt: skip
    (folder / "table.csv").write_text("\n".join(["x,y,kind,price", *lines]), encoding="utf-8")
    return {
        "source": {"paths": str(folder / "table.csv"), "text_field": [], "keep": ["x", "y", "kind", "price"]},
        "task": {"name": "tabular", "kind": "number", "label": "price"},
        "model": {"name": "mlp", "widths": [10], "batch_norm": True, "dropout": 0.3},
    }


def events(folder: Path) -> dict[str, Any]:
    """Who chose what when, and how it was liked."""
    draw = np.random.default_rng(2)
    lines = [f"u{user},i{item},{day},{(user + item) % 5}" for user in range(30) for day, item in
             enumerate(draw.permutation(25)[: 4 + user % 9].tolist())]  # fmt: skip
    (folder / "events.csv").write_text("\n".join(["who,what,when,stars", *lines]), encoding="utf-8")
    return {"kind": "interactions", "paths": str(folder / "events.csv"), "user": "who", "item": "what", "time": "when"}


def histories(folder: Path) -> dict[str, Any]:
    """Histories beside drawn items that were not chosen."""
    return {
        "source": events(folder),
        "split": {"by": "last"},
        "task": {"name": "next_item", "loss": "binary", "negatives": 3},
        "model": {"name": "sasrec", "d_model": 8, "context": 5, "dropout": 0.3},
    }


def clicks(folder: Path) -> dict[str, Any]:
    """Events one by one."""
    return {
        "source": events(folder) | {"row": "event", "value": "stars"},
        "split": {"by": "time", "time": "time", "validation": "20%"},
        "task": {"name": "click_prediction", "label": "value", "at_least": 3},
        "model": {"name": "factorisation_machine", "n_factors": 4, "dropout": 0.3},
    }


def recordings(folder: Path) -> dict[str, Any]:
    """Noise of three colours, and every change that there is."""
    draw = np.random.default_rng(3)
    for i in range(36):
        place = folder / "takes" / "abc"[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        noise = np.convolve(draw.normal(size=900), np.ones(1 + 3 * (i % 3)), "same")
        (place / f"{i}.wav").write_bytes(to_wav(np.rint(2000 * noise).clip(-32768, 32767).astype(np.int16), 4000))
    changes = {"speed": "10%", "shift_ms": 20, "gain_db": 3, "noise_db": [10, 30], "masks": {}}
    mel = {"bands": 12, "range_db": 40}
    return {
        "source": {"kind": "audio", "paths": str(folder / "takes"), "audio": {"rate": 4000}},
        "task": {"name": "speech_commands", "seconds": 0.25, "mel": mel, "augment": changes, "label_smoothing": "10%"},
        "model": {"name": "speech_resnet", "width": 5, "n_layers": 2, "dropout": 0.2},
    }


CASES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "image_classification": images, "tabular": table, "next_item": histories, "click_prediction": clicks,
    "speech_commands": recordings,
}  # fmt: skip
"""For each task, what makes its `source`, its `split` if not at random, and its sections `task` and `model`."""


def corpus(source: dict[str, Any], split: dict[str, Any]) -> str:
    """Where the corpus of a source lies."""
    section, mistakes = parse(prepare.Config, {"source": source, "split": split})
    assert section is not None, mistakes
    store, key = Store(), digest_data(source)
    with store.draft("corpus", key) as out:
        prepare.run(section, {}, out)
    found = store.find(key)
    assert found is not None
    return str(found.path.absolute())


@pytest.mark.parametrize("task", CASES)
def test_a_run_that_was_stopped_ends_in_the_same_bytes(task: str, new_cell: Any, tmp_path: Path) -> None:
    made = CASES[task](tmp_path)
    section = made | {
        "data": corpus(made.pop("source"), made.pop("split", {"validation": "20%"})),
        "steps": STEPS,
        "batch_rows": 6,
        "optimizer": {"name": "momentum", "lr": 1e-2},
        "ema": 0.9,
        "evaluate_every": 20,
        "save_every": 4,
        "keep_states": 3,
        "device": "cpu",
    }
    whole = new_cell(tmp_path / "whole", section, stage="train")
    digest = whole.finish()
    broken = new_cell(tmp_path / "broken", section, stage="train")
    chance = random.Random(task)
    broken.stop_anywhere(chance, 1, 15)
    broken.stop_gently(chance, 20, 30)
    broken.kill_while_saving(after=chance.randint(35, 45))
    broken.truncate_newest()
    assert broken.finish() == digest
    assert broken.artifact.digest == whole.artifact.digest
    assert broken.metrics() == whole.metrics(), "a step is missing, doubled or different"
    assert [line["step"] for line in whole.metrics() if "lr" in line] == list(range(1, STEPS + 1))
