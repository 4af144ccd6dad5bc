"""The original evaluator's own names of data sets, as ``--datasets`` takes them."""

from __future__ import annotations

from internvl_chat.errors import ConfigError
from internvl_chat.model.suggestions import suggest

DATASET_KEYS = {
    "okvqa_val": "vqa-okvqa-val",
    "textvqa_val": "vqa-textvqa-val",
    "textvqa_val_ocr": "vqa-textvqa-val-ocr",
    "vizwiz_val": "vqa-vizwiz-val",
    "vizwiz_test": "vqa-vizwiz-test",
    "chartqa_test_human": "vqa-chartqa-test-human",
    "chartqa_test_augmented": "vqa-chartqa-test-augmented",
    "docvqa_val": "vqa-docvqa-val",
    "docvqa_test": "vqa-docvqa-test",
    "ai2diagram_test": "vqa-ai2d-test",
    "infographicsvqa_val": "vqa-infovqa-val",
    "infographicsvqa_test": "vqa-infovqa-test",
    "gqa_testdev_llava": "vqa-gqa-testdev",
    "sqa_test": "scienceqa",
    "pope": "pope",
    "updated_datasets": "tiny_lvlm",
    "MMMU_dev": "mmmu-dev",
    "MMMU_validation": "mmmu-val",
    "MMMU_test": "mmmu-test",
    "mmvet": "mmvet",
    "mmbench_dev_20230712": "mmbench-dev-en",
    "mmbench_test_en_20231003": "mmbench-test-en",
    "mmbench_dev_cn_20231003": "mmbench-dev-cn",
    "mmbench_test_cn_20231003": "mmbench-test-cn",
    "ccbench_dev_cn": "ccbench-dev",
    "SEEDv1": "seed",
    "MMVP": "mmvp",
    "llava_bench": "llava-bench",
    "refcoco_val": "refcoco-val",
    "refcoco_testA": "refcoco-testA",
    "refcoco_testB": "refcoco-testB",
    "refcoco+_val": "refcoco+-val",
    "refcoco+_testA": "refcoco+-testA",
    "refcoco+_testB": "refcoco+-testB",
    "refcocog_val": "refcocog-val",
    "refcocog_test": "refcocog-test",
    "mvbench": "mvbench",
}
"""Key -> the task that holds this data alone. MME has no key."""
_TOGETHER = {
    "vqa-chartqa-test": ("chartqa_test_human", "chartqa_test_augmented"),
    "refcoco": tuple(key for key in DATASET_KEYS if key.startswith("refcoco")),
}
"""Tasks that score several keys together."""


def tasks_of_keys(text: str) -> tuple[str, ...]:
    """Ids of the tasks that a comma-separated list of keys means, in its order.

    All the keys of a task that has several, in its order, are that task.

    Raises:
        ConfigError: a key is unknown; the message offers close ones. Or there is none.
    """
    keys = tuple(key.strip() for key in text.split(",") if key.strip())
    if not keys:
        raise ConfigError("is empty", where="--datasets", fix="Name keys such as okvqa_val.")
    for key in keys:
        if key not in DATASET_KEYS:
            near = suggest(key, DATASET_KEYS, limit=3, write=str)
            raise ConfigError(
                f"no data set {key!r}",
                where="--datasets",
                fix=f"{near} Or name tasks instead: internvl-chat eval list.".lstrip(),
            )
    whole = next((task for task, parts in _TOGETHER.items() if parts == keys), None)
    return (whole,) if whole else tuple(DATASET_KEYS[key] for key in keys)
