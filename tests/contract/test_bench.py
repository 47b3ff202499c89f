"""The arithmetic and the pages of the benchmarks; the benchmarks themselves run by `make bench`."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.data.examples import Examples
from groundup.data.pieces import Pieces
from groundup.nn.network import create

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.smoke


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import harness

    return harness


def test_a_ratio_is_taken_within_rounds(harness: ModuleType) -> None:
    """A machine that slows down for both sides in one round does not widen the interval."""
    middle, low, high = harness.ratio([120, 60, 240], [100, 50, 200])
    assert middle == pytest.approx(1.2) and low == pytest.approx(1.2) and high == pytest.approx(1.2)


def test_the_interval_is_students(harness: ModuleType) -> None:
    """Logs 0.0, 0.1, 0.2: mean 0.1, standard deviation 0.1, t with 2 degrees of freedom 4.303."""
    found = harness.ratio([math.exp(x) for x in (0.0, 0.1, 0.2)], [1.0, 1.0, 1.0])
    half = 4.303 * 0.1 / math.sqrt(3)
    assert found == pytest.approx((math.exp(0.1), math.exp(0.1 - half), math.exp(0.1 + half)))


def test_one_round_says_nothing_of_the_spread(harness: ModuleType) -> None:
    assert harness.ratio([2.0], [1.0]) == (2.0, 0.0, math.inf)


def test_the_section_of_a_model_is_a_table(harness: ModuleType) -> None:
    import pretrain

    def rival(rates: list[float], version: str) -> dict[str, object]:
        facts = {"seconds": 1.0, "first_steps_s": 2.0, "version": version, "torch": "2.13.0"}
        return {"tokens_s": rates, "peak_bytes": 2**30, "last_loss": 3.5, "facts": facts}

    model = pretrain.MODELS["gpt2-14m"]
    text = pretrain.section(
        {
            "model": "gpt2-14m",
            "sizes": pretrain.asdict(model),
            "device": "cpu",
            "precision": "fp32",
            "threads": 2,
            "rounds": 3,
            "steps": 8,
            "busy": False,
            "machine": "a machine",
            "date": "2026-11-22",
            "gemm_flops": [1e11, 1e11],
            "rivals": {"groundup": rival([1200.0, 1200.0, 1200.0], "0.1"), "litgpt": rival([1000.0] * 3, "0.5")},
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and "1.20 [1.20, 1.20]" in rows[2]
    assert f"{1200 * model.flops_per_token / 1e11:.0%}" in rows[1]
    assert "not idle" not in text


@pytest.fixture
def tiny_bert(tmp_path: Path) -> Path:
    """A BERT of 61 tokens with random weights, in the published layout."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    bert: Any = catalog.load("models", "bert")
    folder = tmp_path / "bert"
    hugging_face.save(folder, create(bert, bert.Config(**bert.TINY), "embedding", seed=0))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(bert.TINY["vocab_size"] - 5))]
    engine = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    engine.save(str(folder / "tokenizer.json"))
    return folder


def test_a_job_of_fine_tuning_is_built_and_read(harness: ModuleType, tiny_bert: Path, tmp_path: Path) -> None:
    """Rows, order and first weights as every side reads them."""
    import finetune
    import finetune_rows
    import row_file

    texts = [
        finetune_rows.Documented(part, part, " ".join(f"w{(i * step) % 50}" for i in range(900)))
        for part, step in (("json", 1), ("email", 3))
    ]
    labelled = finetune_rows.mix(tiny_bert, 7, texts)
    lengths = labelled.rows.lengths
    assert labelled.names == ["json", "email"] and finetune_rows.SHORTEST <= lengths.min() <= lengths.max() <= 256
    assert 0 < finetune_rows.padding(lengths, 4) < 1

    job = finetune.JOBS["mix"]
    options = Namespace(seed=7, threads=1)
    path = finetune.prepare(job, labelled, tiny_bert, options, tmp_path, total_steps=3)
    written = json.loads(path.read_text())
    rows, order = row_file.RowFile.read(written["rows"]), np.load(written["order"])
    assert len(order) == 5 * job.batch_rows and sorted(set(order)) == list(range(len(rows)))
    network = hugging_face.load(Path(written["weights"]))
    assert network.head_kind == "sequence" and network.outputs == 2

    ours = Examples(row_file.Shards(rows), labels="label", tokens=("input_ids", "token_type_ids"), values=("label",))
    for index in (0, len(rows) - 1):
        theirs, own = rows.features(index), ours.row(index, 0)
        assert theirs["input_ids"] == own["input_ids"].tolist() and theirs["label"] == own["label"]


def test_rows_of_chats_are_the_same_for_both_sides(harness: ModuleType) -> None:
    """transformers shifts labels itself: its are one position later than ours."""
    import row_file

    rows = row_file.RowFile.of([[5, 6, 7, 8], [9, 10, 11]], [[0, 0, 1, 1], [0, 1, 1]], is_chat=True)
    ours = Pieces(row_file.Shards(rows))
    assert rows.features(0)["labels"] == [-100, -100, 7, 8]
    assert [ours.row(i, 0)["labels"].tolist() for i in (0, 1)] == [[-100, 7, 8], [10, 11]]


def test_curves_are_compared_in_their_worst_turn(harness: ModuleType) -> None:
    import finetune

    ours = [[1.0 + 0.01 * (i % 3) for i in range(12)]] * 2
    near = [[loss + 0.01 * (-1) ** i for i, loss in enumerate(turn)] for turn in ours]
    far = [near[0], [loss + 0.1 for loss in near[1]]]
    assert abs(finetune.windows(ours, near)["difference"]) < 1e-9
    found = finetune.windows(ours, far)
    assert found["difference"] == pytest.approx(0.1) and 0 < found["error"] < 0.01

    facts = {name: {"first_loss": 0.7} for name in ("groundup", "near", "far")} | {"other": {"first_loss": 0.71}}
    turns = {name: harness.Turns(losses=losses) for name, losses in
             (("groundup", ours), ("near", near), ("far", far), ("other", near))}  # fmt: skip
    curves = {name: finetune.windows(ours, each.losses) for name, each in turns.items()}
    assert set(finetune.strayed(finetune.JOBS["mix"], "groundup", turns, curves, facts)) == {"far", "other"}


def test_the_section_of_a_job_is_a_table(harness: ModuleType) -> None:
    import finetune
    import finetune_page

    def rival(rates: list[float], difference: float, error: float | None) -> dict[str, Any]:
        facts = {"seconds": 1.0, "first_steps_s": 2.0, "version": "1", "torch": "2.13.0", "products": "torch"}
        curve = {"difference": difference, "error": error}
        return {"samples_s": rates, "peak_bytes": 2**30, "last_loss": 0.5, "curve": curve, "facts": facts}

    job = {key: value for key, value in finetune.asdict(finetune.JOBS["mix"]).items() if key != "rivals"}
    text = finetune_page.section(
        {
            "job": job,
            "command": "bench/finetune.py",
            "rows": 9000,
            "mean_length": 50.8,
            "longest": 256,
            "padding": 0.7,
            "seed": 7,
            "threads": 2,
            "rounds": 3,
            "steps": 50,
            "busy": True,
            "machine": "a machine",
            "date": "2026-11-22",
            "rivals": {"groundup": rival([30.0] * 3, 0.0, None), "Trainer": rival([10.0] * 3, 0.001, 0.002)},
            "strayed": {},
        }
    )
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 3 and "3.00 [3.00, 3.00]" in rows[2] and "+0.0010 ± 0.0020" in rows[2]
    assert "70% padding" in text and "not idle" in text
