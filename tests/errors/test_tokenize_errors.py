"""What the tokenize stage and tokenizers say to a mistake: what, where, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.artifact import Input, Store
from groundup.config import parse
from groundup.data.corpus import Corpus
from groundup.errors import DataError, Interrupted
from groundup.forecast import Known
from groundup.stages import tokenize
from groundup.text.tokenizers import Tokenizer

pytestmark = pytest.mark.smoke

TEXT = "a few words, said over and over, make a small vocabulary of a few words"


def mistakes(**section: Any) -> list[str]:
    parsed, found = parse(tokenize.Config, {"of": "corpus", **section}, ("stages", "words", "tokenize"))
    assert parsed is None
    return [f"{'.'.join(map(str, mistake.path))}: {mistake.what} {mistake.fix}" for mistake in found]


def run(corpus: Corpus, part: str | None = None, **section: Any) -> None:
    config, found = parse(tokenize.Config, {"of": "corpus", **section})
    assert config is not None, found
    with Store().draft("tokenizer", "b" * 64) as draft:
        tokenize.run(config, {"of": Input(corpus.artifact, part)}, draft)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"kind": "bep", "vocab_size": 500}, ["words.tokenize.kind", "no tokenizer kind named 'bep'", "'bpe'"]),
        ({"vocab_size": 200}, ["words.tokenize.vocab_size", "200 is too small", "256 bytes", "261 or more"]),
        ({"kind": "wordpiece", "vocab_size": 5}, ["vocab_size", "5 is too small", "special tokens"]),
        ({}, ["words.tokenize.vocab_size", "a bpe tokenizer needs a vocab_size"]),
        ({"vocab_siz": 500, "kind": "characters"}, ["unknown key 'vocab_siz'", "did you mean 'vocab_size'?"]),
        ({"vocab_size": "4Kb"}, ["vocab_size", "unknown unit 'Kb'"]),
        ({"vocab_size": 500, "special_tokens": ["<|pad|>"]}, ["special_tokens", "'<|pad|>'"]),
        ({"vocab_size": 500, "special_tokens": ["<a>", "<a>"]}, ["special_tokens", "'<a>'"]),
    ],
)
def test_sections_that_cannot_be(section: dict[str, Any], said: list[str]) -> None:
    found = mistakes(**section)
    assert len(found) == 1
    assert all(part in found[0] for part in said), found


def test_an_empty_corpus(make_corpus: Callable[..., Corpus]) -> None:
    for rows in ([], ["", ""]):
        with pytest.raises(DataError, match="the corpus has no text") as caught:
            run(make_corpus({"train": rows, "test": [TEXT]}), vocab_size=300)
        assert "ledger" in caught.value.fix
    assert Store().find("b" * 64) is None and not list((Store().root / "drafts").iterdir())


@pytest.mark.parametrize(("kind", "size"), [("bpe", 5000), ("unigram", 5000), ("wordpiece", 5000)])
def test_more_entries_than_the_text_supports(make_corpus: Callable[..., Corpus], kind: str, size: int) -> None:
    corpus = make_corpus({"train": [TEXT] * 3})
    with pytest.raises(DataError, match="vocab_size is 5000, but the text supports no more than") as caught:
        run(corpus, kind=kind, vocab_size=size)
    supported = int(caught.value.fix.split("set vocab_size to ")[1].split()[0])
    run(corpus, kind=kind, vocab_size=supported)
    found = Store().find("b" * 64)
    assert found is not None and found.metrics["vocab_size"] == supported


def test_an_unknown_split(make_corpus: Callable[..., Corpus]) -> None:
    with pytest.raises(Exception, match="no split 'valid'"):
        run(make_corpus({"train": [TEXT]}), part="valid", kind="characters")


def test_plan_refuses_what_no_text_of_that_size_supports() -> None:
    config, _ = parse(tokenize.Config, {"of": "corpus", "vocab_size": 50_000})
    assert config is not None
    measured = Known("corpus", facts={"bytes": {"train": 2000}})
    found = tokenize.check(config, {"of": measured})
    assert [mistake.path for mistake in found] == [("vocab_size",)]
    assert "2000 bytes" in found[0].what and found[0].fix
    assert not tokenize.check(config, {"of": Known("corpus", facts={"bytes": {"train": 2000}}, estimated=True)})
    assert not tokenize.check(config, {"of": Known("corpus", facts={"bytes": {"train": 10**6}})})
    assert not tokenize.check(config, {})


def test_interruption_leaves_nothing(make_corpus: Callable[..., Corpus], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenize, "interrupt_requested", lambda: True)
    with pytest.raises(Interrupted):
        run(make_corpus({"train": [TEXT] * 600}), vocab_size=300)
    assert Store().find("b" * 64) is None and not list((Store().root / "drafts").iterdir())


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer here") as caught:
        Tokenizer.load(tmp_path)
    assert caught.value.where == str(tmp_path) and "tokenizer.json" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "content"),
    [("tokenizer.json", "{"), ("tokenizer.json", '{"version": "1.0"}'), ("vocab.txt", "a\nb\n"), ("vocab.txt", "")],
)
def test_files_that_are_no_tokenizer(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match="the tokenizer cannot be read"):
        Tokenizer.load(tmp_path)


def test_a_broken_tokenizer_config(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n", encoding="utf-8")
    assert Tokenizer.load(tmp_path).encode("a") == [5]
    (tmp_path / "tokenizer_config.json").write_text("{,}", encoding="utf-8")
    with pytest.raises(DataError, match="not valid JSON"):
        Tokenizer.load(tmp_path)
