"""Supervised fine-tuning on chats: what is learned, what is cut and counted, and that no layout of a batch matters."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.text import Text

from groundup import catalog
from groundup.config import parse
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED
from groundup.data.pieces import Pieces
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.nn.network import Network, create
from groundup.tasks import chat
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

WORDS = "The cat number {i} sat on a mat. What did it say? It said nothing. 第{i}天，天气很好，我们去公园玩。"
OPEN_ENDED = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@cache
def tokenizer(template: str | None = None) -> Tokenizer:
    engine, _ = learn(Wish("bpe", 330), lambda: (WORDS.format(i=i) for i in range(20)))
    plain = Tokenizer(engine, Specials(**SPECIALS["bpe"]))
    return plain if template is None else plain.with_chat(template, ["<|user|>", "<|assistant|>", "<|system|>"])


def make(context: int = 64, template: str | None = None, **given: Any) -> chat.Task:
    config, mistakes = parse(chat.Config, given)
    assert config is not None and mistakes == []
    return chat.Task(config, tokenizer(template), context)


def talk(rounds: int, words: int = 2, system: str = "") -> dict[str, Any]:
    """A row of so many rounds, each answer a number and so many words."""
    messages = [{"role": "system", "content": system}] if system else []
    for number in range(rounds):
        messages.append({"role": "user", "content": f"What {number}?"})
        messages.append({"role": "assistant", "content": f"{number}" + " mat" * words})
    return {"text": "x", "messages": messages, "source": f"chats.jsonl:{rounds}"}


def rows_of(task: chat.Task, examples: list[dict[str, Any]], **options: Any) -> Pieces:
    return task.rows(Documents(examples, task.encode), 0, **options)


def learned(task: chat.Task, rows: Pieces) -> list[str]:
    """What each row trains, as text."""
    labels = [rows.row(i, 0)["labels"] for i in range(len(rows))]
    return [task.tokenizer.decode([int(label) for label in row if label != IGNORED]) for row in labels]


def read(task: chat.Task, rows: Pieces) -> list[str]:
    """What each row reads, and its last label, as text."""
    shown = []
    for i in range(len(rows)):
        row = rows.row(i, 0)
        shown.append(task.tokenizer.decode([*row["input_ids"], *(row["labels"][-1:][row["labels"][-1:] != IGNORED])]))
    return shown


@cache
def network() -> Network:
    model = catalog.load("models", "gpt")
    sizes = model.TINY | {"vocab_size": make().tokenizer.vocab_size, "context": 80}
    return create(model, model.Config(**sizes), "language", seed=1).double().eval()


@pytest.mark.smoke
def test_the_loss_is_on_the_assistants_turns() -> None:
    task = make()
    rows = rows_of(task, [talk(2)])
    assert learned(task, rows) == ["0 mat mat<|im_end|>1 mat mat<|im_end|>"]
    assert learned(make(train_on="last"), rows_of(make(train_on="last"), [talk(2)])) == ["1 mat mat<|im_end|>"]
    everything = rows_of(make(train_on="all"), [talk(1)])
    assert learned(task, everything)[0].startswith("user\nWhat 0?<|im_end|>\n<|im_start|>assistant\n0 mat")
    assert rows.lengths[0] == len(rows.row(0, 0)["input_ids"]) == len(task.encode(talk(2))["input_ids"]) - 1


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"instruction": "What?", "input": "mat", "output": "A cat."}, "A cat.<|im_end|>"),
        ({"prompt": "What?", "completion": "A cat."}, "A cat.<|im_end|>"),
        ({"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}]}, "A<|im_end|>"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "What?"},
                    {"from": "function_call", "value": '{"name": "look", "arguments": {"at": 1}}'},
                    {"from": "observation", "value": "cat"},
                    {"from": "gpt", "value": "A cat."},
                ],
                "tools": '[{"name": "look"}]',
            },
            '<tool_call>{"name": "look", "arguments": {"at": 1}}</tool_call><|im_end|>A cat.<|im_end|>',
        ),
    ],
)
def test_every_layout_of_rows_is_learned_from(row: dict[str, Any], answers: str) -> None:
    task = make(context=400)
    rows = rows_of(task, [{"text": "x", **row}])
    assert learned(task, rows) == [answers]


def test_overlong_chats_are_split_between_rounds_and_keep_the_system_prompt() -> None:
    task = make(context=60)
    row = talk(5, system="Be kind.")
    rows = rows_of(task, [row, talk(1)])
    assert len(rows) > 2 and rows.document_of(0) == 0 and rows.document_of(len(rows) - 1) == 1
    assert (rows.lengths <= 60).all()
    pieces = read(task, rows)[:-1]
    assert all(piece.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nWhat ") for piece in pieces)
    assert "".join(learned(task, rows)[:-1]) == "".join(f"{i} mat mat<|im_end|>" for i in range(5)), "each once"
    ledger = rows.ledger()
    assert (ledger.documents, ledger.overlong, ledger.cropped, ledger.dropped) == (2, 1, 0, 0)
    assert ledger.table()[-1][:3] == ["overlong", "1", "50.0%"]
    assert sum(rows.bytes_of(i) for i in range(len(rows))) == 2, "a document's bytes count once"


def test_a_round_that_is_too_long_alone_is_cut_at_its_end_and_counted() -> None:
    task = make(context=40)
    rows = rows_of(task, [talk(1), talk(1, words=60), talk(1)])
    assert len(rows) == 3 and rows.lengths[1] == 40
    assert learned(task, rows)[1].startswith("0 mat mat mat") and "im_end" not in learned(task, rows)[1]
    assert rows.ledger().cropped == len(make(context=400).encode(talk(1, words=60))["input_ids"]) - 41
    middle = rows_of(
        task, [{**talk(1), "messages": [*talk(1)["messages"], *talk(1, words=60)["messages"], *talk(1)["messages"]]}]
    )
    assert len(middle) == 3 and learned(task, middle)[2] == "0 mat mat<|im_end|>"


def test_truncate_drop_and_last_do_as_they_say() -> None:
    cut = make(context=60, overlong="truncate")
    rows = rows_of(cut, [talk(5, system="Be kind.")])
    assert len(rows) == 1 and rows.lengths[0] == 60 and learned(cut, rows)[0] == "0 mat mat<|im_end|>"
    assert rows.ledger().cropped == len(make(context=400).encode(talk(5, system="Be kind."))["input_ids"]) - 61
    dropped = rows_of(make(context=60, overlong="drop"), [talk(5), talk(1)])
    assert len(dropped) == 1 and (dropped.ledger().dropped, dropped.ledger().overlong) == (1, 1)
    last = make(context=90, train_on="last")
    rows = rows_of(last, [talk(5, system="Be kind.")])
    assert learned(last, rows) == ["4 mat mat<|im_end|>"]
    (text,) = read(last, rows)
    assert "Be kind." in text and "What 3?" in text and "What 0?" not in text


def test_a_run_whose_every_answer_is_cut_off_stops_with_the_rows() -> None:
    task = make(context=10, overlong="truncate")
    long = [{**talk(1), "messages": [{"role": "user", "content": "mat " * 60}, talk(1)["messages"][1]]}] * 3
    names = [f"chats.jsonl:{number}" for number in range(3)]
    with pytest.raises(DataError, match=r"no trained labels: 3 doc.*3 of them because the context cuts") as caught:
        rows_of(task, long).ledger().require_labels("data", name_of=names.__getitem__)
    assert "documents without labels: chats.jsonl:0, chats.jsonl:1, chats.jsonl:2)" in caught.value.what
    assert caught.value.where == "data" and "longer context" in caught.value.fix
    with pytest.raises(DataError, match="documents without labels: 0, 1, 2"):
        rows_of(task, long, held_out=True)
    rows = rows_of(make(context=40, overlong="truncate"), [*long, talk(1, words=0)])
    assert (rows.ledger().emptied, rows.ledger().dropped, len(rows)) == (3, 3, 1)


def test_an_answer_the_template_leaves_open_is_closed_and_learned() -> None:
    task = make(template=OPEN_ENDED)
    rows = rows_of(task, [talk(2)])
    assert learned(task, rows) == ["0 mat mat<|user|>1 mat mat<|eos|>"]
    assert set(task.generation["eos_token_id"]) == {task.tokenizer.eos_id, task.tokenizer.token_id("<|user|>")}


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}, "renders empty"),
        ({"text": "only text"}, "holds no chat"),
        ({"messages": [{"role": "us er", "content": "x"}]}, "has the role"),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        make().encode({"text": "x", "source": "chats.jsonl:9", **row})
    assert caught.value.where == "chats.jsonl:9"


def test_a_base_model_grows_by_the_template_s_tokens_and_says_so() -> None:
    task = make()
    assert task.tokenizer.vocab_size == tokenizer().vocab_size + 2
    assert task.choices == {"chat_template": "ChatML, the default", "added_tokens": ["<|im_start|>", "<|im_end|>"]}
    assert make(template=OPEN_ENDED).choices == {"chat_template": "the tokenizer's own"}
    assert task.encoding["template"] != make(template=OPEN_ENDED).encoding["template"]
    assert pickle.loads(pickle.dumps(task)).encode(talk(2)) == task.encode(talk(2))


EXAMPLES = [talk(1 + i % 4, words=i % 5, system="Be kind." * (i % 2)) for i in range(12)]


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("is_flat", [False, True])
def test_neither_layout_nor_cut_of_a_batch_changes_a_gradient(is_flat: bool, micro_batches: int) -> None:
    task = make()
    rows = rows_of(task, EXAMPLES)
    reference = _gradients(task, Loader(rows, task.collate, 0, 8))
    mine = _gradients(task, Loader(rows, lambda r: task.collate(r, flat=is_flat), 0, 8, micro_batches))
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def _gradients(task: chat.Task, loader: Loader) -> list[torch.Tensor]:
    net = network()
    net.zero_grad()
    batches = [loader.micro_batch(1, micro)[0] for micro in range(loader.micro_batches)]
    total = sum(task.counts(batch)["loss"] for batch in batches)
    for batch in batches:
        (summed, count) = task.loss(net(batch), batch)["loss"]
        assert int(count) == task.counts(batch)["loss"]
        (summed / total).backward()  # type: ignore[no-untyped-call]
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("is_flat", [False, True])
def test_scores_and_answers_are_those_of_each_example(is_flat: bool) -> None:
    task = make()
    rows = rows_of(task, EXAMPLES)
    chosen = [rows.row(i, 0) for i in range(6)]
    batch = task.collate(chosen, flat=is_flat)
    answers = task.answers(network()(batch), batch)
    for row, found in zip(chosen, answers, strict=True):
        alone = task.collate([row])
        logits = network()(alone).logits.detach()
        nats = torch.nn.functional.cross_entropy(logits[0], alone["labels"][0], reduction="sum")
        assert found["nats"] == pytest.approx(float(nats), rel=1e-9)
        assert found["labels"] == int((alone["labels"] != IGNORED).sum())
        assert found["right"] == int((logits.argmax(-1) == alone["labels"]).sum())
    whole = task.answer(answers[:2], EXAMPLES[0])
    assert whole.answer["labels"] == answers[0]["labels"] + answers[1]["labels"]
    assert task.truth(EXAMPLES[1]) == "1 mat" and task.shown(EXAMPLES[1]) == "What 1?"


def test_a_row_is_shown_with_what_is_trained() -> None:
    task = make()
    shown = Text.from_markup(task.render(rows_of(task, [talk(1)]).row(0, 0)))
    assert shown.plain.splitlines()[1:] == [
        "<|im_start|>user⏎",
        "What 0?<|im_end|>⏎",
        "<|im_start|>assistant⏎",
        "0 mat mat<|im_end|>",
    ]
    trained = [shown.plain[span.start : span.end] for span in shown.spans if "bold" in str(span.style)]
    assert "".join(trained[1:]) == "0 mat mat<|im_end|>"


def test_real_rows_keep_every_answer(shared_data: Callable[[str], Path]) -> None:
    folder = shared_data("sft")
    for name in ("alpaca_zh_demo", "glaive_toolcall_en_demo", "instruction-data"):
        with gzip.open(folder / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            examples = [{"text": "", **row} for row in json.load(file)[:40]]
        task = make(context=6000)
        rows = rows_of(task, examples)
        ledger = rows.ledger()
        assert ledger.dropped == 0 and ledger.cropped == 0 and ledger.emptied == 0
        texts = [""] * len(examples)
        for index, text in enumerate(learned(task, rows)):
            texts[rows.document_of(index)] += text
        for example, text in zip(examples, texts, strict=True):
            assert text.endswith("<|im_end|>")
            said = example.get("output") or example["conversations"][-1]["value"]
            assert said in text
