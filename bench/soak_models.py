"""The models of the load test: small ones with random weights, one for each kind of request.

They are real models of the families that training makes, written as it writes them, with tokenizers learnt from the
standard library's documentation. What they say is nonsense; how they are served is not.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from finetune_rows import documentation
from harness import CACHE, say

SIZES: dict[str, dict[str, Any]] = {
    "gpt": {"n_layers": 6, "d_model": 384, "n_heads": 6, "d_ff": 1024, "context": 1024},
    "bert": {"n_layers": 4, "d_model": 256, "n_heads": 4, "d_ff": 1024, "context": 128},
}
"""Large enough that the engine is what is short of time, as with models that people serve."""
VOCABULARY = {"bpe": 1024, "wordpiece": 1024}
TEXTS = 4000
LABELS = ("os", "math", "text", "net")
SETTINGS: dict[str, dict[str, Any]] = {
    "chat": {"name": "chat"},
    "classify": {"name": "text_classification"},
    "tag": {"name": "token_tagging"},
    "answer": {"name": "span_qa"},
    "embed": {"name": "embedding"},
}
"""What each model is trained for."""


def texts() -> list[str]:
    """Pieces of documentation, a paragraph each."""
    found = (each.text.partition("\n\n")[0] for each in documentation() if each.text.isascii())
    return [*islice((text for text in found if 20 < len(text) < 400), TEXTS)]


def models() -> dict[str, Path]:
    """The artefact of each model by its name, made if it is not there."""
    from groundup.artifact import Artifact, Store, digest_data

    store = Store(CACHE / "soak" / "store")
    found = {}
    for name, settings in SETTINGS.items():
        key = digest_data({"soak": name, "settings": settings, "sizes": SIZES, "vocabulary": VOCABULARY})
        if store.find(key) is None:
            say(f"making the model {name!r}")
            with store.draft("model", key, stage="finetune", section={}) as draft:
                draft.choices["task"] = _write(draft.folder, name, settings)
                draft.choices["bos"] = True
                draft.licences["rows"] = "PSF-2.0"
        made = store.find(key)
        assert isinstance(made, Artifact)
        found[name] = made.path
    return found


def example(name: str, text: str, number: int) -> dict[str, Any]:
    """A row that a labelled task may be trained on."""
    words = text.split()
    rows: dict[str, dict[str, Any]] = {
        "classify": {"text": text, "label": LABELS[number % len(LABELS)]},
        "tag": {"tokens": words, "tags": ["B-CODE" if "_" in word or "(" in word else "O" for word in words]},
        "answer": {"text": text, "question": "what is it?", "answers": [{"text": words[0], "start": 0}]},
        "embed": {"text": text, "positive": text.upper()},
    }
    return rows[name]


def _write(folder: Path, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Write a model with random weights as training does, and return the section of its task."""
    from groundup import catalog, config
    from groundup.checkpoints import hugging_face
    from groundup.nn.network import create

    family = "gpt" if name == "chat" else "bert"
    module = catalog.load("models", family)
    tokenizer = _tokenizer("bpe" if family == "gpt" else "wordpiece", chats=name == "chat")
    head, outputs, labels, task = "language", None, [], None
    if name != "chat":
        kind = catalog.load("tasks", settings["name"])
        rows = [example(name, text, number) for number, text in enumerate(texts()[:64])]
        settled = kind.settle(config.named("tasks", settings), rows)
        task = kind.Task(settled, tokenizer, SIZES[family]["context"])
        settings, head, outputs, labels = config.dump(settled), task.head, task.outputs, list(task.labels)
    # Wide beginnings: small random weights would score all tokens nearly alike.
    sizes = SIZES[family] | {"initialiser": "normal", "initialiser_std": 0.3, "vocab_size": tokenizer.vocab_size}
    network = create(module, module.Config(**module.TINY | sizes), head, outputs=outputs, seed=1)
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_id") for role in ("bos", "eos", "pad")}
    given = {role: number for role, number in ids.items() if number is not None}
    hugging_face.save(folder, network, generation=given, labels=labels)
    tokenizer.save(folder, model_max_length=SIZES[family]["context"])
    if hasattr(task, "save"):
        task.save(folder, network)
    return settings


def _tokenizer(kind: str, *, chats: bool) -> Any:
    from groundup.text.pipelines import SPECIALS
    from groundup.text.templates import DEFAULT_TEMPLATE, DEFAULT_TOKENS
    from groundup.text.tokenizers import Specials, Tokenizer
    from groundup.text.vocabulary import Wish, learn

    engine, _ = learn(Wish(kind, VOCABULARY[kind]), lambda: iter(texts()))
    plain = Tokenizer(engine, Specials(**SPECIALS[kind]))
    return plain.with_chat(DEFAULT_TEMPLATE, DEFAULT_TOKENS) if chats else plain
