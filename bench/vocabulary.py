"""Memory and time of learning a vocabulary from Chinese without spaces, by the size of the text.

    python bench/vocabulary.py --megabytes 50 100 200 --source songci.jsonl.gz
    python bench/vocabulary.py --megabytes 50 100 200 1000 --library 5 10 20 --source songci.jsonl.gz

The text is generated: characters follow one another as often as in the source (a text file, or JSONL
with `text` or `paragraphs`, plain or gzip), in documents of 2000 characters with neither space nor
comma, which is the worst there is for a trainer that keeps every distinct piece. Each size is one
process that runs the whole `tokenize` stage on a corpus artefact; its memory is the largest resident
set the system saw. `--library` trains the `tokenizers` library on the same text as it comes, for
comparison. A second table shows, on the source itself, what learning from less text costs.
"""

from __future__ import annotations

import argparse
import datetime
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import models, pre_tokenizers, trainers

from groundup.artifact import Artifact, Input, Store
from groundup.stages import tokenize
from groundup.text.tokenizers import Tokenizer
from groundup.text.vocabulary import Wish, learn

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = 2000
MB = 10**6
GIB2 = 2 * 2**30


def read_source(path: Path) -> list[str]:
    """The documents of a text or JSONL file."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    if ".jsonl" not in path.name:
        return [part for part in text.split("\n\n") if part.strip()]
    rows = (json.loads(line) for line in text.splitlines())
    return [row["text"] if "text" in row else "".join(row["paragraphs"]) for row in rows]


def generated(texts: list[str], megabytes: float) -> Iterator[list[str]]:
    """Documents whose characters follow one another as in the texts, about `megabytes` in all."""
    joined = "".join(letter for text in texts for letter in text if "\u4e00" <= letter <= "\u9fff")
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    order = np.argsort(codes[:-1], kind="stable")
    followers = codes[1:][order]
    known, start, count = np.unique(codes[:-1][order], return_index=True, return_counts=True)
    place = np.zeros(0x10000, dtype=np.int64)
    place[known] = np.arange(len(known))
    random = np.random.default_rng(0)
    left = megabytes * MB
    while left > 0:
        rows = int(min(1024, left // (3 * DOCUMENT) + 1))
        current = random.choice(codes[:-1], rows)
        letters = np.empty((rows, DOCUMENT), dtype=np.uint32)
        for column in range(DOCUMENT):
            letters[:, column] = current
            at = place[current]
            current = followers[start[at] + (random.random(rows) * count[at]).astype(np.int64)]
        yield [row.tobytes().decode("utf-32-le") for row in letters]
        left -= rows * DOCUMENT * 3


def write_corpus(store: Store, texts: list[str], megabytes: float) -> Artifact:
    """The generated text as a corpus artefact; a tenth of a megabyte more is its validation split."""
    key = f"corpus-{megabytes}"
    with store.draft("corpus", key, stage="prepare") as draft:
        splits = {}
        for split, size in (("train", megabytes), ("validation", 0.1)):
            rows = total = 0
            name = f"{split}/00000.parquet"
            with pq.ParquetWriter(draft.path(name), pa.schema([("text", pa.string())]), compression="zstd") as writer:
                for group in generated(texts, size):
                    writer.write_table(pa.table({"text": group}))
                    rows, total = rows + len(group), total + sum(len(text.encode()) for text in group)
            splits[split] = {"documents": rows, "bytes": total, "longest_document_bytes": 3 * DOCUMENT}
            splits[split]["files"] = [{"name": name, "rows": rows}]
        draft.write_json("corpus.json", {"columns": ["text"], "splits": splits})
    found = store.find(key)
    assert found is not None
    return found


def work(job: dict[str, Any]) -> dict[str, Any]:
    """What a measured process does: the stage, or the library alone."""
    corpus = Artifact(Path(job["corpus"]))
    if job["library"]:
        engine = LibraryTokenizer(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=job["vocab_size"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        )
        with pq.ParquetFile(corpus.path / "train/00000.parquet") as file:
            texts = (text for batch in file.iter_batches(64) for text in batch.column("text").to_pylist())
            engine.train_from_iterator(texts, trainer)
        return {}
    config = tokenize.Config(of="corpus", kind=job["kind"], vocab_size=job["vocab_size"])
    store = Store(Path(job["store"]))
    with store.draft("tokenizer", "measured") as draft:
        tokenize.run(config, {"of": Input(corpus)}, draft)
    found = store.find("measured")
    assert found is not None
    return {"read": found.json("report.json")["learnt_from"]["bytes"]} | found.metrics


def measured(job: dict[str, Any]) -> dict[str, Any]:
    """Run `work` in a process; its answer with `peak` (bytes) and `seconds`."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", json.dumps(job)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    answer = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"a measured process ended with code {process.returncode}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return json.loads(answer.splitlines()[-1]) | {"peak": peak, "seconds": time.perf_counter() - began}


def compare(options: argparse.Namespace, texts: list[str]) -> list[str]:
    """The table of memory and time, and what it says about a gigabyte."""
    rows = [("stage", size) for size in options.megabytes] + [("library", size) for size in options.library]
    lines = ["| | text, MB | read, MB | peak memory, MiB | seconds | bytes per token |", "|---|---|---|---|---|---|"]
    peaks: dict[str, list[tuple[float, float]]] = {"stage": [], "library": []}
    for name, size in rows:
        with tempfile.TemporaryDirectory() as folder:
            corpus = write_corpus(Store(Path(folder)), texts, size)
            job = {"corpus": str(corpus.path), "store": folder, "library": name == "library"}
            found = measured(job | {"kind": options.kind, "vocab_size": options.vocab_size})
        peaks[name].append((size, found["peak"]))
        shown = f"{found['bytes_per_token']:.3f}" if "bytes_per_token" in found else ""
        read = f"{found.get('read', size * MB) / MB:.0f}"
        title = f"groundup, {options.kind}" if name == "stage" else "tokenizers, as it comes"
        lines.append(
            f"| {title} | {size:g} | {read} | {found['peak'] / 2**20:.0f} | {found['seconds']:.0f} | {shown} |"
        )
        print(lines[-1], flush=True)
    return [*lines, "", *(_slope(name, peaks[name]) for name in peaks if len(peaks[name]) > 1)]


def _slope(name: str, peaks: list[tuple[float, float]]) -> str:
    sizes, peak = np.array(peaks).T
    slope, base = np.polyfit(sizes, peak, 1)
    at_1000 = base + 1000 * slope
    title = "groundup" if name == "stage" else "the library as it comes"
    verdict = "under" if at_1000 < GIB2 else "over"
    return (
        f"- {title}: {slope / 2**20:+.3f} MiB of memory for each MB of text; the line gives "
        f"{at_1000 / 2**20:.0f} MiB at 1000 MB, {verdict} 2 GiB."
    )


def by_sample(options: argparse.Namespace, texts: list[str]) -> list[str]:
    """Bytes per token on held-out documents of the source, by how much of it was learnt from."""
    order = np.random.default_rng(0).permutation(len(texts))
    held_out = [texts[i] for i in order[: len(texts) // 10]]
    training = [texts[i] for i in order[len(texts) // 10 :]]
    size = sum(len(text.encode()) for text in held_out)
    lines = ["| learnt from, MB | bytes per token, held out |", "|---|---|"]
    seen = 0.0
    for megabytes in (0.5, 1, 2, 4, 8, 16):
        if megabytes > 1 and seen < megabytes / 2 * MB:
            break
        wish = Wish(options.kind, options.vocab_size, sample_bytes=int(megabytes * MB))
        engine, survey = learn(wish, lambda: training)
        seen = survey.bytes
        ids = Tokenizer.of_roles(engine, tokenize.SPECIALS[options.kind]).encode_batch(held_out)
        lines.append(f"| {seen / MB:.1f} | {size / sum(map(len, ids)):.3f} |")
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, nargs="*", default=[50, 100, 200])
    parser.add_argument("--library", type=float, nargs="*", default=[], help="sizes to give to the library alone")
    parser.add_argument("--source", type=Path, help="a text or JSONL file in Chinese")
    parser.add_argument("--kind", default="bpe", choices=("bpe", "unigram", "wordpiece", "characters"))
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--save", action="store_true", help="write bench/results/tokenize.md")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(json.loads(options.work))))
        return
    if options.source is None:
        parser.error("--source is needed: a Chinese text to take characters and their order from")
    texts = read_source(options.source)
    table, samples = compare(options, texts), by_sample(options, texts)
    sizes = " ".join(f"{size:g}" for size in options.megabytes)
    command = f"python bench/vocabulary.py --megabytes {sizes}"
    command += f" --library {' '.join(f'{size:g}' for size in options.library)}" if options.library else ""
    command += f" --kind {options.kind} --vocab-size {options.vocab_size} --source {options.source.name} --save"
    page = [
        "# Learning a vocabulary from Chinese without spaces",
        "",
        f"{datetime.date.today()}, two cores, 24 GB. `{command}`",
        "",
        *table,
        "",
        "The stage reads until the distinct pieces of the text fill the memory allowed (2 GiB), so its memory stops",
        "growing where the text does not. What less text costs, on the source itself:",
        "",
        *samples,
        "",
    ]
    print("\n".join(page))
    if options.save:
        target = ROOT / "bench" / "results" / "tokenize.md"
        target.parent.mkdir(exist_ok=True)
        target.write_text("\n".join(page), encoding="utf-8")


if __name__ == "__main__":
    main()
