"""Benchmarks that VLMEvalKit asks from TSV files (``run.py --data``)."""

from __future__ import annotations

from internvl_chat.evaluation.tasks.tsv.choice import MMMU_DEV_VAL, MMSTAR, REALWORLDQA
from internvl_chat.evaluation.tasks.tsv.hallusionbench import HALLUSIONBENCH
from internvl_chat.evaluation.tasks.tsv.llavabench import LLAVABENCH
from internvl_chat.evaluation.tasks.tsv.mathvista import MATHVISTA_MINI
from internvl_chat.evaluation.tasks.tsv.mmvet import MMVET_TSV
from internvl_chat.evaluation.tasks.tsv.ocrbench import OCRBENCH

TSV_TASKS = (
    MATHVISTA_MINI,
    HALLUSIONBENCH,
    MMSTAR,
    OCRBENCH,
    MMMU_DEV_VAL,
    REALWORLDQA,
    MMVET_TSV,
    LLAVABENCH,
)
"""In the guide's order."""
