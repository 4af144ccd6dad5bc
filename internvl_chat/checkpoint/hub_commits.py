"""Which commit of a model on the hub: that of now, or the one that an earlier start recorded."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from internvl_chat.checkpoint.hub import is_offline, local_model
from internvl_chat.checkpoint.hub_names import HubName, hub_name, portable_name
from internvl_chat.errors import Attempt

logger = logging.getLogger("internvl_chat.checkpoint.hub")  # one level for all of it

_LOOK_SECONDS: Final = 5.0


def pinned_model(name: str | os.PathLike[str]) -> str:
    """A model's name with the commit that it has now, its settings fetched; a path as it is.

    So that a branch which moves meanwhile makes no other model of it when its weights are fetched.

    Raises:
        CheckpointError: as :func:`local_model`.
    """
    return portable_name(local_model(name, "settings"))


def pinned_before(name: str, recorded: Iterable[object]) -> str | None:
    """The name with the commit that an earlier start had; warns where it has moved since then.

    Args:
        name: as it is given now.
        recorded: what is written of earlier starts, the one that counts first.

    Returns:
        None if the name says a commit itself, is a path, or was none of those.
    """
    model = hub_name(name)
    if model is None or model.commit:
        return None
    for one in recorded:
        earlier = hub_name(one) if isinstance(one, str) else None
        if earlier is None or not earlier.commit:
            continue
        if replace(earlier, revision=None) == replace(model, revision=None):
            _tell_of_newer(model, earlier)
            return str(earlier)
    return None


def _tell_of_newer(model: HubName, earlier: HubName) -> None:
    now = current_commit(model)
    if now is not None and now != earlier.revision:
        logger.warning(
            "%s is commit %s on the hub now; this goes on with %s, which it began with. For the "
            "new one give %s and another folder",
            model,
            now,
            earlier.revision,
            replace(model, revision=now),
        )


def current_commit(name: HubName) -> str | None:
    """Commit that a revision has on the hub now; None where that cannot be learned at once."""
    from huggingface_hub import HfApi

    if is_offline():
        return None
    commit = None
    with Attempt() as attempt:  # what keeps from asking is no matter here
        info = HfApi().model_info(name.repo, revision=name.revision, timeout=_LOOK_SECONDS)
        commit = info.sha
    if attempt.error is not None:
        logger.debug("%s: %s", name, attempt.error)
    return commit
