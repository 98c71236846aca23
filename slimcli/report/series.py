"""Runs that are compared: repetitions with other seeds belong together, and each has a look of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle
from statistics import stdev

from slimcli.measures import Measure, value_of
from slimcli.records import JsonDict
from slimcli.report.result import Result
from slimcli.report.svg import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION

COLORS = (VERMILLION, SKY, GREEN, ORANGE, PURPLE, BLUE)
MARKERS = ("o", "s", "^", "v", "P", "X", "*")  # one more than the colours: a combination comes back after 42 runs

Series = list[Result]
"""Repetitions of one run with other seeds."""


def series_of(results: Sequence[Result]) -> dict[str, Series]:
    """Each run by its name, with its repetitions."""
    found: dict[str, Series] = {}
    for result in results:
        found.setdefault(result.series, []).append(result)
    return {(name if len(series) > 1 else series[0].name): series for name, series in found.items()}


def deviation(values: Sequence[float]) -> float:
    """The standard deviation; 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def shown(step: JsonDict, result: Result) -> str:
    """An iteration's score with its unit."""
    return result.measure.figure(value_of(step)) + result.measure.unit


def measure_of_all(results: Sequence[Result]) -> Measure:
    """What all of them are judged by; `gather` sees to it that they are."""
    return results[0].measure


def looks() -> Iterator[tuple[str, str]]:
    """A colour and a marker for each run in turn."""
    return zip(cycle(COLORS), cycle(MARKERS), strict=False)
