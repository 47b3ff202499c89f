"""The rows of the fine-tuning benchmark: real reviews, a long-tailed mix of real texts, and chats.

The mix and the chats are made of the standard library's own documentation, so they are on every machine:
what its modules, classes and functions say of themselves.
"""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from harness import CACHE, ROOT, BenchError

sys.path.insert(0, str(ROOT / "bench" / "workers"))
from row_file import RowFile

SHORTEST, LONGEST, MEDIAN, SPREAD = 8, 256, 40, 0.75
"""The mix's lengths in tokens: log-normal with this median and this standard deviation of the logarithm, drawn
again outside the bounds."""
PARTS = 16
"""Labels of the mix: the parts of the library with most documentation; all others are one more label."""


class Documented(NamedTuple):
    """Something of the standard library and what it says of itself."""

    part: str
    """The top-level module or package."""
    name: str
    text: str


class Labelled(NamedTuple):
    """Rows with the names of their labels, in the order of the numbers."""

    rows: RowFile
    names: list[str]


def documentation() -> list[Documented]:
    """All documentation strings of the standard library in the order of its files; read once and kept."""
    path = CACHE / f"docstrings-{sys.version_info.major}.{sys.version_info.minor}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_read_documentation()))
    return [Documented(*each) for each in json.loads(path.read_text())]


def _read_documentation() -> list[Documented]:
    root, found = Path(sysconfig.get_path("stdlib")), []
    for file in sorted(root.rglob("*.py")):
        place = file.relative_to(root)
        if {"site-packages", "test", "tests"} & set(place.parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        except (SyntaxError, ValueError):
            continue  # files that show what a syntax error is
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node)
                if text:
                    name = ".".join([*place.with_suffix("").parts, *([node.name] if hasattr(node, "name") else [])])
                    found.append(Documented(place.parts[0].removesuffix(".py"), name, text))
    return found


def mix(weights: Path, seed: int, texts: Sequence[Documented]) -> Labelled:
    """Pieces of documentation of log-normally drawn lengths; the label is the part of the library.

    The texts of a part are read in their order and cut into consecutive pieces, so every piece is real text.
    """
    engine = _tokenizer(weights)
    begin, end = engine.token_to_id("[CLS]"), engine.token_to_id("[SEP]")
    sizes = Counter[str]()
    for each in texts:
        sizes[each.part] += len(each.text)
    names = [part for part, _ in sizes.most_common(PARTS)]
    names += ["other"] if len(sizes) > len(names) else []
    numbers = np.random.default_rng(seed)
    rows, labels = [], []
    for label, part in enumerate(names):
        own = [each.text for each in texts if each.part == part or (part == "other" and each.part not in names)]
        ids = [i for encoding in engine.encode_batch(own, add_special_tokens=False) for i in encoding.ids]
        start = 0
        while start + SHORTEST <= len(ids):
            stop = start + _length(numbers) - 2
            rows.append([begin, *ids[start:stop], end])
            labels.append(label)
            start = stop
    return Labelled(RowFile.of(rows, labels), names)


def _length(numbers: np.random.Generator) -> int:
    while True:
        length = round(float(numbers.lognormal(np.log(MEDIAN), SPREAD)))
        if SHORTEST <= length <= LONGEST:
            return length


def reviews(weights: Path, data: Path, most_tokens: int = 128) -> Labelled:
    """The training rows of SST-2, each a sentence and whether it is good or bad."""
    text = gzip.decompress((data / "sst2" / "train.tsv.gz").read_bytes()).decode("utf-8")
    lines = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
    engine = _tokenizer(weights)
    engine.enable_truncation(most_tokens)
    rows = [encoding.ids for encoding in engine.encode_batch([line["sentence"].strip() for line in lines])]
    return Labelled(RowFile.of(rows, [int(line["label"]) for line in lines]), ["negative", "positive"])


def chats(weights: Path, context: int, texts: Sequence[Documented]) -> Labelled:
    """Questions for the documentation of something, answered with it, in the model's own template.

    The answer alone is trained. Rows are cut after `context` tokens and those that are shorter left out: all are of
    one length, so that padding is nobody's advantage.
    """
    from groundup.tasks import chat
    from groundup.text.tokenizers import Tokenizer

    task = chat.Task(chat.Config(overlong="truncate"), Tokenizer.load(weights), context)
    rows, trained = [], []
    for each in texts:
        question = {"role": "user", "content": f"Write the documentation of `{each.name}`."}
        found = task.encode({"messages": [question, {"role": "assistant", "content": each.text}]})
        if len(found["input_ids"]) == context + 1:
            rows.append(found["input_ids"])
            trained.append(found["trained"])
    if not rows:
        raise BenchError(f"no documentation fills {context} tokens")
    return Labelled(RowFile.of(rows, trained, is_chat=True), [])


def padding(lengths: np.ndarray, batch_rows: int) -> float:
    """The share of positions that are padding in batches padded to their longest row, rows in this order."""
    whole = lengths[: len(lengths) // batch_rows * batch_rows].reshape(-1, batch_rows)
    return 1 - float(whole.sum()) / float((whole.max(1) * batch_rows).sum())


def _tokenizer(weights: Path):
    from tokenizers import Tokenizer

    engine = Tokenizer.from_file(str(weights / "tokenizer.json"))
    engine.no_padding()
    engine.no_truncation()
    return engine
