"""What a fine-tuning run can be told. Names are those of the original recipes.

The command line is read in ``parsing.py`` and cross-checked in ``checks.py``; these classes hold
the values and their help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class ModelArguments:
    """Which weights, what of them trains, how the model is built."""

    model_name_or_path: str | None = _option(None, "A whole InternVL-Chat checkpoint to continue.")
    vision_path: str | None = _option(None, "An InternViT checkpoint (with --llm_path).")
    llm_path: str | None = _option(None, "A causal LLM with its tokenizer (with --vision_path).")
    mlp_path: str | None = _option(None, "A projector, .pth or .safetensors; random if not given.")

    freeze_llm: bool = _option(False, "Keep the LLM's weights as they are.")
    freeze_mlp: bool = _option(False, "Keep the projector's weights as they are.")
    freeze_backbone: bool = _option(False, "Keep the vision tower's weights as they are.")
    unfreeze_vit_layers: int = _option(
        0, "Train only these last vision layers (-2: the last two) of a frozen backbone."
    )
    unfreeze_lm_head: bool = _option(False, "Train the output head of a frozen LLM.")
    use_llm_lora: int = _option(0, "Rank of LoRA on the LLM's linear layers; 0 for none.")
    use_backbone_lora: int = _option(0, "Rank of LoRA on the vision tower; 0 for none.")

    vision_select_layer: int = _option(-1, "Vision layer whose output is projected.")
    grad_checkpoint: bool = _option(False, "Recompute activations of both towers in backward.")
    drop_path_rate: float = _option(0.0, "Stochastic depth of the last vision layer.")
    ps_version: Literal["v1", "v2"] = _option("v1", "Pixel shuffle; published V1-2 weights: v1.")
    attn_implementation: Literal["auto", "flash_attention_2", "sdpa", "eager"] = _option(
        "auto", "Attention kernel of both towers; auto takes the best installed."
    )
    use_fast_tokenizer: bool = _option(True, "Prefer the Rust tokenizer if the files allow it.")


@dataclass
class DataArguments:
    """Which records, and how they become tensors."""

    meta_path: str | None = _option(None, "Meta JSON: dataset name -> root, annotation, ...")
    eval_meta_path: str | None = _option(None, "Meta JSON of held-out records: loss by dataset.")
    conv_style: str = _option("Hermes-2", "Name of the conversation template.")
    max_seq_length: int = _option(2048, "Longest sample in tokens, image tokens included.")
    force_image_size: int = _option(448, "Side of an image or tile in pixels.")
    down_sample_ratio: float = _option(0.5, "Pixel-shuffle ratio: 0.5 keeps a quarter of tokens.")
    pad2square: bool = _option(False, "Pad with the mean colour to a square instead of squeezing.")
    dynamic_image_size: bool = _option(False, "Cut an image into tiles by its aspect ratio.")
    use_thumbnail: bool = _option(False, "Add the whole image when there are several tiles.")
    min_dynamic_patch: int = _option(1, "Fewest tiles of an image.")
    max_dynamic_patch: int = _option(1, "Most tiles of an image.")
    min_num_frame: int = _option(8, "Fewest frames of a video.")
    max_num_frame: int = _option(32, "Most frames of a video.")
    normalize_type: Literal["imagenet", "clip", "siglip"] = _option(
        "imagenet", "Mean and standard deviation of the pixels."
    )
    use_data_resampling: bool = _option(False, "Draw datasets by the root of their size.")
    use_packed_ds: bool = _option(False, "Put several samples into one row, without padding.")
    max_packed_tokens: int = _option(4096, "Longest packed row in tokens.")
    loss_reduction: Literal["token", "sample", "square"] = _option(
        "token", "Each token, each sample, or each sample by 1/sqrt(tokens) weighs the same."
    )
    max_bad_ratio: float = _option(0.01, "Share of bad records that stops the run.")
    max_image_pixels: int = _option(178_956_970, "Larger images are bad records.")
    strict_root: bool = _option(False, "Symbolic links out of a dataset's root are bad records.")


@dataclass
class TrainArguments(TrainingArguments):
    """transformers' TrainingArguments, with the defaults of fine-tuning and a few options more."""

    # HfArgumentParser takes the second member of the union for the command line.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "tensorboard (default), none, wandb, ..."}
    )
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Always False: our batches are no table."}
    )
    # A filter would need a host sync per micro batch; non-finite numbers stop the run instead.
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Always False: a non-finite loss stops the run."}
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={"help": "Start anew; older checkpoints stay until the first save."},
    )
    logging_dir: str | None = field(
        default=None, metadata={"help": "TensorBoard files (default OUTPUT_DIR/runs/...)."}
    )

    def __post_init__(self) -> None:
        # accelerate calls gloo on several CPU processes "use_cpu", and transformers refuses bf16
        # on a machine without a GPU unless told that this is meant.
        if not torch.cuda.is_available():
            self.use_cpu = True
        super().__post_init__()

    @property
    def uses_tensorboard(self) -> bool:
        """Whether our own TensorBoard callback writes (transformers' one is not used)."""
        return "tensorboard" in (self.report_to or [])
