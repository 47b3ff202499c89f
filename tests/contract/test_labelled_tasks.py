"""What every task of labelled rows promises, whatever it is: the same loss in both layouts, an answer an example."""

from __future__ import annotations

import pickle
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup import catalog
from groundup.config import parse
from groundup.data.sample import Documents
from groundup.nn.network import Network, create
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

CONTEXT = 64
LINES = ["the cat sat on a mat", "a dog ran to the park and back", "Peking University is old", "so it goes on and on"]
TURNS = [{"role": "user", "content": "what is this?"}, {"role": "assistant", "content": "it is a cat on a mat"}]


def turns(answer: str) -> list[dict[str, str]]:
    return [TURNS[0], {"role": "assistant", "content": answer}]


EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "text_classification": [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(LINES)],
    "token_tagging": [
        {"text": text, "tokens": text.split(), "tags": ["B-X", *["O"] * (len(text.split()) - 1)]} for text in LINES
    ],
    "span_qa": [
        {"text": text, "question": "who is it?", "answers": [{"text": text.split()[1], "start": text.index(" ") + 1}]}
        for text in LINES
    ],
    "chat": [{"text": text, "messages": turns(text)} for text in LINES],
    "preference": [
        {"text": text, "messages": [TURNS[0]], "chosen": turns(text)[1:], "rejected": turns("no idea")[1:]}
        for text in LINES
    ],
    "translation": [{"text": text, "source": text, "target": text[::-1]} for text in LINES],
    "embedding": [{"text": text, "positive": text[:12]} for text in LINES],
}
MODELS = {"chat": "gpt", "preference": "gpt", "translation": "encoder_decoder"}
NEEDED: dict[str, dict[str, Any]] = {
    "preference": {"loss": "orpo"},  # needs no reference
    "translation": {"source": "source", "target": "target"},
}
DOCUMENTS = {"language_modeling", "masked_language_modeling"}
"""Tasks of plain documents, whose promises are in test_tasks.py."""
NO_TOKENS = {
    "next_item": "test_recommending.py",
    "click_prediction": "test_recommending.py",
    "tabular": "test_tabular.py",
    "speech_commands": "test_speech_commands.py",
    "image_classification": "test_tasks_image.py",
}
"""Tasks of examples that no tokenizer cuts, and where their promises are tested."""


@cache
def tokenizer(kind: str) -> Tokenizer:
    size = {"bpe": 300, "wordpiece": 60}[kind]
    engine, _ = learn(Wish(kind, size, min_frequency=1), lambda: iter([*LINES * 4, "what is this? who is it? no idea"]))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


@cache
def made(name: str) -> tuple[Any, Network, Any]:
    """A settled task, a small network for it, and the rows of its examples."""
    module = catalog.load("tasks", name)
    config, mistakes = parse(module.Config, NEEDED.get(name, {}))
    assert mistakes == []
    if hasattr(module, "settle"):
        config = module.settle(config, examples(name))
    task = module.Task(config, tokenizer("bpe" if name in MODELS else "wordpiece"), CONTEXT)
    model = catalog.load("models", MODELS.get(name, "bert"))
    sizes = model.TINY | {"vocab_size": task.tokenizer.vocab_size, "context": CONTEXT}
    network = create(model, model.Config(**sizes, initialiser_std=0.2), task.head, outputs=task.outputs, seed=1)
    return task, network.eval(), task.rows(Documents(examples(name), task.encode), 0)


def examples(name: str) -> list[dict[str, Any]]:
    return [row | {"source": f"rows.jsonl:{i}", "id": i} for i, row in enumerate(EXAMPLES[name])]


@pytest.fixture(params=EXAMPLES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_task_is_tested_somewhere() -> None:
    assert set(EXAMPLES) | DOCUMENTS | set(NO_TOKENS) == set(catalog.names("tasks"))
    assert all((Path(__file__).parent / name).is_file() for name in NO_TOKENS.values())


def test_a_task_states_what_a_stage_asks_for(name: str) -> None:
    module, (task, network, _) = catalog.load("tasks", name), made(name)
    assert isinstance(module.VERSION, int) and set(task.metrics) <= set(module.METRICS)
    assert task.head == network.head_kind
    assert set(task.encoding) >= {"task", "version"}
    assert len(task.labels) in (0, task.outputs)
    again = pickle.loads(pickle.dumps(task))
    assert again.encode(examples(name)[0]) == task.encode(examples(name)[0])


def test_rows_have_their_own_length_and_know_their_example(name: str) -> None:
    task, _, rows = made(name)
    assert len(rows) == len(rows.lengths) >= len(LINES)
    assert {rows.document_of(i) for i in range(len(rows))} == set(range(len(LINES)))
    assert rows.ledger().trained > 0
    assert all(task.render(rows.row(i, 0)) for i in range(len(rows)))


@torch.no_grad()
def test_both_layouts_and_any_cut_give_the_same_loss(name: str) -> None:
    task, network, rows = made(name)
    made_rows = [rows.row(i, 0) for i in range(len(rows))]

    def loss(cut: int, *, flat: bool) -> dict[str, float]:
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for start in range(0, len(made_rows), cut):
            batch = task.collate(made_rows[start : start + cut], flat=flat)
            for part, (total, count) in task.loss(network(batch), batch).items():
                sums[part] = sums.get(part, 0.0) + float(total)
                counts[part] = counts.get(part, 0) + int(count)
            assert task.counts(batch).keys() == sums.keys()
        return {part: sums[part] / counts[part] for part in sums}

    whole = loss(len(made_rows), flat=False)
    compares = hasattr(task, "joint") or getattr(task, "needs_whole_batch", False)  # examples with each other
    cuts = [len(made_rows)] if compares else [1, 3, len(made_rows)]
    for cut in cuts:
        for flat in (True, False):
            assert loss(cut, flat=flat) == pytest.approx(whole, abs=1e-5)


@torch.inference_mode()
def test_every_example_gets_one_answer(name: str) -> None:
    task, network, rows = made(name)
    batch = task.collate([rows.row(i, 0) for i in range(len(rows))], flat=False)
    said = task.answers(network(batch), batch)
    assert len(said) == len(rows)
    for place, example in enumerate(examples(name)):
        own = [said[i] for i in range(len(rows)) if rows.document_of(i) == place]
        assert task.answer(own, example).answer is not None
        assert task.shown(example)
        task.truth(example)
