"""Every score beside a library that people know, on the same answers."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest

from groundup.evaluation.metrics import (
    calibration,
    classification,
    detection,
    ranking,
    regression,
    spans,
    tagging,
    translation,
)
from groundup.evaluation.metrics.additive import Floats, Ints

RNG = np.random.default_rng(0)
TRUTH: Ints = RNG.integers(0, 5, 400)
GUESSED = RNG.integers(0, 6, 400)
ANSWERS: Ints = np.where(RNG.random(400) < 0.6, TRUTH, GUESSED)
"""Of six classes the last never occurs in the truth."""
PROBABILITIES: Floats = RNG.dirichlet(np.ones(6), 400)
KINDS = ("PER", "LOC", "ORG")


@pytest.mark.parametrize("what", ["precision", "recall", "f1"])
def test_precision_recall_and_f1_are_scikit_learns(what: str) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    theirs = getattr(metrics, f"{what}_score")
    counts = classification.counts(TRUTH, ANSWERS, 8)  # two classes that occur nowhere
    for average, ours in (("macro", classification.macro), ("micro", classification.micro)):
        expected = theirs(TRUTH, ANSWERS, average=average, zero_division=0)
        assert ours(counts, what).value == pytest.approx(expected, abs=1e-12)
    each = theirs(TRUTH, ANSWERS, average=None, labels=range(8), zero_division=0)
    assert classification.per_class(counts.sum(0), what) == pytest.approx(each, abs=1e-12)
    assert classification.of_class(counts, 2, what).value == pytest.approx(each[2], abs=1e-12)


def test_accuracy_correlation_log_loss_brier_and_confusion_are_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    counts = classification.counts(TRUTH, ANSWERS, 6)
    assert classification.accuracy(TRUTH, ANSWERS).value == metrics.accuracy_score(TRUTH, ANSWERS)
    assert classification.matthews(counts).value == pytest.approx(metrics.matthews_corrcoef(TRUTH, ANSWERS), abs=1e-12)
    loss = metrics.log_loss(TRUTH, PROBABILITIES, labels=range(6))
    assert classification.log_loss(TRUTH, PROBABILITIES).value == pytest.approx(loss, abs=1e-12)
    brier = metrics.brier_score_loss(TRUTH, PROBABILITIES, labels=range(6))
    assert classification.brier(TRUTH, PROBABILITIES).value == pytest.approx(brier, abs=1e-12)
    two = np.array([0.2, 0.7, 0.9])
    pair = metrics.brier_score_loss([0, 1, 0], two)
    ours = classification.brier(np.array([0, 1, 0]), np.stack([1 - two, two], 1)).value
    assert ours == pytest.approx(pair, abs=1e-12)
    table = metrics.confusion_matrix(TRUTH, ANSWERS, labels=range(6))
    assert (classification.confusion(TRUTH, ANSWERS, 6) == table).all()
    constant = classification.counts(np.zeros(9, np.int64), np.zeros(9, np.int64), 2)
    assert classification.matthews(constant).value == 0


def test_sets_of_labels_are_scored_as_scikit_learn_does() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, answered = RNG.random((200, 5)) < 0.3, RNG.random((200, 5)) < 0.3
    true[:, 4] = answered[:, 4] = False
    counts = classification.set_counts(true, answered)
    ours = classification.macro(counts, "f1", every_class=True).value
    assert ours == pytest.approx(metrics.f1_score(true, answered, average="macro", zero_division=0), abs=1e-12)
    micro = metrics.f1_score(true, answered, average="micro", zero_division=0)
    assert classification.micro(counts, "f1").value == pytest.approx(micro, abs=1e-12)
    assert classification.exact_match(true, answered).value == metrics.accuracy_score(true, answered)
    hamming = metrics.hamming_loss(true, answered)
    assert 1 - classification.label_accuracy(true, answered).value == pytest.approx(hamming, abs=1e-12)
    assert (classification.one_hot([[0, 2], []], 3) == [[True, False, True], [False, False, False]]).all()


def test_correlations_and_errors_are_scipys_and_scikit_learns() -> None:
    stats, metrics = pytest.importorskip("scipy.stats"), pytest.importorskip("sklearn.metrics")
    x = np.round(RNG.normal(1e6, 3, 300), 1)  # far from 0, and with ties
    y = np.round(0.5 * x + RNG.normal(0, 3, 300), 1)
    assert regression.pearson(x, y).value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert regression.spearman(x, y).value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    assert regression.mean_squared_error(x, y).value == pytest.approx(metrics.mean_squared_error(x, y))
    assert regression.mean_absolute_error(x, y).value == pytest.approx(metrics.mean_absolute_error(x, y))
    assert regression.explained_variance(x, y).value == pytest.approx(metrics.r2_score(x, y))
    assert regression.pearson(x, np.ones(300)).value == 0


def sentences(prefixes: str, seed: int, count: int = 150) -> list[list[str]]:
    """Sentences of tags drawn with no regard for any scheme."""
    draw = random.Random(seed)
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in KINDS)]
    return [draw.choices(tags, k=draw.randint(1, 12)) for _ in range(count)]


@pytest.mark.parametrize("prefixes", ["BI", "BIES"])
def test_entities_read_leniently_are_seqevals(prefixes: str) -> None:
    oracle = pytest.importorskip("seqeval.metrics.sequence_labeling")
    for tags in sentences(prefixes, 1, 400):
        ours = tagging.entities(tags)
        assert [(kind, start, stop - 1) for kind, start, stop in ours] == oracle.get_entities(tags)


def test_entity_scores_are_seqevals() -> None:
    metrics = pytest.importorskip("seqeval.metrics")
    truth, noise = sentences("BI", 2), sentences("BI", 3)
    draw = random.Random(4)
    answers = [[a if draw.random() < 0.7 else draw.choice(b) for a in x] for x, b in zip(truth, noise, strict=True)]
    counts = tagging.entity_counts(truth, answers, KINDS, "BIO")
    for what in ("precision", "recall", "f1"):
        theirs = getattr(metrics, f"{what}_score")
        for average, ours in (("micro", classification.micro), ("macro", classification.macro)):
            expected = theirs(truth, answers, average=average, zero_division=0)
            assert ours(counts, what).value == pytest.approx(expected, abs=1e-12)
    each = metrics.f1_score(truth, answers, average=None, zero_division=0)
    assert classification.per_class(counts.sum(0), "f1") == pytest.approx(each[np.argsort([1, 2, 0])], abs=1e-12)
    assert tagging.tag_accuracy(truth, answers).value == pytest.approx(metrics.accuracy_score(truth, answers))


@pytest.mark.parametrize(("prefixes", "name"), [("BIES", "BIOES"), ("BI", "BIO")])
def test_entities_read_strictly_are_seqevals(prefixes: str, name: tagging.Scheme) -> None:
    scheme = pytest.importorskip("seqeval.scheme")
    for tags in sentences(prefixes, 5, 400):
        theirs = scheme.Tokens(tags, scheme.IOBES if name == "BIOES" else scheme.IOB2).entities
        ours = tagging.entities(tags, strict=True, scheme=name)
        assert ours == [(e.tag, e.start, e.end) for e in theirs], tags
        with_middles = [tag.replace("I-", "M-") for tag in tags]
        assert tagging.entities(with_middles, strict=True, scheme=name) == ours


def test_breaks_of_a_scheme_are_found_and_named() -> None:
    assert tagging.breaks(["B-PER", "I-PER", "O", "B-LOC"], "BIO") == []
    assert tagging.breaks(["O", "I-PER"], "BIO") == [(1, "'I-PER' continues nothing")]
    assert tagging.breaks(["B-PER", "I-LOC"], "BIO") == [(1, "'I-LOC' continues nothing")]
    assert tagging.breaks(["B-NAME", "M-NAME", "E-NAME", "S-ORG"], "BIOES") == []
    (place, what), *rest = tagging.breaks(["B-NAME", "M-NAME"], "BIOES")
    assert (place, rest) == (1, []) and "'M-NAME' is followed by the end" in what
    assert tagging.breaks(["X-PER"], "BIO") == [(0, "'X-PER' is no tag of BIO")]
    assert tagging.scheme_of([["B-A", "M-A", "E-A"]]) == "BIOES" and tagging.scheme_of([["B-A", "I-A"]]) == "BIO"
    assert tagging.broken_share([["I-A"], ["O"]], "BIO").value == 0.5
    with pytest.raises(ValueError, match="2 tags and was given 1"):
        tagging.entity_counts([["O", "O"]], [["O"]], [], "BIO")


WORDS = ["the", "Cat", "sat", "on", "a", "mat.", "-", "in", "2008,", "An", "U.S."]


def test_span_scores_are_those_of_squad() -> None:
    oracle = pytest.importorskip("torchmetrics.functional.text")
    draw = random.Random(6)

    def answer() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(0, 5)))

    accepted = [[f"{answer()} x", *(f"y {answer()}" for _ in range(draw.randint(0, 2)))] for _ in range(200)]
    answers = [draw.choice([draw.choice(a), answer()]) for a in accepted]
    theirs = oracle.squad(
        [{"id": str(i), "prediction_text": text} for i, text in enumerate(answers)],
        [{"id": str(i), "answers": {"text": list(a), "answer_start": [0]}} for i, a in enumerate(accepted)],
    )
    assert 100 * spans.exact(accepted, answers).value == pytest.approx(float(theirs["exact_match"]), abs=1e-4)
    assert 100 * spans.f1(accepted, answers).value == pytest.approx(float(theirs["f1"]), abs=1e-4)


def test_questions_without_an_answer_follow_squad_2() -> None:
    accepted, answers = [[], [], ["Paris"]], ["", "Rome", ""]
    assert spans.exact(accepted, answers).value == pytest.approx(1 / 3)
    assert spans.f1(accepted, answers).value == pytest.approx(1 / 3)
    assert spans.answered(accepted, answers).value == pytest.approx(1 / 3)


@pytest.mark.smoke
def test_chinese_answers_follow_cmrc() -> None:
    assert spans.pieces("《战国无双3》是GAME 2号。") == [*"战国无双", "3", "是", "game", "2", "号"]
    # Cut by hand with the published rules: the longest common run counts, not the bag of characters.
    assert spans.longest_run("光荣和", "和光荣") == 2
    assert spans.f1([["光荣和ω-force"]], ["和光荣"], characters=True).value == pytest.approx(2 * 2 / (3 + 4))
    assert spans.exact([["“北京”"]], ["北京"], characters=True).value == 1
    assert spans.exact([["北京‘"]], ["北京"], characters=True).value == 0, "CMRC's list lacks this mark"
    assert spans.f1([[]], [""], characters=True).value == 1


def test_bleu_and_chrf_are_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu.metrics")
    draw = random.Random(8)
    references = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(80)]
    answers = [" ".join(w for w in r.split() if draw.random() < 0.8) for r in references]
    for size in (80, 7, 1):
        some, those = answers[:size], references[:size]
        bleu = sacrebleu.BLEU().corpus_score(some, [those]).score
        chrf = sacrebleu.CHRF().corpus_score(some, [those]).score
        assert translation.bleu(those, some).value == pytest.approx(bleu, abs=1e-9)
        assert translation.chrf(those, some).value == pytest.approx(chrf, abs=1e-9)
    chinese = ["今天天气很好。"], ["今天天气好。"]
    expected = sacrebleu.BLEU(tokenize="zh").corpus_score(chinese[1], [chinese[0]]).score
    assert translation.bleu(*chinese, language="zh").value == pytest.approx(expected, abs=1e-9)
    assert translation.bleu(["a b"], [""]).value == translation.chrf(["a b"], [""]).value == 0
    signature = translation.signatures("zh")
    assert "tok:zh" in signature["bleu"] and "nc:6" in signature["chrf"]


def test_ndcg_is_scikit_learns_and_the_others_are_counted_by_hand() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    relevance = RNG.random((50, 12)) < 0.2
    scores = RNG.random((50, 12))
    ranked = [list(row) for row in np.argsort(-scores, axis=1)]
    relevant = [set(np.flatnonzero(row)) for row in relevance]
    some = [i for i, there in enumerate(relevant) if there]
    expected = metrics.ndcg_score(relevance[some], scores[some], k=5) * len(some) / 50
    assert ranking.ndcg_at_k(relevant, ranked, k=5).value == pytest.approx(expected, abs=1e-12)
    assert ranking.recall_at_k([{1, 2}, {3}, set()], [[1, 9, 2], [9, 3], [1]], k=2).value == pytest.approx(0.5)
    assert ranking.reciprocal_rank([{1}, {3}, {7}], [[1], [9, 3], [1]]).value == pytest.approx(0.5)


def test_the_calibration_error_is_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("torchmetrics.functional.classification")
    confidence, chosen = PROBABILITIES.max(1), PROBABILITIES.argmax(1)
    ours = calibration.calibration_error(confidence, chosen == TRUTH, bins=15).value
    theirs = oracle.multiclass_calibration_error(
        torch.tensor(PROBABILITIES), torch.tensor(TRUTH), num_classes=6, n_bins=15
    )
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    bins = calibration.reliability(confidence, chosen == TRUTH, bins=10)
    assert [b["count"] for b in bins] == [40] * 10, "equal mass"
    assert all(b["low"] <= b["accuracy"] <= b["high"] for b in bins)
    assert calibration.wilson(0, 0) == (0.0, 1.0)


def test_the_temperature_makes_the_held_out_answers_likeliest() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    logits = RNG.normal(0, 1, (2000, 4))
    truth = np.array([RNG.choice(4, p=row) for row in calibration.tempered(np.exp(logits), 1.0)])
    overconfident = calibration.tempered(np.exp(logits), 0.4)
    found = calibration.fit_temperature(truth, overconfident)
    assert found == pytest.approx(1 / 0.4, rel=0.1)

    def loss(temperature: float) -> float:
        return classification.log_loss(truth, calibration.tempered(overconfident, temperature)).value

    best = optimize.minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert found == pytest.approx(best, rel=1e-4)
    right = overconfident.argmax(1) == truth
    before = calibration.calibration_error(overconfident.max(1), right).value
    assert calibration.calibration_error(calibration.tempered(overconfident, found).max(1), right).value < before / 3


def test_detection_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    outside = RNG.random(500) < 0.3
    strange = np.round(RNG.normal(outside * 1.0, 1.0), 1)  # many ties
    ours = detection.auroc(outside, strange)
    assert ours.value == pytest.approx(metrics.roc_auc_score(outside, strange), abs=1e-12)
    false, true, _ = metrics.roc_curve(outside, strange, drop_intermediate=False)
    alarms = detection.false_alarms(outside, strange)
    assert alarms.value == pytest.approx(false[np.argmax(true >= 0.95)], abs=1e-12)
    assert detection.auroc(np.zeros(3, bool), np.zeros(3)).value == 0.5


def test_the_bar_for_outsiders_is_the_best_of_all_bars() -> None:
    for _ in range(20):
        outside, right = RNG.random(60) < 0.3, RNG.random(60) < 0.8
        sure = np.round(RNG.normal(~outside * 1.0, 0.7), 1)  # many ties

        def worth(bar: float, outside: Any = outside, right: Any = right, sure: Any = sure) -> float:
            kept = sure >= bar
            return float((kept & right & ~outside).sum() / (~outside).sum() + (~kept & outside).sum() / outside.sum())

        best = max(worth(bar) for bar in [-np.inf, *np.unique(sure), np.inf])
        assert worth(detection.bar(sure, right, outside) or -np.inf) == pytest.approx(best)
    assert detection.bar(sure, right, np.zeros(60, bool)) == 0.0


def test_risk_falls_with_confidence_and_ties_do_not_depend_on_order() -> None:
    confidence, right = np.array([0.9, 0.9, 0.5, 0.1]), np.array([1, 0, 1, 0])
    coverage, risk = calibration.risk_coverage(confidence, right)
    assert coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert risk.tolist() == pytest.approx([0.5, 0.5, 1 / 3, 0.5])
    order = [1, 0, 2, 3]
    assert calibration.risk_coverage(confidence[order], right[order])[1].tolist() == pytest.approx(risk.tolist())
    assert calibration.area_under_risk(confidence, right).value == pytest.approx(np.mean(risk))
    assert not math.isnan(calibration.area_under_risk(np.ones(2), np.ones(2)).value)


def test_nothing_here_warns_about_empty_classes() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = classification.counts(np.array([-1]), np.array([-1]), 3)
        assert classification.macro(nothing, "f1").value == classification.micro(nothing, "f1").value == 0
