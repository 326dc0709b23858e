"""The TRL side of `edit_training.py`, which runs it in an environment of its own; it does nothing alone.

`DPOTrainer` with a peft LoRA on the output projections, from texts to trained adapter.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from worker import serve


def ready(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    import datasets
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    datasets.disable_progress_bars()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    names = ("trl", "peft", "torch", "transformers", "accelerate", "datasets")
    about = {"versions": {name: version(name) for name in names}, "threads": torch.get_num_threads()}

    def once(number: int) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return train(job, model, tokenizer, number, folder)

    return about, once


def train(job: dict[str, Any], model: Any, tokenizer: Any, number: int, folder: str) -> dict[str, Any]:
    """One training; the model is as it was afterwards."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    # The number keeps one training from finding the reference of the one before it in the cache.
    texts = [{part: row[part] for part in ("prompt", "chosen", "rejected")} for row in job["rows"]]
    rows = [text | {"number": number} for text in texts]
    config = DPOConfig(
        output_dir=folder,
        loss_type=["ipo"],
        beta=job["tau"],
        num_train_epochs=job["epochs"],
        per_device_train_batch_size=job["batch_size"],
        precompute_ref_batch_size=job["batch_size"],
        precompute_ref_log_probs=True,
        learning_rate=job["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=job["warmup"],
        max_grad_norm=job["max_grad_norm"],
        weight_decay=0.0,
        optim="adamw_torch",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        max_length=None,
        save_strategy="no",
        report_to="none",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    lora = LoraConfig(
        r=job["rank"],
        lora_alpha=job["rank"],
        target_modules=["o_proj"],
        layers_to_transform=job["layers"],
        task_type="CAUSAL_LM",
    )
    trainer = DPOTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
    )
    for row, seen in zip(job["rows"], trainer.train_dataset, strict=True):
        if [seen[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")] != row["ids"]:
            raise SystemExit(f"TRL tokenizes another text than subvene: {row['prompt']!r}")
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    parameters = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    trainer.model.unload()
    return {"losses": losses, "parameters": parameters}


if __name__ == "__main__" and "--serve" in sys.argv:
    serve(ready)
