"""Texts in other words: what is changed, what never is, and that it can be had again."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.config import parse
from groundup.data.augmented import Augmented
from groundup.data.examples import Examples
from groundup.data.order import generator
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.text.augment import Augment, augmented, read_synonyms

TEXT = "The quick fox, it's said, bought a car and drove to town; nobody saw the car again."
SYNONYMS = {"car": ["automobile"], "quick": ["fast", "swift"], "银行": ["钱庄"]}


def change(text: str, seed: int = 0, **how: Any) -> str:
    return augmented(text, Augment(**{"share": 1.0} | how), SYNONYMS, generator(seed, 0, 0))


@pytest.mark.smoke
def test_each_kind_changes_what_it_says_and_leaves_marks_alone() -> None:
    only: dict[str, Any] = {"synonyms": "x", "delete": 0, "swap": 0}
    replaced = {change(TEXT, seed, **only, replace=0.2) for seed in range(20)}
    assert all("car" not in t.replace("automobile", "") for t in replaced) and any(
        "The swift fox" in t for t in replaced
    )
    assert change("The Car.", **only) == "The Automobile."
    assert change("我去银行了", **only) == "我去钱庄了"
    deleted = change(TEXT, delete=0.5, swap=0)
    assert len(deleted.split()) < len(TEXT.split()) and Counter(deleted)[","] == 2 and deleted[-1] == "."
    swapped = change(TEXT, delete=0, swap=0.3)
    assert swapped != TEXT and Counter(swapped) == Counter(TEXT)
    assert change("word") == "word" and change("") == "" and change("?!") == "?!"


@given(st.text(max_size=60), st.integers(0, 9))
def test_no_text_is_lost_or_grows(text: str, seed: int) -> None:
    swapped = change(text, seed, delete=0)
    assert sorted(c for c in swapped if not c.isspace()) == sorted(c for c in text if not c.isspace())
    assert len(change(text, seed, swap=0)) <= len(text)
    assert change(text, seed) == change(text, seed)
    assert augmented(text, Augment(share=0.0), SYNONYMS, generator(seed, 0, 0)) == text


def test_synonyms_are_read_from_lines_and_from_cilin(tmp_path: Path) -> None:
    path = tmp_path / "synonyms.txt"
    path.write_text("car, automobile\tAuto\n银行，钱庄\nAa01A01= 人 士 人物\nAa01A02# 甲 乙\nalone\n", encoding="utf-8")
    found = read_synonyms(path)
    assert found["car"] == ["automobile", "Auto"] and found["auto"] == ["car", "automobile"]
    assert found["银行"] == ["钱庄"] and found["士"] == ["人", "人物"] and "甲" not in found and "alone" not in found
    path.write_text("alone\n", encoding="utf-8")
    with pytest.raises(DataError, match="no line with two words"):
        read_synonyms(path)
    with pytest.raises(DataError, match="cannot be read"):
        read_synonyms(tmp_path / "none")
    assert "nothing is left" in parse(Augment, {"delete": 0, "swap": 0})[1][0].what


def test_rows_change_with_the_epoch_and_come_again() -> None:
    examples = [{"text": f"one two three four five six {i}", "label": i % 2} for i in range(40)]

    def encode(example: Any) -> dict[str, list[int]]:
        return {
            "input_ids": [len(word) + ord(word[0]) for word in example["text"].split()],
            "label": [example["label"]],
        }

    plain = Examples(Documents(examples, encode), labels="label", values=("label",))
    how = Augment(share=0.5, delete=0.2)
    rows = Augmented(plain, how, seed=3, columns=("text",), example_of=examples.__getitem__, encode=encode)
    same = [np.array_equal(rows.row(i, 0)["input_ids"], plain.row(i, 0)["input_ids"]) for i in range(40)]
    assert 10 < sum(same) < 35 and len(rows) == 40 and rows.lengths is plain.lengths
    for i in range(40):
        first, again = rows.row(i, 1), rows.row(i, 1)
        assert first["input_ids"].tolist() == again["input_ids"].tolist() and first["label"] == i % 2
    epochs = [[rows.row(i, epoch)["input_ids"].tolist() for i in range(40)] for epoch in (1, 2)]
    assert epochs[0] != epochs[1]
