"""Masks against the collator of transformers, in distribution: rows of both, chi-square on what became of tokens."""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

from groundup.data.masking import MaskedRows, Masking
from groundup.data.packing import IGNORED, Stream
from groundup.data.segments import SegmentLayout, Specials
from groundup.tasks import masked_language_modeling
from groundup.text.pipelines import SPECIALS
from groundup.text.sentences import sentence_starts
from groundup.text.tokenizers import Specials as Names
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import Wish, learn

TEXT_TOKENS, EPOCHS = 62, 600
WORDS = [f"{a}{b}" for a in "bcdfgh" for b in "aeiou"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    engine, _ = learn(Wish("wordpiece", 40, min_frequency=1), lambda: iter([" ".join(WORDS)] * 3))
    return Tokenizer(engine, Names(**SPECIALS["wordpiece"]))


class One:
    """A single document of words, all ids of the vocabulary that stand for text among them."""

    documents = 1

    def __init__(self, tokenizer: Tokenizer) -> None:
        ordinary = sorted(set(range(tokenizer.vocab_size)) - tokenizer.special_ids)
        self.ids = np.resize(np.array(ordinary), TEXT_TOKENS)
        self.bytes = np.array([3 * TEXT_TOKENS])

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.ids, np.array([0, TEXT_TOKENS])


def ours(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original, read and labels, (EPOCHS, T) each."""
    task = masked_language_modeling.Task(masked_language_modeling.Config(packing="none"), tokenizer, 64)
    document = One(tokenizer)
    layout = SegmentLayout(Stream(document), np.array([0]), np.array([TEXT_TOKENS]), context=64, specials=task.specials)
    rows = MaskedRows(layout, task._masking(seed=1))
    made = [rows.row(0, epoch) for epoch in range(EPOCHS)]
    plain = layout.unmasked(0, 0).row["input_ids"]
    return np.tile(plain, (EPOCHS, 1)), np.stack([r["input_ids"] for r in made]), np.stack([r["labels"] for r in made])


def theirs(tokenizer: Tokenizer, plain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    names = {f"{role}_token": token for role, token in SPECIALS["wordpiece"].items()}
    published = PreTrainedTokenizerFast(tokenizer_object=tokenizer._engine, **names)
    collator = DataCollatorForLanguageModeling(published, mlm_probability=0.15, seed=7)
    batch = collator([{"input_ids": row} for row in torch.from_numpy(plain)])
    return batch["input_ids"].numpy(), batch["labels"].numpy()


def fates(plain: np.ndarray, read: np.ndarray, labels: np.ndarray, mask_id: int) -> dict[str, int]:
    """How many tokens of text were left alone, masked, replaced by another, and kept though predicted."""
    chosen = labels != IGNORED
    masked, same = chosen & (read == mask_id), chosen & (read == plain)
    return {
        "alone": int((~chosen).sum()),
        "masked": int(masked.sum()),
        "replaced": int((chosen & ~masked & ~same).sum()),
        "kept": int(same.sum()),
    }


def test_tokens_meet_the_same_fates_as_with_transformers(tokenizer: Tokenizer) -> None:
    plain, read, labels = ours(tokenizer)
    their_read, their_labels = theirs(tokenizer, plain)
    assert (labels[labels != IGNORED] == plain[labels != IGNORED]).all()
    assert (read[labels == IGNORED] == plain[labels == IGNORED]).all()
    mine, other = (
        fates(plain, read, labels, tokenizer.mask_id),
        fates(plain, their_read, their_labels, tokenizer.mask_id),
    )
    print("ours", mine, "transformers", other)
    n = sum(mine.values())
    for fate in mine:
        share = (mine[fate] + other[fate]) / (2 * n)
        deviation = math.sqrt(2 * n * share * (1 - share))
        assert abs(mine[fate] - other[fate]) < 5 * deviation, fate
    expected = {"masked": 0.15 * 0.8, "replaced": 0.15 * 0.1, "kept": 0.15 * 0.1}
    text = EPOCHS * TEXT_TOKENS
    for fate, share in expected.items():
        # A random token is now and then the one that was there, and theirs may be a special one.
        assert abs(mine[fate] / text - share) < 5 * math.sqrt(share / text) + 0.15 * 0.1 / 30, fate


def test_every_place_is_chosen_equally_often_and_the_number_hardly_varies(tokenizer: Tokenizer) -> None:
    _, _, labels = ours(tokenizer)
    chosen = labels[:, 1 : 1 + TEXT_TOKENS] != IGNORED
    by_place = chosen.sum(0)
    expected = 0.15 * EPOCHS
    chi_square = float(((by_place - expected) ** 2 / (expected * 0.85)).sum())
    assert chi_square < TEXT_TOKENS + 5 * math.sqrt(2 * TEXT_TOKENS)
    assert set(chosen.sum(1).tolist()) <= {9, 10}, "15 % of 62 is 9.3"
    assert abs(chosen.sum(1).mean() - 0.15 * TEXT_TOKENS) < 5 * math.sqrt(0.3 * 0.7 / EPOCHS)
    assert not (labels[:, [0, 63]] != IGNORED).any(), "[CLS] and [SEP] are never predicted"


def test_random_tokens_are_spread_over_the_text_tokens_only(tokenizer: Tokenizer) -> None:
    plain, read, labels = ours(tokenizer)
    replaced = read[(labels != IGNORED) & (read != tokenizer.mask_id) & (read != plain)]
    assert not set(replaced.tolist()) & tokenizer.special_ids
    ordinary = tokenizer.vocab_size - len(tokenizer.special_ids)
    counts = np.bincount(replaced, minlength=tokenizer.vocab_size)[sorted(set(plain[0]) - tokenizer.special_ids)]
    expected = len(replaced) / ordinary
    assert ((counts - expected) ** 2 / expected).sum() < ordinary + 5 * math.sqrt(2 * ordinary)


@pytest.mark.parametrize("share", [0.05, 0.15, 0.4])
def test_whole_words_meet_the_same_share_of_tokens(share: float) -> None:
    rng = np.random.default_rng(0)
    size, epochs = 120, 300
    word_starts = rng.random(size) < 0.6
    is_ordinary = np.arange(200) >= 5
    masking = Masking(share, as_mask=0.8, as_random=0.1, mask_id=4, is_ordinary=is_ordinary, seed=0)
    document = type("Document", (), {"documents": 1, "bytes": np.array([1]), "column": lambda *_: _held(size)})()
    specials = Specials(cls=1, sep=2, pad=0)
    layout = SegmentLayout(Stream(document), np.array([0]), np.array([size]), context=size + 2, specials=specials)
    rows = MaskedRows(layout, masking, word_starts)
    chosen = np.mean([(rows.row(0, epoch)["labels"] != IGNORED).mean() for epoch in range(epochs)])
    assert 0.9 * share < chosen * (size + 2) / size <= 1.02 * share


def _held(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(5, 5 + size), np.array([0, size])


# Sentences, against texts that come with theirs marked


def _treebank(path: Path) -> tuple[str, set[int]]:
    """The text of a treebank and where its sentences begin, headings and others without a stop left out."""
    text, begins, separator = "", set(), "" if "zh_" in path.name else " "
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("# text = "):
                if text.rstrip("\"'”’») ").endswith((".", "!", "?", "。", "！", "？", "；")):
                    begins.add(len(text))
                text += line.removeprefix("# text = ").strip() + separator
    return text, begins


@pytest.mark.parametrize("name", ["zh_gsdsimp-ud-test", "en_ewt-ud-test"])
def test_sentences_of_treebanks_are_found(shared_data: Callable[[str], Path], name: str) -> None:
    text, begins = _treebank(shared_data("ud") / f"{name}.conllu.gz")
    found = sentence_starts(text)
    right = len(begins.intersection(found))
    print(f"{name}: precision {right / (len(found) - 1):.3f}, recall {right / len(begins):.3f}")
    assert right / (len(found) - 1) > 0.95 and right / len(begins) > 0.8
