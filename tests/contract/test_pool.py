"""Reports of several tests put together: the answers are scored as one test, and intervals draw whole tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundup.artifact import Artifact, Store, digest_data
from groundup.compare import compare
from groundup.errors import DataError, Mistakes
from groundup.evaluation import labelled_report, report
from groundup.evaluation.labelled import Labelled, System
from groundup.recipe import load
from groundup.runner import run

LABELS = ("0", "1", "2")
DESCRIBED = {
    "model": {"family": "cnn", "task": "speech_commands", "parameters": 10, "tokens": 100},
    "data": {"split": "test", "documents": 60, "bytes": 6, "documents_in_split": 60},
}


def written(speaker: str, share: float, *, seed: int, count: int = 60, labels: tuple[str, ...] = LABELS) -> Artifact:
    """The report on one speaker, of a model that is right about such a share of the takes; a rival guesses."""
    draw = np.random.default_rng(seed)
    truth = [str(value) for value in draw.integers(0, 3, count)]
    answers = [t if draw.random() < share else LABELS[(int(t) + 1) % 3] for t in truth]
    ids = [f"{speaker}_{i}.wav" for i in range(count)]
    test = Labelled("classes", ids, ids, truth, labels)
    shares = [[0.8 if label == answer else 0.1 for label in LABELS] for answer in answers]
    model = System(f"seed {seed}", answers, shares if labels == LABELS else None, digest=f"{seed:02d}" * 32, seed=seed)
    rival = System("guessing", [str(v) for v in draw.integers(0, 3, count)], meaning="chance", trained_rows=300)
    described: dict[str, Any] = {"name": f"digits / {speaker}"}
    described |= {key: value | {"digest": f"{seed:02d}" * 32} for key, value in DESCRIBED.items()}
    data = labelled_report.collect(test, [model], [rival], described=described, seed=0, resamples=100)
    store, key = Store(), digest_data(f"{speaker} {seed} {labels}")
    with store.draft("report", key, stage=speaker) as draft:
        report.write(data, draft.path)
        draft.path("answers.jsonl").write_text(labelled_report.answer_lines(test, [model], [rival]), encoding="utf-8")
    found = store.find(key)
    assert found is not None
    return found


def pooled(*parts: Artifact, **options: Any) -> Artifact:
    paths = [str(part.path.absolute()) for part in parts]
    recipe = {"groundup": 1, "name": "digits", "stages": {"all": {"pool": {"of": paths, "unit": "speakers"} | options}}}
    Path("digits.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    return run("digits.yaml")["all"]


def test_answers_are_scored_together_and_speakers_drawn_whole() -> None:
    parts = [written("theo", 0.95, seed=1), written("lucas", 0.6, seed=2), written("george", 0.8, seed=3, count=30)]
    made = pooled(*parts)
    data, alone = made.json("report.json"), [part.json("report.json") for part in parts]
    right = [one["scores"]["accuracy"]["estimate"] * one["test"]["count"] for one in alone]
    assert data["scores"]["accuracy"]["estimate"] == pytest.approx(sum(right) / 150)
    assert (data["test"]["count"], data["test"]["units"], data["test"]["unit"]) == (150, 3, "speakers")
    wide, narrow = data["scores"]["accuracy"], alone[1]["scores"]["accuracy"]
    assert wide["low"] == pytest.approx(min(one["scores"]["accuracy"]["estimate"] for one in alone), abs=0.02)
    assert wide["high"] - wide["low"] > narrow["high"] - narrow["low"], "three speakers tell less than sixty takes"
    (rival,) = data["rivals"]
    assert rival["name"] == "guessing"
    assert 0.2 < rival["score"] < 0.5 < rival["score"] + rival["lead"]["estimate"]
    (by_speaker,) = [found for found in data["slices"] if found["column"] == "speakers"]
    assert {row["value"] for row in by_speaker["rows"]} == {"theo", "lucas", "george"}
    assert "3 models, each asked only about a test of its own (theo, lucas, george)" in data["notes"][0]
    assert "speakers" in (made.path / "report.md").read_text(encoding="utf-8")
    assert not compare(made.path, made.path, resamples=100).main.is_real


def test_what_cannot_be_put_together_is_refused() -> None:
    one = written("theo", 0.9, seed=1)
    with pytest.raises(DataError, match=r"the example 'theo_0.wav' is in the tests of 'theo' and of 'theo'"):
        pooled(one, written("theo", 0.5, seed=2))
    with pytest.raises(DataError, match="differ in their labels"):
        pooled(one, written("lucas", 0.9, seed=3, labels=(*LABELS, "3")))
    with pytest.raises(Mistakes, match="at least 2"):
        pooled(one)


def test_a_list_of_stages_is_checked_name_by_name() -> None:
    recipe = {"groundup": 1, "name": "digits", "stages": {"all": {"pool": {"of": ["theo", "lucas"]}}}}
    Path("digits.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    with pytest.raises(Mistakes, match=r"(?s)there is no stage 'theo'.*there is no stage 'lucas'"):
        load(Path("digits.yaml"))
