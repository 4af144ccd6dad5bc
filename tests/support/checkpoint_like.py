"""Files that look like a checkpoint to the argument checks; nothing to load."""

from __future__ import annotations

import json
from pathlib import Path


def checkpoint_like(directory: Path) -> Path:
    """config.json of a chat model (patch 7, three layers) and a tokenizer file."""
    directory.mkdir(parents=True)
    vision = {"patch_size": 7, "num_hidden_layers": 3}
    config = {"model_type": "internvl_chat", "vision_config": vision}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    return directory
