"""What a run decides, in the values that the rooms below pass on: each field declared once.

A config is checked when it is built, before a file of weights or a device is touched, and tells
all that is wrong with it in one :class:`ConfigError`. No field has a default here: the defaults of
a run are those of its flags (``train/arguments.py``, which also says which flag becomes which
field), and those of a checkpoint are its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, get_args

from internvl_chat.errors import ConfigError

if TYPE_CHECKING:
    import torch

AttentionKernel = Literal["auto", "flash_attention_2", "sdpa", "eager"]
"""What computes attention; ``auto`` takes the best that is installed."""
NormalizeType = Literal["imagenet", "clip", "siglip"]
"""Names of pixel statistics; the numbers are ``model.constants.NORMALIZATION``."""
ImageBackend = Literal["pillow", "fast"]
"""What decodes image files; see :class:`DecodeConfig`."""
LossReduction = Literal["token", "sample", "square"]
OrderMode = Literal["random", "grouped", "packed"]
ORDER_RULE = 2
"""Of the order of an epoch, as new runs follow it; 1 is that of checkpoints that name none."""
VideoBackend = Literal["decord", "pyav", "torchcodec"]
"""Libraries that read video files."""
_VIDEO_MODULES: Final[dict[VideoBackend, str]] = {
    "decord": "decord",
    "pyav": "av",
    "torchcodec": "torchcodec",
}
VIDEO_BACKEND_FIXES: Final[dict[VideoBackend, str]] = {
    "decord": "pip install decord (Linux on x86-64, Windows), or choose --video_backend pyav "
    "(pip install av).",
    "pyav": "pip install av, or choose --video_backend decord.",
    "torchcodec": "Install the torchcodec that belongs to this torch, or choose another.",
}
"""What to do where a backend is missing."""

MAX_IMAGE_PIXELS: Final = 178_956_970
"""Width x height by default: twice ``PIL.Image.MAX_IMAGE_PIXELS``, where Pillow itself refuses."""


def is_installed(backend: VideoBackend) -> bool:
    """Whether the library of that name is there; it may still fail to load."""
    return find_spec(_VIDEO_MODULES[backend]) is not None


def default_video_backend() -> VideoBackend:
    """decord, or, where it is not installed, PyAV, which gives the same frames (docs/data.md).

    Without either decord, for the error of the first video to name it.
    """
    return "pyav" if is_installed("pyav") and not is_installed("decord") else "decord"


def video_note(backend: VideoBackend) -> str | None:
    """A line to begin with where another library than decord was chosen for the user."""
    if backend == "pyav" == default_video_backend():
        return "videos are read by PyAV: decord is not installed"
    return None


def video_backend_problem(backend: VideoBackend) -> str | None:
    """A sentence, with its mend, for a backend that was asked for and is not installed.

    The default passes everywhere: who has no videos needs no reader.
    """
    if backend == default_video_backend() or is_installed(backend):
        return None
    return f"{backend} is not installed. {VIDEO_BACKEND_FIXES[backend]}"


def require(problems: Iterable[str]) -> None:
    """Raise one error that tells all problems, if there are any.

    Raises:
        ConfigError: there is at least one.
    """
    found = list(problems)
    if found:
        raise ConfigError.listing(found)


class _Checked:
    """A config that tells all that is wrong with it when it is built."""

    def __post_init__(self) -> None:
        require(self._problems())

    def _problems(self) -> Iterator[str]:
        """A sentence or two for each problem, with its mend."""
        raise NotImplementedError


def _positive(config: object, flags: dict[str, str]) -> Iterator[str]:
    """A sentence for every field of ``flags`` (field name -> flag) that is not above zero."""
    for name, flag in flags.items():
        if getattr(config, name) <= 0:
            yield f"--{flag} {getattr(config, name)}: want a number > 0."


def _ascending(low: tuple[str, int], high: tuple[str, int]) -> Iterator[str]:
    if not 1 <= low[1] <= high[1]:
        yield f"--{low[0]} {low[1]} and --{high[0]} {high[1]}: want 1 <= smallest <= largest."


# ---- the model ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SourceConfig(_Checked):
    """Where the weights come from: one chat checkpoint, or the parts of a new model."""

    model_name_or_path: str | None
    """A chat checkpoint: whole, with LoRA weights inside, or adapter-only."""
    vision_path: str | None
    """An InternViT checkpoint, or a chat checkpoint whose vision tower is taken."""
    llm_path: str | None
    """A causal LLM's checkpoint, or a chat checkpoint whose LLM is taken."""
    mlp_path: str | None
    """A projector file; None with ``llm_path`` starts from random numbers."""

    def _problems(self) -> Iterator[str]:
        parts = {name: getattr(self, name) for name in ("vision_path", "llm_path", "mlp_path")}
        given = [f"--{name}" for name, path in parts.items() if path]
        if self.model_name_or_path:
            if given:
                yield (
                    f"--model_name_or_path is a whole model, yet {' and '.join(given)} given too. "
                    "Give one or the other."
                )
        elif not given:
            yield (
                "no model: give --model_name_or_path, or --vision_path and --llm_path "
                "(and --mlp_path)."
            )
        else:
            for name in ("vision_path", "llm_path"):
                if not parts[name]:
                    yield (
                        f"--{name} is missing: a model is stitched from a vision tower and an LLM."
                    )

    @classmethod
    def whole(cls, path: str) -> SourceConfig:
        """A chat checkpoint."""
        return cls(model_name_or_path=path, vision_path=None, llm_path=None, mlp_path=None)

    @classmethod
    def parts(cls, *, vision_path: str, llm_path: str, mlp_path: str | None) -> SourceConfig:
        """A model to be stitched."""
        return cls(
            model_name_or_path=None, vision_path=vision_path, llm_path=llm_path, mlp_path=mlp_path
        )

    @property
    def tokenizer_path(self) -> str:
        """Where the tokenizer's files are: beside the language model."""
        path = self.model_name_or_path or self.llm_path
        assert path, "__post_init__ has seen one of them"
        return path


@dataclass(frozen=True, kw_only=True)
class ShapeConfig(_Checked):
    """What a run may change about a checkpoint's shape."""

    vision_select_layer: int
    """Vision layer whose output is projected; -1 is the last."""
    drop_path_rate: float
    """Stochastic depth of the last vision layer."""
    ps_version: Literal["v1", "v2"]
    """Of the pixel shuffle."""
    down_sample_ratio: float
    """Of the pixel shuffle, per side: 0.5 keeps a quarter of the tokens."""
    template: str
    """Name of the chat template."""

    def _problems(self) -> Iterator[str]:
        if not 0 <= self.drop_path_rate < 1:
            yield f"--drop_path_rate {self.drop_path_rate}: want 0 <= rate < 1."
        ratio = self.down_sample_ratio
        if not 0 < ratio <= 1:
            yield f"--down_sample_ratio {ratio}: want 0 < ratio <= 1."
        elif abs(1 / ratio - round(1 / ratio)) > 1e-6:
            yield f"--down_sample_ratio {ratio}: want 1 over a whole number, such as 0.5 or 0.25."


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What a run says of its adapter beside the ranks: fields of ``peft.LoraConfig``.

    None and the empty tuple say nothing: the adapter that a checkpoint carries keeps its own value,
    a new one has alpha twice its rank, dropout 0.05 and sits on every linear layer.
    """

    alpha: float | None
    """Numerator of the scale, for every rank of the run."""
    dropout: float | None
    """On the adapters' input."""
    target_modules: tuple[str, ...]
    """Layers of the LLM: names, or one regular expression, or ``all-linear``."""
    use_rslora: bool | None
    """Scale by alpha / sqrt(r) instead of alpha / r."""
    use_dora: bool | None
    """Train the length of each row beside its direction."""
    modules_to_save: tuple[str, ...]
    """Modules that train whole and are stored in the adapter's file."""

    def given(self) -> list[str]:
        """The flags that say something, each with its value."""
        flags = {
            "lora_alpha": self.alpha,
            "lora_dropout": self.dropout,
            "lora_target_modules": " ".join(self.target_modules) or None,
            "use_rslora": self.use_rslora,
            "use_dora": self.use_dora,
            "modules_to_save": " ".join(self.modules_to_save) or None,
        }
        return [f"--{name} {value}" for name, value in flags.items() if value is not None]

    def problems(self) -> Iterator[str]:
        """A sentence for each value that no adapter can have."""
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            yield f"--lora_alpha {self.alpha:g}: want a number > 0; twice the rank is usual."
        if self.dropout is not None and not 0 <= self.dropout < 1:
            yield f"--lora_dropout {self.dropout:g}: want 0 <= dropout < 1."


@dataclass(frozen=True, kw_only=True)
class TrainableConfig(_Checked):
    """Which weights train."""

    freeze_llm: bool
    freeze_mlp: bool
    freeze_backbone: bool
    unfreeze_vit_layers: int
    """Train these last vision layers of a frozen tower (-2: the last two); 0 for none."""
    unfreeze_lm_head: bool
    use_llm_lora: int
    """Rank of the LLM's adapter, 0 for none."""
    use_backbone_lora: int
    """Rank of the vision tower's adapter, 0 for none."""
    lora: LoraSettings
    """Of both adapters, which are one to PEFT; only the target modules are the LLM's alone."""

    def _problems(self) -> Iterator[str]:
        yield from self.lora.problems()
        yield from self._lora_without_rank()
        for name, frozen in (
            ("use_llm_lora", "freeze_llm"),
            ("use_backbone_lora", "freeze_backbone"),
        ):
            rank = getattr(self, name)
            if rank < 0:
                yield f"--{name} {rank}: a rank is 0 (none) or more."
            if rank and not getattr(self, frozen):
                yield (
                    f"--{name} {rank} on weights that train themselves. Add --{frozen} True, "
                    f"or drop --{name}."
                )
        if not self.parts:
            yield (
                "nothing trains: LLM, projector and backbone are frozen. Drop one of --freeze_llm, "
                "--freeze_mlp, --freeze_backbone, or add LoRA."
            )
        if self.unfreeze_vit_layers and not self.freeze_backbone:
            yield (
                "--unfreeze_vit_layers has no effect: the backbone trains whole. Add "
                "--freeze_backbone True or drop it."
            )
        if self.unfreeze_lm_head and not self.freeze_llm:
            yield (
                "--unfreeze_lm_head has no effect: the LLM trains whole. Add --freeze_llm True or "
                "drop it."
            )

    def _lora_without_rank(self) -> Iterator[str]:
        given = self.lora.given()
        if given and not (self.use_llm_lora or self.use_backbone_lora):
            yield (
                f"{' '.join(given)} without LoRA. Add --use_llm_lora and a rank, 16 for one (and "
                "--freeze_llm True), or leave it out."
            )
        elif self.lora.target_modules and not self.use_llm_lora:
            yield (
                f"--lora_target_modules {' '.join(self.lora.target_modules)} names layers of the "
                "LLM, which gets no LoRA. Add --use_llm_lora, or leave it out: the vision tower's "
                "adapter sits on all its linear layers."
            )

    @property
    def parts(self) -> frozenset[str]:
        """What trains, by name; empty if nothing does."""
        chosen = {
            "llm": not self.freeze_llm,
            "mlp": not self.freeze_mlp,
            "backbone": not self.freeze_backbone,
            "vit_layers": self.unfreeze_vit_layers,
            "lm_head": self.unfreeze_lm_head,
            "llm_lora": self.use_llm_lora,
            "backbone_lora": self.use_backbone_lora,
        }
        return frozenset(name for name, trains in chosen.items() if trains)


# ---- images and text ----------------------------------------------------------------------------

WHITE: Final = (255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(_Checked):
    """How an image file becomes RGB: keys of a checkpoint's ``preprocessor_config.json``.

    One rule for training, chat, serving and evaluation. transformers' processors pass over the
    keys; ``rgba_background_color`` is vLLM's name for the same.
    """

    apply_exif_orientation: bool
    """Turn and mirror as the EXIF orientation says, as every viewer does."""
    rgba_background_color: tuple[int, int, int] | None
    """What shows through transparent pixels; None drops the alpha channel, so that the colours
    hidden under it show, black in most files."""
    image_backend: ImageBackend
    """``pillow`` decodes every pixel; ``fast`` decodes JPEG by simplejpeg, large ones at a reduced
    size that is no smaller than the tiles."""

    def _problems(self) -> Iterator[str]:
        if self.image_backend not in get_args(ImageBackend):
            known = ", ".join(get_args(ImageBackend))
            yield f"--image_backend {self.image_backend}: want one of {known}."

    @classmethod
    def as_shown(
        cls, *, image_backend: ImageBackend = "pillow", apply_exif_orientation: bool = True
    ) -> DecodeConfig:
        """What viewers show, transparency on white: the rule of new fine-tunes."""
        return cls(
            apply_exif_orientation=apply_exif_orientation,
            rgba_background_color=WHITE,
            image_backend=image_backend,
        )

    @classmethod
    def as_stored(cls) -> DecodeConfig:
        """No orientation, alpha dropped: how the published checkpoints were trained."""
        return cls(apply_exif_orientation=False, rgba_background_color=None, image_backend="pillow")

    @classmethod
    def of_preprocessor(cls, values: Mapping[str, Any]) -> DecodeConfig:
        """By the keys of a ``preprocessor_config.json``; :meth:`as_stored` where they are missing.

        Raises:
            ConfigError: a key has a value of another kind.
        """
        turns = values.get("apply_exif_orientation", False)
        colour = values.get("rgba_background_color")
        backend = values.get("image_backend", "pillow")
        problems = []
        if not isinstance(turns, bool):
            problems.append(f'"apply_exif_orientation" is {turns!r}. Want true or false.')
        if colour is not None and not _is_colour(colour):
            problems.append(f'"rgba_background_color" is {colour!r}. Want [255, 255, 255] or null.')
        if backend not in get_args(ImageBackend):
            known = " or ".join(get_args(ImageBackend))
            problems.append(f'"image_backend" is {backend!r}. Want {known}.')
        require(problems)
        return cls(
            apply_exif_orientation=turns,
            rgba_background_color=None if colour is None else tuple(colour),
            image_backend=backend,
        )

    def stored(self) -> dict[str, Any]:
        """What of it a chat checkpoint's ``preprocessor_config.json`` keeps."""
        colour = self.rgba_background_color
        return {
            "apply_exif_orientation": self.apply_exif_orientation,
            "rgba_background_color": None if colour is None else list(colour),
            "image_backend": self.image_backend,
        }


def _is_colour(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(type(level) is int and 0 <= level <= 255 for level in value)
    )


class _StoredImageOptions(Protocol):
    """What a chat checkpoint's configuration stores of its images (InternVLChatConfig has it)."""

    image_size: int
    pad2square: bool
    dynamic_image_size: bool
    use_thumbnail: bool
    min_dynamic_patch: int
    max_dynamic_patch: int


@dataclass(frozen=True, kw_only=True)
class ImageConfig(_Checked):
    """How an image becomes tiles, and these numbers."""

    image_size: int
    """Side S of a tile in pixels."""
    pad2square: bool
    """Pad with the mean colour to a square instead of squeezing."""
    dynamic_image_size: bool
    """Cut an image into tiles by its aspect ratio."""
    use_thumbnail: bool
    """Add the whole image where it has several tiles."""
    min_dynamic_patch: int
    max_dynamic_patch: int
    """Tiles per sample, shared by its images; the thumbnail comes on top."""
    normalize_type: NormalizeType
    """Mean and standard deviation of the pixels."""
    decode: DecodeConfig
    """How files become RGB before that."""

    def _problems(self) -> Iterator[str]:
        yield from _positive(self, {"image_size": "force_image_size"})
        yield from _ascending(
            ("min_dynamic_patch", self.min_dynamic_patch),
            ("max_dynamic_patch", self.max_dynamic_patch),
        )
        if self.normalize_type not in get_args(NormalizeType):
            known = ", ".join(get_args(NormalizeType))
            yield f"--normalize_type {self.normalize_type}: want one of {known}."

    @classmethod
    def of_checkpoint(
        cls,
        stored: _StoredImageOptions,
        *,
        normalize_type: NormalizeType,
        decode: DecodeConfig,
    ) -> ImageConfig:
        """As a chat checkpoint was trained.

        Args:
            stored: its configuration.
            normalize_type, decode: by its ``preprocessor_config.json``.
        """
        return cls(
            image_size=stored.image_size,
            pad2square=bool(stored.pad2square),
            dynamic_image_size=bool(stored.dynamic_image_size),
            use_thumbnail=bool(stored.use_thumbnail),
            min_dynamic_patch=stored.min_dynamic_patch,
            max_dynamic_patch=stored.max_dynamic_patch,
            normalize_type=normalize_type,
            decode=decode,
        )

    @classmethod
    def squeezed(
        cls,
        *,
        image_size: int,
        max_tiles: int,
        use_thumbnail: bool,
        normalize_type: NormalizeType,
        decode: DecodeConfig,
    ) -> ImageConfig:
        """One image squeezed into a tile, or cut into up to ``max_tiles`` of them."""
        return cls(
            image_size=image_size,
            pad2square=False,
            dynamic_image_size=max_tiles > 1,
            use_thumbnail=use_thumbnail,
            min_dynamic_patch=1,
            max_dynamic_patch=max_tiles,
            normalize_type=normalize_type,
            decode=decode,
        )

    def stored(self) -> dict[str, Any]:
        """What of it a chat checkpoint's ``config.json`` keeps."""
        return {
            "force_image_size": self.image_size,
            "pad2square": self.pad2square,
            "dynamic_image_size": self.dynamic_image_size,
            "use_thumbnail": self.use_thumbnail,
            "min_dynamic_patch": self.min_dynamic_patch,
            "max_dynamic_patch": self.max_dynamic_patch,
        }

    def tile_budget(self, num_images: int, max_dynamic_patch: int | None) -> int:
        """Tiles that each of ``num_images`` images of one record may use.

        Args:
            num_images: of the record.
            max_dynamic_patch: the dataset's own limit; None takes the run's.
        """
        limit = self.max_dynamic_patch if max_dynamic_patch is None else max_dynamic_patch
        return max(1, limit // max(num_images, 1))


@dataclass(frozen=True, kw_only=True)
class MediaConfig(_Checked):
    """How image and video files are read."""

    images: ImageConfig
    min_num_frame: int
    """Fewest frames of a video."""
    max_num_frame: int
    strict_root: bool
    """Also refuse paths whose symbolic links lead out of a dataset's root."""
    max_image_pixels: int
    """Larger images are bad records."""
    video_backend: VideoBackend
    """Reads video files; not GIFs and folders of frames."""

    def _problems(self) -> Iterator[str]:
        yield from _positive(self, {"max_image_pixels": "max_image_pixels"})
        yield from _ascending(
            ("min_num_frame", self.min_num_frame), ("max_num_frame", self.max_num_frame)
        )
        if self.video_backend not in get_args(VideoBackend):
            known = ", ".join(get_args(VideoBackend))
            yield f"--video_backend {self.video_backend}: want one of {known}."
        elif problem := video_backend_problem(self.video_backend):
            yield f"--video_backend {self.video_backend}: {problem}"


@dataclass(frozen=True, kw_only=True)
class EncodeConfig(_Checked):
    """How conversations become ids."""

    conv_style: str
    """Name of the chat template."""
    system_message: str | None
    """Replaces the template's own, unless the record brings one."""
    num_image_token: int
    """K: ids per tile."""
    max_seq_length: int
    """Ids beyond it are cut."""

    def _problems(self) -> Iterator[str]:
        yield from _positive(
            self, {"num_image_token": "num_image_token", "max_seq_length": "max_seq_length"}
        )


# ---- data and its order -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class DataConfig(_Checked):
    """Which records, and how they become samples."""

    meta_path: str
    encode: EncodeConfig
    media: MediaConfig
    use_data_resampling: bool
    """Draw datasets by the root of their size."""
    max_bad_ratio: float
    """Share of bad records that stops the run."""
    max_samples: int | None
    """Most records of a dataset, the first ones; a meta's own smaller number goes before."""

    def _problems(self) -> Iterator[str]:
        if not self.meta_path:
            yield "--meta_path is missing: the JSON that lists the datasets."
        if self.max_samples is not None and self.max_samples < 1:
            yield f"--max_samples {self.max_samples}: want a whole number >= 1."
        if not 0 <= self.max_bad_ratio <= 1:
            yield f"--max_bad_ratio {self.max_bad_ratio}: want a share between 0 and 1."


VAL_SPLIT_SEED: Final = 42
"""Where none is given."""


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(_Checked):
    """How much of the training data is held out, and by which seed it is drawn."""

    amount: float
    """Below 1 a share of every dataset, else a number of records of every dataset."""
    split_seed: int

    def _problems(self) -> Iterator[str]:
        amount = self.amount
        if not (0 < amount < 1 or (1 <= amount < math.inf and amount == int(amount))):
            yield (
                f"--val_split {amount:g}: want a share of every dataset between 0 and 1, or a "
                "whole number of records of every dataset."
            )
        if not 0 <= self.split_seed < 2**32:
            yield f"--val_split_seed {self.split_seed}: want a whole number from 0 to 2**32 - 1."

    def num_wanted(self, num_records: int) -> int:
        """How many of a dataset's records are held out, as nearly as images allow.

        At least one of two; a number of records is at most half of the dataset.
        """
        if num_records < 2:
            return 0
        if self.amount >= 1:
            return min(int(self.amount), num_records // 2)
        return min(max(round(self.amount * num_records), 1), num_records - 1)


@dataclass(frozen=True, kw_only=True)
class OrderConfig(_Checked):
    """How the samples of an epoch are put into batches."""

    mode: OrderMode
    """As shuffled, by length, or several samples a row."""
    max_packed_tokens: int | None
    """Limit of a pack, with ``packed``."""
    max_packed_tiles: int | None
    """A second limit of a pack; a single sample may exceed it."""
    drop_last: bool
    """Leave out what does not fill a step."""
    rule: int
    """Which of the rules that there have been: a run goes on under the one it began with."""

    def _problems(self) -> Iterator[str]:
        for name in ("max_packed_tokens", "max_packed_tiles"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                yield f"--{name} {value}: want a number > 0."

    @property
    def packed(self) -> bool:
        """Whether a row holds several samples."""
        return self.mode == "packed"


# ---- together -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """What a chat model is to be built from, and how."""

    source: SourceConfig
    shape: ShapeConfig
    images: ImageConfig
    trainable: TrainableConfig
    dtype: torch.dtype
    """Of the weights that train."""
    frozen_dtype: torch.dtype
    """Of those that do not; the same where DeepSpeed holds the model."""
    attn_implementation: str | dict[str, str] | None
    """A name that transformers' attention interface knows, or one for each sub-configuration;
    None leaves it the choice."""
    seed: int
    """Of newly made weights (projector, LoRA): the same at every number of ranks."""
    load_in_4bit: bool
    """The LLM's linear layers in nf4, what is frozen besides in bf16, what trains in ``dtype``."""
