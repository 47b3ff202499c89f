"""The catalog as people read it: what a recipe can name, and what to choose for a task, data and memory."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from groundup import catalog, config
from groundup.errors import UserError, nearest
from groundup.units import parse_bytes, parse_count, show_bytes, show_count

TOKENS_PER_PARAMETER = 20
"""Compute-optimal training tokens per parameter (Hoffmann et al. 2022, table 3)."""
USEFUL_EPOCHS = 4
"""Repeating data is nearly as good as new data for up to four epochs (Muennighoff et al. 2023, §6)."""
TOKENS_PER_ROW = 300
"""An assumption where only rows are known: a paragraph or two."""
TRAINING_BYTES_PER_PARAMETER = 16
"""fp32 weights, gradients and AdamW's two moments."""
SIZES = {
    "tiny": {"n_layers": 4, "d_model": 128, "n_heads": 4, "context": 128},
    "small": {"n_layers": 6, "d_model": 256, "n_heads": 4, "context": 256},
    "medium": {"n_layers": 8, "d_model": 512, "n_heads": 8, "context": 512},
    "base": {"n_layers": 12, "d_model": 768, "n_heads": 12, "context": 1024},
    "large": {"n_layers": 24, "d_model": 1024, "n_heads": 16, "context": 2048},
}
VOCABULARY = {"tiny": 1024, "small": 4096, "medium": 8192, "base": 32_000, "large": 32_000}
MODELS = {"language_modeling": "gpt", "masked_language_modeling": "bert"}
"""The model to begin with for a task; tasks that later files add name theirs as `MODEL`."""


def listing(
    folder: str | None = None, *, task: str | None = None, rows: str | None = None, memory: str | None = None
) -> dict[str, Any]:
    """Names and summaries by folder; with a task, rows or memory, a recommendation too.

    Raises UserError for an unknown folder or task, or a figure that is none.
    """
    if folder is not None and folder not in catalog.FOLDERS:
        raise UserError(f"there is no folder {folder!r}", fix=nearest(folder, catalog.FOLDERS))
    folders = [folder] if folder else [f for f in catalog.FOLDERS if catalog.names(f)]
    found: dict[str, Any] = {f: {n: catalog.summary(f, n) for n in catalog.names(f)} for f in folders}
    if task or rows or memory:
        found["recommendation"] = recommend(task or "language_modeling", rows, memory)
    return found


def recommend(task: str, rows: str | None, memory: str | None) -> dict[str, Any]:
    """A model section that the data can feed and the memory can hold, and the reasons.

    The largest of five sizes whose compute-optimal tokens are within four epochs of the data and
    whose training state takes at most half the memory.
    """
    catalog.load("tasks", task)
    name = MODELS.get(task) or getattr(catalog.load("tasks", task), "MODEL", None)
    if name is None:
        raise UserError(f"no recommendation for {task!r} yet", fix=f"tasks with one: {', '.join(MODELS)}")
    tokens = _parsed(parse_count, rows, "--rows") * TOKENS_PER_ROW if rows else None
    limit = _parsed(parse_bytes, memory, "--memory") if memory else None
    module, chosen, reasons = catalog.load("models", name), "tiny", []
    for size, sections in SIZES.items():
        parameters = module.parameters(
            config.named("models", {"name": name, "vocab_size": VOCABULARY[size], **sections})
        )
        wanted = parameters * TOKENS_PER_PARAMETER / USEFUL_EPOCHS
        needed = 2 * parameters * TRAINING_BYTES_PER_PARAMETER
        if (tokens is not None and wanted > tokens) or (limit is not None and needed > limit):
            why = "needs about " + (
                f"{show_count(wanted)} tokens of data" if tokens is not None and wanted > tokens else show_bytes(needed)
            )
            reasons.append(f"{size} ({show_count(parameters)} parameters) {why}")
            break
        chosen = size
    return {
        "task": task,
        "model": {"name": name, **SIZES[chosen]},
        "vocab_size": VOCABULARY[chosen],
        "size": chosen,
        "because": reasons or ["nothing given rules out more; begin small and measure with `groundup plan --budget`"],
    }


def _parsed(parse: Any, text: str, flag: str) -> int:
    try:
        return int(parse(text))
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def print_listing(console: Console, found: dict[str, Any]) -> None:
    """The listing as tables, the recommendation as a piece of recipe."""
    advice = found.pop("recommendation", None)
    if advice is not None:
        keys = ", ".join(f"{key}: {value}" for key, value in advice["model"].items())
        console.print(f"for {advice['task']}, begin with {advice['size']}:\n  model: {{{keys}}}", markup=False)
        console.print(f"  a tokenizer of about {advice['vocab_size']} entries", markup=False)
        for reason in advice["because"]:
            console.print(f"  because {reason}", markup=False)
        return
    for folder, names in found.items():
        table = Table(
            box=None, pad_edge=False, title=folder, title_justify="left", title_style="bold", show_header=False
        )
        for name, summary in names.items():
            table.add_row(f"[cyan]{escape(name)}[/]", escape(summary))
        console.print(table)
