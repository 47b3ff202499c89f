"""Whether a network looks where its saliency says, and a few examples to see it on.

A picture of what a network looks at always looks convincing, so it is put to the test (Samek et al. 2017 on
why): the most salient tenth of the places is taken away, and as many random ones, each replaced by the mean of
the training data. What mattered more must be missed more. The report states both falls with the interval of
their difference on the same examples, also where it says that saliency is no better than chance.

Axes: E examples, C channels, H height, W width, F features, T frames or tokens, M bands, P places (pixels, …).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from groundup.data.order import generator
from groundup.data.sample import Documents
from groundup.errors import Interrupted
from groundup.evaluation import saliency
from groundup.evaluation.intervals import mean_interval
from groundup.evaluation.saliency import Reading
from groundup.nn.network import Network
from groundup.progress import Reporter, interrupt_requested
from groundup.text.rendering import pieces

Floats = NDArray[np.float64]
SHARE = 0.1
"""Of the places, taken away."""
DRAWS = 5
"""How many times random places are drawn for each example; their mean is what the salient ones are held against."""
PURPOSE = 20
"""Of random numbers: see `data/order.py::generator`."""
MOST, MOST_TEXTS, FEWEST = 200, 64, 16
"""Test examples that are examined; of large arrays, fewer."""
NUMBERS = 1 << 20
"""Numbers of all examined examples together, from which on there are fewer."""
AT_ONCE = 1 << 18
"""Numbers of the examples that pass through the network together."""
TRAINING_ROWS = 1000
"""Training rows, evenly spread, whose mean replaces what is taken away."""
KINDS = ("classes", "multilabel")
"""Kinds of evaluation whose models give scores of classes."""
PLACES = {4: "pixels", 3: "points in time and pitch", 2: "features"}
"""What places are called, by the number of axes of an array; of a text they are its tokens."""
INTEGRATED, TIMES_INPUT, ROLLOUT = "integrated gradients", "gradient × input", "attention rollout"


@dataclass(frozen=True)
class Seen:
    """One example: the array that the network read, (C,H,W), (T,M), (F,) or (T,D), and by method what each place
    said. Of a text also what its tokens are, those that fill a batch up left out."""

    values: NDArray[np.float32]
    salience: Mapping[str, NDArray[np.float32]]
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Looked:
    """What the report says, and the examples that it shows."""

    data: dict[str, Any]
    shown: dict[int, Seen] = field(default_factory=dict)
    """By their place in the test."""


def look(
    task: Any,
    network: Network,
    test: Sequence[Mapping[str, Any]],
    train: Sequence[Mapping[str, Any]],
    *,
    shown: Sequence[int],
    seed: int,
    resamples: int,
    reporter: Reporter | None = None,
) -> Looked | None:
    """Saliency of a model on its test, put to the test; None for models that read something else than a text or one
    array of numbers an example, or that do not tell classes apart.

    `shown` are the examples to be drawn, by their place in the test. Without training rows the mean is that of
    the test's own. Raises Interrupted.
    """
    if task.evaluation not in KINDS or (task.outputs or 0) < 2:
        return None
    first = next(batches(task, [test[row] for row in spread(len(test), FEWEST)], FEWEST))
    key = saliency.key_of(network, first)
    if key is None:
        return None
    is_text = key == saliency.TOKENS
    reads = Reads(network, key, task.evaluation == "multilabel", task.tokenizer.special_ids if is_text else ())
    numbers = reads.arrays(first)[key][0].numel()
    at_once = max(1, min(64, AT_ONCE // numbers))
    rows = spread(len(test), max(FEWEST, min(MOST_TEXTS if is_text else MOST, NUMBERS // numbers)))
    source = [train[row] for row in spread(len(train), TRAINING_ROWS)] or [test[row] for row in rows]
    baseline = mean_of(map(reads.arrays, batches(task, source, at_once)), key)
    found: list[dict[str, Any]] = []
    for start in range(0, len(rows), at_once):
        part = rows[start : start + at_once]
        (batch,) = batches(task, [test[row] for row in part], at_once)
        found.append(falls(reads(batch), baseline, part, seed=seed))
        if reporter is not None:
            reporter.advance("asking what it looks at", start + len(part), len(rows))
        if interrupt_requested():
            raise Interrupted("stopped while looking at what the network looks at", fix="run again: it starts afresh")
    data = summary(found, seed=seed, resamples=resamples)
    axes = first[key].dim()
    of = " of what is looked up for a token" if is_text else {4: " of each channel", 3: " of each band"}.get(axes, "")
    used = f"{len(source):,} {'training' if train else 'test'} rows"
    data |= {"places": "tokens" if is_text else PLACES.get(axes, "places"), "replaced_by": f"the mean{of} over {used}"}
    pictured = list(shown) if is_text or axes > 2 else []
    return Looked(data, dict(_seen(task, reads, test, pictured, baseline, at_once)))


@dataclass(frozen=True)
class Reads:
    """How batches are read by a network: which key it is that is looked at, and what is asked."""

    network: Network
    key: str
    several: bool
    special_ids: Collection[int]

    def __call__(self, batch: Mapping[str, Tensor]) -> Reading:
        """A batch, to look at."""
        return saliency.read(self.network, batch, several=self.several, special_ids=self.special_ids)

    def arrays(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The batch's array with the mask of what is real; of tokens what is looked up for them."""
        if self.key != saliency.TOKENS:
            return dict(batch)
        looked_up = saliency.vectors(self.network, batch[self.key])
        nothing = torch.empty(0, dtype=torch.int64)
        reading = Reading(self.network, batch, self.key, nothing, vectors=looked_up, special_ids=self.special_ids)
        return {self.key: looked_up.cpu(), "attention_mask": reading.real}


def batches(task: Any, examples: Sequence[Mapping[str, Any]], at_once: int) -> Iterator[dict[str, Tensor]]:
    """Examples as batches of at most so many, encoded as in evaluation."""
    for start in range(0, len(examples), at_once):
        rows = task.rows(Documents(examples[start : start + at_once], task.encode), 0, held_out=True)
        indices = np.arange(len(rows))
        if hasattr(rows, "batch"):
            yield rows.batch(indices, np.zeros_like(indices))
        else:
            yield getattr(task, "ask", task.collate)([rows.row(int(index), 0) for index in indices])


def spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist() if count else []


def mean_of(given: Iterator[Mapping[str, Tensor]], key: str) -> Tensor:
    """The mean of arrays: of pictures by channel, (1,C,1,1), of frames by band, (1,1,M), of features each, (1,F)."""
    total, count = torch.zeros(()), 0.0
    for batch in given:
        values = batch[key].double()
        over = _over(values)
        real = batch.get("attention_mask")
        if values.dim() == 3 and real is not None and real.shape == values.shape[:2]:
            weights = real.double()[:, :, None]
            total, count = total + (values * weights).sum(over, keepdim=True), count + float(weights.sum())
        else:
            total = total + values.sum(over, keepdim=True)
            count += float(np.prod([values.shape[axis] for axis in over]))
    return (total / count).float()


def _over(values: Tensor) -> tuple[int, ...]:
    return {4: (0, 2, 3), 3: (0, 1)}.get(values.dim(), (0,))


def salience(reading: Reading, baseline: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """By method what each place says for the class, (E,H,W), (E,T,M), (E,F) or (E,T); and what integrated gradients
    still miss of adding up, (E,)."""
    baseline = baseline.to(reading.inputs.device)
    if reading.vectors is not None:  # the frame of a text stays as it is
        baseline = torch.where(reading.over_all(reading.real), baseline, reading.vectors)
    integrated, gap_E = saliency.complete(reading, baseline)
    found = {
        INTEGRATED: reading.by_place(integrated),
        TIMES_INPUT: reading.by_place(saliency.gradient_times_input(reading, baseline)),
    }
    rollout = saliency.attention_rollout(reading)
    return found | ({} if rollout is None else {ROLLOUT: rollout}), gap_E


def falls(reading: Reading, baseline: Tensor, rows: Sequence[int], *, seed: int) -> dict[str, Any]:
    """How far score and probability of the asked classes fall, (E,) each, without the most salient places of each
    method and without as many random ones, drawn from `seed` and the number of the example among `rows`."""
    found, gap_E = salience(reading, baseline)
    real_EP = reading.real.flatten(1)
    random = [_drawn(rows, real_EP, seed, draw) for draw in range(DRAWS)]
    whole = _scored(reading, reading.inputs)
    measured = {
        "gap": _plain(gap_E),
        "removed": _plain(_counts(real_EP)),
        "of": _plain(real_EP.sum(1)),
        "random": np.mean([whole - _left(reading, noise_EP, real_EP, baseline) for noise_EP in random], axis=0),
    }
    salient = {name: whole - _left(reading, values.flatten(1), real_EP, baseline) for name, values in found.items()}
    return measured | {"salient": salient}


def _drawn(rows: Sequence[int], real_EP: Tensor, seed: int, draw: int) -> Tensor:
    noise = [generator(seed, draw, row, PURPOSE).random(real_EP.shape[1]) for row in rows]
    return torch.from_numpy(np.stack(noise)).to(real_EP.device, torch.float32)


def _counts(real_EP: Tensor) -> Tensor:
    """How many places are taken away, (E,): at least one."""
    return (SHARE * real_EP.sum(1)).round().long().clamp(min=1)


def most(values_EP: Tensor, real_EP: Tensor) -> Tensor:
    """The places with the largest values, a tenth of the real ones of each example, (E,P)."""
    order_EP = values_EP.masked_fill(~real_EP, -torch.inf).argsort(dim=1, descending=True, stable=True)
    is_among_EP = torch.arange(real_EP.shape[1], device=real_EP.device) < _counts(real_EP)[:, None]
    return torch.zeros_like(real_EP).scatter(1, order_EP, is_among_EP)


def without(reading: Reading, gone_EP: Tensor, baseline: Tensor) -> Tensor:
    """Arrays whose places `gone_EP` hold what the baseline holds; of a pixel all channels, of a token all numbers."""
    return torch.where(reading.over_all(gone_EP), baseline.to(reading.inputs), reading.inputs)


def _left(reading: Reading, values_EP: Tensor, real_EP: Tensor, baseline: Tensor) -> Floats:
    """Score and probability without the places of the largest values, (2,E)."""
    return _scored(reading, without(reading, most(values_EP, real_EP), baseline))


def _scored(reading: Reading, inputs: Tensor) -> Floats:
    """Score and probability of the asked classes, (2,E)."""
    with saliency.still(reading.network), torch.no_grad():
        logits_EK = reading.logits(inputs)
    shares_EK = logits_EK.sigmoid() if reading.several else logits_EK.softmax(-1)
    both = (each.gather(1, reading.classes[:, None])[:, 0] for each in (logits_EK, shares_EK))
    return np.stack([_plain(each) for each in both])


def _plain(values: Tensor) -> Floats:
    return values.detach().double().cpu().numpy()


def summary(found: Sequence[Mapping[str, Any]], *, seed: int, resamples: int) -> dict[str, Any]:
    """What was measured on parts of the test, as the report's plain data.

    `methods`: by method, of `score` and of `probability`, the mean falls without salient and without random
    places, and how much more the salient ones cost, each with its interval from drawing the examples again.
    """
    random_2E = np.concatenate([part["random"] for part in found], axis=1)
    gap_E = np.concatenate([part["gap"] for part in found])
    removed, whole = (float(np.concatenate([part[key] for part in found]).mean()) for key in ("removed", "of"))

    def interval(values_E: Floats) -> dict[str, Any]:
        return mean_interval(values_E, seed=seed, unit="examples", resamples=resamples).as_dict()

    methods = []
    for name in found[0]["salient"]:
        salient_2E = np.concatenate([part["salient"][name] for part in found], axis=1)
        one: dict[str, Any] = {"name": name}
        for key, salient_E, random_E in zip(("score", "probability"), salient_2E, random_2E, strict=True):
            measured = {"salient": salient_E, "random": random_E, "more": salient_E - random_E}
            one[key] = {what: interval(values_E) for what, values_E in measured.items()}
        methods.append(one)
    return {
        "examples": random_2E.shape[1],
        "share": SHARE,
        "removed": removed,
        "of": whole,
        "draws": DRAWS,
        "missing": {"mean": float(gap_E.mean()), "most": float(gap_E.max())},
        "methods": methods,
    }


def _seen(
    task: Any,
    reads: Reads,
    test: Sequence[Mapping[str, Any]],
    shown: Sequence[int],
    baseline: Tensor,
    at_once: int,
) -> Iterator[tuple[int, Seen]]:
    """The examples that are shown, by their place in the test."""
    for start in range(0, len(shown), at_once):
        part = shown[start : start + at_once]
        (batch,) = batches(task, [test[row] for row in part], at_once)
        reading = reads(batch)
        found, _ = salience(reading, baseline)
        for place, row in enumerate(part):
            values = reading.inputs[place].float().cpu().numpy()
            said = {name: each[place].float().cpu().numpy() for name, each in found.items()}
            if reading.vectors is None:
                yield row, Seen(values, said)
                continue
            count = int(batch["attention_mask"][place].sum())
            texts = pieces(task.tokenizer, batch[reads.key][place, :count].tolist())
            yield row, Seen(values[:count], {name: each[:count] for name, each in said.items()}, tuple(texts))
