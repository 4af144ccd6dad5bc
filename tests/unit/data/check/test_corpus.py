"""Every kind of fault, four instances each: all found with place, code and mend; none elsewhere."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from internvl_chat.data.check.codes import CODES
from internvl_chat.data.check.findings import Finding
from internvl_chat.data.check.run import DataCheck
from tests.support import tokenizers
from tests.support.check_corpus import KINDS, Corpus, write_corpus
from tests.support.configs import data_config

Findings = list[Finding]
RELATED = {"MEDIA_KEY", "UNKNOWN_KEY"}
"""What a fault of another kind may be besides."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Corpus]:
    folder = tmp_path_factory.mktemp("corpora")
    return (
        write_corpus(folder / "faulty", faulty=True),
        write_corpus(folder / "clean", faulty=False),
    )


def run(meta: Path, *, decode: bool = False, tokens: bool = False) -> tuple[Findings, DataCheck]:
    check = DataCheck(
        data_config(meta_path=str(meta), max_seq_length=1500, num_image_token=4),
        tokenizer=tokenizers.byte_level() if tokens else None,
        decode=decode,
    )
    return list(check.findings()), check


def test_the_corpus_has_the_kinds() -> None:
    assert len(KINDS) >= 30
    assert {code for kind in KINDS for code in kind.codes} <= set(CODES)


@pytest.mark.parametrize(
    ("decode", "tokens"),
    [(False, False), (True, False), (True, True)],
    ids=["text", "decode", "all"],
)
def test_all_faults_are_found_and_nothing_else(
    corpora: tuple[Corpus, Corpus], decode: bool, tokens: bool
) -> None:
    corpus = corpora[0]
    asked = {"": True, "decode": decode, "tokens": tokens}
    everything = {(file, line): set(codes.split("|")) for file, codes, line in corpus.expected}
    expected = {
        (file, line): set(codes.split("|"))
        for file, codes, line in corpus.expected
        if asked[corpus.needs[file, codes, line]]
    }
    findings, _ = run(corpus.meta, decode=decode, tokens=tokens)
    found: dict[tuple[str, int | None], set[str]] = defaultdict(set)
    for one in findings:
        found[one.file, one.line].add(one.code)
        assert one.mend
        assert one.message
        assert one.severity == CODES[one.code].severity
    missed = {place: codes for place, codes in expected.items() if not found[place] & codes}
    surplus = {
        place: codes
        for place, codes in found.items()
        if not codes <= everything.get(place, set()) | RELATED
    }
    assert (missed, surplus) == ({}, {})


@pytest.mark.parametrize(("decode", "tokens"), [(False, False), (True, True)])
def test_the_clean_twin_gives_nothing(
    corpora: tuple[Corpus, Corpus], decode: bool, tokens: bool
) -> None:
    findings, check = run(corpora[1].meta, decode=decode, tokens=tokens)
    assert findings == []
    assert all(one.counts.num_ok == one.counts.num_records > 0 for one in check.datasets)


def test_processes_find_the_same_when_they_decode(corpora: tuple[Corpus, Corpus]) -> None:
    several = DataCheck(
        data_config(meta_path=str(corpora[0].meta), max_seq_length=1500, num_image_token=4),
        tokenizer=tokenizers.byte_level(),
        decode=True,
        num_processes=2,
    )
    assert list(several.findings()) == run(corpora[0].meta, decode=True, tokens=True)[0]
