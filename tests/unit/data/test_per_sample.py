from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internvl_chat.data import per_sample
from internvl_chat.data.per_sample import PerSample

datasets = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 30)), min_size=1, max_size=4)


@given(datasets=datasets, block=st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_it_is_the_array_of_all_samples(datasets: list[tuple[int, int]], block: int) -> None:
    """(records, samples) of each dataset."""
    records = [np.arange(size, dtype=np.int32) + 100 * k for k, (size, _) in enumerate(datasets)]
    whole = np.concatenate(
        [np.resize(values, n) for values, (_, n) in zip(records, datasets, strict=True)]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(per_sample, "BLOCK", block)
        found = PerSample(records, [count for _, count in datasets])
        assert len(found) == len(whole)
        assert found.dtype == np.int32
        assert found.tolist() == list(found) == np.asarray(found).tolist() == whole.tolist()
        assert found[2:5].tolist() == whole[2:5].tolist()
        assert found[whole % 2 == 0].tolist() == whole[whole % 2 == 0].tolist()
        backwards = np.arange(len(whole))[::-1]
        assert found[backwards].tolist() == whole[::-1].tolist()
        assert [found[int(i)] for i in backwards] == whole[::-1].tolist()
        blocks = list(found.blocks())
        assert [first for first, _ in blocks] == list(range(0, len(whole), block))
        assert np.concatenate([values for _, values in blocks]).tolist() == whole.tolist()


@pytest.mark.parametrize("count", [3, 9])
def test_no_such_sample(count: int) -> None:
    with pytest.raises(IndexError):
        PerSample([np.arange(3)], [count])[count]


def test_one_dataset_stays_where_it_is() -> None:
    values = np.arange(10)
    assert np.shares_memory(PerSample([values], [10])[:], values)
    assert np.shares_memory(PerSample([values], [7])[:], values)
    assert PerSample([values], [10**9])[10**9 - 1] == 9  # and takes no room for its repetitions
