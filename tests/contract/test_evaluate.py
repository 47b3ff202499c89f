"""The evaluate stage on small real models: exact scores, honest rivals, the same report each time."""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import groundup
from groundup.artifact import Artifact, Store
from groundup.config import parse
from groundup.data.corpus import Corpus
from groundup.errors import GroundupError, UserError
from groundup.forecast import Known
from groundup.runtimes import torch as torch_runtime
from groundup.stages import evaluate
from groundup.text.tokenizers import Tokenizer

RECIPE = """
groundup: 1
name: tiny
seed: 3
stages:
  corpus:
    prepare:
      source: {{kind: text, paths: ["{sources}/*.py"]}}
      split: {{validation: 15%, test: 35%}}
  words:
    tokenize: {{of: corpus, kind: {kind}, vocab_size: 400}}
  base:
    pretrain:
      data: corpus
      tokenizer: words
      task: {task}
      model: {{name: {model}, n_layers: 1, d_model: 32, n_heads: 2, context: 64}}
      tokens: 16k
      batch_tokens: 1Ki
      precision: fp32
      optimizer: {{name: adamw, lr: 1e-2}}
  report:
    evaluate: {{of: base, data: corpus.test, bootstrap: 200, max_documents: {documents}}}
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety small files of the standard library, which every Python has."""
    folder = tmp_path_factory.mktemp("sources")
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py"))
    small = [f for f in files if 1200 < f.stat().st_size < 5000 and "site-packages" not in f.parts]
    for number, file in enumerate(small[:90]):
        (folder / f"{number:03}.py").write_bytes(file.read_bytes())
    (folder / "twin.py").write_bytes(small[0].read_bytes() + b"# a line more\n")
    return folder


def made(folder: Path, sources: Path, **choices: Any) -> dict[str, Artifact]:
    """Every artefact of the recipe, in a store of its own."""
    recipe = folder / "tiny.yaml"
    recipe.write_text(RECIPE.format(sources=sources.as_posix(), **choices), encoding="utf-8")
    return groundup.run(recipe)  # type: ignore[operator, no-any-return]


@pytest.fixture(scope="module")
def own_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("GROUNDUP_STORE", str(folder / "store"))
        yield folder


@pytest.fixture(scope="module")
def causal(own_module: Path, sources: Path) -> dict[str, Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDUP_STORE", str(own_module / "store"))
        return made(own_module, sources, kind="bpe", task="language_modeling", model="gpt", documents=25)


@pytest.fixture(scope="module")
def masked(own_module: Path, sources: Path) -> dict[str, Artifact]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GROUNDUP_STORE", str(own_module / "store"))
        task = "{name: masked_language_modeling, next_sentence: true}"
        return made(own_module, sources, kind="wordpiece", task=task, model="bert", documents=8)


def data_of(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    found: dict[str, Any] = artifacts["report"].json("report.json")
    return found


def test_a_report_has_three_faces_that_agree(causal: dict[str, Artifact]) -> None:
    artifact, data = causal["report"], data_of(causal)
    assert artifact.kind == "report" and set(artifact.manifest["files"]) >= {"report.html", "report.md", "report.json"}
    found = data["scores"]["bits_per_byte"]
    assert found["low"] < found["estimate"] < found["high"] and found["unit"] == "documents" and found["n"] == 25
    for name in ("report.html", "report.md"):
        assert f"{found['estimate']:.3f} bits per byte on unseen text" in artifact.file(name).read_text(
            encoding="utf-8"
        )
    assert artifact.metrics["bits_per_byte"] == found["estimate"]
    assert data["model"]["digest"] == causal["base"].digest and data["data"]["digest"] == causal["corpus"].digest
    assert data["cost"]["tokens"] == causal["base"].manifest["tokens"] and data["curves"]["loss"]


def test_bits_per_byte_is_every_tokens_surprise_once(causal: dict[str, Artifact]) -> None:
    """Against the plainest way: each document window by window through the cache, one token at a time."""
    corpus, tokenizer = Corpus(causal["corpus"]), Tokenizer.load(causal["base"].path)
    runtime = torch_runtime.load(causal["base"], device="cpu")
    data, rows = data_of(causal), corpus.rows("test")
    chosen = np.arange(25) * rows // 25
    texts = [corpus.document("test", int(i))["text"] for i in chosen]
    nats = 0.0
    for text in texts:
        ids = [*tokenizer.encode(text), tokenizer.eos_id]
        inputs, step = [tokenizer.eos_id, *ids[:-1]], runtime.context // 2
        done = 0
        while done < len(ids):
            start = 0 if done == 0 else done + step - runtime.context
            stop = min(len(ids), start + runtime.context)
            cache = runtime.new_cache()
            logits = runtime.step(inputs[start:stop], range(stop - start), [0] * (stop - start), cache, every=True)
            surprise = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:stop]), reduction="none")
            nats += float(surprise[done - start :].double().sum())
            done = stop
    size = sum(len(text.encode()) for text in texts)
    assert data["data"]["bytes"] == size
    assert data["scores"]["bits_per_byte"]["estimate"] == pytest.approx(nats / size / math.log(2), rel=1e-4)


def test_rivals_stand_beside_the_model_on_the_same_documents(causal: dict[str, Artifact]) -> None:
    data = data_of(causal)
    own = data["scores"]["bits_per_byte"]["estimate"]
    grams = [r for r in data["rivals"] if "order" in r["details"]]
    squeezed = [r for r in data["rivals"] if r["name"].startswith("xz")]
    assert len(grams) in (1, 2) and len(squeezed) == 2
    for rival in grams:
        assert rival["score"] == pytest.approx(own + rival["lead"]["estimate"])
        assert 1.0 < rival["score"] < 5.0 and rival["lead"]["n"] == 25
        best = {name: min(bits) for name, bits in rival["details"]["validation_bits_per_byte"].items()}
        chosen = rival["details"]["validation_bits_per_byte"][rival["details"]["alphabet"]]
        assert min(best.values()) == chosen[rival["details"]["order"] - 1], "chosen by validation"
    alone, after = (r["score"] for r in squeezed)
    assert after < alone < 8
    assert squeezed[0]["details"]["input_bytes"] == data["data"]["bytes"]


def test_three_samples_two_prompted_and_one_free(causal: dict[str, Artifact]) -> None:
    samples = data_of(causal)["samples"]
    corpus = Corpus(causal["corpus"])
    texts = [d["text"] for d in corpus.documents("test")]
    assert len(samples) == 3 and samples[2]["prompt"] == ""
    for sample in samples[:2]:
        assert sample["prompt"] and any(text.startswith(sample["prompt"] + sample["truth"]) for text in texts)


def test_the_same_evaluation_writes_the_same_report(
    causal: dict[str, Artifact], own_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDUP_STORE", str(own_module / "store"))
    monkeypatch.chdir(own_module)
    digest = causal["report"].digest
    store = Store(own_module / "store")
    inputs = {"of": groundup_input(causal["base"]), "data": groundup_input(causal["corpus"], "test")}
    config, mistakes = parse(evaluate.Config, causal["report"].manifest["section"] | {"seed": 3})
    assert config is not None, mistakes
    with store.draft("report", "f" * 64) as out:
        out.licences.update(causal["report"].manifest["licences"])
        evaluate.run(config, inputs, out)
    again = store.find("f" * 64)
    assert again is not None and again.digest == digest


def groundup_input(artifact: Artifact, part: str | None = None) -> Any:
    from groundup.artifact import Input

    return Input(artifact, part)


def test_few_documents_are_drawn_as_blocks_and_score_the_same(
    causal: dict[str, Artifact], own_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GROUNDUP_STORE", str(own_module / "store"))
    store = Store(own_module / "store")
    inputs = {"of": groundup_input(causal["base"]), "data": groundup_input(causal["corpus"], "test")}
    config = evaluate.Config(of="base", data="corpus.test", max_documents=3, bootstrap=100, samples=0)
    with store.draft("report", "e" * 64) as out:
        evaluate.run(config, inputs, out)
    found = store.find("e" * 64)
    assert found is not None
    data = found.json("report.json")
    score = data["scores"]["bits_per_byte"]
    assert score["unit"].startswith("blocks of about") and score["n"] >= 3
    assert data["samples"] == [] and any("3 of" in note for note in data["notes"])
    for rival in data["rivals"]:
        if rival["lead"]:
            assert rival["score"] == pytest.approx(score["estimate"] + rival["lead"]["estimate"])


def test_a_masked_model_is_measured_by_what_it_fills_in(masked: dict[str, Artifact]) -> None:
    data = data_of(masked)
    assert data["main_metric"] == "masked_accuracy" and "bits_per_byte" not in data["scores"]
    assert {"masked_accuracy", "pseudo_perplexity", "next_sentence_accuracy"} <= set(data["scores"])
    assert 0 < data["scores"]["masked_accuracy"]["estimate"] < 1
    rivals = {r["metric"]: r for r in data["rivals"]}
    assert set(rivals) == {"masked_accuracy", "loss", "next_sentence_accuracy"}
    gap = data["scores"]["masked_accuracy"]["estimate"] - rivals["masked_accuracy"]["score"]
    assert rivals["masked_accuracy"]["lead"]["estimate"] == pytest.approx(gap)
    assert rivals["next_sentence_accuracy"]["score"] >= 0.5
    assert len(data["samples"]) == 3
    for sample in data["samples"]:
        for gap in sample["gaps"]:
            assert sample["text"][gap["start"] : gap["end"]] == gap["truth"] and len(gap["best"]) == 3


def test_a_masked_model_fills_gaps_and_continues_nothing(masked: dict[str, Artifact]) -> None:
    model = groundup.load(masked["base"].path)  # type: ignore[operator]
    (gap,) = model.fill("import [MASK]", best=4)
    assert len(gap.best) == 4 and gap.best[0][1] >= gap.best[3][1] > 0
    with pytest.raises(UserError, match="cannot continue"):
        model.generate("import")
    with pytest.raises(UserError, match="no gap"):
        model.fill("import os")


def test_a_trained_model_continues_texts_as_it_was_trained(causal: dict[str, Artifact]) -> None:
    model = groundup.load(causal["base"].path)  # type: ignore[operator]
    assert model.beginning.before("x") == (model.tokenizer.eos_id,)
    assert isinstance(model.generate("import", max_new_tokens=5), str)
    with pytest.raises(GroundupError, match="a corpus is no model"):
        groundup.load(causal["corpus"].path)  # type: ignore[operator]


def test_an_edited_model_is_not_measured(causal: dict[str, Artifact], own_module: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(causal["base"].path, copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(GroundupError, match="digest mismatch"):
        groundup.load(copy)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("given", "complaint", "fix"),
    [
        ({"data": "corpus"}, "trained on says nothing", "corpus.test"),
        ({"data": "corpus.tset"}, "no documents in its tset split", "splits: train, test"),
        ({"baselines": ["unigram"]}, "unigram is no rival of language_modeling", "ngram, xz"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    causal: dict[str, Artifact], given: dict[str, Any], complaint: str, fix: str
) -> None:
    config, mistakes = parse(evaluate.Config, {"of": "base", "data": "corpus.test"} | given)
    assert config is not None, mistakes
    part = config.data.partition(".")[2] or None
    base = groundup_config(causal)
    facts = {"documents": {"train": 9, "test": 3, "validation": 0}, "bytes": {"train": 900, "test": 300}}
    inputs = {"of": Known("model", config=base), "data": Known("corpus", part=part, facts=facts)}
    (mistake,) = evaluate.check(config, inputs)
    assert complaint in mistake.what and fix in mistake.fix


def groundup_config(causal: dict[str, Artifact]) -> Any:
    from groundup.stages import pretrain

    config, mistakes = parse(pretrain.Config, causal["base"].manifest["section"])
    assert config is not None, mistakes
    return config


def test_a_forecast_knows_the_test_text(causal: dict[str, Artifact]) -> None:
    config = evaluate.Config(of="base", data="corpus.test")
    facts = {"documents": {"test": 30}, "bytes": {"train": 2_000_000, "test": 400_000}}
    inputs = {"of": Known("model", artifact=causal["base"]), "data": Known("corpus", part="test", facts=facts)}
    found = evaluate.forecast(config, inputs, "quick")
    assert ("test text", "391 KiB, 30 documents") in found.lines
    assert found.seconds is not None and 5 < found.seconds < 600


def test_the_report_is_json_that_any_reader_takes(causal: dict[str, Artifact]) -> None:
    text = causal["report"].file("report.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
