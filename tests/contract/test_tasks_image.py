"""Classes of images: what training rows settle, what a row may be, and that nothing but its place decides a change."""

from __future__ import annotations

import base64
import io
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import groundup
from groundup import catalog
from groundup.config import dump, named, parse
from groundup.data import images
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.errors import DataError, UserError
from groundup.nn.network import Outputs, create
from groundup.nn.shape import filled
from groundup.runner import run
from groundup.tasks import image_classification
from groundup.tasks.image_classification import Config, Normalise, Task, settle
from groundup.training.regularisers import Embeddings

CHANGED = {
    "augment": {"crop": 1, "flip": 0.5, "randaugment": {}, "erase": {}},
    "mixup": 0.5,
    "cutmix": 1.0,
    "mix_share": 0.8,
}


def picture(i: int, *, height: int = 8, width: int = 6, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(i).integers(0, 256, (height, width, channels), np.uint8)


def rows(count: int = 12, **options: Any) -> list[dict[str, Any]]:
    return [
        {"image": images.to_png(picture(i, **options)), "label": "abc"[i % 3], "text": str(i), "source": f"row {i}"}
        for i in range(count)
    ]


def config(**given: Any) -> Config:
    found, mistakes = parse(Config, given)
    assert found is not None, mistakes
    return found


def task_of(examples: list[dict[str, Any]], **given: Any) -> Task:
    return Task(settle(config(**given), examples))


def split(task: Task, examples: list[dict[str, Any]], *, held_out: bool = False) -> Any:
    return task.rows(Documents(examples, task.encode), 5, held_out=held_out)


def test_training_rows_tell_labels_size_and_pixels() -> None:
    examples = rows()
    found = settle(config(), examples)
    assert (found.labels, found.kind, found.image_size, found.channels) == (("a", "b", "c"), "one", (8, 6), 3)
    pixels = np.stack([picture(i) for i in range(12)]) / 255
    assert found.normalise is not None
    assert found.normalise.means == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)
    assert found.normalise.deviations == pytest.approx(pixels.std((0, 1, 2)), abs=1e-6)
    assert named("tasks", dump(found)) == found, "it travels as plain data"


def test_what_is_given_is_not_measured() -> None:
    examples = rows(channels=1)
    given = {"image_size": 16, "channels": 3, "normalise": {"means": [0.5], "deviations": [0.25]}}
    found = settle(config(**given), examples)
    assert found.normalise == Normalise(means=(0.5,), deviations=(0.25,))
    task = Task(found)
    assert task.shape == (3, 16, 16) and task.known == {"image_size": (16, 16), "channels": 3, "n_features": 768}
    batch = split(task, examples).batch(np.array([0]), np.array([0]))
    whole = batch["pixel_values"] * 0.25 + 0.5
    assert torch.allclose(whole[0, 0], whole[0, 2]), "grey became colour"


def test_many_images_are_measured_by_some_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_classification, "MEASURED", 4 * 8 * 6)
    monkeypatch.setattr(image_classification, "STRIDE", 4)
    found = settle(config(), rows())
    pixels = np.stack([picture(i) for i in (0, 1, 2, 3, *[4] * 4, *[8] * 4)]) / 255
    assert found.normalise is not None
    assert found.normalise.means == pytest.approx(pixels.mean((0, 1, 2)), abs=1e-6)


def test_a_batch_is_shifted_and_scaled() -> None:
    examples = rows(40)
    task = task_of(examples)
    batch = split(task, examples).batch(np.arange(40), np.zeros(40, np.int64))
    values = batch["pixel_values"]
    assert values.shape == (40, 3, 8, 6) and values.dtype == torch.float32 and batch["label"].dtype == torch.int64
    assert values.mean((0, 2, 3)).abs().max() < 1e-4
    assert (values.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    train = split(task, examples)
    assert torch.equal(task.collate([train.row(i, 0) for i in range(40)])["pixel_values"], values)


def test_an_image_may_be_given_in_many_ways(tmp_path: Path) -> None:
    examples = rows()
    task = task_of(examples)
    wanted = task.encode(examples[4])["pixel_values"]
    assert np.array_equal(wanted, picture(4).transpose(2, 0, 1).reshape(-1)), "channel by channel, row by row"
    png = examples[4]["image"]
    path = tmp_path / "four.png"
    path.write_bytes(png)
    encoded = base64.b64encode(png).decode()
    ways = [encoded, f"data:image/png;base64,{encoded}", path, picture(4), picture(4) / 255, picture(4).tolist()]
    ways += [Image.open(path), bytearray(png)]
    for given in ways:
        assert np.array_equal(task.encode({"image": given})["pixel_values"], wanted), type(given)
    assert task.encode({"image": png})["label"] == [IGNORED], "a row that is asked about has no label"
    assert task.local({"image": str(path), "x": 1}) == {"image": path, "x": 1}


def test_an_image_of_another_size_and_kind_is_brought_to_the_models() -> None:
    task = task_of(rows())
    grey = io.BytesIO()
    Image.new("L", (60, 40), 255).save(grey, "JPEG")
    white = task.encode({"image": grey.getvalue()})["pixel_values"]
    assert white.size == 3 * 8 * 6 and (white >= 250).all()
    padded = task_of(rows(), fit="pad").encode({"image": grey.getvalue()})["pixel_values"].reshape(3, 8, 6)
    assert (padded[:, 0] == 0).all() and (padded[:, 4] >= 250).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"image": "/etc/hostname"}, "no image in base 64"),
        ({"image": None}, "no image"),
        ({"image": b""}, "empty file"),
        ({"image": b"\xff\xd8\xffbroken"}, "JPEG"),
        ({"image": np.zeros((3, 4, 2))}, r"shape \(3, 4, 2\)"),
        ({"image": np.full((3, 4), 300)}, "other numbers than pixels"),
        ({"image": [[0.5, float("nan")]]}, "other numbers than pixels"),
        ({"image": [[1, 2], [3]]}, "rows of different lengths"),
        ({"image": Path("nowhere.png")}, "cannot be read"),
        ({"picture": b""}, "no column 'image'"),
    ],
)
def test_what_is_no_image_is_refused_by_the_name_of_its_row(given: dict[str, Any], said: str) -> None:
    task = task_of(rows())
    with pytest.raises(DataError, match=said) as raised:
        task.encode(given | {"source": "photos.csv:7"})
    assert str(raised.value).startswith("photos.csv:7: ")
    assert raised.value.fix


def test_labels_and_channels_that_do_not_fit_are_named() -> None:
    task = task_of(rows())
    with pytest.raises(DataError, match="'z' is not among"):
        task.encode(rows(1)[0] | {"label": "z"})
    with pytest.raises(DataError, match="3 means of channels, and the images have 1 channels"):
        settle(config(normalise={"means": [0, 0, 0], "deviations": [1, 1, 1]}), rows(channels=1))
    with pytest.raises(DataError, match="row 0: no column 'picture'"):
        settle(config(image="picture"), rows())
    for wrong in ({"mix_share": 0.5}, {"normalise": {"means": [0, 1], "deviations": [1]}}, {"mixup": 0}):
        assert parse(Config, wrong)[0] is None


def test_training_rows_change_by_their_place_alone() -> None:
    examples = rows(23)
    task = task_of(examples, **CHANGED)
    train = split(task, examples)

    def made(micro_batches: int, workers: int) -> dict[str, Tensor]:
        loader = Loader(split(task, examples), task.collate, 5, 8, micro_batches, workers=workers)
        parts = [loader.micro_batch(step, m)[0] for step in range(6) for m in range(micro_batches)]
        loader.close()
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    whole = made(1, 0)
    assert set(whole) == {"pixel_values", "label", "other_label", "share"}
    assert 0 < int((whole["share"] < 1).sum()) < len(whole["share"])
    for micro_batches, workers in ((1, 1), (1, 2), (3, 0), (8, 2)):
        again = made(micro_batches, workers)
        assert all(torch.equal(again[key], whole[key]) for key in whole), (micro_batches, workers)
    indices, epochs = np.array([3, 3, 20]), np.array([0, 1, 0])
    batch = train.batch(indices, epochs)
    one_by_one = task.collate([train.row(int(i), int(e)) for i, e in zip(indices, epochs, strict=True)])
    assert all(torch.equal(batch[key], one_by_one[key]) for key in batch)
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1]), "another epoch draws anew"


def test_held_out_rows_are_never_changed() -> None:
    examples = rows()
    task, plain = task_of(examples, **CHANGED), task_of(examples)
    held_out = split(task, examples, held_out=True).batch(np.arange(12), np.arange(12))
    wanted = split(plain, examples).batch(np.arange(12), np.zeros(12, np.int64))
    assert held_out.keys() == wanted.keys() == {"pixel_values", "label"}
    assert all(torch.equal(held_out[key], wanted[key]) for key in wanted)


def test_rows_without_a_label_are_mixed_with_none() -> None:
    examples = [row | ({"label": None} if i % 2 else {}) for i, row in enumerate(rows(40))]
    task = task_of(examples, mixup=1.0)
    batch = split(task, examples).batch(np.arange(40), np.zeros(40, np.int64))
    unlabelled = batch["label"] == IGNORED
    assert (batch["share"][unlabelled] == 1).all()
    mixed = batch["share"] < 1
    assert mixed.any() and (batch["other_label"][mixed] != IGNORED).all()
    assert task.counts(batch) == {"loss": 20}


def said(logits: Tensor) -> Outputs:
    """What a network gives whose scores are these."""
    head: Any = nn.Identity()
    return Outputs(hidden=logits, head=head)


def soft(labels: Tensor, others: Tensor, share: Tensor) -> Tensor:
    one, two = F.one_hot(labels, 3).float(), F.one_hot(others, 3).float()
    return share[:, None] * one + (1 - share[:, None]) * two


def test_the_loss_of_mixed_images_takes_both_labels_by_their_shares() -> None:
    logits, share = torch.randn(6, 3), torch.rand(6)
    labels, others = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([2, 1, 0, 1, 1, 0])
    batch = {"label": labels, "other_label": others, "share": share}
    examples = rows()
    for smoothing in (0.0, 0.1):
        total, count = task_of(examples, label_smoothing=smoothing).loss(said(logits), batch)["loss"]
        wanted = F.cross_entropy(logits, soft(labels, others, share), reduction="sum", label_smoothing=smoothing)
        assert float(total) == pytest.approx(float(wanted), rel=1e-5) and int(count) == 6
    for loss in ("hinge", "squared_error"):
        task = task_of(examples, loss=loss)
        total, count = task.loss(said(logits), batch)["loss"]
        alone = [task.loss(said(logits[i : i + 1]), {"label": one[i : i + 1]})["loss"][0] * part
                 for i in range(6) for one, part in ((labels, share[i]), (others, 1 - share[i]))]  # fmt: skip
        assert float(total) == pytest.approx(float(sum(alone)), rel=1e-5) and int(count) == 6


def test_several_labels_and_numbers_are_learned_too() -> None:
    several = [row | {"label": ["a", "b"][: i % 3]} for i, row in enumerate(rows())]
    task = task_of(several, mixup=0.4)
    assert task.evaluation == "multilabel" and task.labels == ["a", "b"]
    batch = split(task, several).batch(np.arange(12), np.zeros(12, np.int64))
    assert batch["label"].shape == batch["other_label"].shape == (12, 2)
    total, count = task.loss(said(torch.zeros(12, 2)), batch)["loss"]
    assert float(total) == pytest.approx(24 * np.log(2), rel=1e-5) and int(count) == 24
    numbers = [row | {"label": i / 2} for i, row in enumerate(rows())]
    task = task_of(numbers, kind="number", mixup=0.4)
    batch = split(task, numbers).batch(np.arange(12), np.zeros(12, np.int64))
    assert batch["label"].dtype == batch["other_label"].dtype == torch.float32
    assert task.loss(said(torch.zeros(12, 1)), batch)["loss"][1] == 12
    assert task.answers(said(torch.full((1, 1), 2.5)), {}) == [{"number": 2.5}]


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_a_model_takes_its_sizes_from_the_images(model: str) -> None:
    examples = rows(height=10, width=12)
    task = task_of(examples)
    file = catalog.load("models", model)
    section = filled(file.Config(filters=(3, 4)) if model == "cnn" else file.Config(widths=(5,)), task.known)
    network = create(file, section, task.head, outputs=task.outputs, seed=1).eval()
    batch = split(task, examples, held_out=True).batch(np.arange(12), np.zeros(12, np.int64))
    with torch.no_grad():
        outputs = network(batch)
    answers = task.answers(outputs, batch)
    assert len(answers) == 12 and set(answers[0]) == {"label", "probabilities"}
    assert task.answer(answers[:1], examples[0]).answer in "abc"
    assert task.truth(examples[1]) == "b"
    assert set(task.scores(outputs, batch)) == {"nats", "labels", "right"}


def test_what_moves_embeddings_is_refused_where_there_are_none() -> None:
    task = task_of(rows(height=10, width=12))
    file = catalog.load("models", "cnn")
    network = create(file, filled(file.Config(filters=(3,)), task.known), task.head, outputs=task.outputs, seed=1)
    with pytest.raises(UserError, match="this one reads none"):
        Embeddings(network)


def test_rivals_read_at_most_a_thousand_numbers() -> None:
    small = task_of(rows())
    assert np.allclose(small.vector(rows()[2]), (picture(2) / 255).reshape(-1), atol=1e-6)
    large = rows(6, height=50, width=41)
    vector = task_of(large).vector(large[0])
    assert vector.dtype == np.float32 and vector.shape == (17 * 14 * 3,)
    first = picture(0, height=50, width=41)[:3, :3].mean((0, 1)) / 255
    last = picture(0, height=50, width=41)[48:, 39:].mean((0, 1)) / 255
    assert np.allclose(vector[:3], first, atol=1e-6) and np.allclose(vector[-3:], last, atol=1e-6)


def test_a_recipe_leads_to_a_model_that_answers(tmp_path: Path) -> None:
    lines = [",".join(map(str, [i % 2, *picture(i, height=8, width=8, channels=1).reshape(-1)])) for i in range(60)]
    (tmp_path / "pixels.csv").write_text("\n".join(lines), encoding="utf-8")
    section = {"data": "drawn", "task": "image_classification", "steps": 4, "batch_rows": 8}
    model = {"name": "cnn", "filters": [3], "dense": []}
    stages = {
        "drawn": {"prepare": {"source": {"kind": "pixels", "paths": "pixels.csv"}, "split": {"validation": "20%"}}},
        "told": {"train": section | {"model": model, "precision": "fp32"}},
    }
    recipe = {"groundup": 1, "name": "drawings", "stages": stages}
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    folder = run(tmp_path / "recipe.yaml")["told"].path
    assert (folder / "preprocessor_config.json").is_file() and not (folder / "tokenizer.json").exists()
    told = groundup.load(folder)
    array = picture(3, height=8, width=8, channels=1)
    (tmp_path / "three.png").write_bytes(images.to_png(array))
    ways = [array, images.to_png(array), tmp_path / "three.png", "three.png", {"image": array.tolist()}]
    answers = [*told.predict(ways), *told.predict(np.stack([array, array]))]
    assert len(answers) == 7 and answers[0]["probabilities"].keys() == {"0", "1"}
    for answer in answers:
        assert answer["probabilities"] == pytest.approx(answers[0]["probabilities"], abs=1e-6)
    with pytest.raises(UserError, match="a list of rows"):
        told.predict(images.to_png(array))
    with pytest.raises(UserError, match="reads no texts"):
        told.generate("once")


def test_a_task_shows_what_it_sees(tmp_path: Path) -> None:
    examples = rows()
    task = task_of(examples)
    assert np.array_equal(images.decode(task.picture(examples[3])), picture(3))
    assert task.shown(examples[3]) == "row 3"
    half = np.zeros((16, 16, 1), np.uint8)
    half[:, 8:] = 255
    drawn = task.render({"pixel_values": half.transpose(2, 0, 1), "label": np.array(1)})
    assert drawn.splitlines() == [" " * 8 + "█" * 8] * 8 + ["[cyan]label: b[/]"]
    again = pickle.loads(pickle.dumps(task))
    assert np.array_equal(again.encode(examples[0])["pixel_values"], task.encode(examples[0])["pixel_values"])
    task.save(tmp_path, None)  # type: ignore[arg-type]
    described = json.loads((tmp_path / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert described["size"] == {"height": 8, "width": 6}
    assert described["image_mean"] == list(task.config.normalise.means)
