"""Spoken words: files become rows, rows become frames, and training changes them as (seed, epoch, index) say."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import groundup
from groundup import catalog
from groundup.artifact import Store
from groundup.config import parse
from groundup.data.audio import to_wav
from groundup.data.corpus import Corpus
from groundup.data.loader import Loader
from groundup.data.packing import IGNORED
from groundup.data.sample import Documents
from groundup.errors import DataError
from groundup.nn.mel import LogMel
from groundup.nn.network import Network, create
from groundup.nn.shape import filled
from groundup.progress import Reporter
from groundup.runner import run
from groundup.stages import prepare
from groundup.tasks import speech_commands
from groundup.tasks.speech_commands import Task
from groundup.training.choices import Choices
from groundup.training.log import Log
from groundup.training.loop import Job, train
from groundup.training.objective import Objective
from groundup.training.settings import TrainingSection

RATE = 4000
WORDS = {"low": 300.0, "high": 900.0, "shrill": 1500.0}
CHANGED = {"speed": 0.1, "shift_ms": 20, "gain_db": 3, "noise_db": [10, 30], "masks": {"times": 2, "bands": 1}}
SHORT = {"seconds": 0.25, "mel": {"bands": 12}}


def spoken(word: str, i: int, rate: int = RATE, seconds: float = 0.2) -> NDArray[np.int16]:
    """A tone, a little different each time."""
    draw = np.random.default_rng(i)
    places = np.arange(round(seconds * rate)) / rate
    wave = 0.4 * np.sin(2 * np.pi * WORDS[word] * draw.uniform(0.95, 1.05) * places)
    return np.rint(32767 * (wave + 0.02 * draw.standard_normal(len(wave)))).clip(-32768, 32767).astype(np.int16)


def rows(count: int = 12, rate: int = RATE) -> list[dict[str, Any]]:
    words = [list(WORDS)[i % 3] for i in range(count)]
    return [
        {"text": str(i), "audio": to_wav(spoken(word, i, rate), rate), "label": word, "speaker": "ab"[i % 2], "id": i}
        | {"source": f"{word}/{i}.wav:1"}
        for i, word in enumerate(words)
    ]


def task_of(examples: list[dict[str, Any]] | None = None, **given: Any) -> Task:
    config, mistakes = parse(speech_commands.Config, SHORT | given)
    assert config is not None, mistakes
    return Task(speech_commands.settle(config, examples if examples is not None else rows()))


def network_of(task: Task, **sizes: Any) -> Network:
    model = catalog.load("models", "speech_resnet")
    section = filled(model.Config(**{"width": 6, "n_layers": 2} | sizes), task.known)
    return create(model, section, task.head, outputs=task.outputs, seed=1)


def loader(task: Task, workers: int = 0, micro_batches: int = 1) -> Loader:
    return Loader(task.rows(Documents(rows(), task.encode), 5), task.collate, 5, 6, micro_batches, workers=workers)


def test_training_rows_tell_the_words_and_the_rate() -> None:
    task = task_of()
    assert task.labels == ["high", "low", "shrill"]
    assert task.choices == {"labels": task.labels, "rate": RATE}
    assert task.known == {"frames": 26, "bands": 12, "n_features": 312, "rate": RATE, "samples": 1000}
    assert task_of(rate=8000).rate == 8000
    with pytest.raises(DataError, match=r"a recording of 8000 samples a second, where others have 4000"):
        task_of([*rows(3), *rows(3, 8000)])
    with pytest.raises(DataError, match="only the label 'low'"):
        task_of([row for row in rows() if row["label"] == "low"])


def test_a_recording_is_heard_alike_whatever_its_file_is() -> None:
    task, row = task_of(), rows()[0]
    encoded = task.encode(row)
    assert encoded["waveform"].dtype == np.int16
    assert encoded["waveform"].shape == (1000,)
    assert encoded["label"] == [1]
    assert task.encode({"audio": row["audio"]})["label"] == [IGNORED]
    assert np.array_equal(pickle.loads(pickle.dumps(task)).encode(row)["waveform"], encoded["waveform"])
    faster = task.encode(row | {"audio": to_wav(spoken("low", 0, 4 * RATE), 4 * RATE)})["waveform"]
    assert len(faster) == 1000 and 780 < np.count_nonzero(faster) <= 800  # a quarter of the samples, at the rate
    Path("one.wav").write_bytes(row["audio"])
    assert np.array_equal(task.encode(task.local({"audio": "one.wav"}))["waveform"], encoded["waveform"])
    assert task.local({"audio": "two.wav"}) == {"audio": "two.wav"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"audio": b"no sound"}, r"low/0.wav:1: no WAV or FLAC file"),
        ({"audio": to_wav(spoken("low", 0), RATE)[:-7]}, r"low/0.wav:1: cut short"),
        ({"audio": to_wav(np.zeros(0, np.int16), RATE)}, "a recording without samples"),
        ({"audio": None}, "no recording but a NoneType"),
        ({"audio": "/etc/hostname"}, "a text that is no recording in base 64"),
        ({"label": "deep"}, "the label 'deep' is not among those of the training rows"),
    ],
)
def test_what_cannot_be_heard_is_told_with_its_row(changes: dict[str, Any], sentence: str) -> None:
    task = task_of()
    with pytest.raises(DataError, match=sentence):
        task.encode(rows()[0] | changes)
    with pytest.raises(DataError, match="no column 'audio'"):
        task.encode({"label": "low"})


def test_held_out_rows_are_the_frames_of_their_samples() -> None:
    task = task_of(augment=CHANGED)
    held = task.rows(Documents(rows(), task.encode), 5, held_out=True)
    batch = held.batch(np.arange(4), np.array([0, 1, 2, 3]))
    samples = torch.from_numpy(np.stack([task.encode(row)["waveform"] for row in rows(4)]))
    assert torch.equal(batch["features"], LogMel(task.config.mel, RATE)(samples))
    assert batch["label"].tolist() == [1, 0, 2, 1]
    one_by_one = task.collate([held.row(i, 0) for i in range(4)])
    assert all(torch.equal(batch[key], one_by_one[key]) for key in batch)


def test_training_rows_change_with_the_epoch_and_with_nothing_else() -> None:
    task = task_of(augment=CHANGED)
    split = task.rows(Documents(rows(), task.encode), 5)
    places, now, then = np.arange(4), np.zeros(4, np.int64), np.ones(4, np.int64)
    first = split.batch(places, now)["features"]
    assert torch.equal(first, split.batch(places, now)["features"])
    assert not torch.isclose(first, split.batch(places, then)["features"]).flatten(1).all(1).any()
    mixed = split.batch(places[::-1].copy(), now)["features"].flip(0)
    torch.testing.assert_close(first, mixed, atol=1e-5, rtol=0)
    other_seed = task.rows(Documents(rows(), task.encode), 6).batch(places, now)["features"]
    assert not torch.isclose(first, other_seed).flatten(1).all(1).any()


def test_who_makes_a_batch_changes_no_bit() -> None:
    task = task_of(augment=CHANGED)

    def made(workers: int) -> list[dict[str, torch.Tensor]]:
        source = loader(task, workers)
        found = [source.micro_batch(step, 0)[0] for step in range(6)]
        source.close()
        return found

    plain = made(0)
    for workers in (1, 2):
        for one, other in zip(plain, made(workers), strict=True):
            assert all(torch.equal(one[key], other[key]) for key in one)


@torch.no_grad()
def test_any_cut_gives_the_same_loss_and_every_example_an_answer() -> None:
    task = task_of(augment=CHANGED)
    network = network_of(task).eval()

    def loss(micro_batches: int) -> float:
        source = loader(task, micro_batches=micro_batches)
        parts = [source.micro_batch(3, micro)[0] for micro in range(micro_batches)]
        sums = [task.loss(network(batch), batch)["loss"] for batch in parts]
        assert [task.counts(batch)["loss"] for batch in parts] == [int(count) for _, count in sums]
        return sum(float(total) for total, _ in sums) / sum(int(count) for _, count in sums)

    assert loss(2) == pytest.approx(loss(1), abs=1e-5)
    assert loss(6) == pytest.approx(loss(1), abs=1e-5)
    batch = task.rows(Documents(rows(), task.encode), 0, held_out=True).batch(np.arange(12), np.zeros(12, np.int64))
    said = task.answers(network(batch), batch)
    assert len(said) == 12
    assert task.answer([said[0]], rows()[0]).answer in task.labels
    assert sum(said[0]["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert task.truth(rows()[0]) == "low"
    assert set(task.scores(network(batch), batch)) == {"nats", "labels", "right"}


def test_rivals_read_numbers_and_readers_see_pictures() -> None:
    task = task_of()
    vectors = np.stack([task.vector(row) for row in rows()])
    assert vectors.shape == (12, 48)
    assert vectors.dtype == np.float32
    assert np.isfinite(vectors).all()
    with Image.open(io.BytesIO(task.picture(rows()[0]))) as picture:
        assert picture.size == (26, 12)
    assert task.picture(rows()[0]) == task.picture(rows()[0])
    assert task.shown(rows()[0]).startswith("low/0.wav:1")
    drawn = task.render(task.rows(Documents(rows(), task.encode), 0).row(0, 0))
    assert "label: low" in drawn


def test_an_mlp_reads_the_same_frames() -> None:
    task, model = task_of(), catalog.load("models", "mlp")
    network = create(model, filled(model.Config(widths=(5,)), task.known), task.head, outputs=task.outputs, seed=1)
    batch = loader(task).micro_batch(0, 0)[0]
    assert network(batch).logits.shape == (6, 3)


class Unplugged(Loader):
    """Fails at a step, as a machine does."""

    fails_at: int | None = None

    def micro_batch(self, step: int, micro: int) -> Any:
        if step == self.fails_at:
            raise RuntimeError("pulled the plug")
        return super().micro_batch(step, micro)


def trained(state: Path, fails_at: int | None = None, workers: int = 0) -> Network:
    task = task_of(augment=CHANGED)
    network = network_of(task)
    source = Unplugged(task.rows(Documents(rows(), task.encode), 5), task.collate, 5, 6, workers=workers)
    source.fails_at = fails_at
    objective = Objective(task.loss, task.loss, task.counts)
    job = Job(network, objective, source, 8, 6, 1e6, lambda: (batch for batch, _ in source.sweep()))
    choices = Choices(device="cpu", device_words="cpu", threads=1, deterministic=True)
    log = Log(state / "log", [], name="test")
    try:
        train(job, TrainingSection(save_every=3, ema=0.9), choices, state=state, reporter=Reporter(), log=log)
    finally:
        log.close()
        source.close()
        torch.use_deterministic_algorithms(False)
    return network


def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    """Eight steps equal five, a new start from the state of step 3 with two workers, and five more, bit for bit."""
    whole = trained(tmp_path / "whole").state_dict()
    with pytest.raises(RuntimeError, match="pulled the plug"):
        trained(tmp_path / "parts", fails_at=5)
    resumed = trained(tmp_path / "parts", workers=2).state_dict()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def prepared(section: dict[str, Any]) -> Corpus:
    asked, mistakes = parse(prepare.Config, section)
    assert asked is not None, mistakes
    assert prepare.check(asked, {}) == []
    store = Store()
    with store.draft("corpus", repr(section)) as out:
        prepare.run(asked, {}, out)
    found = store.find(repr(section))
    assert found is not None
    return Corpus(found)


def write_words(folder: Path, speakers: str = "abcd", each: int = 3) -> None:
    """WORD/SPEAKER_nohash_N.wav, as Speech Commands has it."""
    for word in WORDS:
        (folder / word).mkdir(parents=True)
        for place, speaker in enumerate(speakers):
            for i in range(each):
                samples = spoken(word, 100 * place + i, 2 * RATE)
                (folder / word / f"{speaker}_nohash_{i}.wav").write_bytes(to_wav(samples, 2 * RATE))


def test_folders_name_words_and_files_speakers_who_stay_on_one_side() -> None:
    write_words(Path("words"))
    source = {"kind": "audio", "paths": "words", "audio": {"rate": RATE}}
    corpus = prepared({"source": source, "split": {"by": "group", "group": "speaker", "test": 0.25}})
    speakers = {split: {row["speaker"] for row in corpus.documents(split)} for split in ("train", "test")}
    assert len(speakers["test"]) == 1
    assert speakers["train"] | speakers["test"] == set("abcd")
    assert not speakers["train"] & speakers["test"]
    row = next(iter(corpus.documents("train")))
    assert row["label"] in WORDS
    assert row["audio"][:4] == b"RIFF"
    assert struct.unpack_from("<I", row["audio"], 24)[0] == RATE
    assert len(row["text"]) == 64


def test_a_speaker_is_held_out_by_name() -> None:
    write_words(Path("words"))
    source = {"kind": "audio", "paths": "words", "audio": {"rate": RATE}}
    split = {"by": "group", "group": "speaker", "hold_out": {"test": ["b"], "validation": ["d"]}}
    corpus = prepared({"source": source, "split": split})
    speakers = {name: {row["speaker"] for row in corpus.documents(name)} for name in corpus.splits}
    assert speakers == {"train": {"a", "c"}, "validation": {"d"}, "test": {"b"}}
    with pytest.raises(DataError, match=r"no document belongs to 'x', held out for the test"):
        prepared({"source": source, "split": split | {"hold_out": {"test": ["x"]}}})
    for wrong, sentence in (
        ({"by": "random", "hold_out": {"test": ["b"]}}, "`hold_out` names groups"),
        (split | {"hold_out": {"test": ["b"], "validation": ["b"]}}, "into the validation and into the test"),
    ):
        _, mistakes = parse(prepare.Config, {"source": source, "split": wrong})
        assert any(sentence in mistake.what for mistake in mistakes), mistakes


def test_files_that_cannot_be_heard_are_counted_with_their_names() -> None:
    write_words(Path("words"))
    good = to_wav(spoken("low", 0), RATE)
    bad = {
        "empty.wav": b"",
        "zero.wav": to_wav(np.zeros(0, np.int16), RATE),
        "short.wav": good[:-9],
        "slow.wav": good[:24] + struct.pack("<I", 50) + good[28:],
        "no.wav": b"something else",
        "no.flac": b"fLaC" + b"\0" * 40,
    }
    for name, data in bad.items():
        Path("words", "low", name).write_bytes(data)
    section = {
        "source": {"kind": "audio", "paths": "words", "audio": {"rate": RATE}},
        "clean": {"exact_duplicates": False},
    }
    with pytest.raises(DataError, match="6 of 42 rows"):
        prepared(section | {"bad_rows": 0.05})
    corpus = prepared(section | {"bad_rows": 0.2})
    assert corpus.rows("train") == 36
    ledger = json.dumps(corpus.artifact.json("ledger.json"))
    for reason in ("empty file", "a recording without samples", "cut short", "an impossible rate", "damaged FLAC"):
        assert reason in ledger, reason
    assert "words/low/slow.wav" in ledger


def test_members_of_an_archive_are_named_by_an_expression() -> None:
    with zipfile.ZipFile("words.zip", "w") as archive:
        archive.writestr("README.md", "no recording")
        for i, row in enumerate(rows()):
            archive.writestr(f"takes/{row['label']}_{row['speaker']}_{i}.wav", row["audio"])
    sound = {"rate": RATE, "file_name": r"(?P<label>[a-z]+)_(?P<speaker>[a-z])_\d+"}
    corpus = prepared({"source": {"kind": "audio", "paths": "words.zip", "audio": sound}})
    found = sorted((row["label"], row["speaker"], row["audio"]) for row in corpus.documents("train"))
    assert found == sorted((row["label"], row["speaker"], row["audio"]) for row in rows())


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        ({"file_name": "["}, "is no regular expression"),
        ({"file_name": "[a-z]+"}, "has no named group"),
        ({"rate": 100}, "greater than or equal to 4000"),
    ],
)
def test_a_source_that_cannot_work_is_refused(audio: dict[str, Any], sentence: str) -> None:
    _, mistakes = parse(prepare.Config, {"source": {"kind": "audio", "paths": "words", "audio": audio}})
    assert any(sentence in mistake.what for mistake in mistakes), mistakes


def test_words_go_from_their_files_to_a_report_and_to_answers(tmp_path: Path) -> None:
    write_words(Path("words"), "abcdef", 4)
    recipe = {
        "groundup": 1,
        "name": "words",
        "seed": 3,
        "stages": {
            "takes": {
                "prepare": {
                    "source": {"kind": "audio", "paths": "words", "audio": {"rate": RATE}, "licence": "CC0"},
                    "split": {"by": "group", "group": "speaker", "validation": 0.17, "test": 0.17},
                }
            },
            "word": {
                "train": {
                    "data": "takes",
                    "task": {"name": "speech_commands", **SHORT, "augment": {"shift_ms": 10, "masks": {}}},
                    "model": {"name": "speech_resnet", "width": 6, "n_layers": 2},
                    "epochs": 12,
                    "batch_rows": 12,
                    "optimizer": {"name": "adamw", "lr": 1e-2},
                    **{"precision": "fp32", "threads": 1},
                }
            },
            "report": {"evaluate": {"of": "word", "data": "takes.test", "bootstrap": 100}},
        },
    }
    Path("words.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    made = run("words.yaml")
    report = made["report"].json("report.json")
    assert report["scores"]["accuracy"]["estimate"] > 0.8
    assert report["test"]["count"] == 12
    assert {rival["name"] for rival in report["rivals"]} > {"logistic regression"}
    assert report["pictures"]["samples"]
    assert not (made["word"].path / "tokenizer.json").exists()
    wav = to_wav(spoken("shrill", 7, 16_000), 16_000)
    (said,) = groundup.load("runs/words/word").predict([{"audio": wav}])
    assert said["label"] == "shrill"
    assert set(said["probabilities"]) == set(WORDS)
