"""One copy of the weights for all ranks of a machine that compute on its CPU.

Weights that are stored as they are computed with are mapped from their files, and the ranks share
the pages. Others are converted, and each rank would hold a copy of its own: so the first rank of a
machine writes them down once in the dtype of computing, and all of them map that.
"""

from __future__ import annotations

import logging
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from internvl_chat.checkpoint.sources import find_sources, is_adapter
from internvl_chat.checkpoint.surgery.export import export
from internvl_chat.checkpoint.tensor_files import numel
from internvl_chat.config import SourceConfig
from internvl_chat.train.distributed import DistributedState, agree

logger = logging.getLogger(__name__)

_SHARD_BYTES = 128 * 10**6
"""Of a file: that much of the first rank's memory is used, and perhaps kept, while it writes."""
_SPARE = 1.05
"""Free disk space that is wanted, as a multiple of the weights."""


@contextmanager
def shared_weights(checkpoint: str, dtype: torch.dtype, state: DistributedState) -> Iterator[str]:
    """A checkpoint of the same model whose weights the ranks can share; load it while inside.

    Args:
        checkpoint: a chat checkpoint of any kind.
        dtype: of computing.
        state: of this rank.

    Yields:
        ``checkpoint`` itself where nothing is gained: one rank, a GPU, nothing to convert, an
        adapter (which merging would round otherwise), or no room for the files.
    """
    if not _is_copied(checkpoint, dtype, state):
        yield checkpoint
        return
    own = agree(state, lambda: _converted(checkpoint, dtype) if state.local_rank == 0 else None)
    try:
        yield _of_this_machine(own, state) or checkpoint
        dist.barrier()  # all have mapped it; mapped files outlive their names
    finally:
        if own is not None:
            shutil.rmtree(own.parent, ignore_errors=True)


def _is_copied(checkpoint: str, dtype: torch.dtype, state: DistributedState) -> bool:
    """Whether each rank would hold a converted copy."""
    if state.world_size == 1 or state.device.type != "cpu" or is_adapter(Path(checkpoint)):
        return False
    sources = find_sources(SourceConfig.whole(checkpoint))
    config = sources.config
    has_lora = config.use_llm_lora or config.use_backbone_lora or config.lora
    if has_lora or hasattr(config, "quantization_config"):
        return False
    stored = {one.dtype for one in sources.tensors.values() if one.dtype.is_floating_point}
    return stored != {dtype}


def _converted(checkpoint: str, dtype: torch.dtype) -> Path | None:
    """The checkpoint in another dtype, alone in a new temporary folder; None without room."""
    folder = Path(tempfile.mkdtemp(prefix="internvl-chat-eval-"))
    sources = find_sources(SourceConfig.whole(checkpoint))
    wanted = sum(numel(one.shape) for one in sources.tensors.values()) * dtype.itemsize * _SPARE
    free = shutil.disk_usage(folder).free
    if free < wanted:
        logger.warning(
            "%s has %.1f GB free, %.1f GB are wanted: each rank holds a copy of the weights; "
            "TMPDIR names another folder",
            folder.parent,
            free / 1e9,
            wanted / 1e9,
        )
        folder.rmdir()
        return None
    place = folder / "weights"
    export(checkpoint, str(place), dtype=dtype, max_shard_bytes=_SHARD_BYTES)
    return place


def _of_this_machine(own: Path | None, state: DistributedState) -> str | None:
    """What the first rank of this machine has written; None if it has not."""
    mine = (socket.gethostname(), None if own is None else str(own))
    places: list[tuple[str, str | None]] = [mine] * state.world_size
    dist.all_gather_object(places, mine)
    return next((path for host, path in places if host == mine[0] and path is not None), None)
