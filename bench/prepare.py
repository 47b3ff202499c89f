"""How much memory and time `prepare` takes, and how prepare + tokenize compares with Hugging Face datasets.

    python bench/prepare.py --gigabytes 2        # memory: summed over all processes, near-duplicates included
    python bench/prepare.py --rival              # speed and memory beside datasets.map with the same tokenizer

The text for memory is generated: half English-like words, half Chinese characters, both by Zipf's law, in
documents of one to eight kilobytes as JSON Lines; every tenth document repeats an earlier one with a few
words changed, every twentieth exactly. Memory is the proportional set size (PSS) of the process tree,
which counts shared pages once, sampled five times a second; resident sets (RSS) are given beside it.
The text for the comparison is real: the sources of Python's standard library, one a row. It needs
`datasets` and `tokenizers` in an environment of their own:

    python -m venv .venv-bench && .venv-bench/bin/pip install datasets tokenizers psutil
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent


def documents(size: int, seed: int = 0) -> Iterator[str]:
    """Documents of `size` bytes in all, with planted copies."""
    random = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    english = ["".join(random.choice(letters, random.integers(2, 10))) + " " for _ in range(30_000)]
    chinese = [chr(0x4E00 + i) for i in random.permutation(5000)]
    weights = {len(words): 1 / np.arange(5, len(words) + 5) for words in (english, chinese)}
    shares = {n: weight / weight.sum() for n, weight in weights.items()}
    recent: list[list[str]] = []
    written = 0
    while written < size:
        words = english if random.random() < 0.5 else chinese
        draws = random.choice(len(words), 200_000, p=shares[len(words)])
        place = 0
        while place < len(draws) - 1500 and written < size:
            kind = random.random()
            if kind < 0.15 and recent:
                pieces = list(recent[int(random.integers(len(recent)))])
                if kind < 0.10:
                    for spot in random.integers(0, len(pieces), max(1, len(pieces) // 100)):
                        pieces[spot] = words[int(random.integers(len(words)))]
            else:
                count = int(random.integers(150, 1300))
                pieces = [words[i] for i in draws[place : place + count]]
                place += count
                recent = [*recent[-999:], pieces]
            text = "".join(pieces).strip()
            written += len(text.encode())
            yield text


def write_corpus(path: Path, size: int) -> int:
    """Write the generated documents as JSON Lines; returns their number."""
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for text in documents(size):
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count


class Memory:
    """Samples the memory of a process and all its descendants until stopped."""

    def __init__(self, pid: int) -> None:
        self.process, self.stopped = psutil.Process(pid), threading.Event()
        self.peak_pss = self.peak_rss = self.most_processes = 0
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stopped.wait(0.2):
            self._sample()

    def _sample(self) -> None:
        pss = rss = count = 0
        try:
            tree = [self.process, *self.process.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            try:
                info = process.memory_full_info()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
            pss, rss, count = pss + getattr(info, "pss", info.rss), rss + info.rss, count + 1
        self.peak_pss, self.peak_rss = max(self.peak_pss, pss), max(self.peak_rss, rss)
        self.most_processes = max(self.most_processes, count)

    def stop(self) -> Memory:
        self.stopped.set()
        self.thread.join()
        return self


def measured(command: list[str]) -> dict[str, Any]:
    """Run a command; wall time, CPU time and peak memory of its process tree, and what it printed last."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        memory = Memory(process.pid)
        output, _ = process.communicate()
        memory.stop()
    if process.returncode:
        raise SystemExit(f"{' '.join(command[:3])} … failed")
    return {
        "seconds": time.perf_counter() - began,
        "pss": memory.peak_pss,
        "rss": memory.peak_rss,
        "processes": memory.most_processes,
        "output": output.strip().splitlines()[-1] if output.strip() else "",
    }


def prepare(source: Path, store: Path) -> None:
    """Child: run the stage on a file and print its counts as JSON."""
    from groundup.artifact import Store
    from groundup.config import parse
    from groundup.stages import prepare as stage

    section = {
        "source": {"paths": str(source)},
        "clean": {"near_duplicates": 0.8},
        "split": {"validation": "1%", "test": "1%"},
    }
    config, mistakes = parse(stage.Config, section)
    assert config is not None, mistakes
    with Store(store).draft("corpus", "bench") as out:
        stage.run(config, {}, out)
        print(json.dumps(out.metrics))


def bench_memory(gigabytes: float, folder: Path) -> None:
    source = folder / "rows.jsonl"
    count = write_corpus(source, int(gigabytes * 1e9))
    size = source.stat().st_size
    result = measured([sys.executable, __file__, "--child-prepare", str(source), str(folder / "store")])
    metrics = json.loads(result["output"])
    dropped = metrics["dropped"]
    rows = [
        ("documents", f"{count:,} ({size / 1e9:.2f} GB of JSON Lines)"),
        ("kept", f"{sum(metrics['documents'].values()):,}"),
        ("exact duplicates, near-duplicates, leaks dropped", ", ".join(f"{n:,}" for n in dropped.values())),
        ("processes", str(result["processes"])),
        ("peak memory, all processes (PSS)", f"{result['pss'] / 1e6:,.0f} MB"),
        ("peak memory, all processes (RSS, shared pages counted in each)", f"{result['rss'] / 1e6:,.0f} MB"),
        ("time", f"{result['seconds']:.0f} s"),
        ("speed", f"{size / 1e6 / result['seconds']:.1f} MB/s"),
    ]
    print_table(["prepare", f"{gigabytes:g} GB"], rows)
    if result["pss"] > 1e9:
        raise SystemExit("peak memory is above 1 GB")


def print_table(header: list[str], rows: list[tuple[str, ...]]) -> None:
    for row in [tuple(header), tuple("---" for _ in header), *rows]:
        print("| " + " | ".join(row) + " |")


def write_library(path: Path) -> int:
    """Write the sources of the standard library as JSON Lines; returns their number."""
    import sysconfig

    count = 0
    library = Path(sysconfig.get_path("stdlib"))
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(library.rglob("*.py")):
            if not {"site-packages", "dist-packages"} & set(source.parts):
                text = source.read_bytes().decode("utf-8", "ignore")
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                count += 1
    return count


def bench_rival(folder: Path, rounds: int) -> None:
    python = ROOT / ".venv-bench" / "bin" / "python"
    if not python.exists():
        raise SystemExit(__doc__.split("\n\n")[-1] if __doc__ else "")
    source = folder / "rows.jsonl"
    write_library(source)
    size = source.stat().st_size
    tokenizer = folder / "tokenizer.json"
    train_tokenizer(source, tokenizer)
    ours = [sys.executable, __file__, "--child-ours", str(source), str(tokenizer), str(folder / "ours")]
    theirs = [str(python), __file__, "--child-rival", str(source), str(tokenizer), str(folder / "theirs")]
    results: dict[str, list[dict[str, Any]]] = {"groundup": [], "datasets.map": []}
    for number in range(rounds):  # taking turns, so that a slow minute of the machine hits both
        turns = [("groundup", ours), ("datasets.map", theirs)]
        for name, command in turns[:: -1 if number % 2 else 1]:
            for place in ("ours", "theirs"):
                shutil.rmtree(folder / place, ignore_errors=True)
            harness.wait_until_idle()
            results[name].append(measured(command))
    rates = {name: [size / 1e6 / run["seconds"] for run in runs] for name, runs in results.items()}
    rows = []
    for name, runs in results.items():
        seconds = sorted(run["seconds"] for run in runs)
        memory = max(run["pss"] for run in runs)
        spread = f"{statistics.median(seconds):.1f} s ({seconds[0]:.1f}–{seconds[-1]:.1f})"
        faster = harness.show_ratio(harness.ratio(rates["groundup"], rates[name])) if name != "groundup" else "–"
        speed = f"{statistics.median(rates[name]):.1f} MB/s"
        rows.append((name, spread, speed, faster, f"{memory / 1e6:,.0f} MB", runs[-1]["output"]))
    print(f"{size / 1e6:.1f} MB of JSON Lines; {harness.machine()}")
    columns = ["prepare + tokenize", f"median of {rounds} (range)", "speed", "groundup is faster by [95 %]"]
    print_table([*columns, "peak PSS", "tokens"], rows)


class Encode:
    """Documents to token ids; opens the tokenizer in whichever process it finds itself."""

    def __init__(self, path: str) -> None:
        self.path, self.tokenizer = path, None

    def __call__(self, document: dict[str, Any]) -> dict[str, list[int]]:
        if self.tokenizer is None:
            from groundup.text.tokenizers import Tokenizer

            self.tokenizer = Tokenizer.load(Path(self.path).parent)
        return {"input_ids": self.tokenizer.encode(document["text"])}


def child_ours(source: str, tokenizer: str, store: str) -> None:
    """Prepare (normalised, exact duplicates removed, read to disk shuffled) and encode; print the tokens."""
    from groundup.artifact import Store
    from groundup.config import parse
    from groundup.data.corpus import Corpus
    from groundup.data.shards import open_or_build
    from groundup.stages import prepare as stage

    config, mistakes = parse(stage.Config, {"source": {"paths": source}})
    assert config is not None, mistakes
    place = Store(Path(store))
    with place.draft("corpus", "bench") as out:
        stage.run(config, {}, out)
    corpus = place.find("bench")
    assert corpus is not None
    shards = open_or_build(
        place, Corpus(corpus), "train", {"bench": 1}, Encode(tokenizer), processes=os.cpu_count() or 1
    )
    print(f"{shards.tokens:,}")


def child_rival(source: str, tokenizer: str, cache: str) -> None:
    """The same with datasets: load_dataset, then map with normalisation, removal of exact copies, encoding."""
    import hashlib
    import unicodedata

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as its documentation advises beside num_proc
    from datasets import Dataset, load_dataset
    from tokenizers import Tokenizer

    engine = Tokenizer.from_file(tokenizer)
    rows: Dataset = load_dataset("json", data_files=source, split="train", cache_dir=cache)
    cores = os.cpu_count() or 1

    def clean(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [unicodedata.normalize("NFC", text).strip() for text in batch["text"]]
        return {"text": texts, "digest": [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]}

    rows = rows.map(clean, batched=True, num_proc=cores)
    seen: set[bytes] = set()
    keep = []
    for place, digest in enumerate(rows["digest"]):
        if digest not in seen:
            seen.add(digest)
            keep.append(place)
    rows = rows.select(keep).shuffle(seed=0)

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        return {"input_ids": [found.ids for found in engine.encode_batch(batch["text"], add_special_tokens=False)]}

    rows = rows.map(encode, batched=True, num_proc=cores, remove_columns=rows.column_names)
    rows.set_format("numpy")
    print(f"{sum(len(ids) for ids in rows['input_ids']):,}")


def train_tokenizer(source: Path, target: Path) -> None:
    """A byte-level BPE tokenizer of 8192 tokens, trained on the first 10 MB, for both sides."""
    from tokenizers import ByteLevelBPETokenizer

    with source.open(encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for _, line in zip(range(3000), file, strict=False)]
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=8192, special_tokens=["<pad>", "<eos>"], show_progress=False)
    tokenizer.save(str(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gigabytes", type=float, help="memory benchmark with this much text")
    parser.add_argument("--rival", action="store_true", help="compare with datasets.map")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side in that comparison")
    parser.add_argument("--child-prepare", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--child-ours", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--child-rival", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child_prepare:
        prepare(Path(asked.child_prepare[0]), Path(asked.child_prepare[1]))
        return
    if asked.child_ours:
        child_ours(*asked.child_ours)
        return
    if asked.child_rival:
        child_rival(*asked.child_rival)
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("GROUNDUP_BENCH_FOLDER")) as folder:
        if asked.gigabytes:
            bench_memory(asked.gigabytes, Path(folder))
        if asked.rival:
            bench_rival(Path(folder), asked.rounds)


if __name__ == "__main__":
    main()
