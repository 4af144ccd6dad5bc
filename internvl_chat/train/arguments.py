"""What a fine-tuning run can be told, and which flag becomes which field of a config.

Names are those of the original recipes. The command line is read in ``parsing.py`` and checked in
``validation.py``; the classes here hold the values, their defaults and their help, and the
functions below them are the one table from flags to the configs of ``internvl_chat.config``.
Loads neither torch nor transformers: help and completion read it. transformers' own arguments join
in ``trainer_arguments.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from internvl_chat.config import (
    MAX_IMAGE_PIXELS,
    ORDER_RULE,
    VAL_SPLIT_SEED,
    AttentionKernel,
    BuildConfig,
    DataConfig,
    DecodeConfig,
    EncodeConfig,
    HeldOutConfig,
    ImageBackend,
    ImageConfig,
    LoraSettings,
    LossReduction,
    MediaConfig,
    NormalizeType,
    OrderConfig,
    ShapeConfig,
    SourceConfig,
    TrainableConfig,
    VideoBackend,
    default_video_backend,
)

if TYPE_CHECKING:
    import torch

Starts = Mapping[str, str]
"""First flag of a group -> the group; flags up to the next start belong to it, new ones too."""


def _option(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


def _kept_option(default: Any, help_text: str) -> Any:
    """Of ``train/inherited.py``: the default counts for a model made of parts."""
    return _option(default, f"{help_text} A chat checkpoint brings its own.")


@dataclass
class ModelArguments:
    """Which weights, what of them trains, how the model is built."""

    starts: ClassVar[Starts] = {
        "model_name_or_path": "model",
        "freeze_llm": "trainable",
        "use_llm_lora": "lora",
        "vision_select_layer": "model",
        "grad_checkpoint": "optimisation",
        "ps_version": "model",
    }

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
    lora_alpha: float | None = _option(
        None, "LoRA is scaled by alpha / rank (default: alpha twice the rank)."
    )
    lora_dropout: float | None = _option(None, "Dropout on the input of LoRA (default 0.05).")
    lora_target_modules: list[str] | None = _option(
        None,
        "Layers of the LLM that get LoRA: names, a regular expression, or all-linear (default).",
    )
    use_rslora: bool | None = _option(None, "Scale LoRA by alpha / sqrt(rank), for high ranks.")
    use_dora: bool | None = _option(None, "DoRA: train the length of weight rows, too.")
    modules_to_save: list[str] | None = _option(
        None, "Modules that train whole beside LoRA and are stored with it: lm_head, for one."
    )
    load_in_4bit: bool = _option(
        False, "QLoRA: the frozen LLM in 4 bits (nf4, double quantisation, bf16 compute)."
    )

    vision_select_layer: int = _kept_option(-1, "Vision layer whose output is projected.")
    grad_checkpoint: bool = _option(False, "Recompute activations of both towers in backward.")
    drop_path_rate: float = _option(0.0, "Stochastic depth of the last vision layer.")
    ps_version: Literal["v1", "v2"] = _kept_option("v1", "Pixel shuffle; V1-2: v1.")
    attn_implementation: AttentionKernel = _option(
        "auto",
        "Attention kernel of both towers; auto takes torch's own, the fastest that runs here.",
    )
    use_fast_tokenizer: bool = _option(True, "Prefer the Rust tokenizer if the files allow it.")


@dataclass
class DataArguments:
    """Which records, and how they become tensors."""

    starts: ClassVar[Starts] = {
        "meta_path": "data",
        "force_image_size": "images",
        "use_data_resampling": "data",
        "loss_reduction": "optimisation",
        "max_bad_ratio": "data",
    }

    meta_path: str | None = _option(None, "Meta JSON: dataset name -> root, annotation, ...")
    eval_meta_path: str | None = _option(None, "Meta JSON of held-out records: loss by dataset.")
    val_split: float = _option(
        0.0,
        "Hold records of --meta_path out of training, for a loss by dataset: below 1 a share of "
        "every dataset, else so many of every dataset.",
    )
    val_split_seed: int = _option(
        VAL_SPLIT_SEED, "Which records --val_split holds out; --seed does not count."
    )
    max_samples: int | None = _option(
        None, "Take at most the first so many records of every dataset, held-out data too."
    )
    conv_style: str = _kept_option("Hermes-2", "Name of the conversation template.")
    max_seq_length: int = _option(2048, "Longest sample in tokens, image tokens included.")
    force_image_size: int = _kept_option(448, "Side of an image or tile in pixels.")
    down_sample_ratio: float = _kept_option(0.5, "Pixel shuffle: 0.5 keeps a quarter of tokens.")
    pad2square: bool = _kept_option(False, "Pad to a square with the mean colour, not squeeze.")
    dynamic_image_size: bool = _kept_option(False, "Cut an image into tiles by its aspect ratio.")
    use_thumbnail: bool = _kept_option(False, "Add the whole image when there are several tiles.")
    min_dynamic_patch: int = _kept_option(1, "Fewest tiles of an image.")
    max_dynamic_patch: int = _kept_option(1, "Most tiles of an image.")
    min_num_frame: int = _option(8, "Fewest frames of a video.")
    max_num_frame: int = _option(32, "Most frames of a video.")
    video_backend: VideoBackend = _option(
        default_video_backend(), "Library that reads video files; pyav where decord is not there."
    )
    normalize_type: NormalizeType = _kept_option(
        "imagenet", "Mean and standard deviation of the pixels."
    )
    apply_exif_orientation: bool = _option(
        True, "Turn photos as viewers do; boxes follow where a record states the stored size."
    )
    image_backend: ImageBackend = _option(
        "pillow",
        "pillow decodes every pixel; fast decodes JPEG by simplejpeg, large ones at reduced size.",
    )
    use_data_resampling: bool = _option(False, "Draw datasets by the root of their size.")
    use_packed_ds: bool = _option(False, "Put several samples into one row, without padding.")
    max_packed_tokens: int = _option(4096, "Longest packed row in tokens.")
    max_packed_tiles: int | None = _option(
        None, "Most image tiles of a packed row; a single sample may have more."
    )
    pad_to_multiple_of: int | None = _option(
        None, "Round the length of padded rows up (default 1; with --torch_compile 64)."
    )
    loss_reduction: LossReduction = _option(
        "token", "Each token, each sample, or each sample by 1/sqrt(tokens) weighs the same."
    )
    max_bad_ratio: float = _option(0.01, "Share of bad records that stops the run.")
    max_image_pixels: int = _option(MAX_IMAGE_PIXELS, "Larger images are bad records.")
    strict_root: bool = _option(False, "Symbolic links out of a dataset's root are bad records.")


@dataclass
class RunOptions:
    """What is added to transformers' TrainingArguments, or has another default or help there."""

    starts: ClassVar[Starts] = {
        "report_to": "run",
        "remove_unused_columns": "other",
        "overwrite_output_dir": "run",
        "vision_lr": "optimisation",
        "early_stopping_patience": "saving",
    }

    # HfArgumentParser takes the second member of the union for the command line; several names
    # are let through by parsing.py.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="tensorboard", metadata={"help": "none, or trackers: tensorboard, wandb, ..."}
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
    vision_lr: float | None = _option(None, "Rate of the vision tower (default --learning_rate).")
    mlp_lr: float | None = _option(None, "Rate of the projector (default --learning_rate).")
    llm_lr: float | None = _option(None, "Rate of the LLM (default --learning_rate).")
    vit_layer_decay_rate: float = _option(
        1.0, "Factor on the vision tower's rate from each layer to the one before it; 1 for none."
    )
    early_stopping_patience: int | None = _option(
        None,
        "Stop when so many evaluations in a row are no better than the best before; the best "
        "checkpoint becomes the result (--load_best_model_at_end).",
    )
    early_stopping_threshold: float = _option(
        0.0, "By how much --early_stopping_patience wants it better."
    )


# ---- from flags to configs ----------------------------------------------------------------------


def source_config(model: ModelArguments) -> SourceConfig:
    """Where the weights come from."""
    return SourceConfig(
        model_name_or_path=model.model_name_or_path,
        vision_path=model.vision_path,
        llm_path=model.llm_path,
        mlp_path=model.mlp_path,
    )


def shape_config(model: ModelArguments, data: DataArguments) -> ShapeConfig:
    """What the run changes about the checkpoint's shape."""
    return ShapeConfig(
        vision_select_layer=model.vision_select_layer,
        drop_path_rate=model.drop_path_rate,
        ps_version=model.ps_version,
        down_sample_ratio=data.down_sample_ratio,
        template=data.conv_style,
    )


def trainable_config(model: ModelArguments) -> TrainableConfig:
    """Which weights train."""
    return TrainableConfig(
        freeze_llm=model.freeze_llm,
        freeze_mlp=model.freeze_mlp,
        freeze_backbone=model.freeze_backbone,
        unfreeze_vit_layers=model.unfreeze_vit_layers,
        unfreeze_lm_head=model.unfreeze_lm_head,
        use_llm_lora=model.use_llm_lora,
        use_backbone_lora=model.use_backbone_lora,
        lora=LoraSettings(
            alpha=model.lora_alpha,
            dropout=model.lora_dropout,
            target_modules=_listed(model.lora_target_modules),
            use_rslora=model.use_rslora,
            use_dora=model.use_dora,
            modules_to_save=_listed(model.modules_to_save),
        ),
    )


def _listed(words: list[str] | None) -> tuple[str, ...]:
    """Names given apart or with commas between them; a regular expression stays whole."""
    found: list[str] = []
    for word in words or ():
        is_list = re.fullmatch(r"[\w.\-]+(\s*,\s*[\w.\-]+)+,?", word) is not None
        found += [name.strip() for name in word.split(",")] if is_list else [word]
    return tuple(dict.fromkeys(name for name in found if name))


def image_config(data: DataArguments) -> ImageConfig:
    """How an image becomes tiles."""
    return ImageConfig(
        image_size=data.force_image_size,
        pad2square=data.pad2square,
        dynamic_image_size=data.dynamic_image_size,
        use_thumbnail=data.use_thumbnail,
        min_dynamic_patch=data.min_dynamic_patch,
        max_dynamic_patch=data.max_dynamic_patch,
        normalize_type=data.normalize_type,
        decode=DecodeConfig.as_shown(
            image_backend=data.image_backend, apply_exif_orientation=data.apply_exif_orientation
        ),
    )


def build_config(
    model: ModelArguments,
    data: DataArguments,
    *,
    dtype: torch.dtype,
    frozen_dtype: torch.dtype | None = None,
    attn_implementation: str | dict[str, str] | None,
    seed: int,
) -> BuildConfig:
    """What the model is built from, and how; no flag gives the last four as they are.

    Args:
        model, data: the arguments.
        dtype: of the weights that train.
        frozen_dtype: of the others; None for the same.
        attn_implementation, seed: as in :class:`BuildConfig`.
    """
    return BuildConfig(
        source=source_config(model),
        shape=shape_config(model, data),
        images=image_config(data),
        trainable=trainable_config(model),
        dtype=dtype,
        frozen_dtype=dtype if frozen_dtype is None else frozen_dtype,
        attn_implementation=attn_implementation,
        seed=seed,
        load_in_4bit=model.load_in_4bit,
    )


def media_config(data: DataArguments, images: ImageConfig) -> MediaConfig:
    """How image and video files are read."""
    return MediaConfig(
        images=images,
        min_num_frame=data.min_num_frame,
        max_num_frame=data.max_num_frame,
        strict_root=data.strict_root,
        max_image_pixels=data.max_image_pixels,
        video_backend=data.video_backend,
    )


def encode_config(
    data: DataArguments, *, num_image_token: int, system_message: str | None = None
) -> EncodeConfig:
    """How conversations become ids; ``num_image_token`` and ``system_message`` are the model's."""
    return EncodeConfig(
        conv_style=data.conv_style,
        system_message=system_message,
        num_image_token=num_image_token,
        max_seq_length=data.max_seq_length,
    )


def data_config(
    data: DataArguments,
    *,
    num_image_token: int,
    meta_path: str | None,
    system_message: str | None = None,
) -> DataConfig:
    """Which records, and how they become samples.

    Args:
        data: the flags.
        num_image_token: of the model.
        meta_path: ``--meta_path``, or ``--eval_meta_path`` for the held-out records.
        system_message: of the model, in place of its template's.
    """
    return DataConfig(
        meta_path=meta_path or "",
        encode=encode_config(data, num_image_token=num_image_token, system_message=system_message),
        media=media_config(data, image_config(data)),
        use_data_resampling=data.use_data_resampling,
        max_bad_ratio=data.max_bad_ratio,
        max_samples=data.max_samples,
    )


def held_out_config(data: DataArguments) -> HeldOutConfig | None:
    """What of the training data is held out; None for nothing."""
    if data.val_split == 0:
        return None
    return HeldOutConfig(amount=data.val_split, split_seed=data.val_split_seed)


def order_config(
    data: DataArguments, *, grouped: bool, drop_last: bool, rule: int = ORDER_RULE
) -> OrderConfig:
    """How samples are put into batches; ``--use_packed_ds`` goes before ``grouped``."""
    packed = data.use_packed_ds
    return OrderConfig(
        mode="packed" if packed else "grouped" if grouped else "random",
        max_packed_tokens=data.max_packed_tokens if packed else None,
        max_packed_tiles=data.max_packed_tiles if packed else None,
        drop_last=drop_last,
        rule=rule,
    )
