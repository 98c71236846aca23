"""Several runs on one page: a table, and accuracy against the MACs that were kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure

from slimcli.errors import RunDirError
from slimcli.report import formats
from slimcli.report.html import write_page
from slimcli.report.result import Result, read_pruned
from slimcli.report.svg import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, Plot, line
from slimcli.rundir import RunDir

COLORS = (VERMILLION, SKY, GREEN, ORANGE, PURPLE, BLUE)
MARKERS = ("o", "s", "^", "v", "P", "X", "*")  # one more than the colours: a combination comes back after 42 runs


def compare(runs: Sequence[RunDir], path: Path) -> Path:
    """Write one page on several pruning runs, finished or not; `RunDirError` where a folder holds none."""
    if not runs:
        raise RunDirError("there is no run to compare", "name one or more folders that `slim prune` wrote")
    results = _named([read_pruned(run) for run in runs])
    table = [row(result) for result in results]
    return write_page(
        path,
        "compare.html.j2",
        results=results,
        head=list(table[0]),
        rows=[list(cells.values()) for cells in table],
        subjects=_subjects(results),
        plots=[pareto(results)],
    )


def row(result: Result) -> dict[str, str]:
    """A run's line of the table: column -> cell, empty where the run did not measure it."""
    slim, metrics = result.slim, result.metrics
    latency, speedup = slim.get("latency_ms"), metrics.get("speedup")
    return {
        "run": result.name,
        "method": str(metrics.get("method", "")),
        "top-1": f"{slim['top1']:.2f} %" if result.finished else "unfinished",
        "change (points)": formats.signed(slim["top1"] - result.dense["top1"]) if result.finished else "",
        "MACs kept": formats.percent(result.kept("macs")),
        "parameters kept": formats.percent(result.kept("params")),
        "file size": formats.size(slim["file_bytes"]) if slim.get("file_bytes") else "",
        "latency, p50": formats.milliseconds(latency["p50"]) if latency else "",
        "speedup": formats.interval(speedup) if speedup else "",
        "iterations": str(len(result.kept_iterations)),
        "epochs": str(metrics.get("epochs", "")),
    }


def pareto(results: Sequence[Result]) -> Plot:
    """Top-1 against the MACs kept."""
    return Plot(
        name="pareto",
        title="Accuracy against MACs",
        caption="Further up and further left is better. Large markers are the networks on the test split; "
        "the faint lines are their iterations on the held-out split.",
        description="A scatter chart: to the right, MACs kept in percent of the dense network; upwards, top-1 in percent. "
        "One marker per run, a hollow diamond for the dense network, and a faint line through each run's iterations.",
        size=(9, 4.6),
        draw=lambda figure: _draw(figure, results),
        head=("run", "iteration", "MACs kept", "held-out top-1"),
        rows=tuple(
            (result.name, str(step["index"]), formats.percent(step["macs"] / result.dense["macs"]), f"{step['top1']:.2f} %")
            for result in results
            for step in result.kept_iterations
        ),
    )


def _draw(figure: Figure, results: Sequence[Result]) -> None:
    axes = figure.subplots()
    for result, color, marker in zip(results, cycle(COLORS), cycle(MARKERS), strict=False):
        steps = [(100 * step["macs"] / result.dense["macs"], step["top1"]) for step in result.kept_iterations]
        line(axes, steps, "", color=color, linewidth=1, alpha=0.5, marker=".", markersize=3)
        end = (100 * result.kept("macs"), result.slim["top1"]) if result.finished else (math.nan, math.nan)
        line(axes, [end], result.name, color=color, marker=marker, markersize=9, markeredgecolor=INK, linestyle="")
    dense = [(100, top1) for top1 in sorted({result.dense["top1"] for result in results})]
    line(axes, dense, "dense", color=INK, marker="D", markersize=7, markerfacecolor="none", linestyle="")
    axes.set(xlabel="MACs kept (%)", ylabel="top-1 (%)", xlim=(0, 104))
    figure.legend(loc="outside right upper")


def _named(results: list[Result]) -> list[Result]:
    """Folders of the same name are told apart by their paths."""
    taken = Counter(result.name for result in results)
    return [replace(result, name=result.path) if taken[result.name] > 1 else result for result in results]


def _subjects(results: Sequence[Result]) -> list[str]:
    """The dense networks that the runs started from, each once."""
    return list(
        dict.fromkeys(
            f"{result.metrics.get('arch')} on {result.metrics.get('data')}, {result.dense['macs']:,} MACs, "
            f"top-1 {result.dense['top1']:.2f} %"
            for result in results
        )
    )
