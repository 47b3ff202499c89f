"""Small models of rows that are no texts, trained in a second or two, so that their answers can be looked at.

The images are strokes and rings, the recordings low and high tones, the histories walk through a list of films:
whoever learns anything at all is right about these.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from groundup.data import audio, images
from groundup.runner import run

SIDE, RATE = 28, 8000
TONES = {"low": 300, "high": 1500}
"""Words that are spoken here, and the hertz of each."""
FILMS = [f"Film {place:02d} ({1980 + place})" for place in range(20)]


def image(label: str, seed: int, *, side: int = SIDE) -> NDArray[np.uint8]:
    """White on black: an upright `stroke` somewhere in the middle, or a `ring`."""
    draw = np.random.default_rng(seed)
    down, across = np.mgrid[:side, :side] / side - 0.5 + draw.uniform(-0.06, 0.06, (2, 1, 1))
    thick = draw.uniform(0.05, 0.09)
    if label == "stroke":
        lean = draw.uniform(-0.15, 0.15)
        lit = (np.abs(across - lean * down) < thick) & (np.abs(down) < draw.uniform(0.3, 0.42))
    else:
        lit = np.abs(np.hypot(down, across * draw.uniform(1, 1.4)) - draw.uniform(0.24, 0.34)) < thick
    noise = draw.integers(0, 20, (side, side))
    pixels: NDArray[np.uint8] = np.where(lit, 255 - noise, noise).astype(np.uint8)[:, :, None]
    return pixels


def tone(label: str, seed: int, *, seconds: float = 0.5, rate: int = RATE) -> NDArray[np.int16]:
    """A tone that begins and ends softly, with a little noise."""
    draw = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * math.pi * TONES[label] * draw.uniform(0.95, 1.05) * time) * np.sin(math.pi * time / seconds)
    heard = draw.uniform(0.3, 0.9) * wave + draw.normal(0, 0.01, len(time))
    samples: NDArray[np.int16] = np.clip(heard * 32767, -32768, 32767).astype(np.int16)
    return samples


def of_images(folder: Path) -> Path:
    """A model that tells strokes from rings."""
    for label in ("stroke", "ring"):
        for place in range(60):
            file = folder / "images" / label / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(images.to_png(image(label, place)))
    source = {"kind": "images", "paths": [str(folder / "images" / "*" / "*.png")], "image": {"channels": 1}}
    return trained(folder, "image_classification", {"name": "mlp", "widths": [32]}, source, lr=3e-3)


def of_recordings(folder: Path) -> Path:
    """A model that tells a low tone from a high one."""
    for label in TONES:
        for place in range(40):
            file = folder / "words" / label / f"{place}.wav"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(audio.to_wav(tone(label, place), RATE))
    source = {"kind": "audio", "paths": [str(folder / "words" / "*" / "*.wav")], "audio": {"rate": RATE}}
    task = {"name": "speech_commands", "seconds": 0.5}
    return trained(folder, task, {"name": "speech_resnet", "n_layers": 3, "width": 8}, source, lr=1e-2)


def of_table(folder: Path) -> Path:
    """A model that tells large animals from small ones by their weight, with a column of colours."""
    draw = np.random.default_rng(3)
    rows = ["weight,colour,size"]
    for place in range(120):
        weight = float(draw.uniform(0.1, 10))
        rows.append(f"{weight:.3f},{('grey', 'brown')[place % 2]},{'large' if weight > 5 else 'small'}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "animals.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    keep = {"weight": "weight", "colour": "colour", "label": "size"}
    source = {"kind": "csv", "paths": [str(folder / "animals.csv")], "text_field": [], "keep": keep}
    return trained(folder, "tabular", {"name": "mlp", "widths": [16]}, source, lr=1e-2)


def trained(
    folder: Path, task: Any, model: Any, source: dict[str, Any], *, lr: float, epochs: int = 12, split: Any = None
) -> Path:
    """The artefact of a model that was trained on the rows of a source, in a folder of its own."""
    stage = {"data": "rows", "task": task, "model": model, "epochs": epochs, "batch_rows": 16, "precision": "fp32"}
    stage |= {"optimizer": {"name": "adam", "lr": lr}, "evaluate_every": "50%", "device": "cpu"}
    stages = {
        "rows": {"prepare": {"source": source, "split": split or {"validation": "10%"}}},
        "model": {"train": stage},
    }
    recipe = folder / "small.yaml"
    recipe.write_text(json.dumps({"groundup": 1, "name": folder.name, "seed": 1, "stages": stages}), encoding="utf-8")
    found = run(str(recipe))
    return Path(found["model"].path)


def of_histories(folder: Path) -> Path:
    """A model of users who go through the films in their order, from anywhere on."""
    draw = np.random.default_rng(5)
    rows = ["who,film,when"]
    for user in range(150):
        start, length = int(draw.integers(len(FILMS))), int(draw.integers(5, 10))
        rows += [f"u{user},{FILMS[(start + step) % len(FILMS)]},{1000 * user + step}" for step in range(length)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    source = {"kind": "interactions", "paths": [str(folder / "events.csv")]}
    source |= {"user": "who", "item": "film", "time": "when"}
    model = {"name": "sasrec", "d_model": 32, "context": 12, "dropout": 0.0}
    return trained(folder, "next_item", model, source, lr=1e-2, split={"by": "last"})
