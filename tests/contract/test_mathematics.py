"""The mathematics of docs/explanation is right: each numbered formula, evaluated in NumPy, equals torch's autograd.

On the pages, the line of code that evaluates the formula `\\tag{7}` ends in `# (7)`. Here the code is run, section by
section, and whatever a numbered line assigns is compared with what torch makes of the same inputs. What torch makes is
written down in `formulas_in_torch.py`: forward passes and a call of `backward`, no derivative.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from groundup.models import cnn, gpt2, mlp, rnn
from groundup.nn.attention import Bidirectional
from groundup.nn.losses import cross_entropy

SPEC = importlib.util.spec_from_file_location("formulas_in_torch", Path(__file__).with_name("formulas_in_torch.py"))
assert SPEC is not None and SPEC.loader is not None
FORMULAS = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(FORMULAS)
REFERENCES = FORMULAS.REFERENCES

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "explanation"
PAGES = sorted(REFERENCES)
PART = re.compile(r"^## (?P<heading>[^\n]+)$|^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
TAG, NUMBER = re.compile(r"\\tag\{(\d+)\}"), re.compile(r"# \((\d+)\)$")
POINTS = np.linspace(-4, 4, 24)
"""Where functions are compared: to both sides of zero, where ReLU has no derivative, not at it."""


@dataclass
class Section:
    """One section of a page."""

    heading: str
    formulas: list[int] = field(default_factory=list)
    """Numbers of the displayed formulas, in order; 0 for one without a number."""
    code: list[str] = field(default_factory=list)

    @property
    def evaluated(self) -> list[tuple[int, str]]:
        """The number and the names of each numbered line of code."""
        return [found for block in self.code for found in numbered_lines(block)]


def read(page: str) -> str:
    return (FOLDER / page).read_text(encoding="utf-8")


def sections(text: str) -> list[Section]:
    found = [Section("")]
    for part in PART.finditer(text):
        if part["heading"]:
            found.append(Section(part["heading"]))
        elif part["kind"] == "math":
            tag = TAG.search(part["body"])
            found[-1].formulas.append(int(tag[1]) if tag else 0)
        elif part["kind"] == "python":
            found[-1].code.append(part["body"])
    return found


def numbered_lines(code: str) -> Iterator[tuple[int, str]]:
    """The number of each line that ends in one, with the names it assigns; a returned value has its function's."""
    statements = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    for place, line in enumerate(code.splitlines(), start=1):
        if number := NUMBER.search(line):
            around = [each for each in statements if each.lineno <= place <= (each.end_lineno or 0)]
            innermost = max(around, key=lambda each: each.lineno)
            if isinstance(innermost, ast.Return):
                innermost = max(
                    (each for each in around if isinstance(each, ast.FunctionDef)), key=lambda each: each.lineno
                )
            for name in assigned(innermost):
                yield int(number[1]), name


def assigned(statement: ast.stmt) -> list[str]:
    """The names that a statement gives values to, whole or in part."""
    if isinstance(statement, ast.FunctionDef):
        return [statement.name]
    assert isinstance(statement, ast.Assign), ast.unparse(statement)
    targets = [each for target in statement.targets for each in getattr(target, "elts", [target])]
    return [ast.unparse(each.value if isinstance(each, ast.Subscript) else each) for each in targets]


def run(text: str, references: dict[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> dict[str, Any]:
    """Run the code of a page; after each section, compare what its numbered lines assigned. Returns all names."""
    names: dict[str, Any] = {}
    for section in sections(text):
        for block in section.code:
            exec(compile(block, section.heading, "exec"), names)
        expected = references[section.heading](names) if section.evaluated else {}
        for number, name in section.evaluated:
            compare(names[name], expected[name], f"formula ({number}), {name}")
    return names


def compare(found: Any, expected: Any, what: str) -> None:
    if callable(found):
        found, expected = found(POINTS), expected(torch.tensor(POINTS))
    expected = expected.detach().numpy() if isinstance(expected, torch.Tensor) else np.asarray(expected)
    assert np.shape(found) == expected.shape, what
    assert np.any(expected), f"{what}: all zero, so nothing is compared"
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9, err_msg=what)


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES)
def test_every_displayed_formula_is_evaluated_in_its_section(page: str) -> None:
    numbers = [number for section in sections(read(page)) for number in section.formulas]
    assert numbers == list(range(1, len(numbers) + 1)), "displayed formulas are numbered in order"
    for section in sections(read(page)):
        assert {number for number, _ in section.evaluated} == set(section.formulas), section.heading


@pytest.mark.smoke
@pytest.mark.parametrize("page", PAGES)
def test_every_formula_equals_autograd(page: str) -> None:
    run(read(page), REFERENCES[page])


@pytest.mark.parametrize(
    ("page", "right", "wrong"),
    [
        ("back-propagation.md", "delta3 = p - y", "delta3 = y - p"),
        ("back-propagation.md", "dW2 = np.outer(delta2, h1)", "dW2 = np.outer(h1, delta2)"),
        ("back-propagation.md", "delta1 = (W2.T @ delta2)", "delta1 = (W2 @ delta2)"),
        ("back-propagation.md", "Delta3 = (P - Y) / len(X)", "Delta3 = P - Y"),
        ("convolution.md", "kernel[:, :, ::-1, ::-1].swapaxes(0, 1)", "kernel.swapaxes(0, 1)"),
        ("convolution.md", "image[i + 2 - u, j + 2 - v]", "image[i + u, j + v]"),
        ("convolution.md", "np.ones((2, 2))) / 4", "np.ones((2, 2))) / 2"),
        ("recurrence.md", "h[t - 1]) for t in steps)  # (10)", "h[t]) for t in steps)  # (10)"),
        ("recurrence.md", "f[t + 1] * dc[t + 1]", "f[t] * dc[t + 1]"),
        ("recurrence.md", "(h[t - 1] - n[t])", "(n[t] - h[t - 1])"),
        ("attention.md", "dS = A * (dA - average)", "dS = A * dA"),
        ("attention.md", "dK = dS.T @ Q", "dK = dS @ Q"),
        ("attention.md", "WO[h * d : (h + 1) * d] for h in range(H))", "WO[:d] for h in range(H)) / H"),
    ],
)
def test_a_wrong_formula_is_noticed(page: str, right: str, wrong: str) -> None:
    assert right in read(page)
    with pytest.raises((AssertionError, ValueError)):
        run(read(page).replace(right, wrong), REFERENCES[page])


def names_at(page: str, heading: str) -> dict[str, Any]:
    """What the code of a page has defined when a section ends."""
    names: dict[str, Any] = {}
    for section in sections(read(page)):
        for block in section.code:
            exec(block, names)
        if section.heading == heading:
            break
    return names


def test_our_perceptron_has_the_gradients_that_the_page_derives() -> None:
    names = names_at("back-propagation.md", "A batch")
    config = mlp.Config(n_features=6, widths=(5, 4), activation="sigmoid")
    backbone = mlp.build(config).double()
    head = mlp.HEADS["features"](config, backbone, 3).double()
    layers = [*(layer.linear for layer in backbone.layers), head]
    for number, layer in enumerate(layers, start=1):
        layer.weight.data, layer.bias.data = torch.tensor(names[f"W{number}"]), torch.tensor(names[f"b{number}"])
    scores = head(backbone(torch.tensor(names["X"])))
    total, count = cross_entropy(scores, torch.tensor(names["Y"]).argmax(1))
    (total / count).backward()
    compare(names["dW3_batch"], head.weight.grad, "the last layer")
    compare(names["dW2_batch"], layers[1].weight.grad, "the layer before")


def test_the_network_of_the_tutorial_is_as_large_as_the_page_counts() -> None:
    names = names_at("convolution.md", "How many weights")
    config = cnn.Config(image_size=28, channels=1)
    assert names["N_all"] == cnn.parameters(config, 10)
    assert names["N"] == sum(weight.numel() for weight in cnn.Block(names["c_in"], names["c_out"], config).parameters())


CELLS = [("Elman's network", "elman", nn.RNN), ("LSTM", "lstm", nn.LSTM), ("GRU", "gru", nn.GRU)]


@pytest.mark.parametrize(("heading", "ours", "torchs"), CELLS, ids=["elman", "lstm", "gru"])
def test_the_cells_are_torchs_and_ours(heading: str, ours: str, torchs: type[nn.RNNBase]) -> None:
    """Not only a cell's parts, but its states are those of the layer that everybody uses, and of `models/rnn.py`."""
    names = names_at("recurrence.md", heading)
    weights = (names["W"], names["U"], names["b"], names.get("d", np.zeros_like(names["b"])))
    W, U, b, d = (torch.tensor(weight) for weight in weights)
    inputs, first = torch.tensor(names["x"][1:]), torch.tensor(names["h"][:1])
    layer = torchs(3, 4, dtype=torch.float64)
    for parameter, weight in zip(layer.parameters(), (W, U, b, d), strict=True):
        parameter.data = weight
    states, _ = layer(inputs, (first, torch.zeros_like(first)) if ours == "lstm" else first)
    compare(names["h"][1 : len(inputs) + 1], states, heading)
    state = (first, torch.zeros_like(first))
    for step, x in enumerate(inputs, start=1):
        gates = [nn.functional.linear(each, *of) for each, *of in ((x[None], W, b), (state[0], U, d))]
        state = rnn.CELLS[ours](gates[0], gates[1], state)
        compare(names["h"][step], state[0][0], f"{heading}, step {step}")


def test_our_attention_computes_what_the_page_derives() -> None:
    names = run(read("attention.md"), REFERENCES["attention.md"])
    config = gpt2.Config(vocab_size=7, d_model=names["D"], n_heads=names["H"])
    attention = gpt2.Attention(config, layer=0).double()
    # Heads side by side: rows of the stored matrix are head by head, for queries, then keys, then values.
    columns = [np.concatenate(list(names[key]), axis=1) for key in ("WQ", "WK", "WV")]
    with torch.no_grad():
        attention.c_attn.weight.copy_(torch.tensor(np.concatenate(columns, axis=1).T))
        attention.c_proj.weight.copy_(torch.tensor(names["WO"].T))
        for bias in (attention.c_attn.bias, attention.c_proj.bias):
            bias.zero_()
        out = attention(torch.tensor(names["X"])[None], Bidirectional())[0]
    compare(names["Y"], out, "gpt2.Attention")
