"""The networks for spoken words: the counts of their paper, and the sum of their parts written out by torch.nn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from groundup.errors import UserError
from groundup.models import speech_resnet
from groundup.models.speech_resnet import Config
from groundup.nn import batch_norm
from groundup.nn.network import Network, create
from groundup.nn.shape import filled

SECOND = {"frames": 101, "bands": 40}
"""A second as the paper hears it: 101 frames of 40 numbers, 12 classes."""


def network(outputs: int = 12, **options: object) -> Network:
    return create(speech_resnet, Config(**SECOND | options), "features", outputs=outputs, seed=3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "published"),
    [
        ({"size": 8}, 110_000),
        ({"size": 8, "width": 19}, 19_900),
        ({"size": 15}, 238_000),
        ({"size": 15, "width": 19}, 42_600),
        ({"size": 26}, 438_000),
        ({"size": 26, "width": 19}, 78_400),
    ],
)
def test_parameters_are_those_of_the_paper(options: dict[str, object], published: int) -> None:
    """Tang & Lin 2018, table 4, rounded there to three digits; it leaves the twelve biases of the classes out."""
    count = sum(p.numel() for p in network(**options).parameters())
    assert count == speech_resnet.parameters(Config(**SECOND | options), 12)  # type: ignore[arg-type]
    assert count - 12 == pytest.approx(published, rel=0.004)


def written_out(network: Network, frames_BTM: Tensor, pool: tuple[int, int]) -> Tensor:
    """res8 layer by layer, from torch.nn: (B,K) scores."""
    backbone = network.backbone
    first = nn.Conv2d(1, 45, 3, padding=1, bias=False)
    first.weight = backbone.first.weight  # type: ignore[attr-defined]
    x = nn.AvgPool2d(pool)(nn.ReLU()(first(frames_BTM.unsqueeze(1))))
    convolutions, norms = list(backbone.layers), list(backbone.norms)  # type: ignore[attr-defined]
    residual = x
    for block in range(3):
        own, other = 2 * block, 2 * block + 1
        inner = nn.ReLU()(F.conv2d(x, convolutions[own].weight, padding=1))
        inner = F.batch_norm(inner, norms[own].running_mean, norms[own].running_var)
        residual = residual + nn.ReLU()(F.conv2d(inner, convolutions[other].weight, padding=1))
        x = F.batch_norm(residual, norms[other].running_mean, norms[other].running_var)
    return F.linear(nn.AdaptiveAvgPool2d(1)(x).flatten(1), network.head.weight, network.head.bias)


@torch.no_grad()
def test_res8_is_the_sum_of_its_parts() -> None:
    made = network(size=8).eval()
    for name, tensor in batch_norm.averages(made).items():
        tensor.copy_(torch.rand(tensor.shape) + (0.5 if name.endswith("var") else -0.5))
    frames = torch.randn(3, 101, 40)
    torch.testing.assert_close(made({"features": frames}).logits, written_out(made, frames, (4, 3)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_res15_sees_125_frames_and_bands_and_no_more() -> None:
    """The receptive field that the paper states (§3.2), found by which inputs move the middle of the last map."""
    made = create(speech_resnet, Config(frames=161, bands=161, size=15, width=2), "features", outputs=2, seed=0).eval()
    backbone = made.backbone
    for layer in (backbone.first, *backbone.layers):  # type: ignore[attr-defined]
        layer.weight.abs_()
    with torch.enable_grad():
        frames = torch.ones(1, 161, 161, requires_grad=True)
        backbone.maps(frames)[0, :, 80, 80].sum().backward()  # type: ignore[attr-defined]
    rows = frames.grad[0].abs().sum(1).nonzero().flatten()  # type: ignore[index]
    assert (int(rows.min()), int(rows.max())) == (80 - 62, 80 + 62)


def test_sizes_come_from_the_data_and_others_are_refused() -> None:
    known = {"frames": 21, "bands": 12, "rate": 8000, "n_features": 252}
    section = filled(Config(width=4), known)
    assert section.shape == (21, 12)
    made = create(speech_resnet, section, "features", outputs=2, seed=0)
    with pytest.raises(UserError, match=r"\[21, 11\] numbers, and the model reads \[21, 12\]"):
        made({"features": torch.zeros(1, 21, 11)})
    with pytest.raises(UserError, match="does not know how many frames"):
        create(speech_resnet, Config(), "features", outputs=2, seed=0)
    with pytest.raises(ValueError, match="fewer than the pool"):
        Config(frames=3, bands=40)
