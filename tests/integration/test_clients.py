"""Programs of others that take the model as it is: PEFT alone, trainers, evaluation suites."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

from internvl_chat.model import InternVLChatModel
from tests.support.lora_checkpoints import load_fp32, save_base
from tests.support.overlay import overlay
from tests.support.search_path import search_path
from tests.support.training import ROOT

SHIPPED = ROOT / "pretrained/internvl-chat-tiny"
GREEDY = {"max_new_tokens": 5, "do_sample": False}
TRL = ("trl==0.24.0", "datasets==4.4.1", "dill==0.4.0", "multiprocess==0.70.18", "xxhash==3.6.0")

SFT = """
import sys
import torch
from datasets import Dataset
from transformers import AutoModel, AutoTokenizer
from trl import SFTConfig, SFTTrainer

sys.modules["internvl_chat"] = None
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, torch_dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
rows = [{"prompt": f"What is {n}?", "completion": " two" + tokenizer.eos_token} for n in range(4)]
settings = SFTConfig(
    output_dir=sys.argv[2], max_steps=3, per_device_train_batch_size=2, learning_rate=1e-3,
    logging_steps=1, report_to="none", use_cpu=True, bf16=False, save_strategy="no",
)
trainer = SFTTrainer(
    model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
)
trainer.train()
losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
assert losses[2] < losses[0], losses
trainer.save_model()
AutoModel.from_pretrained(sys.argv[2], trust_remote_code=True)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("clients") / "base")


def tiles(model: InternVLChatModel, count: int) -> Tensor:
    size = model.config.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def rows(model: InternVLChatModel, tokenizer: Any, count: int = 4) -> list[dict[str, Tensor]]:
    """Samples of one tile and a short text, as a data set of somebody else's holds them."""
    context = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    model.img_context_token_id = context
    ids = torch.tensor([65, *[context] * model.num_image_token, 66, 67, 68, 69])
    labels = ids.clone()
    labels[:-3] = -100
    return [
        {
            "pixel_values": tile,
            "input_ids": ids,
            "labels": labels,
            "attention_mask": torch.ones_like(ids),
            "image_flags": torch.tensor([1]),
        }
        for tile in tiles(model, count)
    ]


def test_peft_alone_trains_saves_loads_and_merges(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_fp32(base), AutoTokenizer.from_pretrained(base)
    sample = rows(model, tokenizer, 1)[0]
    batch = {name: value.unsqueeze(0) for name, value in sample.items()}
    batch["pixel_values"] = sample["pixel_values"].unsqueeze(0)
    targets = ["q_proj", "v_proj", "attn.qkv"]
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, lora_dropout=0.0))
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        loss = adapted(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[2] < losses[0]
    wanted = adapted.eval().chat(tokenizer, batch["pixel_values"], "Hi", GREEDY)
    adapted.save_pretrained(tmp_path / "adapter")
    written = load_fp32(tmp_path / "adapter")
    assert written.chat(tokenizer, batch["pixel_values"], "Hi", GREEDY) == wanted
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_fp32(tmp_path / "merged")
    merged.img_context_token_id = written.img_context_token_id
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, written(**batch).logits)


def test_auto_peft_model_takes_what_peft_saved_without_our_help(base: Path, tmp_path: Path) -> None:
    model = get_peft_model(AutoModel.from_pretrained(base), LoraConfig(target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    library = "internvl_chat.model.modeling_internvl_chat"
    again = AutoPeftModel.from_pretrained(tmp_path, import_allowlist=[library])
    assert isinstance(again.get_base_model(), InternVLChatModel)


def test_transformers_trainer(base: Path, tmp_path: Path) -> None:
    model, tokenizer = load_fp32(base), AutoTokenizer.from_pretrained(base)
    data = rows(model, tokenizer)
    with torch.no_grad():
        losses = [model(**{k: v.unsqueeze(0) for k, v in row.items()}).loss for row in data[:2]]
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            learning_rate=1e-2,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=data[:2],  # the same two in every step
        eval_dataset=data[:2],
        processing_class=tokenizer,
    )
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(sum(losses)) / 2, rel=1e-5)
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged[0] == pytest.approx(float(sum(losses)) / 2, abs=1e-4)
    assert logged[2] < logged[0]
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModel.from_pretrained(tmp_path / "saved", dtype=torch.float32).eval()
    saved.img_context_token_id = model.img_context_token_id
    with torch.no_grad():
        row = {name: value.unsqueeze(0) for name, value in data[0].items()}
        torch.testing.assert_close(saved(**row).logits, model.eval()(**row).logits)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["5", "4"])
def test_trl(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Its entropy and accuracy want logits beside the loss in training mode."""
    folders = [overlay(request, "trl", TRL)]
    if version == "4":
        from tests.integration.test_transformers4 import PACKAGES

        folders.append(overlay(request, "transformers4", PACKAGES))
    environment = {
        **os.environ,
        "PYTHONPATH": search_path(*folders),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-P", "-c", SFT, str(SHIPPED), str(tmp_path / "out")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


class EvaluationSuite:
    """How evaluation suites wrap the published model: loaded whole, one question at a time."""

    def __init__(self, path: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
        self.model = AutoModel.from_pretrained(
            path,
            torch_dtype=torch.float32,
            load_in_8bit=False,
            low_cpu_mem_usage=True,
            use_flash_attn=True,
            trust_remote_code=True,
        ).eval()

    def ask(self, pictures: list[Tensor], question: str) -> str:
        """As VLMEvalKit does: numbered pictures, an empty list of them for text alone."""
        counts = [len(picture) for picture in pictures]
        if len(pictures) > 1:
            names = "".join(f"Image-{n}: <image>\n" for n in range(1, len(pictures) + 1))
            question = names + question
        elif pictures:
            question = f"<image>\n{question}"
        return self.model.chat(
            tokenizer=self.tokenizer,
            pixel_values=torch.cat(pictures) if pictures else None,
            num_patches_list=counts,
            question=question,
            generation_config={**GREEDY, "top_p": None},
            verbose=True,
        )

    def ask_video(self, frames: Tensor, question: str) -> tuple[str, Any]:
        """As lmms-eval does: a line a frame, history asked for and thrown away."""
        lines = "".join(f"Frame{n + 1}: <image>\n" for n in range(len(frames)))
        return self.model.chat(
            self.tokenizer,
            frames,
            lines + question,
            {**GREEDY, "num_beams": 1, "temperature": 0.0},
            num_patches_list=[1] * len(frames),
            history=None,
            return_history=True,
        )


def test_wrappers_of_evaluation_suites(base: Path) -> None:
    suite = EvaluationSuite(base)
    model, tokenizer = suite.model, suite.tokenizer
    first, second = tiles(model, 5).split([2, 3])
    assert suite.ask([], "Hi") == model.chat(tokenizer, None, "Hi", GREEDY)
    assert suite.ask([first], "Hi") == model.chat(tokenizer, first, "Hi", GREEDY)
    both = model.chat(
        tokenizer,
        torch.cat([first, second]),
        "Image-1: <image>\nImage-2: <image>\nHi",
        GREEDY,
        num_patches_list=[2, 3],
    )
    assert suite.ask([first, second], "Hi") == both
    answer, history = suite.ask_video(second, "Hi")
    assert history[-1][1] == answer
