"""Every labelled task from a recipe to its report, on a few rows and a small base: nothing is called by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from groundup import catalog
from groundup.checkpoints import hugging_face
from groundup.compare import compare
from groundup.errors import ArtifactError
from groundup.evaluation import answering
from groundup.nn.network import create
from groundup.runner import run
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

WORDS = ["red", "old", "small", "loud", "warm", "thin", "near", "late"]
TOWNS = ["Peking", "Hanoi", "Lima", "Oslo"]


def sentence(i: int) -> str:
    return f"the {WORDS[i % 8]} train {i} went to {TOWNS[i % 4]} and back"


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def tagged(i: int) -> dict[str, Any]:
    tokens = sentence(i).split()
    return {"tokens": tokens, "tags": ["B-TOWN" if token in TOWNS else "O" for token in tokens]}


def asked(i: int) -> dict[str, Any]:
    text, town = sentence(i), TOWNS[i % 4]
    return {"question": "where did it go?", "answers": [{"text": town, "start": text.index(town)}]}


ROWS: dict[str, Callable[[int], dict[str, Any]]] = {
    "text_classification": lambda i: {"label": TOWNS[i % 4]},
    "token_tagging": tagged,
    "span_qa": asked,
    "chat": lambda i: {"messages": [turn("user", "where to?"), turn("assistant", TOWNS[i % 4])]},
    "preference": lambda i: {"messages": [turn("user", "where to?")], "chosen": TOWNS[i % 4], "rejected": "nowhere"},
    "translation": lambda i: {"en": sentence(i), "ne": sentence(i)[::-1]},
    "embedding": lambda i: {"positive": f"{WORDS[i % 8]} to {TOWNS[i % 4]}, {i}"},
}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("text_classification", "bert", {}, {"augment": {"share": 0.5}, "regulariser": "r_drop"}),
    ("text_classification", "gpt", {}, {"adapter": "lora"}),
    ("token_tagging", "bert", {"crf": True}, {"micro_batch_rows": 3}),
    ("span_qa", "bert", {}, {"layers": {"lr_decay": 0.9}}),
    ("chat", "gpt", {}, {"adapter": {"name": "lora", "rank": 2}}),
    ("preference", "gpt", {"loss": "dpo"}, {"adapter": "dora"}),
    ("preference", "gpt", {"loss": "ipo"}, {"micro_batch_rows": 2}),
    ("embedding", "bert", {}, {"micro_batch_rows": 3}),
    ("translation", "encoder_decoder", {"source": "en", "target": "ne", "max_target_length": 24}, {}),
]
OPENERS = {
    "text_classification": "AutoModelForSequenceClassification",
    "token_tagging": "AutoModelForTokenClassification",
    "span_qa": "AutoModelForQuestionAnswering",
    "chat": "AutoModelForCausalLM",
    "preference": "AutoModelForCausalLM",
    "embedding": "AutoModel",
    "translation": "MarianMTModel",
}


def base(folder: Path, name: str, texts: list[str]) -> None:
    """A small model of random weights with a tokenizer of these texts, as a Hugging Face directory."""
    kind, size = ("wordpiece", 90) if name == "bert" else ("bpe", 330)
    engine, _ = learn(Wish(kind, size, min_frequency=1), lambda: iter(texts))
    tokenizer = Tokenizer(engine, Specials(**SPECIALS[kind]))
    model = catalog.load("models", name)
    sizes = model.TINY | {"vocab_size": tokenizer.vocab_size, "context": 160}
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    network = create(model, model.Config(**sizes), next(iter(model.HEADS)), seed=1)
    hugging_face.save(folder, network, generation={role: i for role, i in ids.items() if i is not None})
    tokenizer.save(folder)


@pytest.mark.parametrize(("task", "model", "section", "training"), CASES)
def test_a_task_runs_from_its_rows_to_its_report(
    task: str, model: str, section: dict[str, Any], training: dict[str, Any], tmp_path: Path
) -> None:
    rows = [{"text": sentence(i)} | ROWS[task](i) for i in range(48)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    base(tmp_path / "base", model, [json.dumps(row) for row in rows] + ["where to? nowhere user assistant"])
    recipe = {
        "groundup": 1,
        "name": "tiny",
        "seed": 4,
        "stages": {
            "rows": {
                "prepare": {
                    "source": {"paths": ["rows.jsonl"], "keep": [key for key in rows[0] if key != "text"]},
                    "clean": {"exact_duplicates": False},
                    "split": {"validation": 0.2, "test": 0.2},
                }
            },
            "model": {
                "finetune": {
                    "data": "rows", "from": "./base", "task": {"name": task} | section, "steps": 2, "batch_rows": 6,
                    "precision": "fp32", "matmul": "torch", "threads": 1, "max_length": 128,
                } | training,
            },
            "report": {"evaluate": {"of": "model", "data": "rows.test", "bootstrap": 100}},
        },
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    made = run(tmp_path / "tiny.yaml")
    report = made["report"].json("report.json")
    assert report["scores"]
    assert report["test"]["count"] == made["rows"].metrics["documents"]["test"]
    assert (made["report"].path / "report.html").stat().st_size > 10_000
    theirs = getattr(transformers, OPENERS[task]).from_pretrained(made["model"].path)
    assert sum(p.numel() for p in theirs.parameters()) > 0
    assert transformers.AutoTokenizer.from_pretrained(made["model"].path)("red train")["input_ids"]
    twin = compare(made["report"].path, made["report"].path, resamples=200)
    assert not twin.main.is_real
    assert twin.main.lead.estimate == 0


def test_a_task_of_another_version_is_no_traceback() -> None:
    section = {"name": "text_classification", "labels": ["a", "b"], "from_a_later_version": 1}
    with pytest.raises(ArtifactError, match="its task cannot be read here"):
        answering.task_section({"choices": {"task": section}}, "runs/old/model")
