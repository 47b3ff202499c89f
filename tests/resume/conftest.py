"""A corpus and tokenizers to train on, made once; and the real command line, to be stopped at will."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import groundup
from groundup.artifact import Artifact, Store, open_artifact
from groundup.data.corpus import Corpus
from groundup.runner import run
from groundup.text import vocabulary

RECIPE = """\
groundup: 1
name: material
stages:
  corpus:
    prepare:
      source: {{kind: text, paths: ["{sources}"]}}
      split: {{validation: 20%, test: 0%}}
"""
KINDS = {"gpt": "bpe", "bert": "wordpiece"}


@dataclass(frozen=True)
class Material:
    """Artefacts that cells read."""

    corpus: Path
    tokenizers: dict[str, Path]


@dataclass
class Cell:
    """One recipe in a folder of its own, run by the real command line."""

    folder: Path
    section: dict[str, Any]
    stage: str = "pretrain"
    starts: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        recipe = {"groundup": 1, "name": "cell", "seed": 5, "stages": {"base": {self.stage: self.section}}}
        # JSON is YAML.
        (self.folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"GROUNDUP_STORE": str(self.folder / "store"), "OMP_NUM_THREADS": "1"}

    def start(self) -> subprocess.Popen[str]:
        """`groundup run recipe.yaml`, started."""
        self.starts += 1
        command = [sys.executable, "-W", "error::ResourceWarning", "-m", "groundup", "run", "recipe.yaml", "--json"]
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def finish(self) -> str:
        """Run to the end; the digest of the weights."""
        process = self.start()
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        self.notes += [line["text"] for line in _objects(output) if line.get("event") == "note"]
        return str(self.artifact.manifest["files"]["model.safetensors"]["sha256"])

    @property
    def artifact(self) -> Artifact:
        return open_artifact(self.folder / "runs" / "cell" / "base")

    @property
    def state(self) -> Path | None:
        """The folder of the unfinished run's state, once it is there."""
        found = [p.parent for p in (self.folder / "store" / "unfinished").glob("*/choices.json")]
        return found[0] if found else None

    def stop_when(self, moment: Callable[[Cell], bool], number: signal.Signals) -> int:
        """Start, send a signal at a moment, wait for the end; the exit code."""
        process = self.start()
        end = time.monotonic() + 120
        while process.poll() is None and not moment(self):
            assert time.monotonic() < end, "the moment never came"
            time.sleep(0.0005)
        assert process.poll() is None, f"it ended before it was to be stopped: {process.communicate()[0]}"
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
        self.notes.append(output)
        return process.returncode

    def stop_anywhere(self, chance: random.Random, first: int, last: int) -> None:
        """SIGKILL a few milliseconds after some step."""
        step = chance.randint(first, last)
        self.stop_when(lambda c: c.steps_logged() >= step and not time.sleep(chance.random() / 50), signal.SIGKILL)

    def stop_gently(self, chance: random.Random, first: int, last: int) -> None:
        """SIGTERM: the state is saved, the exit code says so, the message how to go on."""
        step, before = chance.randint(first, last), self.logged_at()
        # A killed run may have left as many lines: one of this run's own says that it listens to signals by now.
        code = self.stop_when(lambda c: c.logged_at() != before and c.steps_logged() >= step, signal.SIGTERM)
        assert code == 130, self.notes[-1]
        assert "run the same command again" in self.notes[-1]

    def kill_while_saving(self, after: int) -> None:
        """Start, and kill it with a state half written, some time after a step."""
        process = self.start()
        end = time.monotonic() + 120
        while True:
            assert time.monotonic() < end and process.poll() is None, "no state was written in time"
            if self.steps_logged() >= after and self.is_saving():
                # Frozen first, so that what is seen is what is killed.
                process.send_signal(signal.SIGSTOP)
                if self.is_saving():
                    break
                process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate(timeout=60)
        assert self.is_saving(), "the half-written state should still lie there"

    def truncate_newest(self) -> None:
        """Cut the newest state file in half, as a disk that lies about flushing would."""
        assert self.state is not None
        newest = max(self.state.glob("step-*"))
        tensors = newest / "tensors.safetensors"
        with tensors.open("r+b") as file:
            file.truncate(tensors.stat().st_size // 2)

    def steps_logged(self) -> int:
        """How many lines of figures there are by now."""
        return self.log.read_bytes().count(b'"lr"') if self.log else 0

    def logged_at(self) -> int:
        """When a figure was last written, in nanoseconds."""
        return self.log.stat().st_mtime_ns if self.log else 0

    @property
    def log(self) -> Path | None:
        """The unfinished run's figures, once they are there."""
        path = self.state / "log" / "metrics.jsonl" if self.state else None
        return path if path and path.exists() else None

    def is_saving(self) -> bool:
        """Whether a state is being written right now."""
        return self.state is not None and any(self.state.glob(".partial-*"))

    def metrics(self) -> list[dict[str, Any]]:
        """The finished run's figures, without those that depend on the clock."""
        lines = self.artifact.file("log/metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{k: v for k, v in json.loads(line).items() if k not in ("tokens_s", "mfu")} for line in lines]


def _objects(output: str) -> list[dict[str, Any]]:
    found = []
    for line in output.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


@pytest.fixture
def new_cell() -> type[Cell]:
    """`new_cell(folder, section)`: a recipe of its own; see `Cell`."""
    return Cell


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """The package's own sources as a corpus, with a tokenizer for each kind of model."""
    place = tmp_path_factory.mktemp("material")
    recipe = place / "material.yaml"
    sources = Path(groundup.__file__).parent / "training" / "*.py"
    recipe.write_text(RECIPE.format(sources=sources), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("GROUNDUP_STORE", str(place / "store"))
        corpus = run(recipe)["corpus"]
        tokenizers = {model: _tokenizer(Store(), corpus, kind) for model, kind in KINDS.items()}
    return Material(corpus.path.absolute(), {model: made.path.absolute() for model, made in tokenizers.items()})


def _tokenizer(store: Store, corpus: Artifact, kind: str) -> Artifact:
    texts = [str(document["text"]) for document in Corpus(corpus).documents("train")]
    with store.draft("tokenizer", f"tokenizer-{kind}") as out:
        engine, _ = vocabulary.learn(vocabulary.Wish(kind, 400), lambda: texts)
        engine.save(str(out.path("tokenizer.json")))
    found = store.find(f"tokenizer-{kind}")
    assert found is not None
    return found
