"""The model card of a trained model, written from facts alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from groundup.units import show_count

USES = {
    "language": ("text-generation", "AutoModelForCausalLM"),
    "masked_language": ("fill-mask", "AutoModelForMaskedLM"),
    "pretraining": ("fill-mask", "AutoModelForPreTraining"),
    "sequence": ("text-classification", "AutoModelForSequenceClassification"),
    "tokens": ("token-classification", "AutoModelForTokenClassification"),
    "span": ("question-answering", "AutoModelForQuestionAnswering"),
    "embedding": ("sentence-similarity", "AutoModel"),
    "translation": ("translation", "AutoModelForSeq2SeqLM"),
}
"""Kind of head to the published pipeline tag and the class that opens it."""


LIMITS = (
    "What the model it was tuned from cannot do, or does wrongly, is not told\n"
    "here: look at that model's own card. No safety training was added."
)
NOTHING_MORE = "It has seen no instructions and no safety training; it continues text."


def write(
    *,
    name: str,
    section: Mapping[str, Any],
    figures: Mapping[str, Any],
    licences: Mapping[str, str],
    parents: Mapping[str, str],
    head: str,
    is_pretrained: bool = False,
    unit: str = "tokens",
) -> str:
    """The text of README.md: the same for the same training, whenever and however long it ran.

    `is_pretrained` says that training began from the weights of another model, whose digest is among `parents`;
    `unit` what the figure `tokens` counts.
    """
    tag, opener = USES.get(head, ("other", "AutoModel"))
    model, task = section["model"], section["task"]
    # Names of stages are the recipe's own business; what they made is named by its digest above.
    kept = {key: value for key, value in section.items() if key not in parents}
    return "\n".join(
        [
            "---",
            f"library_name: transformers\npipeline_tag: {tag}\ntags: [groundup, {model['name']}, {task['name']}]",
            "---",
            f"# {name}",
            "",
            f"A `{model['name']}` of {show_count(figures['parameters'])} parameters, "
            f"{'tuned from the weights of another model' if is_pretrained else 'trained from random weights'} by",
            f"groundup with the task `{task['name']}` on {show_count(figures['tokens'])} {unit} "
            f"({figures['epochs']:.2f} passes over its data, {figures['steps']} updates).",
            "",
            "## Data and licences",
            "",
            *_bullets({f"{key} (digest)": value[:16] for key, value in parents.items()}),
            *(_bullets(licences) or ["- No licence was stated for the data. Find out before you share the model."]),
            "",
            "## Figures",
            "",
            "| figure | value |",
            "| --- | --- |",
            *(f"| {key} | {_shown(value)} |" for key, value in figures.items()),
            "",
            "Losses are in nats: `loss` is the mean of the last training steps, `validation_loss` is over",
            f"held-out rows. {LIMITS if is_pretrained else NOTHING_MORE}",
            "",
            "## Use",
            "",
            "```python",
            f"from transformers import AutoTokenizer, {opener}",
            "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            f'model = {opener}.from_pretrained("THIS_FOLDER")',
            "```",
            "",
            "## Recipe",
            "",
            "```json",
            json.dumps(kept, indent=1, ensure_ascii=False, sort_keys=True),
            "```",
            "",
        ]
    )


def _bullets(pairs: Mapping[str, str]) -> list[str]:
    return [f"- {key}: {value}" for key, value in pairs.items()]


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
