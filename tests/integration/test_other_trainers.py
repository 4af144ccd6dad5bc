"""Trainers that know nothing of this project: transformers' own, and TRL's for fine-tuning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments

from tests.integration.test_adapters import settings_of
from tests.support.models import make_batch, make_model
from tests.support.search_path import search_path
from tests.support.training import ROOT

TRL = ["trl==0.24.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "xxhash==4.1.0"]

SFT = """
import json, sys
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer
from internvl_chat import InternVLChatModel

checkpoint, folder, kind = sys.argv[1:]
model = InternVLChatModel.from_pretrained(checkpoint, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(checkpoint)
rows = [
    {"input_ids": tokenizer(f"What is {one} plus {two}? {one + two}")["input_ids"]}
    for one in range(4)
    for two in range(2)
]
settings = SFTConfig(
    output_dir=folder,
    max_steps=3,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    gradient_checkpointing_kwargs={"use_reentrant": True},
    logging_steps=1,
    max_length=64,
    report_to="none",
    save_strategy="no",
    use_cpu=True,
    bf16=False,
)
lora = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "qkv"])
trainer = SFTTrainer(
    model=model,
    args=settings,
    train_dataset=Dataset.from_list(rows),
    processing_class=tokenizer,
    peft_config=lora if kind == "lora" else None,
)
trainer.train()
print(json.dumps(trainer.state.log_history))
"""


class AccuracyTrainer(Trainer):
    """Asks for the outputs beside the loss, as trainers do that count right tokens."""

    accuracies: list[float]

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        kwargs["return_outputs"] = True
        loss, outputs = super().compute_loss(model, inputs, *args, **kwargs)
        labels = inputs["labels"][:, 1:]
        found = outputs.logits[:, :-1].argmax(-1)
        right = (found == labels)[labels != -100]
        self.accuracies.append(right.float().mean().item())
        return loss


def rows(number: int) -> list[dict[str, Tensor]]:
    batch = make_batch(4, rows=number)
    return [{name: value[index] for name, value in batch.items()} for index in range(number)]


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_transformers_trainer(kind: str, tmp_path: Path) -> None:
    """Its loss of a step, over accumulated micro batches, is the mean over their tokens."""
    model: Any = make_model()
    if kind == "lora":
        model = get_peft_model(model, settings_of("lora"))
    model.eval()
    with torch.no_grad():
        expected = model(**collate(rows(4))).loss.item()
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    trainer = AccuracyTrainer(
        model=model, args=settings, train_dataset=rows(4), data_collator=collate
    )
    trainer.accuracies = []
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected, rel=1e-4)
    assert len(trainer.accuracies) == 2
    after = dict(model.named_parameters())
    assert any(not torch.equal(after[name], old) for name, old in before.items())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_trls_sft_trainer(kind: str, tmp_path: Path) -> None:
    """It reads the logits of a training step for its token accuracy."""
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", str(site)]
    if subprocess.run([*pip, *TRL], capture_output=True, timeout=300).returncode != 0:
        pytest.skip("TRL is not to be had")
    (tmp_path / "sft.py").write_text(SFT, encoding="utf-8")
    checkpoint = str(ROOT / "pretrained/internvl-chat-tiny")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "sft.py"), checkpoint, str(tmp_path / "out"), kind],
        env={**os.environ, "PYTHONPATH": search_path(ROOT, site)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    steps = [entry for entry in json.loads(done.stdout.splitlines()[-1]) if "loss" in entry]
    assert len(steps) == 3
    assert all(0 <= entry["mean_token_accuracy"] <= 1 for entry in steps)
    assert all(entry["grad_norm"] > 0 for entry in steps)
