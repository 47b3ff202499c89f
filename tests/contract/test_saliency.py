"""What a network looks at: exact where the answer is known, complete where it is not, and put to the test."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from groundup import catalog
from groundup.data.vectors import Vectors
from groundup.errors import UserError
from groundup.evaluation import labelled_pictures, looking, saliency
from groundup.evaluation.saliency import Reading
from groundup.nn.network import Network, create

CLASSES = 10


def network(family: str, *, seed: int = 3, **changes: Any) -> Network:
    """A network of a family at its test sizes, its weights large enough for scores that differ."""
    model: Any = catalog.load("models", family)
    drawn = {"initialiser": "xavier"} if family == "vit" else {}
    config = model.Config(**model.TINY | drawn | changes)
    made = create(model, config, "features" if family == "mlp" else "image", outputs=CLASSES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return made.eval()


def inputs(of: Network, count: int = 5) -> dict[str, Tensor]:
    config: Any = of.config
    if hasattr(config, "n_features"):
        return {"features": torch.randn(count, config.n_features), "label": torch.zeros(count, dtype=torch.int64)}
    return {"pixel_values": torch.randn(count, *config.image_shape), "label": torch.zeros(count, dtype=torch.int64)}


def test_all_is_exact_where_the_score_is_linear() -> None:
    linear = network("mlp", n_features=7, widths=(), batch_norm=False)
    batch, baseline = inputs(linear), torch.randn(1, 7)
    asked = torch.tensor([0, 3, 9, 3, 1])
    reading = saliency.read(linear, batch, asked)
    weights = linear.head.weight.detach()[asked]
    torch.testing.assert_close(saliency.gradient_times_input(reading), weights * batch["features"])
    wanted = weights * (batch["features"] - baseline)
    torch.testing.assert_close(saliency.gradient_times_input(reading, baseline), wanted)
    torch.testing.assert_close(saliency.integrated_gradients(reading, baseline, steps=2), wanted)
    scores = linear(batch).logits.detach()
    assert torch.equal(saliency.read(linear, batch).classes, scores.argmax(1))


def test_integrated_gradients_see_behind_a_saturated_unit() -> None:
    """Sundararajan et al. 2017, §2.1: for 1 - relu(1 - x) the slope at 2 is nothing, though x brought the score up."""
    made = network("mlp", n_features=1, widths=(1,), activation="relu", batch_norm=False)
    values = {"mlp.layers.0.linear.weight": -1.0, "mlp.layers.0.linear.bias": 1.0}
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            parameter.fill_(values.get(name, 0.0))
        made.get_parameter("classifier.weight")[4] = -1.0
        made.get_parameter("classifier.bias")[4] = 1.0
    reading = saliency.read(made, {"features": torch.tensor([[2.0]])})
    assert reading.classes.tolist() == [4]
    assert saliency.gradient_times_input(reading).item() == 0
    assert saliency.integrated_gradients(reading, torch.zeros(1, 1)).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("family", ["mlp", "cnn", "resnet", "vit"])
def test_integrated_gradients_add_up(family: str) -> None:
    made = network(family)
    reading = saliency.read(made, inputs(made))
    baseline = torch.full((1,) * reading.inputs.dim(), 0.1)
    found, gap = saliency.complete(reading, baseline)
    assert found.shape == reading.inputs.shape
    with torch.no_grad():
        difference = reading.scores(reading.inputs) - reading.scores(baseline.expand_as(reading.inputs))
    assert difference.abs().max() > 0.3, "scores that hardly differ would prove nothing"
    torch.testing.assert_close(found.flatten(1).sum(1), difference, rtol=0.01, atol=0.001)
    assert gap.max() <= 0.01


@pytest.mark.parametrize("training", [True, False])
def test_looking_changes_nothing(training: bool) -> None:
    made = network("cnn").train(training)
    made.cnn.dense[0].eval()
    batch = inputs(made)
    made(batch).logits.sum().backward()
    held = {name: value.clone() for name, value in made.state_dict().items()}
    grads = {name: parameter.grad.clone() for name, parameter in made.named_parameters()}
    modes = [module.training for module in made.modules()]
    with torch.inference_mode():
        first = saliency.complete(saliency.read(made, batch), torch.zeros(1, 1, 1, 1))[0]
    second = saliency.complete(saliency.read(made, batch), torch.zeros(1, 1, 1, 1))[0]
    assert torch.equal(first, second), "what surrounds the question changes no answer"
    assert modes == [module.training for module in made.modules()]
    assert all(torch.equal(held[name], value) for name, value in made.state_dict().items())
    assert all(torch.equal(grads[name], parameter.grad) for name, parameter in made.named_parameters())
    assert batch["pixel_values"].grad is None and not batch["pixel_values"].requires_grad


def test_what_is_no_array_is_refused() -> None:
    made = network("mlp")
    with pytest.raises(UserError, match="no single array of numbers"):
        saliency.read(made, {"input_ids": torch.zeros(2, 3, dtype=torch.int64)})
    assert saliency.key_of(made, {"features": torch.zeros(1, 2), "input_ids": torch.zeros(1, 2)}) is None
    assert saliency.key_of(made, {"features": torch.zeros(1, 2), "attention_mask": torch.ones(1, 2)}) == "features"


def test_rollout_is_the_product_of_what_layers_pass_on() -> None:
    draw = np.random.default_rng(0)
    shares = [draw.dirichlet(np.ones(3), 3) for _ in range(2)]
    by_hand = (0.5 * shares[1] + 0.5 * np.eye(3)) @ (0.5 * shares[0] + 0.5 * np.eye(3))
    found = saliency.rolled_out([torch.from_numpy(share)[None] for share in shares])
    np.testing.assert_allclose(found[0], by_hand, rtol=1e-6)
    made = network("vit")
    batch = inputs(made)
    watched = saliency.Watched()
    with torch.no_grad():
        hidden = made.backbone(batch["pixel_values"], watched)
        torch.testing.assert_close(hidden, made(batch).hidden)
    rollout = saliency.attention_rollout(saliency.read(made, batch))
    assert rollout is not None and rollout.shape == (5, 12, 12)
    assert (rollout > 0).all() and (rollout[:, ::4, ::4].sum((1, 2)) < 1).all()
    assert torch.equal(rollout[:, 0, 0], rollout[:, 3, 3]), "the pixels of a patch are alike"
    kept = saliency.rolled_out(watched.shares)[:, 0]
    torch.testing.assert_close(rollout[:, ::4, ::4].sum((1, 2)) + kept[:, 0], torch.ones(5))
    other = network("cnn")
    assert saliency.attention_rollout(saliency.read(other, inputs(other))) is None


def test_a_tenth_is_taken_away_of_what_is_real() -> None:
    values = torch.arange(60.0).reshape(2, 30)
    real = torch.ones(2, 30, dtype=torch.bool)
    real[1, 12:] = False
    gone = looking.most(values, real)
    assert gone[0].nonzero()[:, 0].tolist() == [27, 28, 29] and gone[1].nonzero()[:, 0].tolist() == [11]
    pixels = Reading(network("cnn"), {"pixel_values": torch.ones(1, 3, 2, 2)}, "pixel_values", torch.zeros(1))
    left = looking.without(
        pixels, torch.tensor([[True, False, False, True]]), torch.tensor([5.0, 6, 7]).view(1, 3, 1, 1)
    )
    assert left[0, :, 0, 0].tolist() == [5, 6, 7] == left[0, :, 1, 1].tolist() and (left[0, :, 0, 1] == 1).all()
    frames = {"features": torch.zeros(2, 4, 3), "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])}
    reading = Reading(network("mlp"), frames, "features", torch.zeros(2, dtype=torch.int64))
    assert reading.real.sum((1, 2)).tolist() == [12, 6]
    frames["features"][0] += 3
    frames["features"][1, 2:] += 100
    assert looking.mean_of(iter([frames]), "features").flatten().tolist() == [2, 2, 2], "padding has no say"


class Digits:
    """Handwritten digits of 8x8 pixels, as a task gives them."""

    tokenizer = None
    evaluation = "classes"
    outputs = CLASSES
    labels = tuple(str(digit) for digit in range(CLASSES))

    def encode(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": example["pixels"].astype(np.uint8).ravel(), "label": [int(example["label"])]}

    def rows(self, shards: Any, seed: int, *, held_out: bool = False) -> Vectors:
        shapes = {"pixel_values": (1, 8, 8)}
        return Vectors(shards, shapes=shapes, labels="label", values=("label",), tensors=self.tensors)

    def tensors(self, arrays: Mapping[str, Any]) -> dict[str, Tensor]:
        pixels = torch.from_numpy(np.array(arrays["pixel_values"])).float().sub(5).div(6)
        return {"pixel_values": pixels, "label": torch.from_numpy(np.array(arrays["label"]))}

    def picture(self, example: Mapping[str, Any]) -> bytes:
        out = io.BytesIO()
        Image.fromarray((example["pixels"] * 15.9).astype(np.uint8)).save(out, "PNG")
        return out.getvalue()


def digits() -> list[dict[str, Any]]:
    found = load_digits()
    pairs = zip(found.images, found.target, strict=True)
    return [
        {"id": i, "source": f"digits:{i}", "pixels": image, "label": label} for i, (image, label) in enumerate(pairs)
    ]


@pytest.fixture(scope="module")
def trained() -> Network:
    """A small network that has really learned the first 1,300 digits."""
    torch.manual_seed(0)
    made = network("cnn", image_size=8, channels=1, filters=(12,), padding="same", dense=(32,), batch_norm=False)
    made.train()
    (batch,) = looking.batches(Digits(), digits()[:1300], 1300)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for step in range(300):
        rows = torch.randint(0, 1300, (64,), generator=torch.Generator().manual_seed(step))
        loss = torch.nn.functional.cross_entropy(
            made({"pixel_values": batch["pixel_values"][rows]}).logits, batch["label"][rows]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return made.eval()


def test_what_a_trained_network_looks_at_matters_to_it(trained: Network) -> None:
    rows, task = digits(), Digits()
    test = rows[1300:]
    (batch,) = looking.batches(task, test, len(test))
    with torch.no_grad():
        assert (trained(batch).logits.argmax(1) == batch["label"]).float().mean() > 0.85
    found = looking.look(task, trained, test, rows[:1300], shown=[0, 7], seed=1, resamples=200)
    assert found is not None and list(found.shown) == [0, 7]
    data = found.data
    assert data["examples"] == 200 and data["removed"] == 6 and data["of"] == 64 and data["places"] == "pixels"
    assert data["missing"]["most"] <= 0.01
    for method in data["methods"]:
        assert method["score"]["more"]["low"] > 0, method["name"]
        assert method["score"]["salient"]["estimate"] > 2 * method["score"]["random"]["estimate"] > 0
        assert labelled_pictures.state(method) == "better"
        assert "do not believe" not in labelled_pictures.verdict(data, method)
    again = looking.look(task, trained, test, rows[:1300], shown=[], seed=1, resamples=200)
    assert again is not None and again.data == data, "the same question has the same answer"
    seen = found.shown[7]
    assert seen.values.shape == (1, 8, 8) and all(each.shape == (8, 8) for each in seen.salience.values())


def test_random_marks_are_not_believed(trained: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saliency that is noise, and one that points at what matters least, are told as what they are."""
    rows, task = digits(), Digits()
    real = looking.salience

    def spoiled(reading: Reading, baseline: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        found, gap = real(reading, baseline)
        values = found[looking.INTEGRATED]
        return {"noise": torch.rand(values.shape), "the reverse": -values}, gap

    monkeypatch.setattr(looking, "salience", spoiled)
    found = looking.look(task, trained, rows[1300:], [], shown=[], seed=1, resamples=200)
    assert found is not None
    noise, reverse = found.data["methods"]
    assert labelled_pictures.state(noise) == "" and "no clear difference" in labelled_pictures.verdict(
        found.data, noise
    )
    assert labelled_pictures.state(reverse) == "worse" and "LESS" in labelled_pictures.verdict(found.data, reverse)
    assert "test rows" in found.data["replaced_by"]


def test_tasks_without_arrays_or_classes_are_left_alone(trained: Network) -> None:
    options: dict[str, Any] = {"shown": [], "seed": 1, "resamples": 100}
    task = Digits()
    task.evaluation = "number"
    assert looking.look(task, trained, digits()[:3], [], **options) is None
    task = Digits()
    task.outputs = 1
    assert looking.look(task, trained, digits()[:3], [], **options) is None
