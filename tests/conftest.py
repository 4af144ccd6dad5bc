"""What holds for all tests: none asks the network for a model."""

from __future__ import annotations

import os

# A name that is no path may be a model on the hub. Tests of that have a stand-in for it.
os.environ["HF_HUB_OFFLINE"] = "1"

from tests.support.hub_fixtures import hub, hub_cache

__all__ = ["hub", "hub_cache"]
