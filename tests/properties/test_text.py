"""Normalising, finding identifiers, telling languages and likeness: invariants and measured quality."""

from __future__ import annotations

import csv
import gzip
import json
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.text import contamination
from groundup.text.contamination import index_of, is_contaminated
from groundup.text.duplicate_clusters import Likeness, candidates, clusters, duplicates, spread, verified
from groundup.text.duplicates import band_hashes, bands_for, exact_hash, shingles, signatures, similarity
from groundup.text.filters import Filters, reason_to_drop, repeated_share, repetition
from groundup.text.identifiers import IDENTIFIERS, is_card_number, is_id_number, redact
from groundup.text.languages import language_of
from groundup.text.normalise import Normalise, normalise

pytestmark = pytest.mark.smoke

TEXT = st.text(st.characters(codec=None), max_size=200)
PLAIN = st.text(st.sampled_from("abcde fg\n今天天气很好"), max_size=120)


@given(TEXT, st.sampled_from(["nfc", "nfkc", "keep"]), st.sampled_from(["keep", "half", "full"]))
@settings(max_examples=300)
def test_normalising_twice_changes_nothing_more(text: str, form: str, width: str) -> None:
    if (form, width) == ("nfkc", "full"):
        return  # refused: one undoes the other
    how = Normalise(unicode=form, width=width)  # type: ignore[arg-type]
    once, _ = normalise(text, how)
    assert normalise(once, how) == (once, [])
    once.encode("utf-8")  # lone surrogates are gone
    assert "\r" not in once and not any(line != line.rstrip() for line in once.split("\n"))


@given(TEXT)
def test_what_was_changed_is_named(text: str) -> None:
    cleaned, changed = normalise(text, Normalise(unicode="nfc"))
    if cleaned != text.strip("\n"):
        assert changed
    if unicodedata.normalize("NFC", text) == text:
        assert "unicode" not in changed or "control" in changed or "line_ends" in changed


def test_width_goes_both_ways() -> None:
    half = Normalise(width="half")
    assert normalise("ＡＢＣ１２３（测试）　ok", half)[0] == "ABC123(测试) ok"
    assert normalise("ABC 1", Normalise(width="full"))[0] == "ＡＢＣ　１"
    assert normalise("ＡＢＣ", Normalise())[0] == "ＡＢＣ"


def test_indents_and_inner_spaces_stay() -> None:
    text = "def f():\n    return  1\n\n\n    # end"
    assert normalise(text, Normalise()) == (text, [])
    assert normalise("a \t\r\nb\x00\u200b\r\n\n", Normalise()) == ("a\nb", ["line_ends", "control", "space"])


FOUND = {
    "email": ["li.wei@example.com", "a_b+c@mail.example.co.uk", "ZHANG@126.com"],
    "phone": [
        "13812345678", "138-1234-5678", "+86 139 1234 5678", "+8613912345678", "+1 (415) 555-2671", "(415) 555-2671",
        "415-555-2671", "+44 20 7946 0958", "+49 30 901820", "010-62345678", "0755-26012345",
    ],
    "id_number": ["11010519491231002X", "11010519491231002x", "440524188001010014"],
    "card_number": ["4111111111111111", "4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005",
                    "3782 822463 10005"],
}  # fmt: skip
LEFT = [
    "0.13812345678", "213812345678", "13812345678901", "a13812345678", "v1.13812345678", "1.2.3.13812345678",
    "550e8400-e29b-41d4-a716-13812345678a", "0x4111111111111111", "3.4111111111111111", "41111111111111111111111",
    "4111111111111112", "110105194912310021", "110105194913310025", "990105194912310026", "1700000000000", "2024-01-31",
    "2024-01-31 10:30:00", "192.168.100.200", "978-3-16-148410-0", "1,234,567,890", "12345678901", "icon@2x.png",
    "x@self.weight", "@decorator", "a@b", "user@localhost", "1e-10", "+12", "3.14159265358979",
    "deadbeef4111111111111111",
    "12811111111", "100000000000", "1+23456789012", "commit 4111111111111111111111111111111111111111",
]  # fmt: skip


@pytest.mark.parametrize(
    "around", ["{}", "电话{}，谢谢", "see {}.", "({})", "x={}&y=1", '"{}"', "{}/{}", "{},{}", "{} {}"]
)
@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values])
def test_identifiers_are_replaced_wherever_they_stand(kind: str, value: str, around: str) -> None:
    count = around.count("{}")
    text, found = redact(around.replace("{}", value), IDENTIFIERS)
    assert text == around.replace("{}", f"<{kind.upper()}>") and found == {kind: count}


@pytest.mark.parametrize("text", LEFT)
@pytest.mark.parametrize("around", ["{}", "值是{}。", "see {}, and"])
def test_what_only_looks_like_an_identifier_is_left(text: str, around: str) -> None:
    whole = around.replace("{}", text)
    assert redact(whole, IDENTIFIERS) == (whole, {})


@given(TEXT)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once, _ = redact(text, IDENTIFIERS)
    assert redact(once, IDENTIFIERS)[0] == once


def test_only_the_kinds_asked_for_are_replaced() -> None:
    assert redact("a@b.com 13812345678", ["phone"]) == ("a@b.com <PHONE>", {"phone": 1})


@given(st.integers(0, 16), st.integers(1, 9))
def test_a_changed_digit_breaks_a_check_digit(place: int, by: int) -> None:
    def changed(number: str) -> str:
        return number[:place] + str((int(number[place]) + by) % 10) + number[place + 1 :]

    assert not is_id_number(changed("11010519491231002X"))
    assert place > 15 or not is_card_number(changed("4111111111111111"))


@given(st.lists(PLAIN, max_size=6), st.integers(2, 9))
def test_shingles_of_a_text_do_not_depend_on_its_neighbours(texts: list[str], n: int) -> None:
    together, offsets = shingles(texts, n)
    assert len(offsets) == len(texts) + 1 and offsets[-1] == len(together)
    for number, text in enumerate(texts):
        own = together[int(offsets[number]) : int(offsets[number + 1])]
        assert np.array_equal(own, shingles([text], n)[0])
        assert len(own) == max(0, len(" ".join(text.lower().split())) - n + 1)


@given(st.text("abcdefghij ", min_size=200, max_size=400), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_signatures_estimate_the_share_of_common_shingles(text: str, cut: int) -> None:
    texts = [text, text[cut:]]
    hashes, offsets = shingles(texts, 5)
    left, right = (set(hashes[int(offsets[i]) : int(offsets[i + 1])].tolist()) for i in (0, 1))
    if len(left) < 50 or len(right) < 50:
        return
    exact = len(left & right) / len(left | right)
    slots = signatures(hashes, offsets).astype(np.uint8)
    assert abs(float(similarity(slots[0], slots[1])) - exact) < 0.2  # about five standard errors


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_pairs_at_the_threshold_and_spare_distant_ones(threshold: float) -> None:
    bands = bands_for(threshold)
    assert bands.recall(threshold) >= 0.97 and bands.recall(threshold / 2) < 0.6
    slots = np.arange(256, dtype=np.uint32).reshape(2, 128)
    hashes = band_hashes(np.concatenate([slots, slots[:1]]), bands)
    assert np.array_equal(hashes[0], hashes[2]) and not (hashes[0] == hashes[1]).any()
    assert len(set(hashes[0].tolist())) == bands.count


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=40))
def test_clusters_are_the_connected_components(edges: list[tuple[int, int]]) -> None:
    pairs = np.array([edge for edge in edges if edge[0] != edge[1]], np.int64).reshape(-1, 2)
    members, label = clusters(pairs)
    group = {member: {member} for member in members.tolist()}
    for left, right in pairs.tolist():
        joined = group[left] | group[right]
        for member in joined:
            group[member] = joined
    for member, number in zip(members.tolist(), label.tolist(), strict=True):
        assert {m for m, n in zip(members.tolist(), label.tolist(), strict=True) if n == number} == group[member]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=60), st.permutations([0, 1, 2]))
@settings(deadline=None)
def test_one_of_each_exact_cluster_is_kept_by_rank(values: list[int], ranks: list[int]) -> None:
    exact = np.array([exact_hash(str(value)) for value in values], np.uint64)
    rank = np.array([ranks[i % 3] for i in range(len(values))])
    ids = np.arange(len(values))
    likeness = Likeness(exact, None)
    paths = spread([(ids, exact[:, :1])], len(values), Path("keys"))
    found = duplicates(verified(candidates(paths), likeness, 1.0), rank, likeness, 1.0)
    kept = set(range(len(values))) - set(found[:, 0].tolist())
    for value in set(values):
        same = [i for i, v in enumerate(values) if v == value]
        assert kept & set(same) == {min(same, key=lambda i: (rank[i], i))}


def test_a_chain_of_small_differences_keeps_both_ends() -> None:
    """Near-copies of near-copies drift; what is unlike every kept document must stay."""
    slots = np.ones((20, 128), np.uint8)
    for i in range(20):
        slots[i, : i * 6] = 2
    exact = np.arange(40, dtype=np.uint64).reshape(20, 2)
    likeness = Likeness(exact, slots)
    pairs = np.stack([np.arange(19), np.arange(1, 20)], 1)
    found = duplicates(pairs, np.zeros(20, np.int64), likeness, 0.8)
    kept = sorted(set(range(20)) - set(found[:, 0].tolist()))
    assert kept == [0, 5, 10, 15]  # 24 of 128 slots differ after four steps, 30 after five
    assert all(likeness.estimate(d, k) >= 0.8 for d, k in found)


def test_repetition_by_lines_and_phrases() -> None:
    varied = " ".join(f"word{i} and{i * 7 % 31} so{i * 3 % 17}" for i in range(100))
    assert repetition(varied) == ""
    assert repetition("the same line\n" * 10) == "repetition: lines"
    assert repetition("buy it now today " * 40).startswith("repetition: ")
    assert repetition("今天天气真好呀" * 30).startswith("repetition: ")
    assert repetition("short") == ""
    assert repeated_share(["a", "bb", "a", "bb", "ccc"]) == (2 / 5, 3 / 9)


def test_filters_name_their_reason() -> None:
    filters = Filters(min_characters=5, max_characters=50, languages=["zh"])
    assert reason_to_drop("   ", filters) == "empty"
    assert reason_to_drop("好", filters) == "too short"
    assert reason_to_drop("好" * 51, filters) == "too long"
    assert reason_to_drop("this is not what was asked for", filters) == "language"
    assert reason_to_drop("今天天气很好", filters) == ""


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The quick brown fox jumps over the lazy dog."), ("zh", "敏捷的棕色狐狸跳过了懒狗。"),
        ("ja", "素早い茶色の狐がのろまな犬を飛び越える。"), ("ko", "빠른 갈색 여우가 게으른 개를 뛰어넘는다."),
        ("de", "Der schnelle braune Fuchs springt über den faulen Hund."),
        ("ru", "Быстрая лиса и ленивый пёс, а дальше лес."),
        ("uk", "Швидка лисиця перестрибує через ледачого пса її господаря."),
        ("ar", "الثعلب البني السريع يقفز فوق الكلب"),
        ("fr", "Le renard brun rapide saute par-dessus le chien qui est paresseux."), ("und", "1234 5678 !!"),
        ("es", "El rápido zorro marrón salta sobre el perro que no se mueve."), ("zh", "iPhone 15 发布会今天凌晨举行"),
    ],
)  # fmt: skip
def test_languages(language: str, text: str) -> None:
    assert language_of(text)[0] == language


def lines_of(path: Path) -> list[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line for line in file if line.strip()]


def test_languages_of_real_text(shared_data: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    multi, tatoeba, news = shared_data("multi30k"), shared_data("tatoeba_en_zh"), shared_data("ag_news")
    with gzip.open(tatoeba / "cmn.txt.gz", "rt", encoding="utf-8") as file:
        pairs = [line.split("\t") for line in file][::5]
    with gzip.open(news / "test.csv.gz", "rt", encoding="utf-8") as file:
        bodies = [row[2] for row in csv.reader(file)][:2000]
    samples = {
        ("en", "captions"): lines_of(multi / "val.en.gz"),
        ("de", "captions"): lines_of(multi / "val.de.gz"),
        ("en", "short sentences"): [pair[0] for pair in pairs],
        ("zh", "short sentences"): [pair[1] for pair in pairs],
        ("en", "news"): bodies,
    }
    for (language, what), texts in samples.items():
        share = Counter(language_of(text)[0] for text in texts)[language] / len(texts)
        with capsys.disabled():
            print(f"\n  language: {what} in {language}: {share:.1%} of {len(texts)}", end="")
        assert share > (0.93 if what == "short sentences" else 0.97)


def test_contamination_by_words_characters_and_whole() -> None:
    questions = [
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May.",
        "下列哪一项不属于中华人民共和国宪法规定的公民基本权利和义务，请从以下四个选项当中选出正确的一个答案",
        "How do I top up?",
    ]
    index = index_of(questions, 13, 40)

    def hit(text: str) -> bool:
        return is_contaminated(text, index, 13, 40)

    assert hit("Intro. natalia SOLD clips to 48 of her friends in april and then she sold half. Outro.")
    assert not hit("Natalia sold clips to 48 of her friends in March.")
    assert hit("题目：" + questions[1]) and not hit("题目：" + questions[1][:30])
    assert hit("how do i top up") and not hit("how do i top up my card")


@given(st.text(alphabet="ab 中文。c", max_size=60))
def test_a_whole_text_is_hashed_as_its_one_run(text: str) -> None:
    codes = np.concatenate([contamination._word_codes(text), contamination._character_codes(text)])
    expected = contamination._rolled(codes, len(codes), contamination._WHOLE) if len(codes) else codes
    assert np.array_equal(contamination.whole(text), expected)


def test_contamination_of_real_questions(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("eval") / "gsm8k_test.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        questions = [json.loads(line)["question"] for line in file]
    index = index_of(questions[:600], 13, 40)
    assert all(is_contaminated(f"Q: {question} A:", index, 13, 40) for question in questions[:600])
    strangers = [is_contaminated(question, index, 13, 40) for question in questions[600:]]
    assert sum(strangers) <= 0.01 * len(strangers)
