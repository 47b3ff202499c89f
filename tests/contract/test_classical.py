"""The classical rivals: they learn what can be learned, say what they did, and answer every example."""

from __future__ import annotations

import gzip
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundup.evaluation import classical, classical_search, classical_tagging, classical_translation
from groundup.evaluation.classical import Examples
from groundup.evaluation.classical_tagging import Perceptron, Tagged
from groundup.evaluation.metrics import spans, tagging

GOOD, BAD = (
    ["lovely film", "a joy", "great fun", "moving and warm"],
    ["dull mess", "a bore", "awful plot", "cold and flat"],
)
好, 坏 = ["房间干净", "服务很好", "位置方便", "早餐丰富"], ["房间很脏", "服务太差", "噪音很大", "再也不来"]


def reviews(good: list[str], bad: list[str], count: int, seed: int, joint: str = " and ") -> Examples:
    draw = random.Random(seed)
    rows = [
        (joint.join(draw.choices(side, k=2)), label)
        for side, label in ((good, "pos"), (bad, "neg"))
        for _ in range(count)
    ]
    draw.shuffle(rows)
    return Examples([text for text, _ in rows], [label for _, label in rows])


def share_right(answers: object, truth: object) -> float:
    return float(np.mean([a == b for a, b in zip(answers, truth, strict=True)]))  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("good", "bad", "joint", "counted"), [(GOOD, BAD, " and ", "words"), (好, 坏, "，", "characters")]
)
def test_text_classifiers_learn_english_and_chinese(good: list[str], bad: list[str], joint: str, counted: str) -> None:
    train, validation, test = (reviews(good, bad, n, n, joint) for n in (60, 12, 20))
    guess, logistic, svm = classical.classifiers(train, validation, test.inputs, ["neg", "pos"])
    assert share_right(guess.answers, test.truth) == 0.5 and len(set(guess.answers)) == 1
    for system in (logistic, svm):
        assert share_right(system.answers, test.truth) == 1.0
        assert counted in system.meaning and "C = " in system.meaning and system.trained_rows == 120
    assert svm.probabilities is None and logistic.probabilities is not None
    assert np.sum(logistic.probabilities, axis=1) == pytest.approx(1)


def test_the_setting_is_chosen_on_validation_rows_or_on_training_rows_set_aside() -> None:
    train, test = reviews(GOOD, BAD, 60, 1), reviews(GOOD, BAD, 10, 2)
    _, logistic, _ = classical.classifiers(train, Examples([], []), test.inputs, ["neg", "pos"])
    assert logistic.trained_rows == 108, "every tenth of 120 rows was set aside"
    assert share_right(logistic.answers, test.truth) == 1.0
    assert [s.name for s in classical.classifiers(train.part([0]), Examples([], []), ["x"], ["neg", "pos"])] == [
        "the commonest label"
    ]


def test_several_labels_pairs_and_many_classes_are_served() -> None:
    draw = random.Random(0)
    topics = {"cat": "feline purrs", "dog": "hound barks", "sun": "bright warm", "never": ""}
    labels = list(topics)
    truth = [[label for label in labels[:3] if draw.random() < 0.5] for _ in range(150)]
    inputs = [" ".join(topics[label] for label in row) + " today" for row in truth]
    cut = Examples(inputs[:100], truth[:100])
    systems = classical.classifiers(cut, Examples([], []), inputs[100:], labels)
    assert [s.name for s in systems] == ["TF-IDF + logistic regression", "TF-IDF + linear SVM"]
    assert share_right(systems[1].answers, truth[100:]) > 0.9
    single = [draw.choice(labels[:3]) for _ in range(120)]
    pairs = [("what is it", topics[label]) for label in single]
    _, logistic, _ = classical.classifiers(Examples(pairs[:90], single[:90]), Examples([], []), pairs[90:], labels)
    assert share_right(logistic.answers, single[90:]) == 1.0
    assert np.array(logistic.probabilities).shape == (30, 4)


def test_ridge_beats_the_mean() -> None:
    draw = random.Random(1)
    counts = [draw.randint(0, 5) for _ in range(200)]
    inputs = ["fine" + " good" * count for count in counts]
    train = Examples(inputs[:150], [float(n) for n in counts[:150]])
    mean, ridge = classical.regressors(train, Examples([], []), inputs[150:])
    errors = [np.mean((np.array(s.answers) - counts[150:]) ** 2) for s in (mean, ridge)]
    assert errors[1] < errors[0] / 5 and "ridge" in ridge.meaning


def people(count: int, seed: int) -> Tagged:
    draw = random.Random(seed)
    tokens, tags = [], []
    for _ in range(count):
        name = ["Dr.", *draw.choices(["Ada", "Lin", "Noor", "Wei", "Zola"], k=draw.randint(1, 2))]
        tokens.append(["we", "met", *name, "near", "the", draw.choice(["lake", "bank"])])
        tags.append(["O", "O", "O", "B-PER", *["I-PER"] * (len(name) - 2), "O", "O", "O"])
    return Tagged(tokens, tags)


def test_taggers_find_names_they_never_saw() -> None:
    train, test = people(80, 0), people(20, 1)
    strangers = [[word.replace("Ada", "Quux").replace("Lin", "Mallory") for word in row] for row in test.tokens]
    dictionary, perceptron = classical_tagging.taggers(train, people(10, 2), strangers)
    right = [share_right(s.answers, test.tags) for s in (dictionary, perceptron)]
    assert right[1] == 1.0 > right[0]
    found_again = classical_tagging.taggers(train, people(10, 2), test.tokens)[0]
    assert [tag != "O" for row in found_again.answers for tag in row] == [
        tag != "O" for row in test.tags for tag in row
    ]
    assert classical_tagging.taggers(Tagged([], []), Tagged([], []), test.tokens) == []


def test_marked_ends_and_plain_classes_are_tagged_too() -> None:
    rows = [list("我叫王小明"), list("他叫李四"), list("请找张三丰")] * 12
    ends = [
        ["O", "O", "B-NAME", "M-NAME", "E-NAME"],
        ["O", "O", "B-NAME", "E-NAME"],
        ["O", "O", "B-NAME", "M-NAME", "E-NAME"],
    ]
    train = Tagged(rows, ends * 12)
    dictionary, perceptron = classical_tagging.taggers(train, Tagged([], []), [*rows[:3], []])
    assert dictionary.answers == perceptron.answers == [*ends, []]
    words = Tagged([["dogs", "bark"], ["cats", "sleep"]] * 20, [["NOUN", "VERB"]] * 40)
    common, perceptron = classical_tagging.taggers(words, Tagged([], []), [["dogs", "sleep"]])
    assert common.name == "the commonest tag" and common.answers == perceptron.answers == [["NOUN", "VERB"]]


@pytest.mark.smoke
def test_viterbi_finds_the_best_allowed_sequence() -> None:
    rng = np.random.default_rng(0)
    tags = ["O", "B-A", "I-A", "B-B", "I-B"]
    allowed = classical_tagging._allowed(tags, "BIO")
    for _ in range(30):
        emit, follow = rng.normal(0, 1, (5, 5)), rng.normal(0, 1, (6, 6))
        model = Perceptron(tags, {}, emit, follow, allowed)
        ids = np.arange(4)[:, None]

        def score(path: tuple[int, ...], emit: np.ndarray = emit, follow: np.ndarray = follow) -> float:
            steps = zip((5, *path), (*path, 5), strict=True)
            emitted = float(sum(emit[t, k] for t, k in enumerate(path)))
            return emitted + float(sum(follow[a, b] + allowed[a, b] for a, b in steps))

        best = max(itertools.product(range(5), repeat=4), key=score)
        assert tuple(model.best(ids)) == best
        assert tagging.breaks([tags[k] for k in best], "BIO") == []


@pytest.mark.smoke
def test_bm25_ranks_rare_shared_words_first_and_scores_as_published() -> None:
    texts = ["the cat sat", "the dog sat on the mat", "北京今天下雨", "上海天气很好"]
    index = classical_search.BM25(texts)
    assert index.scores("cat").argmax() == 0 and index.scores("北京的天气").argmax() in (2, 3)
    lengths = [len(classical_search.terms(text)) for text in texts]
    weight = math.log(1 + (4 - 1 + 0.5) / 1.5)
    expected = weight * 2.5 / (1 + 1.5 * (0.25 + 0.75 * lengths[0] / np.mean(lengths)))
    assert index.scores("cat")[0] == pytest.approx(expected)
    system = classical_search.ranker(["dog mat", "unknown"], ["a", "b", "c", "d"], texts, best=2)
    assert system.answers == [["b", "a"], ["a", "b"]], "equal scores keep the order of the items"


def test_answers_are_cut_from_the_sentence_that_shares_most_with_the_question() -> None:
    text = "Oslo is the capital of Norway. The tower was built by Gustave Eiffel in 1889. It is made of iron."
    system = classical_search.reader(
        ["When was the tower built?", "Who built the tower?", "首都在哪里？", "empty?"],
        [text, text, "挪威很冷。首都是奥斯陆。", ""],
    )
    assert system.answers == ["1889", "Gustave Eiffel", "首都是奥斯陆。", ""]


def test_the_word_table_learns_words_from_pairs() -> None:
    table = {"cat": "katze", "dog": "hund", "sees": "sieht", "hears": "hört", "the": "die", "one": "eine"}
    draw = random.Random(0)
    sources = []
    for _ in range(80):
        first, second = (f"{draw.choice(['the', 'one'])} {draw.choice(['cat', 'dog'])}" for _ in range(2))
        sources.append(f"{first} {draw.choice(['sees', 'hears'])} {second}{draw.choice(['.', ''])}")
    targets = [" ".join(table.get(w, w) for w in s.replace(".", " .").split()).replace(" .", ".") for s in sources]
    copy, learned = classical_translation.translators(sources, targets, ["the dog hears Zeus."])
    assert copy.answers == ["the dog hears Zeus."] and learned.answers == ["Die hund hört Zeus."]
    assert [s.name for s in classical_translation.translators([], [], ["x"])] == ["a copy of the source"]


def test_the_reader_on_real_questions(shared_data: Callable[[str], Path]) -> None:
    import json

    with gzip.open(shared_data("qa/xquad.en.json.gz"), "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"][:6]
    rows = [(q, p["context"]) for a in articles for p in a["paragraphs"] for q in p["qas"]]
    system = classical_search.reader([q["question"] for q, _ in rows], [context for _, context in rows])
    accepted = [[answer["text"] for answer in q["answers"]] for q, _ in rows]
    assert all(answer in context for answer, (_, context) in zip(system.answers, rows, strict=True))
    assert spans.f1(accepted, system.answers).value > 0.15, "the sliding window of the SQuAD paper reaches 0.20"
