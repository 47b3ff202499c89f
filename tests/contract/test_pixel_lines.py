"""Pictures that come as lines of numbers, as MNIST goes round in CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from groundup.artifact import Store
from groundup.config import parse
from groundup.data import images
from groundup.data.corpus import Corpus
from groundup.stages import prepare


def prepared(text: str, share: float = 0.01, **source: Any) -> Corpus:
    """The corpus of a file, of which such a share may be bad."""
    Path("pixels.csv").write_text(text, encoding="utf-8")
    section = {"source": {"kind": "pixels", "paths": "pixels.csv"} | source, "bad_rows": share}
    wanted, mistakes = parse(prepare.Config, section)
    assert wanted is not None, mistakes
    store = Store()
    with store.draft("corpus", text + repr(source)) as out:
        prepare.run(wanted, {}, out)
    found = store.find(text + repr(source))
    assert found is not None
    return Corpus(found)


def test_a_line_is_a_square_picture_behind_its_label() -> None:
    corpus = prepared("label,1x1,1x2,2x1,2x2\n7,0,255,128,1\ncat,9,9,9,9\n")
    rows = {str(row["label"]): row for row in corpus.documents("train")}
    assert images.decode(rows["7"]["image"]).tolist() == [[[0], [255]], [[128], [1]]]
    assert rows["7"]["text"] == images.digest(images.decode(rows["7"]["image"]))
    assert set(rows) == {"7", "cat"}


def test_labels_may_stand_last_white_be_less_and_pictures_be_long() -> None:
    given = {"label": "last", "white": 16, "shape": [2, 3]}
    (row,) = prepared("0;16;8;4;2;1;5\n", separator=";", pixels=given).documents("train")
    wanted = np.rint(np.array([[0, 16, 8], [4, 2, 1]]) * 255 / 16)
    assert np.array_equal(images.decode(row["image"])[:, :, 0], wanted) and row["label"] == 5
    (row,) = prepared("0,255,0,255\n", pixels={"label": "none"}, image={"size": 4}).documents("train")
    assert images.decode(row["image"]).shape == (4, 4, 1) and row["label"] is None


def test_lines_that_are_no_picture_are_counted_by_their_fault() -> None:
    lines = ["1,0,0,0,0", "1,0,0,0", "1,0,x,0,0", "1,0,256,0,0", "1,0,-1,0,0", "1,0,nan,0,0", "", "2,9,0,0,0"]
    corpus = prepared("\n".join(lines) + "\n", share=0.8)
    assert corpus.rows("train") == 2
    bad = corpus.artifact.json("ledger.json")["bad"]
    assert bad == {"a pixel outside 0 to 255": 3, "a pixel that is no number": 1, "no picture": 1}


def test_only_pictures_have_pixels() -> None:
    for wrong in ({"kind": "csv", "pixels": {}}, {"kind": "pixels", "pixels": {"white": 0}}):
        found, mistakes = parse(prepare.Config, {"source": {"paths": "pixels.csv"} | wrong})
        assert found is None and mistakes
