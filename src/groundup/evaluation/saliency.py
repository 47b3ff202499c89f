"""What a network looks at: how much each number of its input speaks for the score of a class.

Three ways, for any network that reads arrays of numbers (pixels, features, frames of sound), or that looks up a
vector for each token of a text; those vectors are its array then:

- **Gradient x input** (Shrikumar et al. 2016, §2): the slope of the score times the number itself. Exact where
  the score is linear; where it is flat, as behind a saturated unit, it sees nothing.
- **Integrated gradients** (Sundararajan, Taly & Yan 2017, eq. 1): the mean slope on the straight way from a
  baseline to the input, times the way. They add up to the difference of the scores at both ends, which the
  authors call completeness; `complete` takes as many steps as that needs, and says what is still missing.
- **Attention rollout** (Abnar & Zuidema 2020, §3): what the layers of a Vision Transformer attend to,
  multiplied through, half of each layer passing straight on. It knows neither class nor sign.

Looking changes nothing: networks compute as in evaluation meanwhile, batch norm learns nothing, gradients of
parameters and the modes of all modules stay as they were.

Axes: E examples, K classes, C channels, H height, W width, F features, T frames or tokens, M bands, D width of a
token's vector; inputs are (E,C,H,W), (E,T,M), (E,F) or (E,T,D).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from groundup.errors import UserError
from groundup.nn import token_tables
from groundup.nn.attention import Bidirectional
from groundup.nn.network import INPUTS, Network

KEYS = ("pixel_values", "features")
"""The keys of a batch that hold an array of numbers an example."""
TOKENS = "input_ids"
"""The key of what is looked up."""
BESIDE = ("attention_mask", "lengths", "token_type_ids")
"""What such a batch may hold beside; with any other input, an array is not all that the network reads."""
STEPS = (32, 128, 512)
"""Points on the way from the baseline: of the first number, and of the next for examples it does not suffice for; of
texts, whose networks are larger, of the first two."""
TOLERANCE = 0.01
"""The part of a difference of scores that may be missing before more steps are taken."""
LEAST_DIFFERENCE = 0.1
"""A smaller difference of scores counts as this one: a part of nothing says nothing."""


@dataclass(frozen=True)
class Reading:
    """A batch of examples as a network reads it, and the class of each that is asked about."""

    network: Network
    batch: Mapping[str, Tensor]
    key: str
    classes: Tensor
    """Their numbers, (E,)."""
    several: bool = False
    """Whether an example may belong to several classes, each with a probability of its own."""
    vectors: Tensor | None = None
    """Of a network that reads tokens, what it looks up for them, (E,T,D)."""
    special_ids: Collection[int] = ()
    """Tokens that stand for no text: what they say is not asked, and they are never taken away."""

    @property
    def inputs(self) -> Tensor:
        """The array that is looked at, (E, …)."""
        return self.batch[self.key] if self.vectors is None else self.vectors

    def logits(self, inputs: Tensor) -> Tensor:
        """Scores of all classes, (E,K), with another array in the place of the batch's own."""
        if self.vectors is None:
            found: Tensor = self.network({**self.batch, self.key: inputs}).logits.float()
            return found
        table = _table(self.network)
        assert table is not None, "something was looked up in it"
        handle = table.register_forward_hook(lambda module, ids, looked_up: inputs)
        try:
            found = self.network(self.batch).logits.float()
        finally:
            handle.remove()
        return found

    def scores(self, inputs: Tensor) -> Tensor:
        """Scores of the classes that are asked about, (E,)."""
        return self.logits(inputs).gather(1, self.classes[:, None])[:, 0]

    def gradient(self, inputs: Tensor) -> Tensor:
        """The slope of those scores at an array, shaped like it."""
        leaf = inputs.detach().clone().requires_grad_()
        # An example's score depends on no other example, so the slope of the sum is that of each.
        (found,) = torch.autograd.grad(self.scores(leaf).sum(), leaf)
        return found

    def take(self, rows_N: Tensor) -> Reading:
        """The same for some of the examples."""
        batch = {key: value[rows_N] for key, value in self.batch.items()}
        vectors = None if self.vectors is None else self.vectors[rows_N]
        return replace(self, batch=batch, classes=self.classes[rows_N], vectors=vectors)

    def by_place(self, values: Tensor) -> Tensor:
        """Attributions by place: (E,C,H,W) summed to (E,H,W), those of tokens to (E,T); others as they are."""
        if self.vectors is not None:
            return values.sum(-1)
        return values.sum(1) if values.dim() == 4 else values

    def over_all(self, places: Tensor) -> Tensor:
        """What holds for places, (E,P), shaped so that it holds for all numbers of each."""
        if self.vectors is not None:
            return places[..., None]
        shape = self.inputs.shape
        return places.reshape((shape[0], 1, *shape[2:]) if len(shape) == 4 else shape)

    @property
    def real(self) -> Tensor:
        """Which places hold something, shaped as `by_place` gives them: all but the frames that fill a batch up, and
        tokens that stand for no text."""
        if self.vectors is not None:
            ids_ET = self.batch[self.key]
            real_ET = self.batch.get("attention_mask", torch.ones_like(ids_ET)).bool()
            return real_ET & ~torch.isin(ids_ET, torch.tensor(sorted(self.special_ids)).to(ids_ET))
        shape = self.by_place(self.inputs).shape
        mask_ET = self.batch.get("attention_mask")
        if mask_ET is None or len(shape) != 3 or mask_ET.shape != shape[:2]:
            return torch.ones(shape, dtype=torch.bool, device=self.inputs.device)
        return mask_ET.bool()[:, :, None].expand(shape)


def key_of(network: Network, batch: Mapping[str, Tensor]) -> str | None:
    """The array of numbers that a network reads from a batch, or the tokens it looks up, if that is all it reads."""
    inputs = [key for key in INPUTS if key in batch and key not in BESIDE]
    if inputs == [TOKENS]:
        return TOKENS if _table(network) is not None else None
    return inputs[0] if len(inputs) == 1 and inputs[0] in KEYS and batch[inputs[0]].is_floating_point() else None


def _table(network: Network) -> nn.Module | None:
    """Where a network looks its tokens up."""
    return next(iter(token_tables.embeddings(network).values()), None)


def vectors(network: Network, ids_ET: Tensor) -> Tensor:
    """What a network looks up for tokens, (E,T,D)."""
    table = _table(network)
    assert table is not None, "`key_of` says whether there is one"
    with still(network), torch.no_grad():
        found: Tensor = table(ids_ET.to(next(network.parameters()).device))
        return found


def read(
    network: Network,
    batch: Mapping[str, Tensor],
    classes_E: Tensor | None = None,
    *,
    several: bool = False,
    special_ids: Collection[int] = (),
) -> Reading:
    """A batch to look at; of each example the class of the highest score, unless others are given.

    Raises UserError where the network reads something else than one array of numbers, or tokens, an example.
    """
    key = key_of(network, batch)
    if key is None:
        what = f"there is no single array of numbers to look at among {', '.join(sorted(batch)) or 'nothing'}"
        raise UserError(what, fix=f"saliency is for networks that read {' or '.join((*KEYS, TOKENS))}")
    device = next(network.parameters()).device
    with still(network), torch.no_grad():
        # Tensors of inference mode stay without gradients for good, and their copies do not.
        plain = {name: value.clone() if value.is_inference() else value for name, value in batch.items()}
        held = {name: value.to(device) for name, value in plain.items()}
        looked_up = vectors(network, held[key]) if key == TOKENS else None
        reading = Reading(network, held, key, torch.empty(0, device=device), several, looked_up, special_ids)
        asked_E = reading.logits(reading.inputs).argmax(-1) if classes_E is None else classes_E.to(device)
    return replace(reading, classes=asked_E)


@contextmanager
def still(network: Network) -> Iterator[None]:
    """A block in which a network computes as in evaluation, and gradients can be taken whatever surrounds it."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def gradient_times_input(reading: Reading, baseline: Tensor | None = None) -> Tensor:
    """The slope of each score times the input, or times its way from a baseline; shaped like the input."""
    with still(reading.network):
        way = reading.inputs if baseline is None else reading.inputs - baseline
        return reading.gradient(reading.inputs) * way


def integrated_gradients(reading: Reading, baseline: Tensor, *, steps: int = STEPS[0]) -> Tensor:
    """What each number adds to the difference of the scores of input and baseline; shaped like the input.

    `baseline` fits the input by broadcasting. The integral is taken at Gauss-Legendre points, exactly for slopes
    that are polynomials of a degree below 2 · steps.
    """
    points, weights = np.polynomial.legendre.leggauss(steps)
    with still(reading.network):
        way = reading.inputs - baseline
        total = torch.zeros_like(way)
        for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
            total += float(weight) * reading.gradient(baseline + float(point) * way)
        return total * way


def missing(reading: Reading, baseline: Tensor, attributions: Tensor) -> Tensor:
    """How far attributions are from adding up, as a part of the difference of scores, (E,)."""
    with still(reading.network), torch.no_grad():
        difference_E = reading.scores(reading.inputs) - reading.scores(baseline.expand_as(reading.inputs))
    gap_E = attributions.flatten(1).sum(1) - difference_E
    return gap_E.abs() / difference_E.abs().clamp(min=LEAST_DIFFERENCE)


def complete(reading: Reading, baseline: Tensor) -> tuple[Tensor, Tensor]:
    """Integrated gradients with as many steps as each example needs, and what is still missing, (E,)."""
    with still(reading.network):
        baseline = baseline.expand_as(reading.inputs)
        found = integrated_gradients(reading, baseline, steps=STEPS[0])
        gap_E = missing(reading, baseline, found)
        for steps in STEPS[1:] if reading.vectors is None else STEPS[1:2]:
            rows_N = (gap_E > TOLERANCE).nonzero()[:, 0]
            if not len(rows_N):
                break
            part = reading.take(rows_N)
            found[rows_N] = integrated_gradients(part, baseline[rows_N], steps=steps)
            gap_E[rows_N] = missing(part, baseline[rows_N], found[rows_N])
    return found, gap_E


class Watched:
    """Attention of whole rows that keeps the shares each token gives to the others, mean of the heads, (B,T,T)."""

    def __init__(self) -> None:
        self.shares: list[Tensor] = []
        self._attend = Bidirectional()

    def __call__(self, q_BTHK: Tensor, k_BTHK: Tensor, v_BTHK: Tensor, layer: int, *, dropout: float = 0.0) -> Tensor:
        scores_BHTS = torch.einsum("bthk,bshk->bhts", q_BTHK, k_BTHK) / math.sqrt(q_BTHK.shape[-1])
        self.shares.append(scores_BHTS.softmax(-1).mean(1))
        return self._attend(q_BTHK, k_BTHK, v_BTHK, layer, dropout=dropout)


def attention_rollout(reading: Reading) -> Tensor | None:
    """What the first token of a Vision Transformer draws from each patch in the end, (E,H,W), every pixel of a
    patch alike; None for networks of another kind."""
    patch = getattr(reading.network.config, "patch_size", None)
    if patch is None or reading.inputs.dim() != 4:
        return None
    height, width = reading.inputs.shape[2] // patch[0], reading.inputs.shape[3] // patch[1]
    watched, backbone = Watched(), reading.network.backbone
    with still(reading.network), torch.no_grad():
        hidden_BTD = backbone(reading.inputs, watched)
    if hidden_BTD.shape[1] != height * width + 1 or not watched.shares:
        return None
    looked_BH = rolled_out(watched.shares)[:, 0, 1:]
    grid_BHW = looked_BH.reshape(-1, height, width)
    return grid_BHW.repeat_interleave(patch[0], 1).repeat_interleave(patch[1], 2)


def rolled_out(shares: list[Tensor]) -> Tensor:
    """How much of each token's last state comes from each token's first, (B,T,T), from the shares of all layers.

    A layer's residual counts as half of what it passes on; rows add up to one.
    """
    straight_TT = torch.eye(shares[0].shape[-1]).to(shares[0])
    found: Any = straight_TT
    for share_BTT in shares:
        found = (share_BTT + straight_TT) / 2 @ found
    return torch.as_tensor(found)
