"""Dense layers beside a reconstruction from torch.nn, batch norm in training and evaluation, and the class losses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.metrics import hinge_loss
from torch import nn
from torch.nn import functional as F

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.errors import UserError
from groundup.nn import batch_norm
from groundup.nn.losses import FOR_CLASSES
from groundup.nn.network import Network, create
from groundup.training.average import Average

mlp = catalog.load("models", "mlp")
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def network(outputs: int = 3, **changes: object) -> Network:
    return create(mlp, mlp.Config(**{"n_features": 6, "widths": (8, 5)} | changes), "features", outputs=outputs, seed=1)


def features(rows: int = 7, width: int = 6) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(2))


def same_from_torch(activation: str, is_normed: bool) -> nn.Sequential:
    """The network as torch.nn's own modules, in the order of our weights."""
    parts: list[nn.Module] = []
    for inputs, width in ((6, 8), (8, 5)):
        parts.append(nn.Linear(inputs, width, bias=not is_normed))
        parts += [nn.BatchNorm1d(width)] if is_normed else []
        parts.append(ACTIVATIONS[activation]())
    return nn.Sequential(*parts, nn.Linear(5, 3))


@pytest.mark.parametrize("is_normed", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores_gradients_and_running_means_are_those_of_torch(activation: str, is_normed: bool) -> None:
    ours, theirs = network(activation=activation, batch_norm=is_normed), same_from_torch(activation, is_normed)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    for is_training in (True, False):
        ours.train(is_training), theirs.train(is_training)
        found, expected = ours({"features": features()}).logits, theirs(features())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        found.square().sum().backward(), expected.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-5)
    for one, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_images_are_read_as_rows_of_their_pixels() -> None:
    images = torch.randn(4, 2, 3, 1, generator=torch.Generator().manual_seed(3))
    ours = network().eval()
    assert torch.equal(ours({"pixel_values": images}).logits, ours({"features": images.flatten(1)}).logits)
    with pytest.raises(UserError, match="an example has 5 numbers, and the model reads 6"):
        ours({"features": features(width=5)})
    with pytest.raises(UserError, match="does not know how many numbers an example has"):
        create(mlp, mlp.Config(), "features", outputs=2, seed=0)


def test_the_well_known_network_of_digits_has_84060_weights() -> None:
    """784·100 + 100 + 100·50 + 50 + 50·10 + 10."""
    assert mlp.parameters(mlp.Config(n_features=784, widths=(100, 50)), 10) == 84_060


def test_xor_is_learnt_by_one_hidden_layer_and_by_none_not() -> None:
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([0, 1, 1, 0])
    found = {}
    for widths in ((50,), ()):
        config = mlp.Config(n_features=2, widths=widths, activation="tanh")
        ours = create(mlp, config, "features", outputs=1, seed=1)
        optimizer = torch.optim.Adam(ours.parameters(), lr=0.05)
        for _ in range(120):
            optimizer.zero_grad()
            total, count = FOR_CLASSES["squared_error"](ours({"features": corners}).logits, labels)
            (total / count).backward()
            optimizer.step()
        found[widths] = (total / count).item()
    assert found[(50,)] < 0.01
    assert found[()] == pytest.approx(0.25, abs=0.01)  # the best line there is says one half everywhere


def test_batch_norm_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    ours = network(batch_norm=True).train()
    for seed in range(3):
        ours({"features": torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))})
    hugging_face.save(tmp_path, ours)
    again = hugging_face.load(tmp_path)
    assert [buffer.item() for name, buffer in again.named_buffers() if name.endswith(batch_norm.COUNT)] == [3, 3]
    assert torch.equal(again({"features": features()}).logits, ours.eval()({"features": features()}).logits)


def test_an_answer_in_evaluation_depends_on_no_neighbour() -> None:
    ours = network(batch_norm=True).train()
    ours({"features": features()})
    ours.eval()
    alone = torch.cat([ours({"features": row[None]}).logits for row in features()])
    torch.testing.assert_close(alone, ours({"features": features()}).logits, atol=1e-6, rtol=0)


def test_looking_at_a_network_teaches_batch_norm_nothing() -> None:
    ours = network(batch_norm=True).train()
    ours({"features": features()})
    before = [buffer.clone() for buffer in ours.buffers()]
    with batch_norm.frozen(ours):
        ours({"features": features(1)})  # a single row has no variance
    assert all(layer.training for layer in batch_norm.layers(ours))
    with batch_norm.kept(ours):
        ours({"features": features(3)})
    assert all(torch.equal(one, other) for one, other in zip(ours.buffers(), before, strict=True))
    assert batch_norm.note(32, 32) is None
    assert "micro-batch of 8 examples" in str(batch_norm.note(32, 8))


def test_running_means_are_averaged_with_the_weights() -> None:
    ours = network(batch_norm=True).train()
    average = Average(ours, decay=0.5)
    ours({"features": features()})
    current = {name: value.clone() for name, value in batch_norm.averages(ours).items()}
    average.move(step=1000)
    average.swap()
    for name, value in batch_norm.averages(ours).items():
        begun = torch.ones_like(value) if name.endswith("var") else torch.zeros_like(value)
        torch.testing.assert_close(value, (begun + current[name]) / 2)


def test_hinge_loss_is_that_of_scikit_learn() -> None:
    scores, labels = features(9, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, -100])
    total, count = FOR_CLASSES["hinge"](scores, labels)
    assert count == 8
    assert (total / count).item() == pytest.approx(hinge_loss(labels[:8], scores[:8].numpy(), labels=[0, 1, 2, 3]))
    binary = torch.tensor([0, 1, 1, 0, 1, 0, 1, -100, 0])
    total, count = FOR_CLASSES["hinge"](scores[:, :1], binary)
    kept = binary != -100
    assert (total / count).item() == pytest.approx(hinge_loss(binary[kept], scores[kept, 0].numpy()))


def test_squared_error_of_classes_is_that_of_torch() -> None:
    scores, labels = features(9, 4), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, -100])
    total, count = FOR_CLASSES["squared_error"](scores, labels)
    expected = nn.MSELoss()(scores[:8], F.one_hot(labels[:8], 4).float())
    torch.testing.assert_close(total / count, expected)
