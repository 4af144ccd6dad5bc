from __future__ import annotations

import pytest

from internvl_chat.errors import ConfigError
from internvl_chat.evaluation.dataset_keys import DATASET_KEYS, tasks_of_keys
from internvl_chat.evaluation.registry import TASKS


def test_every_task_but_mme_has_its_key() -> None:
    several = {"mme", "refcoco", "vqa-chartqa-test"}
    own = {name for name, task in TASKS.items() if task.suite == "internvl"} - several
    assert set(DATASET_KEYS.values()) == own
    assert len(set(DATASET_KEYS.values())) == len(DATASET_KEYS)


def test_keys_mean_tasks() -> None:
    assert tasks_of_keys("SEEDv1, okvqa_val") == ("seed", "vqa-okvqa-val")
    assert tasks_of_keys("chartqa_test_augmented") == ("vqa-chartqa-test-augmented",)
    eight = ",".join(key for key in DATASET_KEYS if key.startswith("refcoco"))
    assert tasks_of_keys(eight) == ("refcoco",)
    with pytest.raises(ConfigError, match="no data set 'SEED'"):
        tasks_of_keys("pope,SEED")
