"""From a recipe section and encoded documents to everything the training loop needs.

`run` uses it with the shards of a corpus, the forecast with a sample of documents held in memory; so
what is measured is what is run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from groundup import catalog
from groundup.data.loader import Batch, Collate, Loader
from groundup.data.packing import Columns, Rows
from groundup.nn import batch_norm
from groundup.nn.network import Network, create
from groundup.training import choices as choosing
from groundup.training.choices import Choices, Extent
from groundup.training.loop import Job
from groundup.training.objective import Objective
from groundup.training.settings import ModelTrainingSection, rounded_batch, validation_rows

PREVIEW_TOKENS = 12
"""How much of a row is shown to name it."""


@dataclass(frozen=True)
class Material:
    """What is learned from: a tokenizer, encoded documents, and a vocabulary size (the tokenizer's or larger)."""

    tokenizer: Any
    train: Columns
    held_out: Columns | None = None
    vocab_size: int | None = None
    name_of: Callable[[int], str] | None = None
    """Where a training document is from, by its place in the split."""
    example_of: Callable[[int], Mapping[str, Any]] | None = None
    """A whole training example, by its place in the split."""
    more: Columns | None = None
    """Further rows that are mixed in: see `data/mixing.py`."""


def make_task(config: ModelTrainingSection, tokenizer: Any, *, label_smoothing: bool = True) -> Any:
    """The task of a section, with a tokenizer and at the context of the section's model."""
    section = config.task
    if not label_smoothing and hasattr(section, "label_smoothing"):
        section = section.model_copy(update={"label_smoothing": 0.0})
    return catalog.load("tasks", section.name).Task(section, tokenizer, config.context)


def model_section(config: ModelTrainingSection, vocab_size: int) -> Any:
    """The model's section with the vocabulary size filled in, if the recipe leaves it open."""
    given = getattr(config.model, "vocab_size", None)
    return config.model.model_copy(update={"vocab_size": given or vocab_size})


class Assembly:
    """A section and material put together, each part made when it is first asked for."""

    def __init__(
        self, config: ModelTrainingSection, material: Material, choices: Choices, planned_steps: int | None = None
    ) -> None:
        """`planned_steps` replaces the number that follows from the rows, where these are only a sample."""
        self.config, self.material, self.choices = config, material, choices
        self.planned_steps = planned_steps
        self.task = make_task(config, material.tokenizer)
        self.collate: Collate = self.task.collate
        self.model = catalog.load("models", config.model.name)
        self.section = model_section(config, material.vocab_size or material.tokenizer.vocab_size)
        self.row_tokens = config.context
        self.batch_rows = rounded_batch(config.batch_tokens, self.row_tokens)

    @cached_property
    def rows(self) -> Rows:
        """Training rows. Raises DataError if they train nothing."""
        rows: Rows = self.task.rows(self.material.train, self.config.seed)
        rows.ledger().require_labels("data")
        return rows

    @cached_property
    def network(self) -> Network:
        """The network with fresh weights, on the device."""
        network = create(self.model, self.section, self.task.head, seed=self.config.seed, device=self.choices.device)
        network.backbone.checkpoint_activations = self.config.activation_checkpointing
        return network

    @property
    def flops_per_step(self) -> float:
        """Forward and backward (twice the forward: Kaplan et al. 2020, section 2.1)."""
        return 3 * float(self.model.flops_per_token(self.section, self.row_tokens)) * self.batch_tokens

    @property
    def threads(self) -> int:
        """Threads of torch that the run will use."""
        return choosing.busy_threads(self.choices, self.config, self.flops_per_step, self.network)[0]

    @property
    def unit(self) -> str:
        """What `batch_tokens` counts."""
        return "tokens"

    @property
    def batch_tokens(self) -> int:
        """Tokens of a step, after rounding down to whole rows."""
        return self.batch_rows * self.row_tokens

    @cached_property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.planned_steps or steps(self.config, self.batch_rows, len(self.rows))

    @cached_property
    def objective(self) -> Objective:
        """The task's losses; held-out rows without label smoothing, because a smoothed loss compares with nothing."""
        plain = make_task(self.config, self.material.tokenizer, label_smoothing=False)
        return Objective(loss=self.task.loss, held_out=plain.loss, counts=self.task.counts)

    @property
    def longest(self) -> int:
        """The longest row, by index: here all are alike."""
        return 0

    def settle(self) -> Choices:
        """Make the automatic choices that need the network, by measuring, and keep them."""
        extent = Extent(self.steps, self.batch_rows, self.flops_per_step)
        one_row = self.collate([self.rows.row(self.longest, 0)])
        with batch_norm.frozen(self.network):
            self.choices = choosing.settle(self.choices, self.config, extent, self.network, self.objective, one_row)
        return self.choices

    def loader(self) -> Loader:
        """The batches of the run. A GPU has its next ones made ahead."""
        on_gpu = self.choices.device == "cuda"
        return Loader(
            self.rows,
            self.collate,
            self.config.seed,
            self.batch_rows,
            self.choices.micro_batches,
            workers=2 if on_gpu else 0,
            pin=on_gpu,
        )

    def validation(self) -> Callable[[], Iterator[Batch]] | None:
        """A function giving the held-out batches, or None if nothing is held out."""
        if self.material.held_out is None:
            return None
        size = -(-self.batch_rows // self.choices.micro_batches)
        rows = self.held_out_rows()
        loader = Loader(rows, self.collate, self.config.seed, min(size, len(rows)))
        most = validation_rows(self.config, self.steps, self.batch_rows)
        return lambda: (batch for batch, _ in loader.sweep(most))

    def held_out_rows(self) -> Rows:
        """The validation rows."""
        rows: Rows = self.task.rows(self.material.held_out, self.config.seed, held_out=True)
        return rows

    def job(self) -> Job:
        """All that the loop works on."""
        return Job(
            network=self.network,
            objective=self.objective,
            loader=self.loader(),
            steps=self.steps,
            batch_tokens=self.batch_tokens,
            flops_per_step=self.flops_per_step,
            held_out=self.validation(),
            row_name=self.row_name,
        )

    def row_name(self, index: int) -> str:
        """A row in words: its number and how it begins."""
        ids = self.rows.row(index, 0)["input_ids"][:PREVIEW_TOKENS].tolist()
        return f"row {index} ({self.material.tokenizer.decode(ids)!r}…)"


def steps(config: ModelTrainingSection, batch_rows: int, rows: int) -> int:
    """The updates that a section's tokens or epochs come to, at least one."""
    batch_tokens = batch_rows * config.context
    if config.tokens is not None:
        return max(1, round(config.tokens / batch_tokens))
    return max(1, -(-round((config.epochs or 1) * rows) // batch_rows))
