"""From a section, labelled rows and a network to start from to everything the training loop needs.

What `assembly.py` does for pretraining, for rows of different lengths: a step is `batch_rows` examples,
laid end to end without padding or, where the model cannot, padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import nn

from groundup import catalog
from groundup.data.augmented import Augmented
from groundup.data.examples import Examples, waste
from groundup.data.loader import Batch, Int64s, Loader
from groundup.data.mixing import Mixed
from groundup.data.packing import Rows
from groundup.errors import DataError
from groundup.nn import batch_norm
from groundup.nn.network import Network
from groundup.training.assembly import Assembly, Material
from groundup.training.choices import Choices
from groundup.training.loop import Job
from groundup.training.methods import Methods
from groundup.training.objective import Objective
from groundup.training.settings import LabelledTrainingSection

DEFAULT_EPOCHS = 3.0


class LabelledAssembly(Assembly):
    """A section, labelled rows, a task and a network put together."""

    def __init__(
        self,
        config: LabelledTrainingSection,
        material: Material,
        choices: Choices,
        *,
        task: Any,
        plain_task: Any,
        start: Callable[[], Network],
        is_pretrained: bool = True,
    ) -> None:
        """`plain_task` is the task without label smoothing, for held-out rows; `start` makes the network,
        whose weights are pretrained or random."""
        self.config: Any = config
        self.material, self.choices, self.planned_steps = material, choices, None
        self.task, self.plain_task, self._start = task, plain_task, start
        self.is_pretrained = is_pretrained
        self.batch_rows = config.batch_rows
        self.row_tokens = task.context
        self.has_examples = hasattr(task, "outputs")
        self.collate = partial(task.collate, flat=True) if self.is_flat else task.collate

    @property
    def is_flat(self) -> bool:
        """Whether examples lie end to end. A device whose attention has no such kernels pads."""
        if not self.has_examples:
            return False  # rows of documents are full already
        if not getattr(self.task, "packs", self.task.tokenizer is not None):
            return False  # examples of one shape are stacked
        if self.config.packing == "auto":
            return self.choices.device in ("cpu", "cuda")
        return bool(self.config.packing)

    @cached_property
    def rows(self) -> Rows:
        """Training rows, with those that are mixed in. Raises DataError if they train nothing."""
        rows: Rows = self.task.rows(self.material.train, self.config.seed)
        if self.config.augment is not None:
            rows = self._augmented(rows)
        if self.material.more is not None:
            more = self.task.rows(self.material.more, self.config.seed)
            rows = Mixed(rows, more, share=self.config.more_share, seed=self.config.seed)
        rows.ledger().require_labels("data", name_of=self.material.name_of)
        return rows

    @cached_property
    def network(self) -> Network:
        """The network that training starts from, on the device."""
        network = self._start().to(self.choices.device)
        network.backbone.checkpoint_activations = self.config.activation_checkpointing
        return network

    def _augmented(self, rows: Any) -> Rows:
        """The rows with texts that are changed anew in every epoch."""
        assert self.material.example_of is not None, "a run knows its examples"
        task, known = self.task.config, (getattr(self.task.config, name, None) for name in ("text", "pair"))
        if not isinstance(rows, Examples) or task.name != "text_classification":
            what = f"the rows of {task.name} cannot be changed word by word"
            raise DataError(what, where="augment", fix="leave `augment` out; it is for text_classification")
        columns = [name for name in known if name]
        given = {"example_of": self.material.example_of, "encode": self.task.encode}
        found: Rows = Augmented(rows, self.config.augment, seed=self.config.seed, columns=columns, **given)
        return found

    @cached_property
    def lengths(self) -> Int64s:
        """Tokens of each training row."""
        found: Int64s | None = getattr(self.rows, "lengths", None)
        return np.full(len(self.rows), self.row_tokens) if found is None else found

    @property
    def longest(self) -> int:
        """The longest row, by index."""
        return int(np.argmax(self.lengths))

    @property
    def unit(self) -> str:
        """What `batch_tokens` counts: tokens, or examples where these are none."""
        return "tokens" if self.task.tokenizer is not None else "examples"

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step, on average; of examples that are no tokens, their number."""
        return max(1, round(float(self.lengths.mean()) * self.batch_rows))

    @cached_property
    def steps(self) -> int:
        """Updates of the whole run."""
        if self.config.steps is not None:
            return int(self.config.steps)
        return max(1, -(-round((self.config.epochs or DEFAULT_EPOCHS) * len(self.rows)) // self.batch_rows))

    @property
    def flops_per_step(self) -> float:
        """Forward and backward of an average step: products of frozen matrices have no gradient of their own."""
        config: Any = self.network.config
        file: Any = catalog.load("models", config.name) if config.name in catalog.names("models") else None
        if hasattr(file, "flops_per_example"):  # a convolution uses a weight many times: the file counts for itself
            return 3.0 * float(file.flops_per_example(config, self.network.outputs or 0)) * self.batch_rows
        whole, trained = matrix_sizes(self.network)
        return (4.0 * whole + 2.0 * trained) * self.batch_tokens

    @cached_property
    def objective(self) -> Objective:
        """The task's losses; held-out rows without label smoothing, with the task's scores beside."""
        scores = getattr(self.task, "scores", None) if self.has_examples else None
        watched = {name: m for name, m in self.task.metrics.items() if name != "loss"} if scores else {}
        return Objective(
            loss=self.task.loss,
            held_out=self.plain_task.loss,
            counts=self.task.counts,
            scores=scores if watched else None,
            joint=getattr(self.task, "joint", None),
            watched=watched,
        )

    def job(self) -> Job:
        """All that the loop works on, the methods of fine-tuning included."""
        if getattr(self.task, "needs_reference", False):
            self._refer(self.rows)
        return dataclasses.replace(super().job(), methods=Methods(self.config.layers, self.config.regulariser))

    def held_out_rows(self) -> Rows:
        """The validation rows."""
        rows = super().held_out_rows()
        if getattr(self.task, "needs_reference", False):
            self._refer(rows)
        return rows

    def _refer(self, rows: Any) -> None:
        """Tell rows what the network says of them before it learns; a resumed run begins with the same network."""
        if rows.reference is None:
            with self.choices.arithmetic.on():
                rows.reference = self.task.prepare(self.network, rows, batch_rows=self.batch_rows, flat=self.is_flat)

    def settle(self) -> Choices:
        """Make the automatic choices that need the network, by measuring, and keep them."""
        wanted = self.config
        if wanted.compile == "auto":
            self.config = wanted.model_copy(update={"compile": False})
        cuts_change_it = wanted.micro_batch_rows == "auto" and bool(batch_norm.layers(self.network))
        if cuts_change_it or getattr(self.task, "needs_whole_batch", False):
            self.config = self.config.model_copy(update={"micro_batch_rows": self.batch_rows})
        choices = super().settle()
        self.config = wanted
        if wanted.compile == "auto":
            reasons = choices.reasons | {"compile": "no two batches have the same shape"}
            self.choices = dataclasses.replace(choices, reasons=reasons)
        if cuts_change_it:
            reason = "batch norm: what passes together changes the result, so nothing is cut unless it is asked for"
            self.choices = dataclasses.replace(self.choices, reasons=self.choices.reasons | {"micro_batches": reason})
        return self.choices

    def row_name(self, index: int) -> str:
        """A row in words: where it is from and how it begins."""
        is_other = isinstance(self.rows, Mixed) and self.rows.is_second(index)
        if self.task.tokenizer is None:
            is_named = self.material.name_of is not None and not is_other
            return self.material.name_of(self.rows.document_of(index)) if is_named else f"row {index}"  # type: ignore
        begins = super().row_name(index).partition("(")[2].removesuffix(")")
        if self.material.name_of is None or is_other or not self.has_examples:
            return f"row {index} ({begins})"
        return f"{self.material.name_of(self.rows.document_of(index))} ({begins})"  # type: ignore[attr-defined]

    def extent(self) -> str:
        """How long examples are, in words that follow their number; nothing where they are no tokens."""
        if self.unit != "tokens":
            return ""
        return f", {self.lengths.mean():.1f} tokens each (longest {self.lengths.max()})"

    def padding(self) -> str:
        """What share of positions is padding, in words."""
        if not self.has_examples:
            return "none: every row is full"
        if self.lengths.max() == 1:
            return "none: all examples have one shape"
        shares = waste(self.lengths, self.batch_rows, self.choices.micro_batches)
        if self.is_flat:
            return f"none: examples lie end to end (random batches would be {shares['random']:.0%} padding)"
        return f"{shares['sorted']:.1%}, each step sorted by length (random batches: {shares['random']:.0%})"


class LongestFirst:
    """The batches of a loader, except that the first holds the longest rows: what memory must suffice for."""

    def __init__(self, loader: Loader) -> None:
        assert loader.lengths is not None, "only rows of different lengths have longest ones"
        self.loader, self.micro_batches = loader, loader.micro_batches
        self.longest = np.argsort(-loader.lengths, kind="stable")[: loader.batch_rows]

    def micro_batch(self, step: int, micro: int) -> tuple[Batch, Int64s]:
        """As the loader's, from step 1 on."""
        if step:
            return self.loader.micro_batch(step, micro)
        size = len(self.longest)
        own = self.longest[micro * size // self.micro_batches : (micro + 1) * size // self.micro_batches]
        return self.loader.collate([self.loader.rows.row(int(i), 0) for i in own]), own


def matrix_sizes(network: nn.Module) -> tuple[int, int]:
    """Weights that each token is multiplied with, and how many of these are trained."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    # A frozen matrix that is kept in few bits is not a weight.
    trained = [m for m in layers if m.weight is not None and m.weight.requires_grad]
    recurrent = [p for m in network.modules() if getattr(m, "unrolls", False) for p in m.parameters() if p.ndim == 2]
    return (
        sum(m.in_features * m.out_features for m in layers) + sum(p.numel() for p in recurrent),
        sum(m.in_features * m.out_features for m in trained) + sum(p.numel() for p in recurrent if p.requires_grad),
    )
