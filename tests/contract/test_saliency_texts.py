"""What a network looks at in a text: adds up, leaves the frame alone, points at the word that decides, and is drawn."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from groundup import catalog
from groundup.config import parse
from groundup.evaluation import labelled_pictures, looking, saliency
from groundup.evaluation.labelled import Labelled, System
from groundup.evaluation.labelled_pictures import Pictures
from groundup.nn.network import Network, create
from groundup.text.pipelines import SPECIALS
from groundup.text.rendering import pieces
from groundup.text.tokenizers import Specials, Tokenizer
from groundup.text.vocabulary import Wish, learn

FILLING = ("the", "a", "one", "man", "dog", "tree", "house", "went", "saw", "found", "by", "near", "under", "old",
           "red", "long", "slowly", "again")  # fmt: skip
GOOD, BAD = ("lovely", "brilliant"), ("dreadful", "boring")


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Sentences whose label one word decides, wherever it stands."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        label, word = draw.choice([*(("good", word) for word in GOOD), *(("bad", word) for word in BAD)])
        words = [draw.choice(FILLING) for _ in range(draw.randint(9, 24))]
        words[draw.randrange(len(words))] = word
        rows.append({"text": " ".join(words), "label": label, "word": word, "source": f"rows:{number}", "id": number})
    return rows


@cache
def tokenizer(kind: str = "wordpiece") -> Tokenizer:
    texts = [row["text"] for row in sentences(200, 0)]
    engine, _ = learn(Wish(kind, {"wordpiece": 100, "bpe": 300}[kind]), lambda: iter(texts))
    return Tokenizer(engine, Specials(**SPECIALS[kind]))


@cache
def task(kind: str = "wordpiece") -> Any:
    module = catalog.load("tasks", "text_classification")
    config, mistakes = parse(module.Config, {})
    assert not mistakes
    return module.Task(module.settle(config, sentences(20, 0)), tokenizer(kind), 64)


def network(family: str, **changes: Any) -> Network:
    made = task("bpe" if family == "gpt" else "wordpiece")
    model: Any = catalog.load("models", family)
    config = model.Config(**model.TINY | {"vocab_size": made.tokenizer.vocab_size, "context": 64} | changes)
    return create(model, config, "sequence", outputs=made.outputs, seed=2).eval()


def first_batch(of: Any, count: int = 6) -> dict[str, Any]:
    return next(looking.batches(of, sentences(count, 1), count))


@pytest.mark.parametrize("family", ["bert", "rnn", "gpt"])
def test_what_tokens_say_adds_up_and_the_frame_says_nothing(family: str) -> None:
    of = task("bpe" if family == "gpt" else "wordpiece")
    made, batch, special = network(family, initialiser_std=0.3), first_batch(of), of.tokenizer.special_ids
    assert saliency.key_of(made, batch) == saliency.TOKENS
    reading = saliency.read(made, batch, special_ids=special)
    torch.testing.assert_close(reading.logits(reading.inputs), made(batch).logits, msg="its own vectors change nothing")
    baseline = reading.inputs.mean((0, 1), keepdim=True)
    found, gap_E = looking.salience(reading, baseline)
    said_ET = found[looking.INTEGRATED]
    ids_ET, real_ET = batch["input_ids"], batch["attention_mask"]
    assert said_ET.shape == ids_ET.shape and not said_ET[~real_ET].any(), "what fills a batch up has no say"
    assert not said_ET[torch.isin(ids_ET, torch.tensor(sorted(special)))].any()
    assert (reading.real == (real_ET & ~torch.isin(ids_ET, torch.tensor(sorted(special))))).all()
    without = torch.where(reading.real[..., None], baseline, reading.inputs)
    with torch.no_grad():
        difference = reading.scores(reading.inputs) - reading.scores(without)
    assert difference.abs().max() > 0.1, "scores that hardly differ would prove nothing"
    torch.testing.assert_close(said_ET.sum(1), difference, rtol=0.05, atol=0.01)
    assert gap_E.max() < 0.05


@cache
def trained() -> Network:
    """A small LSTM that has really learned which words decide."""
    made, of = network("rnn", pooling="mean", context=64).train(), task()
    (batch,) = looking.batches(of, sentences(400, 3), 400)
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for step in range(80):
        rows = torch.randint(0, 400, (32,), generator=torch.Generator().manual_seed(step))
        part = {key: value[rows] for key, value in batch.items()}
        torch.nn.functional.cross_entropy(made(part).logits, part["label"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return made.eval()


def test_the_word_that_decides_is_found_and_matters() -> None:
    rows, of, made = sentences(100, 4), task(), trained()
    (batch,) = looking.batches(of, rows, 100)
    with torch.no_grad():
        answers = made(batch).logits.softmax(-1)
    assert (answers.argmax(1) == batch["label"]).float().mean() > 0.95
    found = looking.look(of, made, rows, sentences(50, 3), shown=[0, 7], seed=1, resamples=200)
    assert found is not None and list(found.shown) == [0, 7]
    data = found.data
    assert data["places"] == "tokens" and data["examples"] == looking.MOST_TEXTS
    assert 1 <= data["removed"] <= 3 and 9 <= data["of"] <= 40
    assert "looked up for a token over 50 training rows" in data["replaced_by"]
    for method in data["methods"]:
        assert labelled_pictures.state(method) == "better", method
        assert method["score"]["salient"]["estimate"] > 3 * abs(method["score"]["random"]["estimate"])
    right = 0
    for place, seen in found.shown.items():
        assert "".join(seen.pieces).replace(" ", "") == f"[CLS]{rows[place]['text']}[SEP]".replace(" ", "")
        right += seen.pieces[int(np.argmax(seen.salience[looking.INTEGRATED]))].strip() in rows[place]["word"]
    assert right == 2, "what says most is a piece of the word that decides"

    test = Labelled("classes", [row["source"] for row in rows], [row["text"] for row in rows],
                    [row["label"] for row in rows], of.labels)  # fmt: skip
    labels = [of.labels[number] for number in answers.argmax(1).tolist()]
    said, drawn = labelled_pictures.strips(found, test, System("seed 1", labels, answers.tolist()))
    assert drawn == {}, "a text is shown as text"
    page = labelled_pictures.looked(said | {"test": {"kind": "classes", "count": 100}}, Pictures())
    assert page.count('class="read"') == 2 and "What each token says by integrated gradients" in page
    assert "<img" not in page and "rgba(" in page and page.count("[CLS]") == 2
    assert len(said["saliency"]["shown"][0]["tokens"]) == len(found.shown[0].pieces)


def test_pieces_put_together_are_the_text() -> None:
    words = tokenizer("bpe")
    ids = [*words.encode("a lovely 猫 tree 😀"), words.eos_id or 0]
    found = pieces(words, ids)
    assert len(found) == len(ids) and "".join(found) == "a lovely 猫 tree 😀" + words.decode([words.eos_id or 0])
    assert pieces(words, []) == []
