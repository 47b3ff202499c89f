"""Vision Transformers from transformers and back: the same weights and pixels give the same scores."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.errors import UserError
from groundup.nn.attention import Bidirectional
from groundup.nn.network import create

SIZES = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6, "image_size": 16,
    "patch_size": 4, "num_labels": 7,
}  # fmt: skip


def pixels(channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(4, channels, height, width, generator=torch.Generator().manual_seed(1))


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False, "hidden_act": "gelu_pytorch_tanh"},
        {"num_channels": 1, "layer_norm_eps": 1e-6, "hidden_act": "relu"},
    ],
)
def test_scores_are_those_of_transformers_in_both_directions(changes: dict[str, object], tmp_path: Path) -> None:
    theirs = randomised(transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES | changes)))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = hugging_face.load(tmp_path / "theirs")
    given = pixels(int(changes.get("num_channels", 3)))  # type: ignore[call-overload]
    torch.testing.assert_close(ours({"pixel_values": given}).logits, theirs(given).logits, atol=1e-5, rtol=0)
    hugging_face.save(tmp_path / "ours", ours)
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "ours").eval()
    torch.testing.assert_close(again(given).logits, theirs(given).logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_backbone_alone_opens_with_its_pooler_left_out(tmp_path: Path) -> None:
    theirs = randomised(transformers.ViTModel(transformers.ViTConfig(**SIZES)))
    theirs.save_pretrained(tmp_path)
    ours = hugging_face.load(tmp_path, "image", outputs=5)
    torch.testing.assert_close(
        ours({"pixel_values": pixels()}).hidden, theirs(pixels()).last_hidden_state, atol=1e-5, rtol=0
    )
    assert hugging_face.inspect(tmp_path).head_kind == "embedding"


@torch.no_grad()
def test_whoever_watches_attention_changes_nothing() -> None:
    """A report may hand in its own attention to see who looks at what."""
    vit = catalog.load("models", "vit")
    network = create(vit, vit.Config(**vit.TINY), "image", outputs=3, seed=1).eval()
    seen = []

    class Watching(Bidirectional):
        def __call__(self, q, k, v, layer, *, dropout=0.0):  # type: ignore[no-untyped-def]
            seen.append((layer, tuple(q.shape)))
            return super().__call__(q, k, v, layer, dropout=dropout)

    images = pixels(3, 12, 12)
    assert torch.equal(network.backbone(images, Watching()), network.backbone(images))
    assert seen == [(0, (4, 10, 4, 8)), (1, (4, 10, 4, 8))]


def test_patches_and_images_that_do_not_fit_are_explained() -> None:
    vit = catalog.load("models", "vit")
    with pytest.raises(ValueError, match="do not hold whole patches of"):
        vit.Config(**vit.TINY | {"patch_size": 5})
    network = create(vit, vit.Config(**vit.TINY), "image", outputs=3, seed=1)
    with pytest.raises(UserError, match="the images are 16 x 16 pixels, and the model was made for 12 x 12"):
        network({"pixel_values": pixels()})
    with pytest.raises(UserError, match="the images have 1 channels, and the model reads 3"):
        network({"pixel_values": pixels(1)})
