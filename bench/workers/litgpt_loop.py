"""litgpt's model trained as litgpt's `pretrain` does it: Fabric, torch.compile, its own chunked loss.

litgpt has no learned positions, so for the GPT-2 type the embedding is replaced by one that adds them
and the rotation is given zero width; the function computed is then GPT-2's, from the same first weights.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from pace import Batches, Pace, read_job


class WithPositions(torch.nn.Embedding):
    """A token embedding that adds a learned position to each token."""

    def __init__(self, tokens: torch.Tensor, positions: torch.Tensor) -> None:
        super().__init__(*tokens.shape)
        self.weight = torch.nn.Parameter(tokens)
        self.positions = torch.nn.Parameter(positions)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) + self.positions[: ids.shape[1]]


def config_of(job: dict[str, Any]):
    from litgpt.config import Config

    shared = {
        "block_size": job["context"],
        "n_layer": job["n_layers"],
        "n_embd": job["d_model"],
        "n_head": job["n_heads"],
        "n_query_groups": job["n_kv_heads"],
        "vocab_size": job["vocab_size"],
        "padded_vocab_size": job["vocab_size"],
        "intermediate_size": job["d_ff"],
        "parallel_residual": False,
    }
    if job["kind"] == "gpt2":
        return Config(**shared, bias=True, rotary_percentage=0.0, gelu_approximate="tanh", mlp_class_name="GptNeoxMLP")
    return Config(
        **shared,
        bias=False,
        rotary_percentage=1.0,
        mlp_class_name="LLaMAMLP",
        norm_class_name="RMSNorm",
        norm_eps=1e-5,
        rope_base=10000,
    )


def load_llama(model: torch.nn.Module, config, weights: dict[str, torch.Tensor]) -> None:
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama

    state: dict[str, torch.Tensor] = {}
    copy_weights_hf_llama(config, {}, state, weights)
    model.load_state_dict(state)


def load_gpt2(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    weights = {name.removeprefix("transformer."): value for name, value in weights.items()}
    names = {
        "ln_1.weight": "norm_1.weight",
        "ln_1.bias": "norm_1.bias",
        "ln_2.weight": "norm_2.weight",
        "ln_2.bias": "norm_2.bias",
        "attn.c_attn.weight": "attn.qkv.weight",
        "attn.c_attn.bias": "attn.qkv.bias",
        "attn.c_proj.weight": "attn.proj.weight",
        "attn.c_proj.bias": "attn.proj.bias",
        "mlp.c_fc.weight": "mlp.fc.weight",
        "mlp.c_fc.bias": "mlp.fc.bias",
        "mlp.c_proj.weight": "mlp.proj.weight",
        "mlp.c_proj.bias": "mlp.proj.bias",
    }
    model.transformer.wte = WithPositions(weights["wte.weight"], weights["wpe.weight"])
    state = {"transformer.wte.weight": weights["wte.weight"], "transformer.wte.positions": weights["wpe.weight"]}
    state |= {"lm_head.weight": weights["wte.weight"]}
    state |= {"transformer.ln_f.weight": weights["ln_f.weight"], "transformer.ln_f.bias": weights["ln_f.bias"]}
    for index in range(len(model.transformer.h)):
        for theirs, ours in names.items():
            value = weights[f"h.{index}.{theirs}"]
            # GPT-2 keeps these matrices as (in, out).
            state[f"transformer.h.{index}.{ours}"] = value.t() if value.dim() == 2 else value
    model.load_state_dict(state)


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    import lightning as L
    import litgpt
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer
    from safetensors.torch import load_file

    precision = {"fp32": "32-true", "bf16": "bf16-mixed"}[job["precision"]]
    fabric = L.Fabric(devices=1, accelerator=job["device"], precision=precision)
    config = config_of(job)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    weights = load_file(Path(job["weights"]) / "model.safetensors")
    if job["kind"] == "gpt2":
        load_gpt2(model, weights)
    else:
        load_llama(model, config, weights)
    if job["tied"]:
        model.transformer.wte.weight = model.lm_head.weight
    parameters = sum(p.numel() for p in model.parameters())
    model = fabric.setup(torch.compile(model))
    chosen = {key: job["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = instantiate_torch_optimizer(
        {"class_path": "torch.optim.AdamW", "init_args": chosen},
        model.parameters(),
        fused=fabric.device.type == "cuda",
    )
    optimizer = fabric.setup_optimizers(optimizer)
    batches, pace = Batches(job), Pace(job, began)
    pace.ready(parameters=parameters, version=getattr(litgpt, "__version__", "0.5.13"))
    for number in range(10**9):
        rows = batches.step(number)
        with fabric.no_backward_sync(model, enabled=False):
            logits = model(rows[:, :-1].contiguous())
            loss = chunked_cross_entropy(logits, rows[:, 1:].contiguous())
            fabric.backward(loss)
        fabric.clip_gradients(model, optimizer, max_norm=job["optimizer"]["grad_clip"])
        optimizer.step()
        optimizer.zero_grad()
        pace.step(loss.detach())


if __name__ == "__main__":
    main()
