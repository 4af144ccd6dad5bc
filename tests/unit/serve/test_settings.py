"""What a server allows."""

from __future__ import annotations

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.serve.settings import EngineSettings, RequestLimits


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="--max-queue: max_queue is 0"):
        EngineSettings(max_queue=0)
    with pytest.raises(ConfigError, match="--max-images"):
        RequestLimits(max_images=0)
