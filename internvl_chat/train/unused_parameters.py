"""After step 1: every trainable group has received a gradient, or the run stops."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from internvl_chat.checkpoint.lora import parameter_group
from internvl_chat.errors import ConfigError

logger = logging.getLogger(__name__)


class UnusedParameterCheck:
    """Looks at each trainable group until it has seen a non-zero gradient, then steps aside.

    It listens at the leaves of the graph, before DeepSpeed reduces or partitions anything, so it
    works the same under DDP and every ZeRO stage and needs no gathered parameter. Groups fed by
    images are judged only after a step that held images.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handles: dict[str, list[Any]] = {}
        self._seen: dict[str, Tensor] = {}
        self._has_images = False

    @property
    def active(self) -> bool:
        """Whether any group is still unconfirmed."""
        return bool(self._handles)

    def attach(self, *, resumed: bool = False) -> None:
        """Listen at every trainable parameter; not after a resume, whose first run did."""
        if resumed:
            return
        for name, parameter in self._model.named_parameters():
            if parameter.requires_grad:
                group = parameter_group(name)
                self._handles.setdefault(group, []).append(
                    parameter.register_hook(self._listener(group))
                )

    def _listener(self, group: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            # NaN counts as seen: non-finite numbers have their own error.
            found = (gradient != 0).any()
            before = self._seen.get(group)
            self._seen[group] = found if before is None else before | found

        return note

    def expect_images(self, has_images: bool) -> None:
        """Tell whether the coming step holds images, on any rank."""
        self._has_images = has_images

    def check(self, step: int, world_size: int, device: torch.device) -> None:
        """Judge the step that just ended. All ranks call it.

        Raises:
            ConfigError: a group that trains got no gradient anywhere.
        """
        groups = sorted(self._handles)
        flags = torch.tensor(
            [float(self._seen.get(group, torch.tensor(False))) for group in groups], device=device
        )
        if world_size > 1:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        dead = []
        for group, flag in zip(groups, flags.tolist(), strict=True):
            fed_by_images = group == "mlp1" or group.startswith("vision_model")
            if flag:
                for handle in self._handles.pop(group):
                    handle.remove()
            elif self._has_images or not fed_by_images:
                dead.append(group)
        self._seen.clear()
        if dead:
            raise ConfigError(
                f"no gradient reached {', '.join(dead)} in step {step}, although it should train",
                fix="Freeze it, or look for what cuts it off from the loss.",
            )
        if not self._handles:
            logger.info("every trainable group received a gradient by step %d", step)
