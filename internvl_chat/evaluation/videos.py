"""Another number of frames than a task's own."""

from __future__ import annotations

from dataclasses import replace

from internvl_chat.data.video import expand_video_tag
from internvl_chat.evaluation.task import Question
from internvl_chat.model.constants import VIDEO_TAG


def with_segments(question: Question, num_segments: int) -> Question:
    """The same question about so many frames of its video; others are left as they are."""
    clip = question.video
    if clip is None or clip.num_segments == num_segments:
        return question
    tag = f"{VIDEO_TAG}\n"
    before, after = (expand_video_tag(tag, n) for n in (clip.num_segments, num_segments))
    return replace(
        question,
        prompt=question.prompt.replace(before, after, 1),
        earlier=tuple((asked.replace(before, after, 1), said) for asked, said in question.earlier),
        video=replace(clip, num_segments=num_segments),
    )
