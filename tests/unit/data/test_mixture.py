from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from internvl_chat.data.meta import DatasetSpec
from internvl_chat.data.mixture import Mixture
from internvl_chat.data.per_sample import PerSample
from internvl_chat.errors import DatasetError


@pytest.fixture
def spec(tmp_path: Path) -> Callable[..., DatasetSpec]:
    def make(name: str, num_records: int, **changes: float) -> DatasetSpec:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(f'{{"{name}": {i}}}\n' for i in range(num_records)))
        return DatasetSpec(name=name, root="", annotation=str(path), **changes)  # type: ignore[arg-type]

    return make


def test_repetitions(spec: Callable[..., DatasetSpec]) -> None:
    mixture = Mixture([spec("a", 4, repeat_time=0.5), spec("b", 3), spec("c", 2, repeat_time=2.5)])
    assert mixture.num_samples == (2, 3, 5)
    assert [mixture.locate(i) for i in range(len(mixture))] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (1, 2),
        (2, 0),
        (2, 1),
        (2, 0),
        (2, 1),
        (2, 0),
    ]
    assert mixture.read(8)[0] == b'{"c": 1}'
    assert mixture.first_record(2) == 7
    values = mixture.expand([np.arange(4), np.arange(10, 13), np.array([20, 21])])
    assert values.tolist() == [0, 1, 10, 11, 12, 20, 21, 20, 21, 20]
    with pytest.raises(IndexError):
        mixture.locate(10)


def test_validation_takes_each_record_once(spec: Callable[..., DatasetSpec]) -> None:
    assert Mixture([spec("a", 4, repeat_time=0.5)], whole=True).num_samples == (4,)


def test_a_repeat_time_that_leaves_nothing(spec: Callable[..., DatasetSpec]) -> None:
    with pytest.raises(DatasetError, match=r'dataset "a": repeat_time 0.1 of 4 records leaves'):
        Mixture([spec("a", 4, repeat_time=0.1)])


def test_resampling_shares_by_the_square_root_of_size(spec: Callable[..., DatasetSpec]) -> None:
    mixture = Mixture([spec("a", 400), spec("b", 100), spec("c", 25, weight=2.0)])
    lengths = np.ones(len(mixture), dtype=np.int32)
    lengths[:100] = -1  # 300, 100, 25 are left
    drawn = mixture.resample(PerSample([lengths], [len(mixture)]), seed=0, epoch=0)
    counts = np.bincount([mixture.locate(int(i))[0] for i in drawn], minlength=3)
    # 425 in proportion to 17.32 : 10 : 2 x 5
    assert counts.tolist() == [197, 114, 114]
    assert (lengths[drawn] == 1).all()
    _, times = np.unique(drawn[drawn < 400], return_counts=True)
    assert times.max() == 1  # none again before all have come
    _, times = np.unique(drawn[drawn >= 500], return_counts=True)
    assert (times.min(), times.max()) == (4, 5)
    again = mixture.resample(PerSample([lengths], [len(mixture)]), seed=0, epoch=0)
    other = mixture.resample(PerSample([lengths], [len(mixture)]), seed=0, epoch=1)
    assert drawn.tolist() == again.tolist() != other.tolist()
    none = PerSample([np.full_like(lengths, -1)], [len(mixture)])
    assert len(mixture.resample(none, seed=0, epoch=0)) == 0
