"""The VQA family: OK-VQA, TextVQA, VizWiz, ChartQA, DocVQA, AI2D, InfographicVQA, GQA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from internvl_chat.evaluation.metrics.gqa import clean_prediction
from internvl_chat.evaluation.task import DataFile, Generation, Rules, TaskSpec
from internvl_chat.evaluation.tasks.vqa_frame import (
    RecordPart,
    VqaSplit,
    export,
    load,
    read_answers,
    score,
)
from internvl_chat.evaluation.tasks.vqa_scoring import (
    read_document_answers,
    read_gqa_questions,
    read_human_answers,
    score_anls,
    score_exact,
    score_gqa,
    score_relaxed,
    score_vqa,
)
from internvl_chat.evaluation.tasks.wording import SHORT

VIZWIZ = f"When the provided information is insufficient, respond with 'Unanswerable'. {SHORT}"

ROW = "JSON lines: image (path from the working directory), question, question_id"
ROW_WITH_ANSWER = f"{ROW}, answer (text or list of texts)"
HUMAN_ANSWERS = "JSON: annotations, a list of question_id and ten answers"
DOCUMENT_ANSWERS = "JSON: dataset_name and data, a list of questionId and answers"
GQA_QUESTIONS = "JSON, id: answer, question, isBalanced, types, groups, semantic (the official one)"

VQA_FIELDS: Mapping[str, RecordPart] = {
    "question": "prompt",
    "question_id": "id",
    "answer": "answer",
}
DOCUMENT_FIELDS: Mapping[str, RecordPart] = {
    "question": "prompt",
    "questionId": "id",
    "answer": "answer",
    "annotation": "annotation",
}
CHART_FIELDS: Mapping[str, RecordPart] = {
    "question": "prompt",
    "answer": "answer",
    "annotation": "annotation",
}


def _submission(pairs: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    """What https://rrc.cvc.uab.es takes."""
    return [{"questionId": identity, "answer": answer} for identity, answer in pairs]


def _gqa_predictions(pairs: Sequence[tuple[Any, str]]) -> list[dict[str, Any]]:
    """What the official script of GQA takes."""
    return [{"questionId": one, "prediction": clean_prediction(answer)} for one, answer in pairs]


def _human_split(key: str, questions: str, annotation: str, images: str, suffix: str) -> VqaSplit:
    return VqaSplit(
        key=key,
        questions=questions,
        images=images,
        suffix=suffix,
        fields=VQA_FIELDS,
        scorer=score_vqa,
        annotation=annotation,
        annotation_format=HUMAN_ANSWERS,
        read_annotation=read_human_answers,
    )


def _chart_split(half: str) -> VqaSplit:
    return VqaSplit(
        key=f"chartqa_test_{half}",
        questions=f"data/chartqa/test_{half}.jsonl",
        images="data/chartqa/ChartQA Dataset/test/png",
        suffix=SHORT,
        fields=CHART_FIELDS,
        scorer=score_relaxed,
        checkpoint_in_summary=False,
    )


TEXTVQA_ANNOTATION = "data/textvqa/textvqa_val_annotations.json"
TEXTVQA_IMAGES = "data/textvqa/train_images"
OKVQA_VAL = _human_split(
    "okvqa_val",
    "data/okvqa/okvqa_val.jsonl",
    "data/okvqa/mscoco_val2014_annotations.json",
    "data/okvqa/val2014",
    SHORT,
)
TEXTVQA_VAL = _human_split(
    "textvqa_val", "data/textvqa/textvqa_val.jsonl", TEXTVQA_ANNOTATION, TEXTVQA_IMAGES, SHORT
)
TEXTVQA_VAL_OCR = _human_split(
    "textvqa_val_ocr",
    "data/textvqa/textvqa_val_llava.jsonl",
    TEXTVQA_ANNOTATION,
    TEXTVQA_IMAGES,
    SHORT,
)
VIZWIZ_VAL = _human_split(
    "vizwiz_val",
    "data/vizwiz/vizwiz_val.jsonl",
    "data/vizwiz/vizwiz_val_annotations.json",
    "data/vizwiz/val",
    VIZWIZ,
)
VIZWIZ_TEST = VqaSplit(
    key="vizwiz_test",
    questions="data/vizwiz/vizwiz_test.jsonl",
    images="data/vizwiz/test",
    suffix=VIZWIZ,
    fields={"image": "id", "answer": "answer"},
    scorer=None,
    id_prefix="data/vizwiz/test/",
)
CHARTQA_HUMAN = _chart_split("human")
CHARTQA_AUGMENTED = _chart_split("augmented")
DOCVQA_VAL = VqaSplit(
    key="docvqa_val",
    questions="data/docvqa/val.jsonl",
    images="data/docvqa/val",
    suffix=SHORT,
    fields=DOCUMENT_FIELDS,
    scorer=score_anls,
    annotation="data/docvqa/val/val_v1.0.json",
    annotation_format=DOCUMENT_ANSWERS,
    read_annotation=read_document_answers,
    escapes_answers=False,
)
DOCVQA_TEST = VqaSplit(
    key="docvqa_test",
    questions="data/docvqa/test.jsonl",
    images="data/docvqa/test",
    suffix=SHORT,
    fields={"questionId": "id", "answer": "answer"},
    scorer=None,
)
AI2D_TEST = VqaSplit(
    key="ai2diagram_test",
    questions="data/ai2diagram/test_vlmevalkit.jsonl",
    images="data/ai2diagram/AI2D_TEST",
    suffix="",
    fields={"question": "prompt", "image": "id", "answer": "answer", "annotation": "annotation"},
    scorer=score_exact,
)
INFOVQA_VAL = VqaSplit(
    key="infographicsvqa_val",
    questions="data/infographicsvqa/val.jsonl",
    images="data/infographicsvqa/infographicsvqa_images",
    suffix=SHORT,
    fields=DOCUMENT_FIELDS,
    scorer=score_anls,
    annotation="data/infographicsvqa/infographicsVQA_val_v1.0_withQT.json",
    annotation_format=f"{DOCUMENT_ANSWERS}, answer_type, evidence, operation/reasoning",
    read_annotation=read_document_answers,
    escapes_answers=False,
)
INFOVQA_TEST = VqaSplit(
    key="infographicsvqa_test",
    questions="data/infographicsvqa/test.jsonl",
    images="data/infographicsvqa/infographicsvqa_images",
    suffix=SHORT,
    fields=DOCUMENT_FIELDS,
    scorer=None,
    submission=_submission,
    submission_name="infographicsvqa_test_submission_{stamp}.json",
    escapes_answers=False,
)
GQA_TESTDEV = VqaSplit(
    key="gqa_testdev_llava",
    questions="data/gqa/llava_gqa_testdev_balanced_qwen_format.jsonl",
    images="data/gqa/images",
    suffix=SHORT,
    fields=DOCUMENT_FIELDS,
    scorer=score_gqa,
    annotation="data/gqa/testdev_balanced_questions.json",
    annotation_format=GQA_QUESTIONS,
    read_annotation=read_gqa_questions,
    submission=_gqa_predictions,
    submission_name="testdev_balanced_predictions.json",
)


def _task(
    name: str,
    title: str,
    splits: tuple[VqaSplit, ...],
    *,
    metric: str,
    source: str,
    published: str,
    max_new_tokens: int,
    official: str = "",
) -> TaskSpec:
    """``official``: what those rules change, where they change anything."""
    is_scored = all(split.scorer is not None for split in splits)
    differences: Mapping[Rules, str] = {"official": official} if official and is_scored else {}
    return TaskSpec(
        id=name,
        suite="internvl",
        title=title,
        data=_data(splits),
        load=partial(load, splits),
        generation=Generation(max_new_tokens=max_new_tokens),
        metric=metric if is_scored else f"{metric}, by the server",
        score=partial(score, splits) if is_scored else None,
        rules=("2024", *differences),
        rule_differences=differences,
        export=partial(export, splits),
        read_answers=partial(read_answers, splits),
        original_flags={"--few-shot": False},
        published=published,
        source=source,
    )


def _data(splits: Sequence[VqaSplit]) -> tuple[DataFile, ...]:
    files = []
    for split in splits:
        own = not split.annotation and split.scorer is not None
        files.append(DataFile(path=split.questions, format=ROW_WITH_ANSWER if own else ROW))
        if split.annotation:
            files.append(DataFile(path=split.annotation, format=split.annotation_format))
        files.append(DataFile(path=split.images, format="the images", is_folder=True))
    return tuple(dict.fromkeys(files))


_human = partial(
    _task,
    metric="VQA accuracy",
    max_new_tokens=10,
    official="a comma goes between digits alone and is a space elsewhere: `red,blue` is two words; "
    "periods go however many there are",
)
_chart = partial(
    _task,
    metric="relaxed accuracy",
    max_new_tokens=100,
    official="the 5 % are those of the right answer, not of the model's",
    source="https://github.com/vis-nlp/ChartQA",
)
_document = partial(
    _task,
    metric="ANLS",
    max_new_tokens=100,
    official="the edit distance is divided by the length of the texts that are compared, so that "
    "surplus white space no longer helps",
    source="https://rrc.cvc.uab.es/?ch=17",
)
_TEXTVQA = "https://textvqa.org"
_VIZWIZ = "https://vizwiz.org/tasks-and-datasets/vqa"

VQA_TASKS: tuple[TaskSpec, ...] = (
    _human(
        "vqa-okvqa-val",
        "OK-VQA validation",
        (OKVQA_VAL,),
        published="0.6763864447086718",
        source="https://okvqa.allenai.org",
    ),
    _human(
        "vqa-textvqa-val",
        "TextVQA validation",
        (TEXTVQA_VAL,),
        published="0.7118800000000035",
        source=_TEXTVQA,
    ),
    _human(
        "vqa-textvqa-val-ocr",
        "TextVQA validation with OCR tokens",
        (TEXTVQA_VAL_OCR,),
        published="0.7410400000000032",
        source=_TEXTVQA,
    ),
    _human(
        "vqa-vizwiz-val",
        "VizWiz validation",
        (VIZWIZ_VAL,),
        published="0.6134950914563562",
        source=_VIZWIZ,
    ),
    _human(
        "vqa-vizwiz-test",
        "VizWiz test",
        (VIZWIZ_TEST,),
        published="0.595",
        source=_VIZWIZ,
    ),
    _chart(
        "vqa-chartqa-test",
        "ChartQA test",
        (CHARTQA_HUMAN, CHARTQA_AUGMENTED),
        published="72.8",
    ),
    _chart(
        "vqa-chartqa-test-human",
        "ChartQA test, questions by people",
        (CHARTQA_HUMAN,),
        published="0.5772",
    ),
    _chart(
        "vqa-chartqa-test-augmented",
        "ChartQA test, generated questions",
        (CHARTQA_AUGMENTED,),
        published="0.8796",
    ),
    _document("vqa-docvqa-val", "DocVQA validation", (DOCVQA_VAL,), published="0.5689"),
    _document("vqa-docvqa-test", "DocVQA test", (DOCVQA_TEST,), published="0.5680"),
    _task(
        "vqa-ai2d-test",
        "AI2D test",
        (AI2D_TEST,),
        metric="exact match",
        max_new_tokens=10,
        official="`C.`, `(C)` and `C. stem` are C",
        published="0.7888031088082902",
        source="https://prior.allenai.org/projects/diagram-understanding",
    ),
    _document(
        "vqa-infovqa-val",
        "InfographicVQA validation",
        (INFOVQA_VAL,),
        published="0.4093",
    ),
    _document("vqa-infovqa-test", "InfographicVQA test", (INFOVQA_TEST,), published="0.406"),
    _task(
        "vqa-gqa-testdev",
        "GQA test-dev, balanced",
        (GQA_TESTDEV,),
        metric="exact match",
        max_new_tokens=10,
        published="66.91%",
        source="https://cs.stanford.edu/people/dorarad/gqa/evaluate.html",
    ),
)

VQA_GROUP = (
    "vqa-okvqa-val",
    "vqa-textvqa-val",
    "vqa-vizwiz-val",
    "vqa-ai2d-test",
    "vqa-gqa-testdev",
)
"""The evaluator's default, launched as ``vqa``."""
