"""vLLM as the engine of a language model on GPUs: which models it can be given, and the command that starts it.

vLLM opens a model artefact as it is, since that is a Hugging Face directory. `vllm_front.py` stands before it.

Works with vLLM 0.12 and later; `tests/serving/test_deploy_vllm.py` holds its documented arguments.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from groundup.config import Section
from groundup.errors import UserError
from groundup.serving.models import Facts
from groundup.units import PositiveCount, Share

FORMATS = frozenset({"awq", "gptq", "compressed-tensors", "fp8", "bitsandbytes", "gguf"})
"""Formats of weights that vLLM opens (its docs/features/quantization)."""
ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
"""It calls nobody: no statistics, no hub."""


class Options(Section):
    """What vLLM is told. What is not given is vLLM's own default."""

    context: PositiveCount | None = None
    """The longest text, prompt and answer together."""
    gpu_memory: Share | None = None
    """The share of a GPU's memory that it takes."""
    gpus: PositiveCount = 1
    """GPUs that share one model (tensor parallel)."""
    max_sequences: PositiveCount | None = None
    """Texts that are generated at the same time at most."""
    max_lora_rank: PositiveCount = 64
    """The largest rank of an adapter."""
    flags: tuple[str, ...] = ()
    """Further arguments of `vllm serve`, as they are."""


def command(
    facts: Facts, name: str, socket: Path, options: Options, *, adapters: Mapping[str, Path] | None = None
) -> list[str]:
    """The command that serves a model under a name on a Unix socket.

    Raises UserError for a model that vLLM cannot serve.
    """
    require_served(facts, name)
    found = ["vllm", "serve", facts.folder, "--served-model-name", name, "--uds", str(socket)]
    found += ["--max-model-len", str(min(options.context or facts.context, facts.context))]
    found += ["--disable-uvicorn-access-log", "--enable-request-id-headers"]
    given = {
        "--gpu-memory-utilization": options.gpu_memory,
        "--tensor-parallel-size": options.gpus if options.gpus > 1 else None,
        "--max-num-seqs": options.max_sequences,
    }
    found += [word for flag, value in given.items() if value is not None for word in (flag, str(value))]
    if adapters:
        found += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(options.max_lora_rank)]
        found += ["--lora-modules", *(f"{label}={path}" for label, path in adapters.items())]
    return [*found, *options.flags]


def require_served(facts: Facts, name: str) -> None:
    """Raise UserError for a model that does not continue texts, or whose weights vLLM cannot open."""
    if facts.kind != "generate":
        what = f"{name!r} is a model for {facts.task}, and vLLM is given language models only"
        raise UserError(what, where="--engine vllm", fix="leave --engine out: groundup serves it itself")
    config = json.loads((Path(facts.folder) / "config.json").read_text(encoding="utf-8"))
    form = config.get("quantization_config", {}).get("quant_method")
    if form is not None and form not in FORMATS:
        fix = "serve the model it was compressed from, or `groundup export --to hugging-face` it first"
        raise UserError(
            f"vLLM does not open weights in the format {form!r} of {name!r}", where="--engine vllm", fix=fix
        )
