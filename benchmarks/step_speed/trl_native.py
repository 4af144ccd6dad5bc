"""TRL's SFTTrainer on transformers' own InternVLForConditionalGeneration of the same size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    PreTrainedTokenizerFast,
    TrainerCallback,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from trl import SFTConfig, SFTTrainer

from . import workload as wl

# <image> becomes the processor's placeholder; question and answer are plain strings.
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class ImageTextProcessor(InternVLProcessor):
    """Without the video part, which needs torchvision, and with one tile an image, as we train."""

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = wl.NUM_IMAGE_TOKEN,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            image_processor,
            tokenizer,
            None,
            image_seq_length=image_seq_length,
            chat_template=chat_template,
            **kwargs,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # The class's own default would cut a 320x240 image into 13 tiles.
        return super().__call__(*args, **{"crop_to_patches": False, **kwargs})


class _Clock(TrainerCallback):
    """Wall time from the end of one step to the end of the next: data loading included."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())


class _Counting:
    """A collator that notes how many tokens each batch holds."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.tokens: list[int] = []
        self.padded: list[int] = []
        self.supervised: list[int] = []

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        self.tokens.append(int(batch["attention_mask"].sum()))
        self.padded.append(batch["attention_mask"].numel())
        self.supervised.append(int((batch["labels"] != -100).sum()))
        return batch


def build_model(image_token_id: int) -> InternVLForConditionalGeneration:
    """The same sizes as our checkpoint: 37.14 M parameters, random weights."""
    vision = wl.VISION
    config = InternVLConfig(
        vision_config={
            "hidden_size": vision["hidden_size"],
            "num_hidden_layers": vision["num_hidden_layers"],
            "num_attention_heads": vision["num_attention_heads"],
            "intermediate_size": vision["intermediate_size"],
            "image_size": [wl.IMAGE_SIZE, wl.IMAGE_SIZE],
            "patch_size": [vision["patch_size"], vision["patch_size"]],
            "use_qk_norm": True,
            "norm_type": "rms_norm",
            "attention_bias": False,
        },
        text_config=wl.LLM,
        image_token_id=image_token_id,
        image_seq_length=wl.NUM_IMAGE_TOKEN,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return InternVLForConditionalGeneration(config)


def build_dataset(workload: wl.Workload) -> Dataset:
    """Prompt, completion and image paths (decoded when a sample is read)."""
    rows: dict[str, list[Any]] = {"prompt": [], "completion": [], "images": []}
    for record in workload.records():
        question = record["conversations"][0]["value"].removeprefix("<image>\n")
        rows["prompt"].append(
            [
                {"role": "system", "content": record["system"]},
                {"role": "user", "content": question},
            ]
        )
        answer = record["conversations"][1]["value"]
        rows["completion"].append([{"role": "assistant", "content": answer}])
        rows["images"].append([str(workload.root / record["image"])])
    message = {"role": Value("string"), "content": Value("string")}
    features = Features(
        {"prompt": List(message), "completion": List(message), "images": List(Image())}
    )
    return Dataset.from_dict(rows, features=features)


def run(
    workload: wl.Workload, output_dir: Path, *, num_steps: int, checkpointing: bool
) -> dict[str, Any]:
    """Train ``num_steps`` steps of ``MICRO_BATCH_SIZE`` rows and time each."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        workload.model_dir,
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<quad>",  # the class wants one; no video here
        },
    )
    size = {"height": wl.IMAGE_SIZE, "width": wl.IMAGE_SIZE}
    processor = ImageTextProcessor(
        GotOcr2ImageProcessorPil(crop_to_patches=False, size=size),
        tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
    clock = _Clock()
    trainer = SFTTrainer(
        model=build_model(processor.image_token_id),
        args=SFTConfig(
            output_dir=str(output_dir),
            per_device_train_batch_size=wl.MICRO_BATCH_SIZE,
            max_steps=num_steps,
            learning_rate=wl.LEARNING_RATE,
            weight_decay=wl.WEIGHT_DECAY,
            max_grad_norm=wl.MAX_GRAD_NORM,
            lr_scheduler_type="constant",
            gradient_checkpointing=checkpointing,
            max_length=None,
            completion_only_loss=True,
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=build_dataset(workload),
        processing_class=processor,
        callbacks=[clock],
    )
    trainer.data_collator = counting = _Counting(trainer.data_collator)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "step_seconds": [b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False)],
        "losses": losses,
        "tokens": counting.tokens[:num_steps],
        "padded": counting.padded[:num_steps],
        "supervised": counting.supervised[:num_steps],
    }
