"""transformers' model in the plainest of loops: forward, backward, clip, fused AdamW; with --compile, compiled."""

from __future__ import annotations

import sys
import time

import torch
from pace import Batches, Pace, dtype_of, read_job


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["weights"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model.to(job["device"]).train()
    model.config.use_cache = False
    settings = {key: job["optimizer"][key] for key in ("lr", "betas", "eps", "weight_decay")}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True, **settings)
    run = torch.compile(model) if "--compile" in sys.argv else model
    batches, pace = Batches(job), Pace(job, began)
    mixed = torch.autocast(job["device"], dtype=dtype_of(job), enabled=job["precision"] != "fp32")
    pace.ready(parameters=sum(p.numel() for p in model.parameters()), version=transformers.__version__)
    for number in range(10**9):
        rows = batches.step(number)
        inputs, labels = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        with mixed:
            loss = run(input_ids=inputs, labels=inputs, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), job["optimizer"]["grad_clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        pace.step(loss.detach())


if __name__ == "__main__":
    main()
