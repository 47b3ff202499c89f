"""transformers opens what the tokenize stage writes, and gives the same ids."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from groundup.text.pipelines import KINDS, SPECIALS
from groundup.text.tokenizers import NO_LIMIT, Tokenizer
from groundup.text.vocabulary import Wish, learn

transformers = pytest.importorskip("transformers")

TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world! It's 2024 and we've 1,234.5 reasons; isn't that nice?",
    "气和玉烛，睿化著鸿明。缇管一阳生。",
    "用Python写代码，花了30分钟（真的！）",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🇨🇳 flag, 😀😀",
    "   leading, trailing   and \t tabs \r\n\r\n lines   \n",
    "control \x00\x01\x1b\x7f \u200b\u200d\ufeff end",
    "Ωmega naïve café e\u0301 ｆｕｌｌ ﾊﾝｶｸ עברית ไทย 한국어",
    "a" * 200,
    "\ufffd\ue000\U000e0041\U0010ffff",
]
SIZES = {"bpe": 1500, "wordpiece": 1500, "unigram": 800, "characters": None}


@pytest.fixture(scope="module", params=KINDS)
def written(
    request: pytest.FixtureRequest, shared_data: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    kind = str(request.param)
    rows = gzip.decompress(shared_data("lm/zh_songci.jsonl.gz").read_bytes()).decode("utf-8").splitlines()[:300]
    texts = ["".join(json.loads(row)["paragraphs"]) for row in rows]
    texts += gzip.decompress(shared_data("lm/wikitext2_valid.txt.gz").read_bytes()).decode("utf-8").splitlines()[:400]
    engine, _ = learn(Wish(kind, SIZES[kind], extra=("<|user|>",)), lambda: texts)
    folder = tmp_path_factory.mktemp(kind)
    Tokenizer.of_roles(engine, SPECIALS[kind]).save(folder)
    return kind, folder


def opened(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_ids_are_identical(written: tuple[str, Path]) -> None:
    _, folder = written
    ours, theirs = Tokenizer.load(folder), opened(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs(text, add_special_tokens=False)["input_ids"] == ids, text
        assert theirs.decode(ids, clean_up_tokenization_spaces=False) == ours.decode(ids), text
        assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids, skip_special=True), text


def test_special_tokens_are_identical(written: tuple[str, Path]) -> None:
    _, folder = written
    ours, theirs = Tokenizer.load(folder), opened(folder)
    for role in ("pad", "unk", "bos", "eos", "cls", "sep", "mask"):
        assert getattr(theirs, f"{role}_token_id") == getattr(ours, f"{role}_id"), role
    assert set(theirs.all_special_ids) <= set(ours.special_ids)
    assert theirs.vocab_size <= ours.vocab_size == len(theirs)
    assert theirs.model_max_length == NO_LIMIT
    text = " ".join(["one", *ours.specials.named().values(), "<|user|>", "two"])
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text, allow_special=True)


def test_inputs_are_framed_as_the_kind_is_used(written: tuple[str, Path]) -> None:
    kind, folder = written
    ours, theirs = Tokenizer.load(folder), opened(folder)
    ids = ours.encode("the sea")
    if kind == "wordpiece":
        pair = theirs("the sea", "the sea")
        assert pair["input_ids"] == [ours.cls_id, *ids, ours.sep_id, *ids, ours.sep_id]
        assert pair["token_type_ids"] == [0] * (len(ids) + 2) + [1] * (len(ids) + 1)
    else:
        assert theirs("the sea")["input_ids"] == [ours.bos_id, *ids]


def test_a_model_length_is_passed_on(written: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = written
    Tokenizer.load(folder).save(tmp_path, model_max_length=128)
    assert opened(tmp_path).model_max_length == 128
    assert Tokenizer.load(tmp_path).encode(TEXTS[3]) == Tokenizer.load(folder).encode(TEXTS[3])


def test_what_transformers_writes_opens_here(written: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = written
    opened(folder).save_pretrained(tmp_path)
    ours, again = Tokenizer.load(folder), Tokenizer.load(tmp_path)
    assert again.specials == ours.specials
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]


def test_published_tokenizers_give_the_same_ids(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    hf = shared_data("models/stories260K/hf")
    bert = tmp_path / "bert"
    bert.mkdir()
    packed = shared_data("tokenizers/bert_base_chinese/vocab.txt.gz")
    (bert / "vocab.txt").write_bytes(gzip.decompress(packed.read_bytes()))
    pairs = [
        (Tokenizer.load(hf), transformers.AutoTokenizer.from_pretrained(hf)),
        (Tokenizer.load(bert), transformers.BertTokenizerFast.from_pretrained(bert)),
    ]
    for ours, theirs in pairs:
        for text in TEXTS:
            assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text), text
