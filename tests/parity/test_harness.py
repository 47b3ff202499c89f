"""Our suites beside lm-evaluation-harness: the same likelihoods and scores of the same model and questions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundup.errors import MissingExtra, UserError
from groundup.evaluation.metrics.additive import mean
from groundup.evaluation.suites import harness, known, likelihood, multiple_choice
from groundup.evaluation.suites.questions import Question
from groundup.evaluation.suites.running import Model


@pytest.mark.smoke
def test_a_long_text_is_cut_so_that_every_token_is_scored_once() -> None:
    for length in (1, 7, 8, 9, 25):
        ids = list(range(100, 100 + length))
        cut = harness.windows([1], ids, 8)
        assert [token for _, after in cut for token in after] == ids
        assert cut[0][0] == [1] and all(len(before) + len(after) <= 9 and before for before, after in cut)
    assert harness.windows([1], [], 8) == []


@pytest.mark.smoke
def test_a_suite_is_found_by_name_and_its_result_says_what_was_asked() -> None:
    with pytest.raises(UserError, match="no suite named 'mmlo'"):
        known.suite("mmlo")
    asked = [Question(f"f/x.csv:{n}", "ab"[n % 2], f"p{n}", ("A", "B", "C", "D"), (n % 4,)) for n in range(40)]
    nats = [[-1.0, -2.0, -3.0, -4.0]] * 40
    scores = known.choice_scores("mmlu", asked, nats)
    told = known.result("mmlu", asked, scores, shots=5, of=100, seed=0, resamples=200)
    assert told["main_metric"] == "accuracy" and told["chance"] == 0.25
    assert told["scores"]["accuracy"]["estimate"] == 0.25 and told["scores"]["accuracy"]["low"] < 0.25
    assert told["subjects"] == {"a": 0.5, "b": 0.0} and told["questions_in_files"] == 100
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    again = known.result("mmlu", asked[:39], {"accuracy": mean("accuracy", [1] * 39)}, shots=5, of=100, seed=0)
    assert again["digest"] != told["digest"]
    assert next(iter(known.choice_scores("arc", asked, nats))) == "accuracy_by_character"
    assert list(known.choice_scores("truthfulqa_mc2", asked, nats)) == ["truth_share"]
    assert (
        known.spread(asked, 4) == [asked[0], asked[13], asked[26], asked[39]] and len(known.spread(asked, None)) == 40
    )


def test_without_the_harness_the_error_names_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(MissingExtra, match=r"groundup\[bridges\]"):
        harness.model(Model(lambda text: [], lambda batch: None, lambda prompt: [], 8))


def test_the_harness_gets_the_figures_that_we_get(shared_data: Callable[[str], Path], tmp_path: Path) -> None:
    instance = pytest.importorskip("lm_eval.api.instance", reason="lm-evaluation-harness is not installed")
    from groundup.runtimes import torch as runtimes
    from groundup.text.tokenizers import Tokenizer

    folder = shared_data("models/stories260K/hf")
    runtime, tokenizer = runtimes.load(folder, device="cpu"), Tokenizer.load(folder)
    bos = tokenizer.bos_id
    assert bos is not None
    ways: dict[str, Any] = {"start": lambda prompt: [bos], "context": runtime.context}
    ours = harness.model(
        Model(tokenizer.encode, runtime.forward, ways["start"], runtime.context, lambda prompt, stops, most: stops[0])
    )
    asked = multiple_choice.arc(shared_data("eval/arc_easy_test.jsonl.gz"))[:20]
    mine = likelihood.log_likelihoods(
        [(question.prompt, question.continuations) for question in asked], tokenizer.encode, runtime.forward, **ways
    )
    requests = [
        instance.Instance("loglikelihood", {}, (question.prompt, continuation), 0)
        for question in asked
        for continuation in question.continuations
    ]
    theirs = ours.loglikelihood(requests)
    assert [nats for nats, _ in theirs] == pytest.approx([one.nats for row in mine for one in row], abs=1e-4)
    text = "Once upon a time there was a girl. " * 30
    (rolled,) = ours.loglikelihood_rolling([instance.Instance("loglikelihood_rolling", {}, (text,), 0)])
    cut = harness.windows([bos], tokenizer.encode(text), runtime.context)
    (row,) = likelihood.token_likelihoods([cut], runtime.forward, context=runtime.context)
    assert rolled == pytest.approx(np.sum([one.nats for one in row]), abs=1e-3)
    settings = {"until": ["Question:"], "max_gen_toks": 9}
    assert ours.generate_until([instance.Instance("generate_until", {}, ("p", settings), 0)]) == ["Question:"]
