"""Loading a checkpoint strictly, with or without an adapter, and LoRA layers inside the model.

This file travels inside checkpoints, so it imports nothing of its package but its neighbours.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from .configuration_intern_vit import TRANSFORMERS

LORA_VISION_TARGETS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]

LORA_DROPOUT = 0.05
"""Of new adapters, with an alpha of twice the rank: as the original has it."""

_LORA_LLM_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_OLD_LORA_NAMES = {
    rf"(base_model\.model\..*\.{target})\.{kind}": rf"\1.base_layer.{kind}"
    for target in (*LORA_VISION_TARGETS, *_LORA_LLM_TARGETS, "qkv_proj", "gate_up_proj")
    for kind in ("weight", "bias")
}
"""Wrapped layers in checkpoints of PEFT before 0.7, as transformers' ``key_mapping``."""

_ADAPTER_NAME_IN_KEY = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)\.default(?=\.|$)"
)

_MAPS_NAMES = TRANSFORMERS >= (4, 50)
"""Whether ``from_pretrained`` takes ``key_mapping``; else such old checkpoints are refused."""

_LORA_MODULES = ("lora_A.default", "lora_B.default")

ADAPTER_CONFIG_NAME = "adapter_config.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
OLD_ADAPTER_WEIGHTS_NAME = "adapter_model.bin"

COMPUTED_BUFFERS = re.compile(r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.position_ids$")
"""Names of buffers that older libraries saved and that are computed nowadays."""


class AdapterMixin(PreTrainedModel):
    """Loading, and LoRA layers in the towers, of a model with a vision and a language model."""

    vision_model: Any
    language_model: Any
    complete_generation_config: Any

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Load a checkpoint; see :meth:`transformers.PreTrainedModel.from_pretrained`.

        ``load_in_8bit=True``, which transformers 5 no longer knows, becomes a bitsandbytes
        configuration that leaves ``lm_head`` and ``mlp1`` as they are; ``load_in_4bit=True`` one
        of nf4, as QLoRA trains on, that quantises the language model's layers alone (InternViT-6B
        does not survive 4 bits). ``use_flash_attn=True`` becomes
        ``attn_implementation="flash_attention_2"`` where flash-attn is installed. LoRA
        checkpoints of PEFT before 0.7 (no ``base_layer`` in the names) load too.

        Raises:
            ValueError: weights are missing or left over. transformers alone would make up the
                missing ones and say so in a log; ``output_loading_info=True`` returns its report
                instead of raising.
        """
        path = pretrained_model_name_or_path
        if path is not None and is_adapter(path):
            return cls._from_adapter(path, *args, **kwargs)
        adapter = (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
        if TRANSFORMERS < (5, 0) and adapter is not None and is_adapter(adapter):
            # AutoModel has gone to the base by itself, and taken the base's configuration.
            return cls._from_adapter(adapter, *args, **{**kwargs, "config": None})
        if TRANSFORMERS < (5, 0) and path is not None:
            config = kwargs.get("config") or cls.config_class.from_pretrained(path)
            _refuse_dropped_head(path, config)
        if _MAPS_NAMES:
            kwargs["key_mapping"] = {**_OLD_LORA_NAMES, **(kwargs.get("key_mapping") or {})}
        if kwargs.pop("load_in_8bit", False) and kwargs.get("quantization_config") is None:
            kwargs["quantization_config"] = BitsAndBytesConfig(
                load_in_8bit=True,
                llm_int8_skip_modules=["lm_head", "mlp1", *_LORA_MODULES],
            )
        if kwargs.pop("load_in_4bit", False) and kwargs.get("quantization_config") is None:
            kwargs["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16,
                llm_int8_skip_modules=["vision_model", "lm_head", "mlp1", *_LORA_MODULES],
            )
        if kwargs.pop("use_flash_attn", False) and is_flash_attn_2_available():
            kwargs.setdefault("attn_implementation", "flash_attention_2")
        wants_report = kwargs.pop("output_loading_info", False)
        model, report = super().from_pretrained(path, *args, output_loading_info=True, **kwargs)
        model.complete_generation_config()
        _refuse_quantised_adapter(model)
        if wants_report:
            return model, report
        if path is not None:  # else the caller's state_dict, what is missing in it made anew
            _require_every_weight(path, report["missing_keys"], report["unexpected_keys"])
        return model

    @classmethod
    def _from_adapter(cls, adapter: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Load the checkpoint that an adapter was trained on, then the adapter."""
        values = json.loads(Path(adapter, ADAPTER_CONFIG_NAME).read_text(encoding="utf-8"))
        named, found = find_adapter_base(adapter, values)
        base = str(found or named)  # transformers may know where else to look: on the hub
        at = {"revision": values["revision"]} if found is None and values.get("revision") else {}
        kwargs.pop("adapter_kwargs", None)
        has_config = os.path.isfile(os.path.join(adapter, "config.json"))  # PEFT writes none
        config = kwargs.pop("config", None) or cls.config_class.from_pretrained(
            adapter if has_config else base, **({} if has_config else at)
        )
        config.use_llm_lora = config.use_backbone_lora = 0  # the base has no wrapped layers
        config.lora = None
        wants_report = kwargs.pop("output_loading_info", False)
        model = cls.from_pretrained(base, *args, config=config, **{**kwargs, **at})
        _refuse_offload(model, adapter)
        given = _renamed_weights(Path(adapter))
        # transformers 4 reads a file where it is told of one, whatever else is given; it returns
        # nothing, and only logs what was missing or left over.
        named_file = None if given and TRANSFORMERS < (5, 0) else str(adapter)
        report = model.load_adapter(named_file, **given)
        _settle_dora(model, adapter)
        values = _adapter_report(model, adapter) if report is None else report.to_dict()
        if wants_report:
            return model, values
        _require_every_weight(adapter, values["missing_keys"], values["unexpected_keys"])
        return model

    def wrap_backbone_lora(
        self, r: int = 128, lora_alpha: int | None = None, lora_dropout: float = LORA_DROPOUT
    ) -> None:
        """Put LoRA layers on attention and MLP of the vision tower and freeze the rest of it."""
        self.vision_model = _wrap_lora(
            self.vision_model, LORA_VISION_TARGETS, r, lora_alpha, lora_dropout
        )
        self.config.use_backbone_lora = r

    def wrap_llm_lora(
        self, r: int = 128, lora_alpha: int | None = None, lora_dropout: float = LORA_DROPOUT
    ) -> None:
        """Put LoRA layers on all linear layers of the decoder and freeze the rest of the LLM.

        Args:
            r: rank.
            lora_alpha: scale numerator; twice the rank by default.
            lora_dropout: on the adapters' input.
        """
        head = self.get_output_embeddings()
        targets = sorted(
            {
                name.rsplit(".", 1)[-1]
                for name, module in self.language_model.named_modules()
                if isinstance(module, nn.Linear) and module is not head
            }
        )
        self.language_model = _wrap_lora(
            self.language_model, targets, r, lora_alpha, lora_dropout, task_type="CAUSAL_LM"
        )
        self.config.use_llm_lora = r
        tied: dict[str, str] = getattr(self, "all_tied_weights_keys", {})
        self.all_tied_weights_keys = {
            _inside_lora(target): _inside_lora(source) for target, source in tied.items()
        }

    def inject_lora(self, settings: Mapping[str, Any]) -> None:
        """Put LoRA layers into the whole model by PEFT's own settings, and freeze the rest.

        Args:
            settings: of ``peft.LoraConfig``, names and patterns as seen from this model.
        """
        peft = _import_peft()
        peft.inject_adapter_in_model(peft.LoraConfig(**settings), self)
        self.config.lora = dict(settings)


def has_model_weights(directory: str | os.PathLike[str]) -> bool:
    """Whether the directory holds a model's weights, not just an adapter's."""
    patterns = ("model*.safetensors", "pytorch_model*.bin")
    return any(next(Path(directory).glob(pattern), None) is not None for pattern in patterns)


def is_adapter(directory: str | os.PathLike[str]) -> bool:
    """Whether the directory holds an adapter alone, the weights of its base being elsewhere."""
    return (Path(directory) / ADAPTER_CONFIG_NAME).is_file() and not has_model_weights(directory)


def find_adapter_base(
    directory: str | os.PathLike[str], adapter_config: Mapping[str, Any]
) -> tuple[str, Path | None]:
    """The checkpoint that an adapter was trained on.

    Args:
        directory: of the adapter.
        adapter_config: contents of its ``adapter_config.json``.

    Returns:
        The base's name as written there, and where it lies: there, seen from here or from the
        adapter, beside the adapter, or in the hub's cache, in the revision that is written there;
        ``None`` if it is in none of these places.

    Raises:
        ValueError: no base is named.
    """
    named = adapter_config.get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise ValueError("names no base_model_name_or_path")
    adapter = Path(os.path.abspath(directory))
    for candidate in (Path(named), adapter / named, adapter.parent / Path(named).name):
        if (candidate / "config.json").is_file():
            return named, candidate
    return named, _in_hub_cache(named, adapter_config.get("revision"))


def _in_hub_cache(name: str, revision: object) -> Path | None:
    """The folder that the hub's cache has of ``ORG/NAME``; asks no network."""
    from huggingface_hub import try_to_load_from_cache

    repo, _, written = name.removeprefix("hf://").partition("@")
    wanted = written or (revision if isinstance(revision, str) and revision else None)
    try:
        found = try_to_load_from_cache(repo, "config.json", revision=wanted)
    except ValueError:  # it is no model's name, but a path
        return None
    return Path(found).parent if isinstance(found, str) else None


def plain_adapter_key(key: str) -> str:
    """The key that PEFT gives an adapter's weight today.

    Checkpoints saved by way of ``model.state_dict()`` (DeepSpeed's, for one) hold the adapter's
    name in it, and modules trained whole in the place where PEFT keeps them.
    """
    return _ADAPTER_NAME_IN_KEY.sub(r".\1", key.replace(".modules_to_save.default.", "."))


def _key_for_loading(key: str) -> str:
    """The key under which ``load_adapter`` finds a weight.

    transformers 5 puts the adapter's name behind all of DoRA's key, which PEFT writes without the
    parameter's own name.
    """
    plain = plain_adapter_key(key)
    is_cut = TRANSFORMERS >= (5, 0) and plain.endswith(".lora_magnitude_vector")
    return f"{plain}.weight" if is_cut else plain


def _renamed_weights(adapter: Path) -> dict[str, Any]:
    """What ``load_adapter`` needs beside the path where the file has another name or other keys.

    transformers 5 looks for PEFT's former ``.bin`` and then for a safetensors file all the same.
    Only plain tensors are unpickled, so the file can run no code.
    """
    from peft import PeftConfig

    path, old = adapter / ADAPTER_WEIGHTS_NAME, adapter / OLD_ADAPTER_WEIGHTS_NAME
    if path.is_file():
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
        if keys == [_key_for_loading(key) for key in keys]:
            return {}
        state = load_file(path)
    elif old.is_file():
        state = torch.load(old, map_location="cpu", weights_only=True)
    else:
        return {}
    return {
        "adapter_state_dict": {_key_for_loading(key): value for key, value in state.items()},
        "peft_config": PeftConfig.from_pretrained(str(adapter)),
    }


def _require_every_weight(
    path: str | os.PathLike[str], missing: set[str], unexpected: set[str]
) -> None:
    surplus = [name for name in sorted(unexpected) if not COMPUTED_BUFFERS.search(name)]
    complaints = [
        f"{len(names)} {what}: {', '.join(sorted(names)[:10])}"
        for what, names in (("missing", missing), ("left over", surplus))
        if names
    ]
    if complaints:
        raise ValueError(
            f"{path}: weights {'; '.join(complaints)}. Check that config.json and the weights "
            "belong together and are complete"
        )


def _adapter_report(model: nn.Module, adapter: str | os.PathLike[str]) -> dict[str, set[str]]:
    """Which weights of an adapter the model lacks, and which of its own the files lack.

    By their names, as PEFT writes them, after :meth:`load_adapter` has put them in.
    """
    from peft import load_peft_weights

    keys = map(plain_adapter_key, load_peft_weights(str(adapter)))
    stored = {key.removeprefix("base_model.model.") for key in keys}
    wanted = {
        plain_adapter_key(name)
        for name in model.state_dict()
        if ".lora_" in name or ".modules_to_save.default." in name
    }
    return {"missing_keys": wanted - stored, "unexpected_keys": stored - wanted}


def _refuse_dropped_head(path: str | os.PathLike[str], config: Any) -> None:
    """Where ``config.json`` ties a head that the files hold with values of its own.

    transformers 5 keeps such a head, 4 drops it in silence.
    """
    if not getattr(config.llm_config, "tie_word_embeddings", False):
        return
    tables: dict[str, torch.Tensor] = {}
    for name in sorted(Path(path).glob("model*.safetensors")):
        with safe_open(name, "pt") as file:
            for key in file.keys():  # noqa: SIM118, no dictionary
                if key.endswith(("lm_head.weight", "embed_tokens.weight")):
                    tables[key.rsplit(".", 2)[-2]] = file.get_tensor(key)
    if len(tables) == 2 and not tables["lm_head"].equal(tables["embed_tokens"]):
        raise ValueError(
            f"{path}: config.json ties lm_head to the token embeddings, and the files hold another "
            "one. transformers 4 would drop it: set llm_config.tie_word_embeddings to false, or "
            "load with transformers 5"
        )


def _refuse_offload(model: Any, adapter: str | os.PathLike[str]) -> None:
    """Offloaded weights are brought by hooks that know nothing of LoRA layers added later."""
    places = set(map(str, getattr(model, "hf_device_map", {}).values()))
    if "disk" in places or ("cpu" in places and len(places) > 1):
        raise ValueError(
            f"{adapter}: parts of its base model would lie on {' and '.join(sorted(places))}, and "
            "an adapter does not work on offloaded weights. Merge it first (internvl-chat "
            "merge-lora)"
        )


def _settle_dora(model: nn.Module, adapter: str | os.PathLike[str]) -> None:
    """DoRA reads the weight under it, which quantised layers on a CPU do not leave as it is.

    bitsandbytes packs 4 bits anew where the CPU has a kernel for it, and the weight reads wrong
    from then on: not under DoRA. PEFT loses the scales of an int8 weight when it reads it.
    """
    for module in model.modules():
        layer: Any = getattr(module, "base_layer", None)
        if layer is None or not getattr(module, "lora_magnitude_vector", None):
            continue
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
        if layer.weight.dtype == torch.int8 and layer.weight.device.type == "cpu":
            raise ValueError(
                f"{adapter}: DoRA does not work on int8 layers on a CPU. Load it in 4 bits "
                "(load_in_4bit) or whole, or merge it first (internvl-chat merge-lora)"
            )


def _refuse_quantised_adapter(model: nn.Module) -> None:
    """LoRA layers in int8 would take their inputs rounded to int8, and answer nonsense."""
    for name, parameter in model.named_parameters():
        if ".lora_A." in name and not parameter.is_floating_point():
            raise ValueError(
                f"{name} was quantised. Add {', '.join(map(repr, _LORA_MODULES))} to "
                "llm_int8_skip_modules, or merge the LoRA weights first"
            )


def _wrap_lora(
    model: Any,
    targets: Sequence[str],
    r: int,
    lora_alpha: int | None,
    lora_dropout: float,
    task_type: str | None = None,
) -> Any:
    """Wrap a tower with PEFT, as the original checkpoints have it."""
    if hasattr(model, "get_base_model"):
        raise ValueError(f"{type(model.get_base_model()).__name__} has LoRA layers already")
    peft = _import_peft()
    settings = peft.LoraConfig(
        r=r,
        target_modules=list(targets),
        lora_alpha=2 * r if lora_alpha is None else lora_alpha,
        lora_dropout=lora_dropout,
        task_type=task_type,
    )
    # The adapter has the tower's dtype, as in the original checkpoints; under ZeRO-3 a cast here
    # would change placeholders and not the shards.
    return peft.get_peft_model(model, settings, autocast_adapter_dtype=False)


def _import_peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ImportError as err:
        raise ImportError("LoRA layers need the package peft: pip install peft") from err


def _inside_lora(key: str) -> str:
    """A language model's parameter name after the model was wrapped."""
    prefix = "language_model."
    return f"{prefix}base_model.model.{key.removeprefix(prefix)}" if key.startswith(prefix) else key
