"""What pretraining will take and yield, before it runs.

With artefacts at hand the ledger and the sample are of the real rows; before that, of the documents
that plan has read of each source. Either way the same network, optimizer and rows are measured as
would be trained.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from groundup import catalog, units
from groundup.config import Mistake, Named
from groundup.data.corpus import Corpus
from groundup.errors import DataError, GroundupError
from groundup.forecast import Forecast, Known
from groundup.nn.network import Network
from groundup.stages._pretraining import Assembly, Documents, Material, make_task, steps
from groundup.text import vocabulary
from groundup.text.tokenizers import Tokenizer
from groundup.training import choices as choosing
from groundup.training import device as machine
from groundup.training import log as logs
from groundup.training.measure import Measured, Planned, measure
from groundup.training.schedules import as_steps
from groundup.training.settings import interval, rounded_batch, validation_rows

if TYPE_CHECKING:
    from groundup.stages.pretrain import Config

LEDGER_BYTES = 4 << 20
"""Text that is encoded for the ledger; a larger split is counted from this much of it."""
BYTES_PER_TOKEN = 3.5
"""Where nothing is known of the tokenizer yet; between English and Chinese text."""
SAMPLE_VOCABULARY = 1024
"""The vocabulary of a tokenizer that only stands in for one still to be trained."""
MANY_EPOCHS = 40
"""Muennighoff et al. 2023, figure 5: from here on repeated data adds next to nothing."""
FEW_PER_ENTRY = 50
"""Tokens of data for each entry of the vocabulary below which rare ones stay unlearnt."""
RATES = {"sgd": (1e-4, 5.0), "momentum": (1e-5, 2.0), "adagrad": (1e-4, 0.5), "muon": (1e-5, 0.1)}
USUAL_RATES = (1e-6, 2e-2)


def check(config: Config, inputs: Mapping[str, Known]) -> list[Mistake]:
    """Everything that can be told to be wrong without training."""
    found = list(_check_sizes(config, inputs))
    try:
        machine.pick(config.device)
    except GroundupError as error:
        found.append(Mistake(("device",), error.what, error.fix))
    try:
        logs.require(config.sinks)
    except GroundupError as error:
        found.append(Mistake(("sinks",), error.what, error.fix))
    return found


def _check_sizes(config: Config, inputs: Mapping[str, Known]) -> Iterator[Mistake]:
    context, rows = config.context, rounded_batch(config.batch_tokens, config.context)
    if config.batch_tokens < context:
        what = f"batch_tokens {config.batch_tokens} is less than one row of {context} tokens"
        yield Mistake(("batch_tokens",), what, f"set it to {context} or more, or make the model's context shorter")
    elif config.micro_batch_rows != "auto" and config.micro_batch_rows > rows:
        what = f"micro_batch_rows {config.micro_batch_rows} is more than the {rows} rows of a batch"
        yield Mistake(("micro_batch_rows",), what, f"set it to {rows} or less, or batch_tokens higher")
    vocab_size = inputs["tokenizer"].facts.get("vocab_size")
    given = getattr(config.model, "vocab_size", None)
    if given and vocab_size and given < vocab_size:
        what = f"vocab_size {given} is smaller than the tokenizer's {vocab_size}"
        yield Mistake(("model", "vocab_size"), what, "leave it out: it follows from the tokenizer")
    splits = inputs["data"].facts.get("documents", {})
    if config.early_stopping and splits and not splits.get("validation"):
        what = "early stopping needs a validation split, and the corpus has none"
        yield Mistake(("early_stopping",), what, "add `split: {validation: 5%}` to the prepare stage")
    task = catalog.load("tasks", config.task.name)
    if hasattr(task, "check"):
        yield from task.check(config.task, context=context, facts=_counts(config, inputs))


def _counts(config: Config, inputs: Mapping[str, Known]) -> dict[str, Any]:
    """Tokens and documents of the split trained on, as far as they are known; estimated from bytes."""
    corpus, part = inputs["data"].facts, inputs["data"].part or "train"
    per_token = inputs["tokenizer"].facts.get("bytes_per_token") or BYTES_PER_TOKEN
    found: dict[str, Any] = {}
    if part in corpus.get("documents", {}):
        found["documents"] = corpus["documents"][part]
    if part in corpus.get("bytes", {}):
        found["tokens"] = int(corpus["bytes"][part] / per_token) + found.get("documents", 0)
    if corpus.get("longest_document_bytes"):
        found["longest_document_tokens"] = int(corpus["longest_document_bytes"] / per_token)
    return found


def forecast(config: Config, inputs: Mapping[str, Known], effort: str) -> Forecast:
    """The forecast of a run; `effort` "measured" takes a few real steps in a process of their own.

    Raises UserError for what cannot be built: a model without the task's head, data without labels.
    """
    counts = _counts(config, inputs)
    with _sample(config, inputs) as (material, folder, texts, is_whole):
        choices = choosing.begin(config)
        assembly = Assembly(config, material, choices)
        tokens = _tokens_of(material) if is_whole else counts.get("tokens", _tokens_of(material))
        total = steps(config, assembly.batch_rows, max(1, tokens // config.context))
        found = Forecast(estimated=any(known.estimated for known in inputs.values()))
        _describe(found, assembly, total, tokens)
        part = "" if is_whole else " (of a sample)"
        found.tables[f"labels{part}"] = assembly.rows.ledger().table()
        found.sample = assembly.task.render(assembly.rows.row(0, 0))
        found.warnings = list(_warnings(config, assembly, total, tokens))
        if effort == "measured":
            vocab_size = material.vocab_size or material.tokenizer.vocab_size
            little = _cut(texts, 2 * assembly.batch_tokens + 2 * config.context, material.tokenizer)
            measured = measure(planned, config, little, folder, vocab_size, total)
            _add_measured(found, config, assembly, measured, total, inputs)
    return found


def planned(config: Config, texts: list[str], tokenizer_folder: str, vocab_size: int, total: int) -> Planned:
    """The run as it would begin, on a few documents; called in a process of its own."""
    tokenizer = Tokenizer.load(tokenizer_folder)
    documents = Documents(texts, make_task(config, tokenizer).encode)
    material = Material(tokenizer, documents, documents, vocab_size)
    assembly = Assembly(config, material, choosing.begin(config), planned_steps=total)
    choices = assembly.settle()
    return Planned(assembly.job(), config, choices)


def seconds_per_token(config: Config, model: Named) -> float:
    """Measured wall seconds per token of training `model`; rows are this package's own sources."""
    sized = config.model_copy(update={"model": model, "micro_batch_rows": "auto"})
    texts = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.parent.rglob("*.py"))[:60]]
    with tempfile.TemporaryDirectory() as folder:
        _stand_in("bpe" if config.task.name == "language_modeling" else "wordpiece", texts, Path(folder))
        tokenizer = Tokenizer.load(folder)
        vocab_size = max(getattr(model, "vocab_size", None) or 0, tokenizer.vocab_size)
        tokens = max(2, rounded_batch(sized.batch_tokens, sized.context)) * sized.context
        little = _cut(texts, 2 * tokens + sized.context, tokenizer)
        found = measure(planned, sized, little, folder, vocab_size, 1)
    return 1 / found.tokens_s


@contextmanager
def _sample(config: Config, inputs: Mapping[str, Known]) -> Iterator[tuple[Material, str, list[str], bool]]:
    """Material to look at, the tokenizer's folder, the texts, and whether they are all there are."""
    data, cutter = inputs["data"], inputs["tokenizer"]
    texts, is_whole = _texts(data)
    if not texts:
        raise DataError("there is no text to look at", where="data", fix="look at the prepare stage and its sources")
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(cutter.artifact.path) if cutter.artifact else scratch
        if cutter.artifact is None:
            wanted = min(SAMPLE_VOCABULARY, cutter.facts.get("vocab_size") or SAMPLE_VOCABULARY)
            _stand_in(str(getattr(cutter.config, "kind", "bpe")), texts, Path(scratch), wanted)
        tokenizer = Tokenizer.load(folder)
        texts = _enough(texts, config.context, tokenizer)
        documents = Documents(texts, make_task(config, tokenizer).encode)
        vocab_size = max(cutter.facts.get("vocab_size") or 0, tokenizer.vocab_size)
        yield Material(tokenizer, documents, None, vocab_size), folder, texts, is_whole


def _texts(data: Known) -> tuple[list[str], bool]:
    """Documents of the split, up to LEDGER_BYTES, and whether these are all."""
    part = data.part or "train"
    if data.artifact is None:
        return [str(text) for text in data.facts.get("sample", [])], False
    corpus = Corpus(data.artifact)
    found, size = [], 0
    for document in corpus.documents(part):
        found.append(str(document["text"]))
        size += len(found[-1].encode())
        if size > LEDGER_BYTES:
            break
    return found, len(found) == corpus.rows(part)


def _stand_in(kind: str, texts: list[str], folder: Path, size: int = SAMPLE_VOCABULARY) -> None:
    """Train a small tokenizer of a kind, as long as the real one is still to be made."""
    while True:
        try:
            engine, _ = vocabulary.learn(vocabulary.Wish(kind, size, min_frequency=1), lambda: texts)
            break
        except DataError:
            if size <= vocabulary.smallest(kind):
                raise
            size = max(vocabulary.smallest(kind), size // 2)
    engine.save(str(folder / "tokenizer.json"))


def _enough(texts: list[str], context: int, tokenizer: Tokenizer) -> list[str]:
    """The texts, repeated until they fill a few rows: a small sample stands for more of its kind."""
    tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts[:200]))
    return texts * max(1, -(-4 * context // max(1, tokens)))


def _cut(texts: list[str], tokens: int, tokenizer: Tokenizer) -> list[str]:
    """As many of the texts as hold so many tokens, over and over if they are short."""
    found: list[str] = []
    for text in itertools.cycle(texts):
        found.append(text[: 8 * tokens])
        tokens -= max(1, len(tokenizer.encode(found[-1])))
        if tokens <= 0 and len(found) > 1:
            return found
    return found


def _tokens_of(material: Material) -> int:
    return int(material.train.column("input_ids")[1][-1])


def _describe(found: Forecast, assembly: Assembly, total: int, data_tokens: int) -> None:
    """Facts for later stages, and the lines of the plan that need no measuring."""
    config, section = assembly.config, assembly.section
    with torch.device("meta"):
        network = Network(assembly.model, section, assembly.task.head)
    parameters = sum(p.numel() for p in network.parameters())
    tokens = total * assembly.batch_tokens
    found.facts = {
        "parameters": parameters,
        "context": config.context,
        "vocab_size": section.vocab_size,
        "tokens": tokens,
        "data_tokens": data_tokens,
    }
    rounded = "" if config.batch_tokens == assembly.batch_tokens else f", rounded down from {config.batch_tokens}"
    flops = total * assembly.flops_per_step
    found.lines = [
        ("parameters", f"{units.show_count(parameters)} (vocabulary {section.vocab_size})"),
        ("tokens", f"{units.show_count(tokens)}, {tokens / max(1, data_tokens):.2f} epochs"),
        ("steps", f"{total} of {assembly.batch_rows} rows x {config.context} tokens{rounded}"),
        ("FLOPs", f"{flops:.3g} (forward and backward)"),
        ("device", f"{assembly.choices.device_words}, {assembly.choices.threads} threads"),
        ("determinism", machine.level(assembly.choices.deterministic, assembly.choices.device)),
    ]
    # Weights in the artefact, and states of weights and two moments: two kept, one being written.
    state = 4 * parameters * (3 + bool(config.ema))
    found.disk_bytes = 4 * parameters + (config.keep_states + 1) * state


def _warnings(config: Config, assembly: Assembly, total: int, data_tokens: int) -> Iterator[str]:
    epochs = total * assembly.batch_tokens / max(1, data_tokens)
    if epochs > MANY_EPOCHS:
        yield f"{epochs:.0f} passes over the data: after about {MANY_EPOCHS} more of them teach next to nothing"
    low, high = RATES.get(str(getattr(config.optimizer, "name", "")), USUAL_RATES)
    if not low <= config.optimizer.lr <= high:
        yield f"optimizer.lr {config.optimizer.lr:g} is outside the usual {low:g} to {high:g}"
    warmup = as_steps(config.schedule.warmup, total)
    if warmup >= total > 1:
        yield f"the warmup of {warmup} steps covers the whole run of {total}: the rate never falls"
    if data_tokens < FEW_PER_ENTRY * int(assembly.section.vocab_size or 0):
        size = assembly.section.vocab_size
        yield f"a vocabulary of {size} is large for {units.show_count(data_tokens)} tokens of data"


def _add_measured(
    found: Forecast, config: Config, assembly: Assembly, measured: Measured, total: int, inputs: Mapping[str, Known]
) -> None:
    """Time, memory and the automatic choices, from a few real steps."""
    choices = measured.choices
    evaluations, batches = _validations(config, assembly, total, choices["micro_batches"], inputs)
    run_s = total * measured.wall_s_per_step
    every_steps, every_s = interval(config.save_every)
    saves = 2 + (total // every_steps if every_steps else int(run_s / (every_s or run_s + 1)))
    fixed = measured.startup_s + measured.compile_s + saves * measured.save_s
    found.seconds = fixed + run_s + evaluations * batches * measured.eval_s
    fixed_cpu = measured.startup_cpu_s + measured.compile_s + saves * measured.save_s
    found.cpu_s = fixed_cpu + total * measured.cpu_s_per_step + evaluations * batches * measured.eval_cpu_s
    found.peak_bytes = measured.peak_bytes
    found.disk_bytes = 4 * int(found.facts["parameters"]) + (config.keep_states + 1) * measured.save_bytes
    reasons = choices["reasons"]
    rows = -(-assembly.batch_rows // choices["micro_batches"])
    found.lines += [
        ("precision", f"{choices['precision']} ({reasons['precision']})"),
        ("compile", f"{'yes' if choices['compile'] else 'no'} ({reasons['compile']})"),
        ("micro-batch", f"{rows} rows, {choices['micro_batches']} a step ({reasons['micro_batches']})"),
        ("speed", f"{units.show_count(measured.tokens_s)} tokens/s measured"),
    ]


def _validations(
    config: Config, assembly: Assembly, total: int, micro_batches: int, inputs: Mapping[str, Known]
) -> tuple[int, int]:
    """How often held-out rows are looked at, and in how many batches."""
    held_out = inputs["data"].facts.get("bytes", {}).get("validation", 0)
    if not held_out:
        return 0, 0
    per_token = inputs["tokenizer"].facts.get("bytes_per_token") or BYTES_PER_TOKEN
    most = validation_rows(config, total, assembly.batch_rows)
    rows = min(most, max(1, int(held_out / per_token / config.context)))
    size = -(-assembly.batch_rows // micro_batches)
    evaluations = -(-total // max(1, as_steps(config.evaluate_every, total)))
    return evaluations, -(-rows // min(size, rows))
