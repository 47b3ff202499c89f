"""Training speed, side by side: groundup, transformers (Trainer, plain loop, compiled loop) and litgpt.

    make bench                                              both CPU models, all rivals: about an hour
    .venv-bench/bin/python bench/pretrain.py --model gpt2-14m --rounds 5
    .venv-bench/bin/python bench/pretrain.py --device cuda --model llama-0.3b

Everyone trains the same network from the same first weights on the same rows in the same order, with
AdamW, gradients clipped to norm 1, equal threads and precision. The table goes to standard output and,
with the raw figures, to bench/results/.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import sysconfig
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import CACHE, RESULTS, ROOT, BenchError, Rival, Turns, Worker, say

HERE = Path(sys.executable)
LITGPT = ROOT / ".venv-litgpt" / "bin" / "python"
RIVALS = (
    Rival("groundup", HERE, "groundup_train.py", ("--compile",)),
    Rival("groundup, not compiled", HERE, "groundup_train.py"),
    Rival("transformers Trainer", HERE, "transformers_trainer.py"),
    Rival("transformers loop", HERE, "transformers_loop.py"),
    Rival("transformers loop, compiled", HERE, "transformers_loop.py", ("--compile",)),
    Rival("litgpt", LITGPT, "litgpt_loop.py"),
)
LOSS_TOLERANCE = 0.01
OPTIMIZER = {"lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0, "grad_clip": 1.0}


@dataclass(frozen=True)
class Model:
    """A network and the batch it is trained with."""

    kind: str
    n_layers: int
    d_model: int
    n_heads: int
    d_ff: int
    vocab_size: int
    context: int
    batch_rows: int
    tied: bool
    steps: int
    """Steps of a turn, so that one takes about half a minute on two cores (or a second on a GPU)."""

    @property
    def tokens_per_step(self) -> int:
        return self.batch_rows * self.context

    @property
    def flops_per_token(self) -> float:
        """FLOPs of training on one token: 6 per weight that multiplies, 6·T·d a layer for causal attention.

        A multiply-add is two; backward is twice forward; only the lower half of the attention matrix counts.
        """
        matrices = 3 if self.kind == "llama" else 2
        layer = 4 * self.d_model**2 + matrices * self.d_model * self.d_ff
        weights = self.n_layers * layer + self.d_model * self.vocab_size
        return 6 * weights + 6 * self.n_layers * self.context * self.d_model


MODELS = {
    "gpt2-14m": Model("gpt2", 6, 384, 6, 1536, 8192, 256, 16, tied=True, steps=8),
    "llama-34m": Model("llama", 8, 512, 8, 1408, 8192, 512, 8, tied=False, steps=4),
    "llama-0.3b": Model("llama", 24, 1024, 16, 2816, 32768, 2048, 16, tied=False, steps=20),
    "llama-1b": Model("llama", 16, 2048, 32, 5632, 32768, 2048, 8, tied=False, steps=20),
}


def main() -> None:
    options = _options()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.model:
        try:
            found = compare(name, options)
        except BenchError as error:
            sys.exit(f"error: {error}")
        path = RESULTS / f"pretrain-{options.device}-{name}.json"
        if options.save:
            path.write_text(json.dumps(found, indent=1) + "\n")
            write_page(options.device)
        print(section(found))
        if found["strayed"]:
            sys.exit(f"error: final losses differ by more than {LOSS_TOLERANCE:.0%}: {', '.join(found['strayed'])}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", choices=list(MODELS), help="may be repeated; both small ones unless given"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each rival; five or more for a figure to publish"
    )
    parser.add_argument("--steps", type=int, help="steps of a turn, instead of the model's own number")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the first round, where compiling happens")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="fp32 on a CPU, bf16 on CUDA unless given")
    parser.add_argument("--threads", type=int, default=harness.psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--rivals", nargs="*", help="parts of names; all unless given")
    parser.add_argument("--even-if-busy", action="store_true", help="do not wait for idle cores; the table says so")
    parser.add_argument("--no-save", dest="save", action="store_false", help="print the table only")
    options = parser.parse_args()
    options.model = options.model or (["gpt2-14m", "llama-34m"] if options.device == "cpu" else ["llama-0.3b"])
    options.precision = options.precision or ("fp32" if options.device == "cpu" else "bf16")
    return options


def compare(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Everything measured on one model, as plain data."""
    model = MODELS[name]
    steps = options.steps or model.steps
    rivals = [r for r in RIVALS if not options.rivals or any(part in r.name for part in options.rivals)]
    for missing in [r for r in rivals if not r.is_installed()]:
        say(f"{missing.name} is left out: {missing.python} does not exist (`make bench` makes it)")
    rivals = [r for r in rivals if r.is_installed()]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory(prefix="groundup-bench-") as folder:
        try:
            job = prepare(model, options, Path(folder), total_steps=options.warmup + options.rounds * steps)
            peaks = Worker(Rival("matrix products", HERE, "gemm.py"), job, options.threads)
            workers.append(peaks)
            peaks.answer()
            rates: list[float] = []
            facts = {}
            for rival in rivals:
                worker = Worker(rival, job, options.threads)
                workers.append(worker)
                facts[rival.name] = start(worker, options.warmup)
            rates.append(peaks.ask("gemm")["flops"])
            turns = harness.take_turns(
                workers[1:],
                rounds=options.rounds,
                steps=steps,
                rate=lambda answer: steps * model.tokens_per_step / answer["seconds"],
                unit="tokens/s",
                before=(lambda: None) if options.even_if_busy or options.device == "cuda" else harness.wait_until_idle,
                after=lambda number: rates.append(peaks.ask("gemm")["flops"]),
            )
        finally:
            for worker in workers:
                worker.close()
    return _found(name, model, options, steps, rates, turns, facts)


def start(worker: Worker, warmup: int) -> dict[str, Any]:
    """Facts of a rival that has loaded and done its first steps, with the seconds both took."""
    ready = worker.answer()
    first = worker.ask("steps", count=warmup)
    seconds = f"first {warmup} steps in {first['seconds']:.1f} s"
    say(f"ready: {worker.rival.name}, {ready['parameters']:,} parameters, {seconds}")
    return {**ready, "first_steps_s": first["seconds"], "first_losses": first["losses"]}


def prepare(model: Model, options: argparse.Namespace, folder: Path, *, total_steps: int) -> Path:
    """Write what all rivals share, and the job that names it: tokens, order of rows, first weights."""
    from groundup.data.order import Order

    tokens = token_file(model.vocab_size)
    rows = -(-(len(np.load(tokens, mmap_mode="r")) - 1) // model.context) - 1
    seed = 7
    # The last, partly padded row is left out of the token file, so that every row trains every position.
    cut = folder / "tokens.npy"
    np.save(cut, np.load(tokens, mmap_mode="r")[: rows * model.context + 1])
    order = Order(rows, seed).span(0, (total_steps + 2) * model.batch_rows)[1]
    np.save(folder / "order.npy", order)
    weights = folder / "weights"
    first_weights(model, weights, seed)
    (folder / "scratch").mkdir()
    job = asdict(model) | {
        "n_kv_heads": model.n_heads,
        "optimizer": OPTIMIZER,
        "device": options.device,
        "precision": options.precision,
        "threads": options.threads,
        "seed": seed,
        "tokens": str(cut),
        "order": str(folder / "order.npy"),
        "weights": str(weights),
        "scratch": str(folder / "scratch"),
    }
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def token_file(vocab_size: int) -> Path:
    """The standard library's own sources as byte-pair tokens, uint16, made once and kept."""
    path = CACHE / f"stdlib-{sys.version_info.major}.{sys.version_info.minor}-{vocab_size}.npy"
    if path.exists():
        return path
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    root = Path(sysconfig.get_path("stdlib"))
    files = [f for f in sorted(root.rglob("*.py")) if "site-packages" not in f.parts and "test" not in f.parts]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.concatenate([np.array(each, np.uint16) for each in ids]))
    return path


def first_weights(model: Model, folder: Path, seed: int) -> None:
    """Write the random network all rivals start from, in the published layout."""
    import torch
    import transformers

    torch.manual_seed(seed)
    if model.kind == "gpt2":
        config = transformers.GPT2Config(
            n_layer=model.n_layers,
            n_embd=model.d_model,
            n_head=model.n_heads,
            n_inner=model.d_ff,
            n_positions=model.context,
            vocab_size=model.vocab_size,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    else:
        config = transformers.LlamaConfig(
            num_hidden_layers=model.n_layers,
            hidden_size=model.d_model,
            num_attention_heads=model.n_heads,
            num_key_value_heads=model.n_heads,
            intermediate_size=model.d_ff,
            max_position_embeddings=model.context,
            vocab_size=model.vocab_size,
            tie_word_embeddings=model.tied,
            rms_norm_eps=1e-5,
            bos_token_id=0,
            eos_token_id=0,
        )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def _found(
    name: str,
    model: Model,
    options: argparse.Namespace,
    steps: int,
    rates: list[float],
    turns: dict[str, Turns],
    facts: dict[str, Any],
) -> dict[str, Any]:
    ours = next(iter(turns))
    strayed = [r for r, t in turns.items() if abs(t.last_loss / turns[ours].last_loss - 1) > LOSS_TOLERANCE]
    return {
        "model": name,
        "sizes": asdict(model),
        "device": options.device,
        "precision": options.precision,
        "threads": options.threads,
        "rounds": options.rounds,
        "steps": steps,
        "busy": options.even_if_busy,
        "machine": device_words(options.device),
        "date": datetime.date.today().isoformat(),
        "gemm_flops": rates,
        "rivals": {rival: _figures(t) | {"facts": facts[rival]} for rival, t in turns.items()},
        "strayed": strayed,
    }


def _figures(turns: Turns) -> dict[str, Any]:
    figures = asdict(turns) | {"last_loss": turns.last_loss}
    return {"tokens_s": figures.pop("rates"), **figures}


def device_words(device: str) -> str:
    """The machine in one line, its GPU first where that is what was measured."""
    if device == "cpu":
        return harness.machine()
    import torch

    return f"{torch.cuda.get_device_name(0)}; {harness.machine()}"


def section(found: dict[str, Any]) -> str:
    """The result on one model as a piece of Markdown."""
    model = Model(**found["sizes"])
    peak = statistics.median(found["gemm_flops"])
    ours = found["rivals"]["groundup"] if "groundup" in found["rivals"] else next(iter(found["rivals"].values()))
    rows = [["", "tokens/s", "groundup is faster by [95 %]", "MFU", "peak memory", "start, s", "loss"]]
    for name, each in found["rivals"].items():
        rate = statistics.median(each["tokens_s"])
        speed = "–" if each is ours else harness.show_ratio(harness.ratio(ours["tokens_s"], each["tokens_s"]))
        mfu = f"{rate * model.flops_per_token / peak:.0%}"
        began = f"{each['facts']['seconds'] + each['facts']['first_steps_s']:.0f}"
        rows.append(
            [name, f"{rate:,.0f}", speed, mfu, harness.gib(each["peak_bytes"]), began, f"{each['last_loss']:.4f}"]
        )
    busy = " **The machine was not idle.**" if found["busy"] else ""
    versions = ", ".join(
        dict.fromkeys(f"{n.split(',')[0].split()[0]} {e['facts']['version']}" for n, e in found["rivals"].items())
    )
    torch_versions = ", ".join(sorted({each["facts"]["torch"] for each in found["rivals"].values()}))
    return "\n".join(
        [
            f"## {found['model']}, {found['precision']} on {found['device']}",
            "",
            f"{model.n_layers} layers of {model.d_model}, vocabulary {model.vocab_size}, context {model.context}, "
            f"{model.batch_rows} rows a step, {model.flops_per_token / 1e6:,.0f} MFLOP a token. "
            f"{found['rounds']} rounds of {found['steps']} steps each, {found['threads']} threads; "
            f"matrix products reach {peak / 1e9:,.0f} GFLOP/s here.{busy}",
            "",
            harness.markdown(rows),
            "",
            f"{found['date']}; {found['machine']}; torch {torch_versions}; {versions}.",
            "",
        ]
    )


def write_page(device: str) -> None:
    """Write the page of all models measured on a device, from the figures kept beside it."""
    parts = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"pretrain-{device}-*.json"))]
    head = (
        "# Training speed\n\nWritten by `bench/pretrain.py`; the rules are in [the benches' README](../README.md). "
        "Ratios are geometric means over rounds with 95 % intervals; start is loading, compiling and the first "
        "steps; loss is the mean of the last round, which must agree within 1 %.\n\n"
    )
    (RESULTS / f"pretrain-{device}.md").write_text(head + "\n".join(section(part) for part in parts))


if __name__ == "__main__":
    main()
