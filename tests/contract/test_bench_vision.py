"""The benchmark of small networks on images: rivals begin alike, and its page says what was found."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from groundup import catalog
from groundup.nn.network import Network, create
from groundup.nn.shape import filled

BENCH = Path(__file__).resolve().parents[2] / "bench"
IMAGES, BATCH = 64, 16
KNOWN = {"image_size": (28, 28), "channels": 1, "n_features": 784}


@pytest.fixture
def vision(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import vision

    return vision


def network_of(model: dict[str, Any]) -> Network:
    file: Any = catalog.load("models", str(model["name"]))
    section = file.Config(**{key: value for key, value in model.items() if key != "name"})
    return create(file, filled(section, KNOWN), "image", outputs=10, seed=3)


def written(folder: Path, model: dict[str, Any]) -> tuple[Path, float]:
    """A job of a few random images, and the loss of its first batch by groundup's own network."""
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (IMAGES, 28, 28), dtype=np.uint8)
    labels = numbers.permutation(np.arange(IMAGES) % 10)
    order = np.stack([numbers.permutation(IMAGES) for _ in range(3)])
    network = network_of(model)
    for name, array in {"images": images, "labels": labels, "order": order}.items():
        np.save(folder / f"{name}.npy", array)
    np.save(folder / "test_images.npy", images)
    np.save(folder / "test_labels.npy", labels)
    np.savez(folder / "weights.npz", *(p.detach().numpy() for p in network.parameters()))
    job = {"model": model, "batch_rows": BATCH, "lr": 1e-3, "epochs": 3, "device": "cpu", "threads": 1, "seed": 7}
    (folder / "job.json").write_text(json.dumps(job))
    first = order[0][:BATCH]
    logits = network({"pixel_values": torch.from_numpy(images[first])[:, None] / 255}).logits.detach()
    return folder / "job.json", float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[first])))


@pytest.mark.parametrize(
    ("rival", "job"),
    [("DATALOADER", "mlp"), ("INDEXED", "mlp"), ("SKLEARN", "mlp"), ("DATALOADER", "cnn")]
    + [(rival, job) for rival in ("KERAS_TORCH", "KERAS_TENSORFLOW") for job in ("mlp", "cnn")],
)
def test_a_rival_begins_as_groundup_does(vision: ModuleType, tmp_path: Path, rival: str, job: str) -> None:
    chosen = getattr(vision, rival)
    if rival.startswith("KERAS") and not (BENCH.parent / ".venv-keras" / ".done").is_file():
        pytest.skip("Keras has an environment of its own, which `make bench` makes")
    path, expected = written(tmp_path, vision.JOBS[job].model)
    worker = vision.Worker(chosen, path, 1)
    try:
        facts = vision.start(worker, IMAGES // BATCH)
        assert facts["first_loss"] == pytest.approx(expected, rel=1e-4)
        assert facts["parameters"] == sum(p.numel() for p in network_of(vision.JOBS[job].model).parameters())
        answer = worker.ask("steps", count=IMAGES // BATCH)
        assert answer["tokens"] == IMAGES and 0 < answer["losses"][0] < 10 and answer["seconds"] > 0
        assert 0 <= worker.ask("accuracy")["accuracy"] <= 1
    finally:
        worker.close()


def rival(accuracy: float, rate: float, first_loss: float = 2.3) -> dict[str, Any]:
    facts = {"seconds": 1.0, "first_epoch_s": 2.0, "version": "one 1.0, torch 2.13", "first_loss": first_loss}
    facts |= {"parameters": 84_060, "accuracy": accuracy, "images": 10_000}
    return {"images_s": [rate] * 3, "last_loss": 0.01, "peak_bytes": 2**30, "facts": facts}


def test_other_work_is_no_comparison(vision: ModuleType) -> None:
    """At 97.5 % of 10,000 images a standard error of a difference is 0.22 points."""
    facts = {
        "groundup": rival(0.975, 1)["facts"],
        "as good": rival(0.982, 1)["facts"],
        "worse": rival(0.965, 1)["facts"],
        "another": rival(0.975, 1, first_loss=2.4)["facts"],
    }
    found = vision.strayed(facts)
    assert found.keys() == {"worse", "another"}
    assert "-1.00 points" in found["worse"] and "first batch" in found["another"]


def test_the_page_tells_ratios_and_the_share_of_the_loader(vision: ModuleType) -> None:
    import vision_page

    common = {"command": "", "date": "", "machine": "", "threads": 2, "seed": 7, "rounds": 3, "busy": True}
    job = {"name": "mlp", "what": "an MLP", "batch_rows": 32, "lr": 1e-3, "trains": True}
    rivals = {"groundup": rival(0.975, 4000.0), "DataLoader": rival(0.974, 2000.0)}
    text = vision_page.section(common | {"job": job, "strayed": {}, "rivals": rivals})
    assert "2.00 [2.00, 2.00]" in text and "97.40%" in text and "was not idle" in text
    rates = {"training": 100.0, "loader alone": 2000.0, "training, augmented": 50.0, "loader alone, augmented": 500.0}
    rivals = {name: rival(0.0, rate) for name, rate in rates.items()}
    text = vision_page.section(common | {"job": job | {"trains": False}, "strayed": {}, "rivals": rivals})
    shares = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in text.splitlines() if line[:2] == "| "}
    assert shares["loader alone"] == "5.0%" and shares["loader alone, augmented"] == "10.0%"
    assert shares["training"] == "–"
