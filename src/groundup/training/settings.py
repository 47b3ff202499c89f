"""The part of a recipe section that every stage which trains has in common.

`pretrain`, `train` and `finetune` add where their weights and rows come from.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, SerializeAsAny, WithJsonSchema, model_validator

from groundup.config import FromFolder, Named, Section, StageSection
from groundup.nn.products import Matmul
from groundup.text.augment import Augment
from groundup.training.arithmetic import Precision
from groundup.training.freezing import Layers
from groundup.training.log import SinkName
from groundup.training.optimizers import AdamW, Amount, AnyOptimizer, Fraction
from groundup.training.regularisers import AnyRegulariser
from groundup.training.schedules import AnySchedule, Cosine, Linear, as_steps
from groundup.units import SECONDS, PositiveCount, StepsOrShare, parse_count, parse_duration


def interval(value: str | int) -> tuple[int | None, float | None]:
    """An interval as (steps, None) or (None, seconds): a count is steps, a duration seconds.

    Raises ValueError for anything else, and for zero.
    """
    is_duration = isinstance(value, str) and value.strip().lstrip("0123456789.eE_ ") in SECONDS
    steps = None if is_duration else parse_count(value)
    seconds = parse_duration(value) if is_duration else None
    if not (steps or seconds):
        raise ValueError(f"{value!r} is no interval; write steps such as 500, or a duration such as 10min")
    return steps, seconds


def _checked(value: str | int) -> str | int:
    interval(value)
    return value


Interval = Annotated[
    str | int, AfterValidator(_checked), WithJsonSchema({"type": ["integer", "string"], "examples": ["10min", 500]})
]
"""Steps (`500`, `2k`) or a duration (`10min`)."""


class EarlyStopping(Section):
    """Stop when the validation loss no longer falls; the best weights are what is kept."""

    patience: PositiveCount = 5
    """Evaluations without a new best before training stops."""
    min_delta: Amount = 0.0
    """By how much the loss must fall to count as a new best."""


class TrainingSection(StageSection):
    """How weights are trained, whatever they are."""

    WITHOUT_EFFECT: ClassVar[frozenset[str]] = frozenset({"save_every", "keep_states"})

    optimizer: AnyOptimizer = AdamW()
    """The optimizer by name, with its own settings: sgd, momentum, adagrad, rmsprop, adam, adamw, muon."""
    schedule: AnySchedule = Cosine()
    """The learning-rate schedule by name: constant, linear, cosine, inverse_square_root, warmup_stable_decay."""
    micro_batch_rows: PositiveCount | Literal["auto"] = "auto"
    """Rows computed at once; a batch of more is accumulated, which changes nothing but memory and speed."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """The largest norm of all gradients together; longer ones are shortened. null: no limit."""
    l1: Amount = 0.0
    """Weight of the sum of absolute values of decayed weights, added to the loss (not reported in it)."""
    ema: Fraction | None = None
    """Decay of an exponential moving average of the weights, e.g. 0.999; if set, the average is the result."""
    early_stopping: EarlyStopping | None = None
    """When to stop before the end, by validation loss. Not unless it is given."""
    activation_checkpointing: bool = False
    """Compute layers again in the backward pass instead of keeping them: less memory, a quarter slower."""
    evaluate_every: StepsOrShare = 0.1
    """Steps, or share of all steps, between validations; the end is always validated."""
    validation_rows: PositiveCount | Literal["auto"] = "auto"
    """The most rows of the validation split that are looked at each time, evenly spread; auto: as many as
    keep validation to about a tenth of the time."""
    save_every: Interval = "10min"
    """Steps or time between saved states; one is also saved when the run is interrupted."""
    keep_states: Annotated[int, Field(ge=2)] = 2
    """How many states are kept, the newest ones (and the best, with early stopping)."""
    spike_deviations: Annotated[float, Field(gt=0)] | None = 12.0
    """A loss this many robust deviations above the recent median counts as a spike: the run goes back to the
    last good state and skips the rows. null: only a loss that is not finite does."""
    precision: Precision | Literal["auto"] = "auto"
    """fp32, or bf16 with fp32 master weights; auto measures which is faster here."""
    matmul: Matmul | Literal["auto"] = "auto"
    """Which library multiplies fp32 matrices on a CPU: torch (whatever torch takes by itself) or onednn; auto
    measures which is faster here."""
    compile: bool | Literal["auto"] = "auto"
    """Whether torch.compile is used; auto does when the run is long enough to repay compiling."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the fastest there is."""
    threads: PositiveCount | Literal["auto"] = "auto"
    """CPU threads of torch; auto takes as many as a step keeps busy, at most what the system offers
    (OMP_NUM_THREADS counts)."""
    deterministic: bool = True
    """Use only kernels that give the same bytes each time. On CUDA, false may be faster."""
    sinks: list[SinkName] = Field(default_factory=list)
    """Other tools that receive the figures as they come: tensorboard, mlflow."""


class ModelTrainingSection(TrainingSection):
    """What is trained, on how much, and how."""

    task: Annotated[SerializeAsAny[Named], FromFolder("tasks")]
    """What is learned, by the name of a task."""
    model: Annotated[SerializeAsAny[Named], FromFolder("models")]
    """The model and its sizes; its vocabulary follows from the tokenizer."""
    batch_tokens: PositiveCount = 8192
    """Tokens of one optimizer step, rounded down to whole rows."""
    tokens: PositiveCount | None = None
    """Tokens to train on; epochs follow from it. Either this or `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; 1 if neither `tokens` nor `epochs` is given."""

    @model_validator(mode="after")
    def _one_extent(self) -> Self:
        if self.tokens is not None and self.epochs is not None:
            raise ValueError("give either `tokens` or `epochs`: each follows from the other")
        return self

    @property
    def context(self) -> int:
        """Tokens of a row: the model's context."""
        return int(self.model.context)  # type: ignore[attr-defined]


USUAL_RATE = 2e-5
"""The rate at which all weights of a pretrained model are tuned (Devlin et al. 2019, appendix A.3)."""
ADAPTER_RATE = 2e-4
"""The rate for a small change beside frozen weights (Hu et al. 2021, appendix D; Dettmers et al. 2023, table 9)."""
LONGEST = 512
"""Tokens of an example beyond which it is cut unless `max_length` says otherwise."""


class LabelledTrainingSection(TrainingSection):
    """What is trained on labelled rows: `finetune` from pretrained weights, `train` from random ones."""

    task: Annotated[SerializeAsAny[Named], FromFolder("tasks")]
    """What is learned, by the name of a task."""
    optimizer: AnyOptimizer = AdamW(lr=USUAL_RATE, weight_decay=0.01, betas=(0.9, 0.999))
    """The optimizer by name, with its own settings; its rate is one or two orders below pretraining's."""
    schedule: AnySchedule = Linear(warmup=0.06)
    """The learning-rate schedule by name."""
    batch_rows: PositiveCount = 32
    """Examples of one optimizer step."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; 3 if neither `epochs` nor `steps` is given."""
    steps: PositiveCount | None = None
    """Optimizer steps, instead of `epochs`."""
    max_length: PositiveCount | None = None
    """The longest example in tokens, special ones included; the model's context, but at most 512, unless given."""
    more_share: Annotated[float, Field(gt=0, lt=1)] | None = None
    """With `more`: the share of the rows of an epoch that are taken from it; all of its rows unless given."""
    seeds: Annotated[list[int], Field(min_length=1)] | None = None
    """Train once with each of these seeds instead of the recipe's one. What reads this stage gets the first;
    `evaluate` measures all and reports mean and spread."""
    packing: bool | Literal["auto"] = "auto"
    """Whether the examples of a batch lie end to end without padding, each seeing only itself. If not, they are
    padded. Either way the loss is the same. auto: wherever the model can."""
    adapter: Annotated[SerializeAsAny[Named], FromFolder("adapters")] | None = None
    """A small change trained beside frozen weights, by name: lora, dora. All weights are trained unless given."""
    layers: Layers = Layers()
    """How layers differ in what they learn: frozen ones, rates that fall with depth, gradual unfreezing."""
    augment: Augment | None = None
    """Changes to training texts, drawn anew in every epoch: synonyms, deletion, swaps. For text_classification."""
    regulariser: AnyRegulariser | None = None
    """What is added to the loss against overfitting, by name: r_drop, fgm, pgd."""

    @model_validator(mode="before")
    @classmethod
    def _gentle_rate(cls, values: Any) -> Any:
        """An optimizer that is named without a rate gets one for tuning, not the one for pretraining."""
        optimizer = values.get("optimizer") if isinstance(values, dict) else None
        rate = ADAPTER_RATE if isinstance(values, dict) and values.get("adapter") else cls.usual_rate()
        if optimizer is None and isinstance(values, dict):
            default = cls.model_fields["optimizer"].default
            return values | {"optimizer": default.model_copy(update={"lr": rate})}
        if isinstance(optimizer, Section) and "lr" not in optimizer.model_fields_set:
            return values | {"optimizer": optimizer.model_copy(update={"lr": rate})}
        return values

    @classmethod
    def usual_rate(cls) -> float:
        """The learning rate unless the recipe gives one and trains all weights."""
        return USUAL_RATE

    @model_validator(mode="after")
    def _one_extent(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give either `epochs` or `steps`: each follows from the other")
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise ValueError("two of `seeds` are the same: the same training twice tells nothing")
        return self


def rounded_batch(batch_tokens: int, row_tokens: int) -> int:
    """The rows of a batch of about `batch_tokens`: rounded down, at least one."""
    return max(1, batch_tokens // row_tokens)


def validation_rows(settings: TrainingSection, steps: int, batch_rows: int) -> int:
    """The most held-out rows of one validation, settled.

    A row costs a third of what it costs in training (no backward pass), so 0.3 of the rows trained on
    between two validations is a tenth of the time.
    """
    if settings.validation_rows != "auto":
        return settings.validation_rows
    every = max(1, as_steps(settings.evaluate_every, steps))
    return min(2048, max(32, int(0.3 * every * batch_rows)))
