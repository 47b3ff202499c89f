"""Every kind of tokenizer: trained by the stage, it keeps its promises about text, ids and reports."""

from __future__ import annotations

import gzip
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.artifact import Artifact, Input, Store
from groundup.config import parse
from groundup.data.corpus import Corpus
from groundup.forecast import Known
from groundup.stages import tokenize
from groundup.text import byte_pairs
from groundup.text.pipelines import KINDS
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import Wish, learn

SIZES = {"bpe": 380, "wordpiece": 125, "unigram": 340, "characters": None}
ENGLISH = [
    f"The {a} {b} reads {len(a)} pages of the book, and the {b} isn't tired."
    for a in ("old", "young", "quick")
    for b in ("reader", "teacher", "writer", "painter")
]
CHINESE = [
    f"{a}的{b}读了很多书，{b}并不累。今天天气很好。"
    for a in ("年轻", "年老", "聪明")
    for b in ("读者", "老师", "作家", "画家")
]
AWKWARD = [
    "",
    " ",
    "Hello, world! isn't 2024-11-05",
    "读者说：“今天天气很好！”",
    "mixed 中文 and English，２０２４年",
    "👩‍👩‍👧 👍🏽 🇨🇳 😀",
    "  two  spaces\tand a tab\r\nand lines\n\n\n",
    "control \x00\x01\x7f\u200b\ufeff end",
    "café naïve Ωmega עברית ไทย",
    "<|eos|> [SEP] </s> are only text here",
    "\ufffd \ue000",
]


def train(kind: str, **wishes: object) -> Tokenizer:
    data = {"of": "corpus", "kind": kind, "vocab_size": SIZES[kind]} | wishes
    section, mistakes = parse(tokenize.Config, data)
    assert section is not None, mistakes
    engine, _ = learn(section.wish(), lambda: ENGLISH + CHINESE)
    return Tokenizer.of_roles(engine, tokenize.SPECIALS[kind])


def run_stage(corpus: Artifact, **section: object) -> Artifact:
    config, mistakes = parse(tokenize.Config, {"of": "corpus", **section})
    assert config is not None, mistakes
    store = Store()
    with store.draft("tokenizer", "a" * 64, stage="tokenize") as draft:
        tokenize.run(config, {"of": Input(corpus)}, draft)
    found = store.find("a" * 64)
    assert found is not None
    return found


def lines(packed: Path) -> list[str]:
    return gzip.decompress(packed.read_bytes()).decode("utf-8").splitlines()


def poems(shared_data: Callable[[str], Path], count: int) -> list[str]:
    rows = lines(shared_data("lm/zh_songci.jsonl.gz"))[:count]
    return ["".join(json.loads(row)["paragraphs"]) for row in rows]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.smoke
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("text", AWKWARD)
def test_byte_level_kinds_give_every_text_back(kind: str, text: str) -> None:
    tokenizer = train(kind)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.unk_id is None


def test_characters_give_back_what_they_know() -> None:
    tokenizer = train("characters")
    text = CHINESE[0] + ENGLISH[0]
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode(text)) == len(text)
    assert tokenizer.encode("鑫") == [tokenizer.unk_id]


def test_wordpiece_splits_chinese_and_marks_the_inside_of_words() -> None:
    tokenizer = train("wordpiece")
    assert [tokenizer.token(i) for i in tokenizer.encode("天气")] == ["天", "气"]
    inside = [tokenizer.token(i) for i in tokenizer.encode("readers")]
    assert inside[0] != "[UNK]" and all(str(token).startswith("##") for token in inside[1:])
    assert tokenizer.decode(tokenizer.encode("readers")) == "readers"


def test_digits_stand_alone() -> None:
    for kind in ("bpe", "unigram"):
        tokenizer = train(kind)
        assert len(tokenizer.encode("20241105")) == 8


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_no_entry_crosses_a_character_it_does_not_hold_whole(kind: str) -> None:
    tokenizer = train(kind)
    letters = {letter: byte for byte, letter in enumerate(byte_pairs.LETTERS)}
    for token, number in tokenizer.vocabulary().items():
        if number in tokenizer.special_ids:
            continue
        spelled = bytes(letters[letter] for letter in token)
        is_whole = "\ufffd" not in spelled.decode("utf-8", "replace")
        starts = sum(byte & 0xC0 != 0x80 for byte in spelled)
        assert is_whole or (starts <= 1 and len(spelled) < 4), token


@pytest.mark.smoke
def test_special_tokens_are_there_and_distinct(kind: str) -> None:
    tokenizer = train(kind, special_tokens=["<|user|>"])
    roles = [tokenizer.pad_id, tokenizer.mask_id]
    roles += [tokenizer.cls_id, tokenizer.sep_id] if kind == "wordpiece" else [tokenizer.bos_id, tokenizer.eos_id]
    assert None not in roles and len(set(roles)) == 4
    assert tokenizer.pad_id == 0
    assert tokenizer.pad_id != tokenizer.eos_id
    assert tokenizer.token_id("<|user|>") in tokenizer.special_ids


def test_text_never_becomes_a_special_token_unasked(kind: str) -> None:
    tokenizer = train(kind)
    text = " ".join(tokenizer.specials.named().values())
    assert not {i for i in tokenizer.encode(text) if i != tokenizer.unk_id} & tokenizer.special_ids
    assert tokenizer.special_ids - {tokenizer.unk_id} <= set(tokenizer.encode(text, allow_special=True))


def test_ids_survive_saving_pickling_and_batching(kind: str, tmp_path: Path) -> None:
    tokenizer = train(kind)
    tokenizer.save(tmp_path)
    expected = [tokenizer.encode(text) for text in AWKWARD]
    assert [Tokenizer.load(tmp_path).encode(text) for text in AWKWARD] == expected
    assert tokenizer.encode_batch(AWKWARD) == expected
    again = pickle.loads(pickle.dumps(tokenizer))
    assert [again.encode(text) for text in AWKWARD] == expected
    assert again.specials == tokenizer.specials == Tokenizer.load(tmp_path).specials


def test_offsets_and_words_cover_the_text(kind: str) -> None:
    tokenizer = train(kind)
    text = "the readers 读书"
    found = tokenizer.encode_with_offsets(text)
    assert found.ids == tokenizer.encode(text)
    assert len(found.ids) == len(found.word_ids) == len(found.offsets)
    assert found.word_ids == sorted(found.word_ids)
    assert max(end for _, end in found.offsets) == len(text)


def test_vocabulary_has_the_size_asked_for(kind: str) -> None:
    tokenizer = train(kind)
    if kind != "characters":
        assert tokenizer.vocab_size == SIZES[kind]
    assert sorted(tokenizer.vocabulary().values()) == list(range(tokenizer.vocab_size))


def test_characters_can_be_capped() -> None:
    tokenizer = train("characters", vocab_size=20)
    assert tokenizer.vocab_size == 20
    assert tokenizer.unk_id not in tokenizer.encode("e ")


def test_lowercase_is_part_of_the_tokenizer(kind: str) -> None:
    tokenizer = train(kind, lowercase=True)
    assert tokenizer.encode("THE READER") == tokenizer.encode("the reader")


TRAIN_ELSEWHERE = """
import hashlib, json, sys
from groundup.text.vocabulary import Wish, learn
kind, size, texts = json.load(sys.stdin)
engine, _ = learn(Wish(kind, size), lambda: texts)
print(hashlib.sha256(engine.to_str().encode()).hexdigest())
"""


def test_the_same_corpus_gives_the_same_bytes_in_every_process(kind: str, shared_data: Callable[[str], Path]) -> None:
    texts = poems(shared_data, 400)
    texts += lines(shared_data("lm/wikitext2_valid.txt.gz"))[:500]
    given = json.dumps([kind, None if kind == "characters" else 3000, texts])
    command = [sys.executable, "-c", TRAIN_ELSEWHERE]
    # Two processes differ in the seeds of their hash tables, which is what has to make no difference.
    digests = {subprocess.run(command, input=given, text=True, capture_output=True, check=True).stdout for _ in "ab"}
    assert len(digests) == 1 and len(digests.pop().strip()) == 64


def test_unigram_is_close_to_bpe_in_bytes_per_token(shared_data: Callable[[str], Path]) -> None:
    texts = poems(shared_data, 2000)
    held_out = texts[:200]
    lengths = {}
    for kind in ("bpe", "unigram"):
        engine, _ = learn(Wish(kind, 3000), lambda: texts[200:])
        tokenizer = Tokenizer.of_roles(engine, tokenize.SPECIALS[kind])
        lengths[kind] = sum(len(ids) for ids in tokenizer.encode_batch(held_out))
    assert lengths["unigram"] < 1.05 * lengths["bpe"]


@pytest.mark.smoke
def test_stage_writes_files_report_and_figures(kind: str, make_corpus: Callable[..., Corpus]) -> None:
    corpus = make_corpus({"train": ENGLISH * 3 + CHINESE * 3, "validation": ENGLISH[:3] + CHINESE[:3]})
    found = run_stage(corpus.artifact, kind=kind, vocab_size=SIZES[kind])
    report = found.json("report.json")
    assert report["measured_on"]["split"] == "validation"
    assert set(report["bytes_per_token_by_script"]) == {"latin", "han", "other"}
    size = sum(len(text.encode()) for text in ENGLISH[:3] + CHINESE[:3])
    assert report["measured_on"]["bytes"] == size
    tokenizer = Tokenizer.load(found.path)
    tokens = sum(len(tokenizer.encode(text)) for text in ENGLISH[:3] + CHINESE[:3])
    assert report["bytes_per_token"] == pytest.approx(size / tokens)
    assert report["unknown_rate"] == 0
    assert sum(report["tokens_by_script"].values()) == tokens
    assert 0.05 < report["vocabulary_used"] <= 1
    assert found.metrics["vocab_size"] == tokenizer.vocab_size
    assert "Longest tokens" in found.file("report.md").read_text(encoding="utf-8")
    assert tokenize.facts(found) == {"vocab_size": tokenizer.vocab_size, "bytes_per_token": report["bytes_per_token"]}


def test_report_counts_what_is_missing_and_never_used(make_corpus: Callable[..., Corpus]) -> None:
    corpus = make_corpus({"train": ["aaabbb cc"] * 5, "validation": ["aazz"]})
    report = run_stage(corpus.artifact, kind="characters").json("report.json")
    assert report["unknown_rate"] == 0.5
    assert report["entries_never_used"] == 0 and report["vocabulary_used"] == 1


def test_a_budget_of_memory_ends_the_survey_early() -> None:
    texts = ["".join(chr(0x4E00 + (i * 7919 + j * j * 31 + i * j) % 20000) for j in range(200)) for i in range(700)]
    _, survey = learn(Wish("bpe", 500, memory_bytes=301 << 20), lambda: texts)
    total = sum(len(text.encode()) for text in texts)
    assert not survey.whole and survey.bytes < 0.7 * total
    _, spaced = learn(Wish("bpe", 300, memory_bytes=301 << 20), lambda: ENGLISH * 5000)
    assert spaced.whole, "text that repeats itself fills no memory"


def test_forecast_learns_from_the_sample() -> None:
    sample = ENGLISH * 5 + CHINESE * 5
    size = sum(len(text.encode()) for text in sample)
    known = Known("corpus", facts={"sample": sample, "bytes": {"train": size}})
    config, _ = parse(tokenize.Config, {"of": "corpus", "vocab_size": 380})
    assert config is not None
    found = tokenize.forecast(config, {"of": known}, "measured")
    assert found.facts["vocab_size"] == 380 and 2 < found.facts["bytes_per_token"] < 8
    assert not found.warnings and found.seconds and found.peak_bytes
    config, _ = parse(tokenize.Config, {"of": "corpus", "vocab_size": 4000})
    assert config is not None
    assert "support about" in tokenize.forecast(config, {"of": known}, "measured").warnings[0]


def test_published_vocabularies_open(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    def unpack(name: str, folder: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        packed = shared_data(f"tokenizers/{name}.gz")
        (tmp_path / folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))

    unpack("gpt2/vocab.json", "gpt2")
    unpack("gpt2/merges.txt", "gpt2")
    gpt2 = Tokenizer.load(tmp_path / "gpt2")
    assert gpt2.vocab_size == 50257 and gpt2.eos_id == gpt2.bos_id == 50256 and gpt2.stop_ids == [50256]
    assert gpt2.encode("Hello world") == [15496, 995]
    unpack("bert_base_chinese/vocab.txt", "bert")
    bert = Tokenizer.load(tmp_path / "bert")
    assert (bert.pad_id, bert.unk_id, bert.cls_id, bert.sep_id, bert.mask_id) == (0, 100, 101, 102, 103)
    assert bert.encode("今天") == [791, 1921] and bert.encode("ABC") == bert.encode("abc")


def test_a_published_directory_opens_with_its_special_tokens(shared_data: Callable[[str], Path]) -> None:
    tokenizer = Tokenizer.load(shared_data("models/stories260K/hf"))
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
    assert tokenizer.pad_id is None and tokenizer.stop_ids == [2]
    assert tokenizer.decode(tokenizer.encode("Once upon a time 你好")) == "Once upon a time 你好"
