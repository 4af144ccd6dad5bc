"""Prometheus' text format, character by character."""

from __future__ import annotations

from internvl_chat.serve.metrics import (
    MetricCounter,
    MetricHistogram,
    engine_lines,
    process_lines,
    sample,
)


def test_a_counter_with_labels() -> None:
    counter = MetricCounter("a_total", "Things.", model_name='a "b"\\c\nd')
    counter.add(0, kind="x")
    counter.add(kind="y")
    counter.add(2.5, kind="y")
    assert list(counter.lines()) == [
        "# HELP a_total Things.",
        "# TYPE a_total counter",
        r'a_total{model_name="a \"b\"\\c\nd",kind="x"} 0',
        r'a_total{model_name="a \"b\"\\c\nd",kind="y"} 3.5',
    ]


def test_a_histogram_counts_a_bound_below_itself() -> None:
    histogram = MetricHistogram("a_seconds", "Times.", (0.5, 1, 2.5), m="x")
    assert len(list(histogram.lines())) == 2
    for value in (0.5, 0.6, 1.0, 7.0):
        histogram.observe(value)
    assert list(histogram.lines())[2:] == [
        'a_seconds_bucket{m="x",le="0.5"} 1',
        'a_seconds_bucket{m="x",le="1.0"} 3',
        'a_seconds_bucket{m="x",le="2.5"} 3',
        'a_seconds_bucket{m="x",le="+Inf"} 4',
        'a_seconds_sum{m="x"} 9.1',
        'a_seconds_count{m="x"} 4',
    ]


def test_figures_that_are_read() -> None:
    assert list(sample("a", "gauge", "One.", 1)) == ["# HELP a One.", "# TYPE a gauge", "a 1"]
    lines = engine_lines("m", gauges={"g": ("G.", 2)}, tokens={"t_total": ("T.", 3)})
    assert [line for line in lines if line[0] != "#"] == [
        'internvl_chat:g{model_name="m"} 2',
        'internvl_chat:t_total{model_name="m"} 3',
    ]
    lines = process_lines(resident_bytes=4, cpu_seconds=0.25, started=1e9, open_files=5)
    assert [line.split()[-1] for line in lines if line[0] != "#"] == [
        "4",
        "0.25",
        "1000000000",
        "5",
    ]
