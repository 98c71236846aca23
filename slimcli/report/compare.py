"""Several runs on one page: a table, and accuracy against the MACs that were kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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
        plots=[pareto(results), courses(results)],
    )


def row(result: Result) -> dict[str, str]:
    """A run's line of the table: column -> cell, empty where the run did not measure it."""
    slim, metrics = result.slim, result.metrics
    latency, speedup = slim.get("latency_ms"), metrics.get("speedup")
    last = result.kept_iterations[-1] if result.kept_iterations else {}
    return {
        "run": result.name,
        "method": str(metrics.get("method", "")),
        "top-1": f"{slim['top1']:.2f} %" if result.finished else "unfinished",
        "change (points)": formats.signed(slim["top1"] - result.dense["top1"]) if result.finished else "",
        "MACs kept": formats.percent(result.kept("macs")),
        "parameters kept": formats.percent(result.kept("params")),
        "weights left": formats.percent(last["remaining"]) if "remaining" in last else "",
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


def courses(results: Sequence[Result]) -> Plot:
    """Accuracy, epochs and weights left after each iteration, and the time of all (Figs. 3 to 6 of InCoP)."""
    return Plot(
        name="courses",
        title="How the runs got there",
        caption="After each iteration: held-out accuracy, epochs of its retraining, weights left. Below on the right the time "
        "that all iterations took together, with all the epochs of the run in brackets.",
        description="Three line charts over the iterations: held-out top-1, epochs of retraining, weights left in percent; and "
        "bars: minutes of each run. One colour and marker per run, as above.",
        size=(9, 6.4 + 0.12 * len(results)),
        draw=lambda figure: _draw_courses(figure, results),
        head=("run", "iteration", "held-out top-1", "epochs", "weights left", "seconds"),
        rows=tuple(
            (
                result.name,
                str(step["index"]),
                f"{step['top1']:.2f} %",
                str(step.get("epochs", "")),
                formats.percent(step["remaining"]) if "remaining" in step else "",
                f"{step['seconds']:.1f}" if "seconds" in step else "",
            )
            for result in results
            for step in result.iterations
        ),
    )


def _draw_courses(figure: Figure, results: Sequence[Result]) -> None:
    panels = figure.subplots(2, 2)
    wanted = (("top1", 1, "held-out top-1 (%)"), ("epochs", 1, "epochs of retraining"), ("remaining", 100, "weights left (%)"))
    for axes, (key, scale, label) in zip(panels.flat, wanted, strict=False):
        for result, color, marker in zip(results, cycle(COLORS), cycle(MARKERS), strict=False):
            points = [(step["index"], scale * step[key]) for step in result.iterations if key in step]
            line(axes, points, result.name if axes is panels[0, 0] else "", color=color, marker=marker, markersize=4, linewidth=1)
        axes.set(xlabel="iteration", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "epochs":
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(0, None)
    bars = panels[1, 1]
    for place, (result, color) in enumerate(zip(results, cycle(COLORS), strict=False)):
        minutes = sum(step.get("seconds", 0) for step in result.iterations) / 60
        bars.barh(place, minutes, color=color)
        said = f" {formats.duration(60 * minutes)} ({result.metrics.get('epochs', '?')})"
        bars.annotate(said, (minutes, place), va="center", fontsize=7)
    bars.set(xlabel="minutes (epochs)", yticks=[])
    bars.invert_yaxis()
    bars.margins(x=0.25)
    if any(result.iterations for result in results):
        figure.legend(loc="outside lower center", ncols=4)


def _named(results: list[Result]) -> list[Result]:
    """A recipe's step is called what the recipe calls it; runs of the same name are told apart by their paths."""
    labels = {run: label for parent in {Path(result.path).parent for result in results} for run, label in _labels(parent).items()}
    results = [replace(result, name=labels.get(Path(result.path), result.name)) for result in results]
    taken = Counter(result.name for result in results)
    return [replace(result, name=result.path) if taken[result.name] > 1 else result for result in results]


def _labels(container: Path) -> dict[Path, str]:
    """Of a recipe's run folder: what the recipe calls each finished step, with its seed; empty for any other folder."""
    journal = RunDir(container).read_journal() if RunDir(container).journal.exists() else []
    return {
        container / event["step"]: event["label"] + ("" if event["seed"] is None else f", seed {event['seed']}")
        for event in journal
        if event["event"] == "step"
    }


def _subjects(results: Sequence[Result]) -> list[str]:
    """The dense networks that the runs started from, each once."""
    return list(
        dict.fromkeys(
            f"{result.metrics.get('arch')} on {result.metrics.get('data')}, {result.dense['macs']:,} MACs, "
            f"top-1 {result.dense['top1']:.2f} %"
            for result in results
        )
    )
