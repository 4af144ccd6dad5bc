"""What a model would be asked: to be looked at first when a score is off."""

from __future__ import annotations

from typing import Any

from internvl_chat.evaluation.scoring import load_questions, require_data
from internvl_chat.evaluation.task import DataRoot, Question, Rules, TaskSpec, Tiling


def describe_prompts(
    task: TaskSpec, root: DataRoot, rules: Rules | None, limit: int | None
) -> list[dict[str, Any]]:
    """Questions in the data's order, before the chat template; no image is read.

    Raises:
        ConfigError: data is missing or malformed.
    """
    require_data([task], root, with_folders=False)
    own = rules if rules in task.rules else task.rules[0]
    settings = task.generation_under(own).settings()
    return [
        {
            "id": one.id,
            "prompt": one.prompt,
            "images": list(shown_images(one, dynamic=False, tiling=task.tiling)),
            "settings": settings,
            **_said_before(one),
        }
        for one in load_questions(task, root, own, limit)
    ]


def _said_before(question: Question) -> dict[str, Any]:
    """Earlier rounds and a system message of the question's own, where there are any."""
    told: dict[str, Any] = {}
    if question.earlier:
        told["earlier"] = [list(turn) for turn in question.earlier]
    if question.system_message is not None:
        told["system_message"] = question.system_message
    return told


def shown_images(question: Question, *, dynamic: bool, tiling: Tiling) -> tuple[str | int, ...]:
    """What ``pixels.load_tiles`` would read: paths, or the number of frames of a video."""
    if question.video is not None:
        return (question.video.num_segments,)
    images = question.images
    if tiling == "enlarge_first" and not dynamic:
        images = images[:1]
    return tuple(source.label for source in images)
