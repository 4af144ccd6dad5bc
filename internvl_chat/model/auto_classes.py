"""Our model among transformers' Auto classes, as soon as there are any.

Importing the package must not import transformers, and torch with it: a post-import hook (as PEP
369 describes) registers the model when transformers is imported, or at once where it is already.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from wrapt import register_post_import_hook

_CONFIGS = {
    "configuration_intern_vit": "InternVisionConfig",
    "configuration_internvl_chat": "InternVLChatConfig",
}
_MODELS = {
    "modeling_intern_vit": "InternVisionModel",
    "modeling_internvl_chat": "InternVLChatModel",
}
WATCHED = _CONFIGS | _MODELS | {"adapter": "AdapterMixin", "generation": "GenerateMixin"}
"""The modules that registering imports and that import transformers -> a name they define."""


def register_when_imported() -> None:
    """Register configurations and models once transformers is imported."""
    for name in ("transformers", *(f"{__package__}.{module}" for module in WATCHED)):
        register_post_import_hook(_register, name)


def _register(_: ModuleType) -> None:
    """Register, unless one of our own modules is half imported: its own hook runs later."""
    if "transformers" not in sys.modules or any(
        _is_half_imported(module, name) for module, name in WATCHED.items()
    ):
        return
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    configs = [_get(module, name) for module, name in _CONFIGS.items()]
    models = [_get(module, name) for module, name in _MODELS.items()]
    for config, model in zip(configs, models, strict=True):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
    AutoModelForCausalLM.register(configs[-1], models[-1], exist_ok=True)


def _is_half_imported(module: str, name: str) -> bool:
    loaded = sys.modules.get(f"{__package__}.{module}")
    return loaded is not None and not hasattr(loaded, name)


def _get(module: str, name: str) -> Any:
    return getattr(import_module(f".{module}", __package__), name)
