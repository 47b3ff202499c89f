"""Say which word a short recording holds: a command, a digit.

An example has a recording, a WAV or FLAC file as bytes, and a label. It is brought to one rate and one length here,
by the function that `prepare` reads files with, so that a model hears a file in use as it did in training. Samples
are kept on disk; log-mel frames are made of whole batches (`nn/mel.py`), after training has changed the samples anew
in each epoch.

Batch: `features`, (E,T,M) float32, and `label`, (E,) int64 with -100 for rows that train nothing.

Axes: E examples, S samples, K classes, T frames, M mel bands.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from rich.markup import escape

from groundup.data import audio_changes
from groundup.data.audio import FULL, LONGEST_S, RATES, decode, file_of, rate_of
from groundup.data.audio_changes import AudioAugment
from groundup.data.order import generator
from groundup.data.packing import Columns, Int64s, Row
from groundup.errors import DataError, nearest
from groundup.evaluation.metrics.ratios import Ratio
from groundup.nn.mel_bands import Mel
from groundup.tasks import _classes
from groundup.tasks._classes import Classes, ClassSection
from groundup.tasks._contract import Answer
from groundup.units import PositiveCount

if TYPE_CHECKING:  # torch is imported where it is used: processes that only encode do without it
    from torch import Tensor

    from groundup.data.vectors import Arrays, Vectors
    from groundup.nn.mel import LogMel
    from groundup.nn.network import Outputs
    from groundup.text.tokenizers import Tokenizer

VERSION = 1

METRICS = {
    "loss": Ratio("nats", "labels"),
    "accuracy": Ratio("right", "labels", higher_is_better=True),
}
"""What is watched while training, by the sums of `Task.scores`; a report has more."""
MASKS = ("time_masks", "band_masks")
"""Arrays of what SpecAugment hides, (E,N,2) float32: begin and end as shares of the whole."""
PURPOSE = 11
"""The purpose of what is drawn here, so that nothing else draws the same numbers."""
BARS = " ▁▂▃▄▅▆▇█"
"""How loud a stretch of a recording is, in a line of text."""


class Config(ClassSection):
    """The class of a short recording."""

    audio: str = "audio"
    """The column of the recording: a WAV or FLAC file."""
    rate: Annotated[PositiveCount, Field(ge=RATES[0], le=RATES[1])] | None = None
    """Samples a second that recordings are brought to; that of the training rows unless given."""
    seconds: float = Field(default=1.0, gt=0, le=LONGEST_S)
    """How long a recording is for the model: longer ones are cut, shorter ones filled up with silence."""
    place: Literal["centre", "start"] = "centre"
    """What stays where it is cut or filled up: its middle, or its beginning."""
    trim: bool = False
    """Whether silence at both ends goes before."""
    mel: Mel = Mel()
    """How frames are made of samples."""
    augment: AudioAugment | None = None
    """How training recordings are changed, anew in every epoch."""
    unit: str | None = None
    """The column of what recordings have in common, such as `speaker`: intervals then draw whole ones of these, for
    recordings of one speaker are right or wrong together."""


def settle(config: Config, examples: Iterable[Mapping[str, Any]]) -> Config:
    """The section with what only the training rows can tell: the names of the classes and the rate.

    Raises DataError for rows without recordings or labels, and for recordings of different rates.
    """
    counts: dict[str, int] = {}
    rate = config.rate
    for example in examples:
        _classes.count(config, counts, example)
        if config.rate is None:
            where = str(example.get("source", ""))
            found = rate_of(_recording(config, example), where)
            if rate not in (None, found):
                what = f"a recording of {found} samples a second, where others have {rate}"
                raise DataError(what, where=where, fix="prepare all sources at one `rate`, or name one: task.rate")
            rate = found
    return _classes.settled(config.model_copy(update={"rate": rate}), counts)


def _recording(config: Config, example: Mapping[str, Any]) -> bytes:
    """The file of an example's recording. Raises DataError, naming the row, where there is none."""
    where = str(example.get("source", ""))
    if config.audio not in example:
        fix = f"{nearest(config.audio, example)}; a source of kind audio gives one"
        raise DataError(f"no column {config.audio!r}", where=where, fix=fix)
    return file_of(example[config.audio], where)


class Task:
    """Recordings of one length and their classes. Can be sent to other processes."""

    head = "features"
    problem = "single_label_classification"
    evaluation = "classes"

    def __init__(self, config: Config, tokenizer: Tokenizer | None = None, context: int = 1) -> None:
        """`config` is settled. `tokenizer` and `context` are of no account: recordings hold no tokens."""
        assert config.rate is not None, "a section is settled before it becomes a task"
        self.config, self.context, self.rate = config, context, config.rate
        self.tokenizer: Any = tokenizer
        self.samples = max(1, round(config.seconds * config.rate))
        self.classes = Classes(config)
        self.labels, self.outputs = self.classes.labels, self.classes.outputs

    @property
    def known(self) -> dict[str, int]:
        """The sizes of a model that follow from the recordings, and how those are taken."""
        frames, bands = self.config.mel.frames(self.rate, self.samples), self.config.mel.bands
        of_samples = {"rate": self.rate, "samples": self.samples}
        return {"frames": frames, "bands": bands, "n_features": frames * bands, **of_samples}

    @property
    def metrics(self) -> dict[str, Ratio]:
        """All of `METRICS`."""
        return METRICS

    @property
    def encoding(self) -> dict[str, Any]:
        """What `encode` depends on: the key of encoded shards."""
        c = self.config
        heard = {"audio": c.audio, "rate": self.rate, "samples": self.samples, "place": c.place, "trim": c.trim}
        return {"task": c.name, "version": VERSION, "label": c.label, "labels": self.labels, **heard}

    @property
    def choices(self) -> dict[str, Any]:
        """What was chosen because the recipe left it open."""
        return {"labels": self.labels, "rate": self.rate}

    def encode(self, example: Mapping[str, Any]) -> dict[str, NDArray[np.int16] | list[int]]:
        """`waveform` and `label` of an example, which may lack its label.

        Raises DataError, naming the row, for what is no recording and for an unknown label.
        """
        return {"waveform": self._heard(example), "label": [self.classes.number(example)]}

    def _heard(self, example: Mapping[str, Any]) -> NDArray[np.int16]:
        """A recording as the model hears it, (S,) int16."""
        c = self.config
        data, where = _recording(c, example), str(example.get("source", ""))
        return decode(data, where, rate=self.rate, seconds=c.seconds, place=c.place, trim=c.trim)

    def rows(self, shards: Columns, seed: int, *, held_out: bool = False) -> Vectors:
        """The examples of a split, one row each; changed anew in every epoch where the section asks for it."""
        from groundup.data.vectors import Vectors

        how = None if held_out else self.config.augment
        shapes = {"waveform": (self.samples,)}
        change = None if how is None else Changed(how, self.rate, seed)
        return Vectors(shards, shapes=shapes, values=("label",), labels="label", tensors=self._tensors, change=change)

    def collate(self, rows: Sequence[Row], *, flat: bool = False) -> dict[str, Tensor]:
        """Rows as one batch; see the module for its keys."""
        return self._tensors({key: np.stack([row[key] for row in rows]) for key in rows[0]})

    def _tensors(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """A batch of stacked arrays."""
        import torch

        from groundup.nn.mel import masked

        masks = [torch.from_numpy(arrays[key]) if key in arrays else None for key in MASKS]
        with torch.no_grad():
            features = masked(self._mel(torch.from_numpy(np.ascontiguousarray(arrays["waveform"]))), *masks)
        return {"features": features, "label": torch.from_numpy(arrays["label"])}

    def loss(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """`loss`: summed over labelled examples, and their number."""
        return {"loss": self.classes.loss(outputs.logits.float(), batch["label"])}

    def counts(self, batch: Mapping[str, Tensor]) -> dict[str, int]:
        """The number of trained labels of the loss, from a batch alone."""
        return self.classes.counts(batch["label"])

    def scores(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Per example, the sums that `metrics` divide, (E,) each. No gradient."""
        return self.classes.scores(outputs.logits, batch["label"])

    def answers(self, outputs: Outputs, batch: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """An answer an example: `label`, and `probabilities` by class."""
        return self.classes.answers(outputs.logits)

    def answer(self, found: Sequence[Mapping[str, Any]], example: Mapping[str, Any]) -> Answer:
        """The answer to an example, which is one row."""
        return Answer(found[0]["label"], found[0].get("probabilities"))

    def truth(self, example: Mapping[str, Any]) -> str:
        """The name of the class. Raises DataError, naming the row, where it is missing."""
        return self.classes.truth(example)

    def shown(self, example: Mapping[str, Any]) -> str:
        """Which recording it is, and how its loudness runs."""
        return f"{example.get('source', 'a recording')} {_envelope(self._heard(example))}".strip()

    def render(self, row: Row) -> str:
        """How loud a recording is from its beginning to its end, followed by its label."""
        wave = np.asarray(row["waveform"])
        label = escape(self.classes.shown(int(row["label"])))
        return f"│{_envelope(wave)}│ {self.config.seconds:g} s\n[cyan]label: {label}[/]"

    @cached_property
    def _mel(self) -> LogMel:
        from groundup.nn.mel import LogMel

        return LogMel(self.config.mel, self.rate)

    def _loudness(self, example: Mapping[str, Any]) -> NDArray[np.float32]:
        """The log-mel frames of an example as they are, not standardised, (T,M)."""
        import torch

        from groundup.nn.mel import LogMel

        mel = LogMel(self.config.mel.model_copy(update={"standardise": "none"}), self.rate)
        with torch.no_grad():
            frames: NDArray[np.float32] = mel(torch.from_numpy(self._heard(example).copy())[None])[0].numpy()
        return frames

    @property
    def column(self) -> str:
        """What a row that is no mapping stands for."""
        return self.config.audio

    def local(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """A row of a user of this machine, whose recordings may be named by their paths."""
        given = example.get(self.config.audio)
        is_path = isinstance(given, str) and len(given) < 4096 and not given.startswith("data:")
        return dict(example) | ({self.config.audio: Path(str(given))} if is_path and Path(str(given)).is_file() else {})

    def vector(self, example: Mapping[str, Any]) -> NDArray[np.float32]:
        """What classical rivals read, (4·M,): mean and deviation over time of each log-mel band, and of how it changes
        from frame to frame."""
        frames_TM = self._loudness(example)
        steps_TM = np.diff(frames_TM, axis=0, prepend=frames_TM[:1])
        parts = (frames_TM.mean(0), frames_TM.std(0), steps_TM.mean(0), steps_TM.std(0))
        return np.concatenate(parts).astype(np.float32)

    def picture(self, example: Mapping[str, Any]) -> bytes:
        """The log-mel frames as a PNG: time to the right, pitch upwards, loud is bright."""
        from matplotlib import image

        drawn = io.BytesIO()
        image.imsave(drawn, self._loudness(example).T, cmap="magma", origin="lower", format="png")
        return drawn.getvalue()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_mel"}


class Changed:
    """What training makes of recordings: see `data/audio_changes.py`. Can be sent to other processes."""

    def __init__(self, how: AudioAugment, rate: int, seed: int) -> None:
        self.how, self.rate, self.seed = how, rate, seed

    def __call__(self, rows: Vectors, arrays: Arrays, indices: Int64s, epochs: Int64s) -> Arrays:
        """The arrays of a batch as its rows are in their epochs, and masks where there are some."""
        draws = [
            generator(self.seed, epoch, index, PURPOSE)
            for index, epoch in zip(indices.tolist(), epochs.tolist(), strict=True)
        ]
        waves = zip(arrays["waveform"].astype(np.float32) / np.float32(FULL), draws, strict=True)
        found = dict(arrays)
        found["waveform"] = np.stack([audio_changes.changed(wave, self.how, self.rate, draw) for wave, draw in waves])
        if self.how.masks is not None:
            spans = [audio_changes.masks(self.how.masks, draw) for draw in draws]
            found |= {key: np.stack(part) for key, part in zip(MASKS, zip(*spans, strict=True), strict=True)}
        return found


def _envelope(wave: NDArray[Any], width: int = 40) -> str:
    """How loud a recording is along its length, in so many bars; the loudest stretch has the tallest."""
    stretches = np.array_split(np.abs(np.asarray(wave, np.float64)), width)
    peaks = np.array([part.max(initial=0.0) for part in stretches])
    levels = np.rint(peaks / max(peaks.max(), 1e-9) * (len(BARS) - 1)).astype(int)
    return "".join(BARS[level] for level in levels)
