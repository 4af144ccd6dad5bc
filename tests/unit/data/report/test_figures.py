"""Numbers of a dataset, against a straightforward count over all of its samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from internvl_chat.data.dataset import SampleLoader
from internvl_chat.data.encode import Encoder
from internvl_chat.data.lengths import token_lengths
from internvl_chat.data.meta import load_meta
from internvl_chat.data.mixture import open_annotation
from internvl_chat.data.report import figures
from internvl_chat.data.report.figures import DatasetFigures, dataset_figures, together
from internvl_chat.data.schema import BadRecordError
from internvl_chat.model.constants import IGNORE_INDEX
from tests.support import tokenizers
from tests.support.configs import encode_config, media_config
from tests.support.report_corpus import NUM_BAD, NUM_GOOD, write_corpus


def measure(meta: Path, *, dynamic: bool) -> list[DatasetFigures]:
    """The figures of each dataset, compared with what loading every record gives."""
    media = media_config(
        force_image_size=56,
        dynamic_image_size=dynamic,
        max_dynamic_patch=6,
        min_num_frame=4,
        max_num_frame=4,
    )
    encoder = Encoder(tokenizers.byte_level(), encode_config(num_image_token=4))
    found = []
    for spec in load_meta(meta):
        file = open_annotation(spec)
        lengths = token_lengths(spec, file, encoder, media)
        one = dataset_figures(spec, file, lengths, encoder, media)
        loader = SampleLoader(encoder, media, train=False)
        loaded = []
        for number in range(len(file)):
            raw, where = file.read(number)
            try:
                loaded.append(loader.load(raw, spec, where=where))
            except BadRecordError:
                continue
        assert one.token_lengths.total == sum(len(each.encoded.input_ids) for each in loaded)
        if one.num_supervised.is_exact:
            assert one.num_supervised.value == sum(
                int((each.encoded.labels != IGNORE_INDEX).sum()) for each in loaded
            )
            assert one.num_images.value == sum(len(each.image_sizes) for each in loaded)
        assert one.tile_counts.total == sum(sum(each.num_tiles) for each in loaded)
        found.append(one)
    return found


@pytest.mark.parametrize("dynamic", [True, False])
def test_counts(tmp_path: Path, dynamic: bool) -> None:
    meta = write_corpus(tmp_path)
    (tmp_path / "nowhere.png").write_bytes((tmp_path / "wide.png").read_bytes())
    boxes, plain = measure(meta, dynamic=dynamic)
    assert (boxes.num_records, boxes.num_good) == (NUM_GOOD + NUM_BAD, NUM_GOOD + 1)
    assert (boxes.num_bad, boxes.num_truncated) == (3, 1)
    assert (boxes.num_samples, plain.num_samples) == (51, 6)
    assert boxes.num_images.is_exact
    assert plain.epoch_tokens < plain.token_lengths.total
    everything = together([boxes, plain])
    assert everything.num_records == boxes.num_records + 12
    assert everything.token_lengths.total == boxes.token_lengths.total + plain.token_lengths.total
    assert everything.num_supervised.is_exact


def test_only_the_first_records_count_where_the_meta_says_so(tmp_path: Path) -> None:
    meta = write_corpus(tmp_path)
    (tmp_path / "nowhere.png").write_bytes((tmp_path / "wide.png").read_bytes())
    table = json.loads(meta.read_text("utf-8"))
    table["plain"]["max_samples"] = 8
    meta.write_text(json.dumps(table), "utf-8")
    plain = measure(meta, dynamic=False)[1]
    assert (plain.num_records, plain.num_in_file, plain.num_samples) == (8, 12, 4)
    assert plain.token_lengths.num_records == 8


def test_a_large_dataset_is_measured_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meta = write_corpus(tmp_path)
    (tmp_path / "nowhere.png").write_bytes((tmp_path / "wide.png").read_bytes())
    exact = measure(meta, dynamic=True)
    monkeypatch.setattr(figures, "PROBED", 11)
    boxes, plain = measure(meta, dynamic=True)
    assert not boxes.num_supervised.is_exact
    assert not together([boxes, plain]).num_images.is_exact
    # All of these records are alike.
    assert plain.num_supervised.value == exact[1].num_supervised.value
    assert plain.num_images.value == 0
    assert measure(meta, dynamic=False)[0].num_images.is_exact  # one tile each
