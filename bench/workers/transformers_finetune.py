"""transformers' Trainer on labelled rows with its collator for them, and PEFT's LoRA where the job has an adapter.

By default rows come in the shared order and are padded to the longest of their batch; with --group-by-length
the Trainer draws them its own way, so that rows of like length meet.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch
from pace import Pace, read_job
from row_file import RowFile


class Rows(torch.utils.data.Dataset):
    """The shared rows, in an order."""

    def __init__(self, rows: RowFile, order: np.ndarray) -> None:
        self.rows, self.order = rows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self.rows.features(int(self.order[position]))


def model_of(job: dict[str, Any]) -> torch.nn.Module:
    """The network to train, with PEFT's adapter if there is one."""
    import transformers

    chat = job["kind"] == "chat"
    opened = transformers.AutoModelForCausalLM if chat else transformers.AutoModelForSequenceClassification
    model = opened.from_pretrained(job["weights"], dtype=torch.float32, attn_implementation="sdpa")
    model.config.use_cache = False
    if not job["adapter"]:
        return model
    import peft

    return peft.PeftModel.from_pretrained(model, job["first_adapter"], is_trainable=True)


def main() -> None:
    began = time.perf_counter()
    job = read_job(sys.argv[1])
    grouped = "--group-by-length" in sys.argv
    import transformers

    model, rows = model_of(job), RowFile.read(job["rows"])
    order = np.load(job["order"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["weights"])
    if job["kind"] == "chat":
        collate: Any = transformers.DataCollatorForSeq2Seq(tokenizer)
    else:
        collate = transformers.DataCollatorWithPadding(tokenizer)
    pace = Pace(job, began)
    losses: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []

    class Recorded(transformers.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            tokens.append(inputs["attention_mask"].sum())
            found = super().compute_loss(model, inputs, *args, **kwargs)
            losses.append((found[0] if isinstance(found, tuple) else found).detach())
            return found

    @torch.no_grad()
    def first_loss() -> float:
        batch = collate([rows.features(int(index)) for index in order[: job["batch_rows"]]])
        model.eval()
        loss = float(model(**batch).loss)
        model.train()
        return loss

    class Paced(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs) -> None:
            pace.ready(
                parameters=sum(p.numel() for p in model.parameters()),
                version=version(),
                first_loss=first_loss(),
            )

        def on_step_end(self, *args, **kwargs) -> None:
            pace.step(losses.pop(), int(tokens.pop()))

    def version() -> str:
        if not job["adapter"]:
            return transformers.__version__
        import peft

        return f"{transformers.__version__} with peft {peft.__version__}"

    chosen = job["optimizer"]
    arguments = transformers.TrainingArguments(
        output_dir=job["scratch"],
        per_device_train_batch_size=job["batch_rows"],
        max_steps=job["total_steps"],
        learning_rate=chosen["lr"],
        adam_beta1=chosen["betas"][0],
        adam_beta2=chosen["betas"][1],
        adam_epsilon=chosen["eps"],
        weight_decay=chosen["weight_decay"],
        max_grad_norm=chosen["grad_clip"],
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length" if grouped else "sequential",
        use_cpu=job["device"] == "cpu",
        bf16=job["precision"] == "bf16",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=job["seed"],
    )
    data = Rows(rows, np.arange(len(rows)) if grouped else order)
    Recorded(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[Paced()]).train()


if __name__ == "__main__":
    main()
