"""Tables beside scikit-learn: the same features; and the deep path without a hidden layer beside formulas in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.metrics import hinge_loss
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from groundup import catalog
from groundup.data.sample import Documents
from groundup.nn.network import Network, create

tabular, mlp = catalog.load("tasks", "tabular"), catalog.load("models", "mlp")


def rows_of(values: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """Numbers as a CSV file gives them: as text, by the names of their columns."""
    return [
        {"text": "", "id": i, "source": f"table.csv:{i + 2}", "label": str(label)}
        | {f"x{k}": repr(float(value)) for k, value in enumerate(row)}
        for i, (row, label) in enumerate(zip(values, labels, strict=True))
    ]


def cancer(count: int = 200) -> tuple[list[dict[str, Any]], np.ndarray, np.ndarray]:
    found = load_breast_cancer()
    values, labels = found.data[:count], found.target[:count]
    return rows_of(values, labels), values, labels


def made(rows: list[dict[str, Any]], **section: Any) -> tuple[Any, Network, dict[str, torch.Tensor]]:
    """A settled task, a network without a hidden layer in double precision, and all rows as one batch."""
    task = tabular.Task(tabular.settle(tabular.Config(**section), rows))
    config = mlp.Config(widths=(), n_features=task.known["n_features"])
    network = create(mlp, config, task.head, outputs=task.outputs, seed=3).double()
    found = task.rows(Documents(rows, task.encode), 0)
    batch = found.batch(np.arange(len(rows)), np.zeros(len(rows), np.int64))
    return task, network, batch | {"features": batch["features"].double()}


def weights(network: Network) -> tuple[np.ndarray, np.ndarray]:
    """The one layer's weights (K,F) and biases (K,)."""
    return network.classifier.weight.detach().numpy(), network.classifier.bias.detach().numpy()


def gradients(task: Any, network: Network, batch: dict[str, torch.Tensor]) -> tuple[float, np.ndarray, np.ndarray]:
    """The mean loss of the batch, and its gradients by weights and biases, as the training loop divides them."""
    label = batch["label"].double() if task.kind == "number" else batch["label"]
    total, count = task._loss(network(batch).logits, label)  # `loss` is the same in single precision
    (total / count).backward()
    return float((total / count).detach()), network.classifier.weight.grad.numpy(), network.classifier.bias.grad.numpy()


def test_numbers_are_standardised_as_scikit_learn_does() -> None:
    rows, values, _ = cancer()
    task = tabular.Task(tabular.settle(tabular.Config(), rows[:150]))
    scaler = StandardScaler().fit(values[:150])
    expected = scaler.transform(values)
    assert np.array([list(task.vector.table.means.values())]) == pytest.approx(scaler.mean_[None], rel=1e-12)
    assert np.array([list(task.vector.table.deviations.values())]) == pytest.approx(scaler.scale_[None], rel=1e-12)
    assert np.stack([task.vector(row) for row in rows]) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    constant = [row | {"same": 0.1} for row in rows]
    table = tabular.settle(tabular.Config(), constant).table
    assert table.deviations["same"] == 1.0 == StandardScaler().fit(np.full((200, 1), 0.1)).scale_[0]


def test_categories_are_one_hot_as_scikit_learn_makes_them() -> None:
    draw = np.random.default_rng(1)
    colours, sizes = draw.choice(["red", "green", "blue"], 60), draw.choice(["s", "m", "l", "xl"], 60)
    rows = [
        {"text": "", "id": i, "source": f"t:{i}", "colour": str(c), "size": str(s), "label": i % 2}
        for i, (c, s) in enumerate(zip(colours, sizes, strict=True))
    ]
    task = tabular.Task(tabular.settle(tabular.Config(), rows[:40]))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False).fit(np.stack([colours, sizes], 1)[:40])
    unknown = rows[0] | {"colour": "mauve"}
    asked = np.array([*np.stack([colours, sizes], 1), ["mauve", sizes[0]]])
    assert np.array_equal(np.stack([task.vector(row) for row in [*rows, unknown]]), encoder.transform(asked))


def test_without_a_hidden_layer_it_is_logistic_regression() -> None:
    """The mean loss and its gradient, against -[y log p + (1 - y) log(1 - p)] and (p - y) x in numpy."""
    rows, _, labels = cancer()
    task, network, batch = made(rows, one_score=True)
    weight_KF, bias_K = weights(network)
    x_EF = batch["features"].numpy()
    share_E = 1 / (1 + np.exp(-(x_EF @ weight_KF[0] + bias_K[0])))
    expected = -np.mean(labels * np.log(share_E) + (1 - labels) * np.log(1 - share_E))
    loss, by_weight, by_bias = gradients(task, network, batch)
    assert loss == pytest.approx(expected, abs=1e-9)
    assert by_weight[0] == pytest.approx((share_E - labels) @ x_EF / len(labels), abs=1e-9)
    assert by_bias[0] == pytest.approx(np.mean(share_E - labels), abs=1e-9)
    in_float = float(task.loss(network.float()({"features": batch["features"].float()}), batch)["loss"][0].detach())
    assert in_float / len(labels) == pytest.approx(expected, abs=1e-6)


def test_two_scores_are_the_same_model_as_the_difference_of_them() -> None:
    rows, _, labels = cancer()
    task, network, batch = made(rows)
    weight_KF, bias_K = weights(network)
    x_EF = batch["features"].numpy()
    share_E = 1 / (1 + np.exp(-(x_EF @ (weight_KF[1] - weight_KF[0]) + bias_K[1] - bias_K[0])))
    loss, by_weight, _ = gradients(task, network, batch)
    assert loss == pytest.approx(-np.mean(np.log(np.where(labels == 1, share_E, 1 - share_E))), abs=1e-9)
    assert by_weight[1] == pytest.approx((share_E - labels) @ x_EF / len(labels), abs=1e-9)
    said = task.answers(network.float()({"features": batch["features"].float()}), batch)
    assert [row["probabilities"][1] for row in said] == pytest.approx(share_E, abs=1e-5)


@pytest.mark.parametrize("one_score", [True, False])
def test_the_hinge_loss_is_scikit_learns(one_score: bool) -> None:
    rows, _, labels = cancer()
    task, network, batch = made(rows, loss="hinge", one_score=one_score)
    scores = network(batch).logits.detach().numpy()
    loss, _, _ = gradients(task, network, batch)
    # Of two classes scikit-learn takes one score; with one a class, its multiclass loss is that of the difference.
    margin = scores[:, 0] if one_score else scores[:, 1] - scores[:, 0]
    assert loss == pytest.approx(hinge_loss(labels, margin), abs=1e-9)


def test_a_number_without_a_hidden_layer_is_least_squares_in_standard_deviations() -> None:
    found = load_diabetes(scaled=False)
    rows = rows_of(found.data, found.target)
    task, network, batch = made(rows, kind="number")
    assert task.config.label_scale == pytest.approx((found.target.mean(), found.target.std()), rel=1e-12)
    weight_KF, bias_K = weights(network)
    x_EF = batch["features"].numpy()
    apart_E = x_EF @ weight_KF[0] + bias_K[0] - (found.target - found.target.mean()) / found.target.std()
    loss, by_weight, _ = gradients(task, network, batch)
    assert loss == pytest.approx(np.mean(apart_E**2), abs=1e-6)
    assert by_weight[0] == pytest.approx(2 * apart_E @ x_EF / len(apart_E), abs=1e-6)
    outputs = network.float()({"features": batch["features"].float()})
    said = np.array([answer["number"] for answer in task.answers(outputs, batch)])
    scores = task.scores(outputs, batch)
    error = float(scores["distance"].sum() / scores["labels"].sum())
    assert error == pytest.approx(np.abs(said - found.target).mean(), rel=1e-5), "in the unit of the column"
