"""What every file in tasks/ promises: rows that train, losses that no cut of a batch changes, readable samples."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.text import Text

from groundup import catalog
from groundup.artifact import Store
from groundup.config import parse
from groundup.data.corpus import Corpus
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED, Rows
from groundup.data.shards import open_or_build
from groundup.errors import DataError
from groundup.nn.network import Network, create
from groundup.stages import prepare
from groundup.tasks import language_modeling, masked_language_modeling
from groundup.text.pipelines import SPECIALS
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

CONTEXT = 24
LM, MLM = "language_modeling", "masked_language_modeling"
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "lm": (LM, {}, "bpe", "gpt"),
    "lm_documents": (LM, {"packing": "documents", "label_smoothing": 0.1}, "bpe", "gpt"),
    "lm_characters": (LM, {"bos": True, "loss_chunk": 7}, "characters", "gpt2"),
    "mlm": (MLM, {}, "wordpiece", "bert"),
    "mlm_concatenate": (MLM, {"packing": "concatenate", "whole_word": True}, "wordpiece", "bert"),
    "mlm_none": (MLM, {"packing": "none", "whole_word": True, "label_smoothing": 0.1}, "bpe", "bert"),
    "nsp": (MLM, {"next_sentence": True, "mask_share": 0.3}, "wordpiece", "bert"),
}
ENGLISH = "The cat number {i} sat on a mat. It was, as Mr. Smith said, a very good mat; he had {i} of them! Why not?"
CHINESE = "第{i}天，天气很好，我们去公园玩。你想一起来吗？他说：“不行。”然后他就走了；我们都很难过。"
TEXTS = [text.format(i=i) for i in range(12) for text in (ENGLISH, CHINESE)] + [""]


class Encoded:
    """Documents encoded in memory, readable as shards are."""

    def __init__(self, encode: Callable[[dict[str, Any]], dict[str, list[int]]], texts: list[str]) -> None:
        self.documents = len(texts)
        self.bytes = np.array([len(text.encode()) for text in texts], np.int64)
        self._rows = [encode({"text": text}) for text in texts]

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        values = [row[name] for row in self._rows]
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int64)
        return np.array([item for value in values for item in value], np.uint16), offsets


@cache
def tokenizer(kind: str) -> Tokenizer:
    size = {"bpe": 400, "wordpiece": 160, "characters": None}[kind]
    engine, _ = learn(Wish(kind, size), lambda: iter(TEXTS))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


def make(case: str, context: int = CONTEXT, **changes: Any) -> Any:
    name, given, kind, _ = CASES[case]
    config, mistakes = parse(catalog.load("tasks", name).Config, given | changes)
    assert mistakes == []
    return catalog.load("tasks", name).Task(config, tokenizer(kind), context)


def rows_of(case: str, texts: list[str] = TEXTS, seed: int = 0, **options: Any) -> tuple[Any, Rows]:
    task = make(case)
    return task, task.rows(Encoded(task.encode, texts), seed, **options)


@cache
def network_of(case: str) -> Network:
    name = CASES[case][3]
    model = catalog.load("models", name)
    sizes = model.TINY | {"vocab_size": tokenizer(CASES[case][2]).vocab_size, "context": 32}
    return create(model, model.Config(**sizes), make(case).head, seed=1)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_task_states_what_a_stage_asks_for(case: str) -> None:
    module, task = catalog.load("tasks", CASES[case][0]), make(case)
    assert isinstance(module.VERSION, int) and module.METRICS
    assert task.head in catalog.load("models", CASES[case][3]).HEADS
    assert set(task.metrics) <= set(module.METRICS)
    assert pickle.loads(pickle.dumps(task)).encode({"text": TEXTS[0]}) == task.encode({"text": TEXTS[0]})
    assert set(task.encoding) >= {"task", "version"}


def test_encoding_needs_no_torch() -> None:
    """Processes that encode would each spend seconds and a few hundred megabytes on it."""
    tasks = "".join(f"import groundup.tasks.{name}\n" for name in catalog.names("tasks"))
    code = f"import sys\n{tasks}assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_label_is_counted_in_the_ledger(case: str) -> None:
    _, rows = rows_of(case)
    ledger, epochs = rows.ledger(), 20 if CASES[case][0] == MLM else 1
    found = [rows.row(index, epoch)["labels"] for epoch in range(epochs) for index in range(len(rows))]
    labels = sum(int((row != IGNORED).sum()) for row in found) / epochs
    assert labels == ledger.trained if not ledger.is_expected else abs(labels - ledger.trained) < 0.12 * ledger.trained
    assert (ledger.documents, ledger.dropped, ledger.rows) == (len(TEXTS), 1, len(rows))
    assert ledger.rows * CONTEXT == ledger.trained + ledger.masked + ledger.padded
    assert [len(line) for line in ledger.table()] == [4] * 9


def test_rows_are_the_same_again_and_batches_have_one_shape(case: str) -> None:
    task, rows = rows_of(case)
    other = rows_of(case)[1]
    shapes = set()
    for index in range(len(rows)):
        first, second = rows.row(index, 3), other.row(index, 3)
        assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)
        batch = task.collate([first])
        shapes.add(tuple((key, tuple(tensor.shape), tensor.dtype) for key, tensor in batch.items()))
    assert len(shapes) == 1
    dtypes = {key: dtype for key, _, dtype in next(iter(shapes))}
    wanted = {"document_ids": torch.int32, "attention_mask": torch.bool}
    assert all(dtype == wanted.get(key, torch.int64) for key, dtype in dtypes.items())


@pytest.mark.parametrize("micro_batches", [1, 2, 3, 5])
def test_how_a_batch_is_cut_changes_no_gradient(case: str, micro_batches: int) -> None:
    task, rows = rows_of(case)
    network = network_of(case).double().eval()
    loader = Loader(rows, task.collate, seed=0, batch_rows=10, micro_batches=micro_batches)
    whole = Loader(rows, task.collate, seed=0, batch_rows=10)
    found = [_gradients(task, network, one) for one in (loader, whole)]
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-6, atol=1e-9)


def _gradients(task: Any, network: Network, loader: Loader) -> list[torch.Tensor]:
    """Gradients of the loss of step 2: the sum over parts of their sums over the whole batch's counts."""
    batches = [loader.micro_batch(2, micro)[0] for micro in range(loader.micro_batches)]
    counts = [task.counts(batch) for batch in batches]
    totals = {part: sum(count[part] for count in counts) for part in counts[0]}
    network.zero_grad()
    for batch, counted in zip(batches, counts, strict=True):
        parts = task.loss(network(batch), batch)
        assert {part: int(count) for part, (_, count) in parts.items()} == counted
        sum(total / totals[part] for part, (total, _) in parts.items()).backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def test_the_loss_is_the_textbook_one(case: str) -> None:
    task, rows = rows_of(case)
    network = network_of(case).double().eval()
    batch = Loader(rows, task.collate, seed=0, batch_rows=6).micro_batch(0, 0)[0]
    outputs = network(batch)
    parts = task.loss(outputs, batch)
    wanted = {"loss" if task.head == "language" else "masked": (outputs.logits, batch["labels"])}
    if task.head == "pretraining":
        wanted["next_sentence"] = (outputs.next_sentence_logits, batch["next_sentence_label"])
    assert parts.keys() == wanted.keys()
    for part, (logits, labels) in wanted.items():
        smoothing = 0.0 if part == "next_sentence" else task.config.label_smoothing
        reference = torch.nn.functional.cross_entropy(
            logits.flatten(0, -2), labels.flatten(), label_smoothing=smoothing, reduction="sum", ignore_index=IGNORED
        )
        torch.testing.assert_close(parts[part][0].double(), reference, rtol=1e-6, atol=1e-6)


def test_scores_by_row_add_up_to_the_loss(case: str) -> None:
    task, rows = rows_of(case)
    plain = make(case, label_smoothing=0.0)
    network = network_of(case).double().eval()
    for batch, _ in Loader(rows, task.collate, seed=0, batch_rows=8).sweep(max_rows=20):
        outputs = network(batch)
        scores, parts = task.scores(outputs, batch), plain.loss(outputs, batch)
        assert all(values.shape == (8,) for values in scores.values())
        pairs = [("nats", "labels", "loss" if task.head == "language" else "masked")]
        pairs += [("pair_nats", "pairs", "next_sentence")] if task.head == "pretraining" else []
        for above, below, part in pairs:
            total, count = parts[part]
            torch.testing.assert_close(scores[above].sum(), total.double(), rtol=1e-5, atol=1e-5)
            assert int(scores[below].sum()) == int(count)
        if task.head != "language":
            best = outputs.logits.argmax(-1)
            assert int(scores["correct"].sum()) == int((best == batch["labels"]).sum())


def test_metrics_come_from_sums_over_documents(case: str) -> None:
    task = make(case)
    rows = task.document_rows(Encoded(task.encode, TEXTS), max_documents=9)
    network = network_of(case).double().eval()
    sums = dict.fromkeys(("bytes",), 0.0)
    units: set[int] = set()
    for batch, indices in Loader(rows, task.collate, seed=0, batch_rows=8).sweep():
        for name, values in task.scores(network(batch), batch).items():
            sums[name] = sums.get(name, 0.0) + float(values[: len(indices)].sum())
        sums["bytes"] += sum(rows.bytes_of(int(index)) for index in indices)
        units |= {rows.unit_of(int(index)) for index in indices}
    found = {name: metric.of(sums) for name, metric in task.metrics.items()}
    assert all(math.isfinite(value) and value >= 0 for value in found.values()), found
    assert 1 < len(units) <= 9
    assert rows.ledger().trained == pytest.approx(sums["labels"], rel=0.1)
    if task.head == "language":
        sizes = {unit: len(TEXTS[unit].encode()) for unit in units}
        assert sums["bytes"] == sum(sizes.values())
        assert found["bits_per_byte"] == pytest.approx(sums["nats"] / math.log(2) / sum(sizes.values()))
        assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
        tokens = sum(len(task.tokenizer.encode(TEXTS[unit])) + 1 for unit in units)
        assert sums["labels"] == tokens, "every token of the text and its end, the first token included"


def test_a_row_is_shown_as_its_text_with_what_is_trained(case: str) -> None:
    task, rows = rows_of(case)
    for index in range(0, len(rows), 7):
        row = rows.row(index, 0)
        shown = Text.from_markup(task.render(row))
        styles = [str(span.style) for span in shown.spans]
        assert any("bold green" in style for style in styles[1:])
        labels = [int(label) for label in row["labels"] if label != IGNORED]
        first = task.tokenizer.decode([labels[0]]).strip()
        assert "\ufffd" in first or first in shown.plain
        assert "Ġ" not in shown.plain
        assert shown.plain.count(" [") <= 200, "no markup of a text is taken for ours"


@pytest.mark.parametrize(
    "text", ["a [bold]b[/bold] c [/] d", "c:\\[b] \\\\[/i] \\ e", "[[a]] [/x] \\", "x = y[i] [1, 2]"]
)
def test_text_that_looks_like_markup_is_shown_as_it_is(text: str) -> None:
    task, rows = rows_of("lm", [text] * 30)
    shown = Text.from_markup(task.render(rows.row(0, 0))).plain
    tokens = [*rows.row(0, 0)["input_ids"], rows.row(0, 0)["labels"][-1]]
    assert shown.splitlines()[1] == task.tokenizer.decode(tokens)


def test_answers_are_text(case: str) -> None:
    task, rows = rows_of(case)
    batch = task.collate([rows.row(0, 0), rows.row(1, 0)])
    answers = task.decode(network_of(case).double().eval()(batch))
    assert len(answers) == 2 and all(isinstance(answer, str) and answer for answer in answers)


# What is special to one of them


def test_documents_begin_with_a_start_token_only_where_it_helps() -> None:
    ids = {name: make(name).encode({"text": "The cat"})["input_ids"] for name in ("lm", "lm_documents")}
    t = tokenizer("bpe")
    assert ids["lm"] == [*t.encode("The cat"), t.eos_id]
    assert ids["lm_documents"] == [t.bos_id, *t.encode("The cat"), t.eos_id]
    assert make("lm").choices == {"bos": False} and make("lm_documents").choices == {"bos": True}
    assert make("lm").encode({"text": ""}) == {"input_ids": []}


def test_document_rows_begin_as_training_does() -> None:
    for name, start in (("lm", tokenizer("bpe").eos_id), ("lm_documents", tokenizer("bpe").bos_id)):
        task = make(name)
        rows = task.document_rows(Encoded(task.encode, TEXTS), stride=5)
        begins = [rows.row(i, 0) for i in range(len(rows)) if rows.bytes_of(i)]
        assert {int(row["input_ids"][0]) for row in begins} == {start}
        last = [label for i in range(len(rows)) for label in rows.row(i, 0)["labels"].tolist()]
        assert last.count(tokenizer("bpe").eos_id) == len(TEXTS) - 1


def test_characters_a_vocabulary_lacks_are_paid_for() -> None:
    task = make("lm_characters")
    texts = ["The cat sat on a mat", "The 鑫鑫 sat on a mat", "鑫" * 50]
    rows = task.document_rows(Encoded(task.encode, texts))
    network, cost, bare = network_of("lm_characters").double().eval(), [0.0] * 3, [0.0] * 3
    for index in range(len(rows)):
        batch = task.collate([rows.row(index, 0)])
        unpaid = {key: value for key, value in batch.items() if key != "spelled_nats"}
        cost[rows.unit_of(index)] += float(task.scores(network(batch), batch)["nats"])
        bare[rows.unit_of(index)] += float(task.scores(network(batch), unpaid)["nats"])
    spelled = [(paid - free) / math.log(256) for paid, free in zip(cost, bare, strict=True)]
    assert spelled == pytest.approx([0, 6, 150])


def test_masked_text_is_framed_and_cut_at_sentences() -> None:
    t = tokenizer("wordpiece")
    text = "The cat sat. 天气很好。Why not?"
    packed, single = make("mlm").encode({"text": text}), make("nsp").encode({"text": text})
    assert packed == {"input_ids": [t.cls_id, *t.encode(text), t.sep_id]}
    assert single["input_ids"] == t.encode(text)
    begins = single["sentences"]
    pieces = [t.decode(single["input_ids"][a:b]) for a, b in zip(begins, [*begins[1:], None], strict=True)]
    assert [piece.replace(" ", "") for piece in pieces] == ["Thecatsat.", "天气很好。", "Whynot?"]
    words = make("mlm_none").encode({"text": "mat mat 天气"})
    spelled = [make("mlm_none").tokenizer.decode([token]) for token in words["input_ids"]]
    begins = [i for i, first in enumerate(words["word_starts"]) if first]
    assert ["".join(spelled[a:b]) for a, b in pairwise(begins[:3])] == ["mat", " mat"]
    assert len(words["word_starts"]) == len(words["input_ids"])


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"next_sentence": True, "packing": "documents"}, "next_sentence needs packing none"),
        ({"as_mask": "80%", "as_random": "30%"}, "exceed 100%"),
        ({"mask_share": 0}, "greater than 0"),
        ({"mask_shares": 0.2}, "unknown key 'mask_shares'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], what: str) -> None:
    _, mistakes = parse(masked_language_modeling.Config, given)
    assert any(what in mistake.what for mistake in mistakes), mistakes


def test_a_tokenizer_without_the_special_tokens_is_refused() -> None:
    with pytest.raises(DataError, match="needs an end-of-text token"):
        language_modeling.Task(language_modeling.Config(), tokenizer("wordpiece"), CONTEXT)
    bare = Tokenizer(tokenizer("wordpiece")._engine, Specials(pad="[PAD]", cls="[CLS]", sep="[SEP]"))
    with pytest.raises(DataError, match="that the tokenizer lacks: mask"):
        masked_language_modeling.Task(masked_language_modeling.Config(), bare, CONTEXT)
    with pytest.raises(DataError, match="context of 3 tokens leaves no room"):
        make("mlm", context=3)


@pytest.mark.parametrize(
    ("name", "texts", "what"),
    [
        ("lm", ["a cat"], "context of 24 tokens is longer than the whole split"),
        ("mlm", ["a cat"], "context of 24 tokens is longer than the whole split"),
        ("mlm_none", ["a cat"] * 50, "longer than any document .the longest has"),
        ("nsp", ["a cat"] * 50, "longer than any document .the longest has"),
        ("nsp", [" ".join(TEXTS)], "there is only one"),
        ("lm", ["", ""], "no trained labels: 2 documents with 0 tokens"),
        ("mlm", ["", ""], "no trained labels: 2 documents with 0 tokens"),
    ],
)
def test_data_that_cannot_be_trained_on_is_refused_with_numbers(name: str, texts: list[str], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        rows_of(name, texts)
    assert caught.value.fix
    if "trained" not in what:
        assert len(rows_of(name, texts, held_out=True)[1]) > 0, "a split that is only held out may be small"


def test_plan_hears_of_the_same_mistakes_before_anything_is_encoded() -> None:
    few = language_modeling.check(language_modeling.Config(), context=512, facts={"tokens": 100})
    assert "longer than all training text (100 tokens)" in few[0].what and "99 or less" in few[0].fix
    assert language_modeling.check(language_modeling.Config(), context=512, facts={"tokens": 10**6}) == []
    pairs = masked_language_modeling.Config(next_sentence=True)
    facts = {"tokens": 10**6, "documents": 1, "longest_document_tokens": 300}
    found = masked_language_modeling.check(pairs, context=512, facts=facts)
    assert len(found) == 2 and "303 or less" in found[0].fix
    assert masked_language_modeling.check(pairs, context=303, facts=facts | {"documents": 2}) == []


def test_a_prepared_corpus_passes_through_shards(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS if text))
    config = prepare.Config(source={"paths": [str(tmp_path / "texts.jsonl")]}, workers=1)
    with store.draft("corpus", "0" * 16) as draft:
        prepare.run(config, {}, draft)
    corpus = Corpus(store.find("0" * 16))
    texts = [document["text"] for document in corpus.documents("train")]
    for name in ("lm_documents", "nsp"):
        task = make(name)
        shards = open_or_build(store, corpus, "train", task.encoding, task.encode)
        rows, held = task.rows(shards, seed=4), task.rows(Encoded(task.encode, texts), seed=4)
        assert len(rows) == len(held) > 5
        for index in range(0, len(rows), 5):
            first, second = rows.row(index, 1), held.row(index, 1)
            assert all((first[key] == second[key]).all() for key in first)
