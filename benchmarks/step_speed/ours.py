"""Our trainer as users run it: fine-tuning's own main(), packed rows, images from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from . import workload as wl


def arguments(workload: wl.Workload, output_dir: Path, num_steps: int) -> list[str]:
    """The command line; everything trains, the learning rate is constant as in the bare loop."""
    values = {
        "model_name_or_path": workload.model_dir,
        "meta_path": workload.meta_path,
        "output_dir": output_dir,
        "force_image_size": wl.IMAGE_SIZE,
        "ps_version": "v2",
        "max_seq_length": wl.MAX_PACKED_TOKENS,
        "use_packed_ds": True,
        "max_packed_tokens": wl.MAX_PACKED_TOKENS,
        "per_device_train_batch_size": 1,
        "max_steps": num_steps,
        "learning_rate": wl.LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "weight_decay": wl.WEIGHT_DECAY,
        "max_grad_norm": wl.MAX_GRAD_NORM,
        "seed": wl.SEED,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "report_to": "none",
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def collate_batches(workload: wl.Workload, path: Path, num_steps: int) -> None:
    """Save the packed batches that the trainer will see, in its order, for the bare loop."""
    from internvl_chat.checkpoint.tokenizer import add_special_tokens, load_tokenizer
    from internvl_chat.data.build import build_train_dataset
    from internvl_chat.data.collate import Collator
    from internvl_chat.train.arguments import DataArguments, data_config, order_config

    tokenizer = load_tokenizer(str(workload.model_dir))
    add_special_tokens(tokenizer)
    flags = DataArguments(
        meta_path=str(workload.meta_path),
        max_seq_length=wl.MAX_PACKED_TOKENS,
        force_image_size=wl.IMAGE_SIZE,
        use_packed_ds=True,
        max_packed_tokens=wl.MAX_PACKED_TOKENS,
    )
    config = data_config(flags, num_image_token=wl.NUM_IMAGE_TOKEN, meta_path=flags.meta_path)
    dataset = build_train_dataset(config, tokenizer, output_dir=None, seed=wl.SEED)
    collator = Collator(pad_token_id=tokenizer.pad_token_id, packed=True)
    order = order_config(flags, grouped=False, drop_last=False)
    plan = dataset.plan(0, global_batch_size=1, order=order)
    if plan.num_steps < num_steps:
        raise ValueError(f"{plan.num_steps} packs in an epoch, {num_steps} wanted")
    batches = []
    for step in range(num_steps):
        batch = collator([dataset[pack] for pack in plan.packs(step)])
        batches.append(
            {
                "input_ids": batch["input_ids"],
                "labels": batch["labels"],
                "position_ids": batch["position_ids"],
                "pixel_values": batch["pixel_values"],
                "lengths": batch["cu_seq_lens_q"].diff().tolist(),
                "image_token_id": tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
            }
        )
    torch.save(batches, path)


def run(workload: wl.Workload, output_dir: Path, *, num_steps: int) -> dict[str, Any]:
    """Train ``num_steps`` packs; times are those of the trainer's own log, a line a step."""
    from internvl_chat.train.finetune import main

    code = main(arguments(workload, output_dir, num_steps))
    if code:
        raise RuntimeError(f"the trainer ended with exit code {code}")
    state = json.loads((output_dir / "trainer_state.json").read_text("utf-8"))
    steps = [entry for entry in state["log_history"] if "step_seconds" in entry]
    tokens = [round(entry["tokens_per_second"] * entry["step_seconds"]) for entry in steps]
    return {
        "step_seconds": [entry["step_seconds"] for entry in steps],
        "losses": [entry["loss"] for entry in steps],
        "tokens": tokens,
        "padded": [
            round(count / (1 - entry["padding_share"]))
            for count, entry in zip(tokens, steps, strict=True)
        ],
        # Before the final save, which is no part of a step.
        "peak_rss_mb": steps[-1]["peak_memory_gib"] * 2**30 / 1e6,
        "data_wait_share": sum(entry["data_wait_share"] for entry in steps) / len(steps),
    }
