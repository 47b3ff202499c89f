"""What a run leaves: a directory that transformers opens, a card, curves; and no state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup.checkpoints import hugging_face
from groundup.text.tokenizers import Tokenizer


def test_transformers_opens_what_pretraining_wrote(material: Any, new_cell: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the test oracle is not installed")
    cell = new_cell(
        tmp_path,
        {
            "data": str(material.corpus),
            "tokenizer": str(material.tokenizers["gpt"]),
            "task": "language_modeling",
            "model": {"name": "gpt", "n_layers": 1, "d_model": 32, "n_heads": 2, "context": 32},
            "tokens": 3200,
            "batch_tokens": 320,
            "device": "cpu",
        },
    )
    cell.finish()
    folder = cell.artifact.path
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours, text = hugging_face.load(folder), "def train(job):"
    ids = Tokenizer.load(folder).encode(text)
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids
    with torch.no_grad():
        batch = torch.tensor([ids])
        assert torch.allclose(theirs(batch).logits, ours({"input_ids": batch}).logits, atol=1e-4)

    manifest = cell.artifact.manifest
    assert manifest["tokens"] == 3200
    assert manifest["determinism"] == "bitwise"
    assert manifest["choices"]["device"] == "cpu"
    assert manifest["metrics"]["validation_loss"] > 0
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "language_modeling" in card and manifest["parents"]["data"]["digest"][:16] in card
    lines = [json.loads(line) for line in (folder / "log" / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "lr", "grad_norm", "tokens", "tokens_s", "mfu"} <= lines[0].keys()
    assert "validation_loss" in lines[-1]
    assert "10 steps of 10 rows of 32 tokens" in (folder / "log" / "train.log").read_text()
    assert cell.state is None, "the state goes when the stage ends"
