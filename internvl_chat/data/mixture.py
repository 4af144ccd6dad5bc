"""Several datasets as one range of sample indices.

Sample ``i`` belongs to one dataset and one of its records; ``repeat_time`` decides how many samples
a dataset has. Nothing here holds anything per sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from internvl_chat.data.annotations import AnnotationFile
from internvl_chat.data.held_out import HeldOutRecord, RecordPart
from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.per_sample import BLOCK, PerSample
from internvl_chat.errors import DatasetError


def open_annotation(spec: DatasetSpec) -> AnnotationFile:
    """The records of a dataset: the first ``max_samples`` of its file.

    Raises:
        DatasetError: as of :class:`AnnotationFile`.
    """
    return AnnotationFile(spec.annotation, first=spec.max_samples)


class Mixture:
    """The datasets of a run.

    Args:
        specs: what to mix, in order.
        files: their annotation files; opened here if None.
        parts: which of their records are taken; all if None.
        whole: take every record once, whatever ``repeat_time`` says (validation).

    Raises:
        DatasetError: a dataset's ``repeat_time`` leaves no sample of it.
    """

    def __init__(
        self,
        specs: Sequence[DatasetSpec],
        files: Sequence[AnnotationFile] | None = None,
        *,
        parts: Sequence[RecordPart] | None = None,
        whole: bool = False,
    ) -> None:
        self.specs = tuple(specs)
        self.files = tuple(files or map(open_annotation, specs))
        self.parts = tuple(parts or [RecordPart.whole(len(file)) for file in self.files])
        self.num_samples = tuple(
            len(part) if whole else spec.num_samples(len(part))
            for spec, part in zip(self.specs, self.parts, strict=True)
        )
        for spec, part in zip(self.specs, self.parts, strict=True):
            problem = None if whole else spec.repeat_problem(len(part))
            if problem is not None:
                raise DatasetError(
                    problem, where=f'dataset "{spec.name}"', fix="Correct repeat_time."
                )
        self._ends = np.cumsum(self.num_samples)
        self._first_records = np.cumsum([0, *(len(file) for file in self.files)])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(dataset, record) of sample ``index``; repetitions walk the records again."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        dataset = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[dataset]) - self.num_samples[dataset]
        part = self.parts[dataset]
        return dataset, part.record((index - first) % len(part))

    def held_out(self, datasets: Sequence[int]) -> Mixture:
        """What this mixture leaves out of these datasets, each record once."""
        return Mixture(
            [self.specs[number] for number in datasets],
            [self.files[number] for number in datasets],
            parts=[replace(self.parts[number], is_held_out=True) for number in datasets],
            whole=True,
        )

    def held_out_records(self, tokens: Sequence[np.ndarray]) -> list[HeldOutRecord]:
        """Where the held-out records of all datasets stand.

        Args:
            tokens: of each dataset's records; negative ones are bad, and never asked.
        """
        return [
            HeldOutRecord.of(spec.name, file, number)
            for spec, file, part, counted in zip(
                self.specs, self.files, self.parts, tokens, strict=True
            )
            for number in part.held_out[counted[part.held_out] >= 0].tolist()
        ]

    def first_record(self, dataset: int) -> int:
        """Number of a dataset's first record, counted through all datasets."""
        return int(self._first_records[dataset])

    def read(self, index: int) -> tuple[bytes, str]:
        """The bytes of a sample's record and its ``file:line``."""
        dataset, record = self.locate(index)
        return self.files[dataset].read(record)

    def expand(self, per_record: Sequence[np.ndarray]) -> PerSample:
        """Per-record values of each dataset, by sample."""
        taken = [part.of(values) for part, values in zip(self.parts, per_record, strict=True)]
        return PerSample(taken, self.num_samples)

    def resample(self, lengths: PerSample, *, seed: int, epoch: int) -> np.ndarray:
        """Sample indices of an epoch under ``use_data_resampling``.

        As many samples as there are good ones, shared out among the datasets by the square root of
        their size (times ``weight``). Within a dataset no sample comes again before all have come;
        what is left out changes with the epoch.

        Args:
            lengths: tokens by sample; negative ones are bad.
            seed, epoch: source of randomness.
        """
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch, 1])))
        counts = [len(self._good(lengths, number)) for number in range(len(self.specs))]
        if not sum(counts):
            return np.zeros(0, dtype=np.int64)
        weights = np.array(
            [spec.weight * np.sqrt(count) for spec, count in zip(self.specs, counts, strict=True)]
        )
        quotas = apportion(sum(counts), weights)
        drawn = np.empty(sum(quotas), dtype=self._index_type)
        filled = 0
        for number, quota in enumerate(quotas):
            good = self._good(lengths, number) if quota else np.zeros(0, dtype=np.int32)
            while quota:
                part = good.copy()
                rng.shuffle(part)  # the same as good[rng.permutation(len(good))]
                take = min(len(part), quota)
                drawn[filled : filled + take] = part[:take]
                filled, quota = filled + take, quota - take
        return drawn

    @property
    def _index_type(self) -> type[np.signedinteger[Any]]:
        return np.int32 if len(self) < 2**31 else np.int64

    def _good(self, lengths: PerSample, dataset: int) -> np.ndarray:
        """The samples of a dataset that are not bad."""
        last = int(self._ends[dataset])
        first = last - self.num_samples[dataset]
        found = [
            (np.flatnonzero(lengths[begin : min(begin + BLOCK, last)] >= 0) + begin).astype(
                self._index_type
            )
            for begin in range(first, last, BLOCK)
        ]
        return np.concatenate(found)


def apportion(total: int, weights: np.ndarray) -> list[int]:
    """Whole shares of ``total`` in proportion to the weights (largest remainders, in order)."""
    exact = total * weights / weights.sum()
    shares = np.floor(exact).astype(np.int64)
    order = np.argsort(-(exact - shares), kind="stable")
    shares[order[: total - int(shares.sum())]] += 1
    return [int(share) for share in shares]
