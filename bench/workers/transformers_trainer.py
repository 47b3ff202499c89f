"""transformers' own Trainer, paced by a callback at the end of each step."""

from __future__ import annotations

import sys
import time

import torch
from pace import Batches, Pace, read_job


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    import transformers

    class Rows(torch.utils.data.Dataset):
        """The shared rows in the shared order."""

        def __init__(self) -> None:
            self.batches = Batches(job)

        def __len__(self) -> int:
            return len(self.batches)

        def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
            row = self.batches.row(position)
            return {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}

    pace = Pace(job, began)
    losses: list[torch.Tensor] = []

    class Recorded(transformers.Trainer):
        def compute_loss(self, *args, **kwargs):
            found = super().compute_loss(*args, **kwargs)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    class Paced(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            pace.ready(parameters=sum(p.numel() for p in model.parameters()), version=transformers.__version__)

        def on_step_end(self, *args, **kwargs) -> None:
            pace.step(losses.pop())

    model = transformers.AutoModelForCausalLM.from_pretrained(
        job["weights"], dtype=torch.float32, attn_implementation="sdpa"
    )
    model.config.use_cache = False
    chosen = job["optimizer"]
    arguments = transformers.TrainingArguments(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["batch_rows"],
        max_steps=10**6,
        learning_rate=chosen["lr"],
        adam_beta1=chosen["betas"][0],
        adam_beta2=chosen["betas"][1],
        adam_epsilon=chosen["eps"],
        weight_decay=chosen["weight_decay"],
        max_grad_norm=chosen["grad_clip"],
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        use_cpu=job["device"] == "cpu",
        bf16=job["precision"] == "bf16",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=job["seed"],
    )
    Recorded(model=model, args=arguments, train_dataset=Rows(), callbacks=[Paced()]).train()


if __name__ == "__main__":
    main()
