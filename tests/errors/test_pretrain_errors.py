"""Mistakes in a `pretrain` section, and what can go wrong while it runs: clear words, nothing lost."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from groundup import config as sections
from groundup.config import Mistake
from groundup.errors import GroundupError, RecipeError, StageFailed
from groundup.forecast import Known
from groundup.progress import Reporter
from groundup.stages import pretrain
from groundup.training import checkpoint, devices
from groundup.training import choices as choosing
from groundup.training.choices import Choices

TEXTS = ["the quick brown fox jumps over the lazy dog, and then it rests. " * 6] * 12
SMALL = {"name": "gpt", "n_layers": 1, "d_model": 16, "n_heads": 2, "context": 32}


def mistakes(data: dict[str, Any]) -> list[Mistake]:
    base = {"data": "corpus", "tokenizer": "words", "task": "language_modeling", "model": dict(SMALL)}
    return sections.parse(pretrain.Config, base | data)[1]


def config(**data: Any) -> pretrain.Config:
    base = {"data": "corpus", "tokenizer": "words", "task": "language_modeling", "model": dict(SMALL)}
    found, wrong = sections.parse(pretrain.Config, base | data)
    assert found is not None, wrong
    return found


def known(**facts: Any) -> dict[str, Known]:
    corpus = {"documents": {"train": 12, "validation": 2}, "bytes": {"train": 10**6, "validation": 10**4}, **facts}
    return {
        "data": Known("corpus", facts=corpus | {"sample": TEXTS}, estimated=True),
        "tokenizer": Known("tokenizer", facts={"vocab_size": 300, "bytes_per_token": 3.0}, estimated=True),
    }


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("data", "path", "what", "fix"),
    [
        ({"optimizer": {"name": "adamv"}}, ("optimizer", "name"), "no optimizer named 'adamv'", "did you mean 'adam'"),
        ({"optimizer": {"name": "adamw", "beta": 1}}, ("optimizer", "beta"), "unknown key 'beta'", "betas"),
        ({"optimizer": {"name": "adamw", "lr": -1}}, ("optimizer", "lr"), "greater than 0", ""),
        ({"schedule": "cosin"}, ("schedule", "name"), "no schedule named 'cosin'", "did you mean 'cosine'"),
        ({"schedule": {"name": "cosine", "warm_up": 3}}, ("schedule", "warm_up"), "unknown key", "'warmup'"),
        ({"model": SMALL | {"n_heads": 3}}, ("model",), "cannot be shared by n_heads 3", ""),
        ({"tokens": "5M", "epochs": 2}, (), "either `tokens` or `epochs`", ""),
        ({"tokens": "5 parsecs"}, ("tokens",), "unknown unit 'parsecs'", ""),
        ({"save_every": "0min"}, ("save_every",), "no interval", ""),
        ({"save_every": "soon"}, ("save_every",), "soon", ""),
        ({"keep_states": 1}, ("keep_states",), "greater than or equal to 2", ""),
        ({"learning_rate": 1}, ("learning_rate",), "unknown key", ""),
    ],
)
def test_a_slip_in_the_section_is_named_with_its_key(
    data: dict[str, Any], path: tuple[str, ...], what: str, fix: str
) -> None:
    (found,) = mistakes(data)
    assert found.path == path
    assert what in found.what
    assert fix in found.fix


@pytest.mark.parametrize(
    ("data", "facts", "path", "what"),
    [
        ({"batch_tokens": 20}, {}, ("batch_tokens",), "less than one row of 32"),
        ({"batch_tokens": 64, "micro_batch_rows": 3}, {}, ("micro_batch_rows",), "more than the 2 rows"),
        ({"model": SMALL | {"vocab_size": 100}}, {}, ("model", "vocab_size"), "smaller than the tokenizer's 300"),
        ({"early_stopping": {}}, {"documents": {"train": 9}}, ("early_stopping",), "needs a validation split"),
        ({"model": SMALL | {"context": 4096}, "batch_tokens": "8Ki"}, {"bytes": {"train": 900}}, ("model", "context"),
         "longer than all training text"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_are_found_before_training(
    data: dict[str, Any], facts: dict[str, Any], path: tuple[str, ...], what: str
) -> None:
    (found,) = pretrain.check(config(**data), known(**facts))
    assert found.path == path
    assert what in found.what
    assert found.fix


def test_a_device_that_is_not_here_is_a_mistake() -> None:
    missing = next(name for name in ("cuda", "mps") if name not in devices.available())
    (found,) = pretrain.check(config(device=missing), known())
    assert found.path == ("device",)
    assert "cpu" in found.fix
    with pytest.raises(RecipeError, match="not available"):
        devices.pick(missing)


def test_a_model_without_the_head_of_the_task_is_refused() -> None:
    inputs = known() | {"tokenizer": Known("tokenizer", config=Kind(kind="wordpiece"), facts={"vocab_size": 300})}
    with pytest.raises(GroundupError, match="has no head for 'masked_language'"):
        pretrain.forecast(config(task="masked_language_modeling"), inputs, "quick")


class Kind(sections.Section):
    """What the forecast asks of a tokenize section."""

    kind: str


def test_a_forecast_warns_of_what_is_no_mistake() -> None:
    data = {
        "tokens": "50M",
        "optimizer": {"name": "adamw", "lr": 0.5},
        "schedule": {"name": "cosine", "warmup": "100%"},
    }
    warnings = " | ".join(pretrain.forecast(config(**data), known(), "quick").warnings)
    assert "passes over the data" in warnings
    assert "outside the usual" in warnings
    assert "covers the whole run" in warnings


def test_a_forecast_before_prepare_counts_and_shows_a_row() -> None:
    found = pretrain.forecast(config(tokens=32_000, batch_tokens=100), known(), "quick")
    assert found.estimated
    assert found.facts["tokens"] == 333 * 96, "333 steps of 3 rows: 100 tokens, rounded down"
    assert found.facts["vocab_size"] == 300
    assert dict(found.lines)["steps"].endswith("rounded down from 100")
    assert "fox" in found.sample
    assert any(row[0] == "trained" for table in found.tables.values() for row in table)


def test_a_measured_forecast_knows_time_memory_and_choices() -> None:
    found = pretrain.forecast(config(tokens=9600, batch_tokens=96), known(), "measured")
    assert found.seconds and found.cpu_s and found.disk_bytes
    assert found.peak_bytes and found.peak_bytes > 50e6
    assert {"precision", "compile", "micro-batch", "speed"} <= dict(found.lines).keys()


def choices(**changed: Any) -> Choices:
    here = devices.describe("cpu")
    return dataclasses.replace(Choices("cpu", here, torch.get_num_threads(), deterministic=True), **changed)


def test_a_run_whose_device_is_gone_is_not_resumed_as_something_else(tmp_path: Path) -> None:
    missing = next(name for name in ("cuda", "mps") if name not in devices.available())
    choosing.keep(tmp_path, choices(device=missing, device_words=f"{missing} (a fast one)"))
    with pytest.raises(StageFailed, match="cannot be resumed exactly") as caught:
        choosing.recall(tmp_path, Reporter())
    assert "a fast one" in caught.value.what
    assert "--fresh" in caught.value.fix


def test_a_run_whose_library_is_gone_is_not_resumed_with_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choosing.keep(tmp_path, choices(matmul="onednn"))
    monkeypatch.setattr("groundup.nn.products.libraries", lambda device: ("torch",))
    with pytest.raises(StageFailed, match="products by onednn, which this torch lacks") as caught:
        choosing.recall(tmp_path, Reporter())
    assert "--fresh" in caught.value.fix


def test_other_versions_are_noted_and_lower_the_determinism(tmp_path: Path) -> None:
    said: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            said.append(text)

    choosing.keep(tmp_path, choices(torch="1.0"))
    found = choosing.recall(tmp_path, Notes())
    assert found is not None
    assert any("torch 1.0" in text for text in said)
    assert choosing.differences(found)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The system refuses to let any file grow beyond a size, as it does on a full disk."""
    resource = pytest.importorskip("resource", reason="this system has no limits on file sizes")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on file sizes")
def test_a_full_disk_leaves_the_last_good_state(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, {"a": torch.ones(100)}, {"step": "one"})
    with pytest.raises(StageFailed, match="the disk is full") as caught, files_no_larger_than(100_000):
        checkpoint.save(tmp_path, 2, {"a": torch.ones(1_000_000)}, {})
    assert "free some space" in caught.value.fix
    found = checkpoint.newest(tmp_path, Reporter())
    assert found is not None
    assert found.step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"], "nothing half-written is left"


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StageFailed, match="10 bytes are free"):
        checkpoint.save(tmp_path, 2, {"a": torch.ones(1000)}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_state_of_another_format_is_passed_over(tmp_path: Path) -> None:
    from groundup.artifact import digest_data

    path = checkpoint.save(tmp_path, 1, {"a": torch.ones(2)}, {})
    content = json.loads((path / checkpoint.DATA).read_text())
    content.pop("seal")
    content["format"] = 99
    (path / checkpoint.DATA).write_text(json.dumps(content | {"seal": digest_data(content)}))
    with pytest.raises(ValueError, match="format 99"):
        checkpoint.read(path)
    assert checkpoint.newest(tmp_path, Reporter()) is None
