"""Several runs on one page: a table, and accuracy against the MACs (of masked networks the weights) that were kept."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimcli.errors import RunDirError
from slimcli.measures import Measure, value_of
from slimcli.records import JsonDict
from slimcli.report import formats
from slimcli.report.html import write_page
from slimcli.report.result import Result, read_pruned
from slimcli.report.svg import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION, Plot, line
from slimcli.rundir import RunDir

COLORS = (VERMILLION, SKY, GREEN, ORANGE, PURPLE, BLUE)
MARKERS = ("o", "s", "^", "v", "P", "X", "*")  # one more than the colours: a combination comes back after 42 runs


def gather(runs: Sequence[RunDir]) -> list[Result]:
    """Several pruning runs, finished or not, under names that tell them apart; `RunDirError` where a folder holds none.

    The folder of a recipe stands for all its finished pruning runs that its card shows.
    """
    given = [each for run in runs for each in _runs_of(run)]
    results = _named([read_pruned(run) for run in {run.path.resolve(): run for run in given}.values()])
    if not results:
        raise RunDirError("there is no run to compare", "name one or more folders that `slim prune` wrote")
    if len(names := {result.measure.heading for result in results}) > 1:
        raise RunDirError(f"the runs are judged by different scores: {', '.join(sorted(names))}", "compare those of one score")
    return results


def compare(results: Sequence[Result], path: Path) -> Path:
    """Write one page on what was gathered. Repetitions with other seeds are drawn as one, with their deviation."""
    table = [row(result) for result in results]
    return write_page(
        path,
        "compare.html.j2",
        results=results,
        head=list(table[0]),
        rows=[list(cells.values()) for cells in table],
        subjects=_subjects(results),
        score=_measure(results).opening,
        plots=[pareto(results), courses(results)],
    )


def _runs_of(run: RunDir) -> list[RunDir]:
    """The run itself; of a recipe's folder its finished pruning runs."""
    steps = _steps(run.path)
    if not steps:
        return [run]
    shown = [event["step"] for event in steps if "slim" in event["metrics"] and not event.get("hidden")]
    if not shown:
        raise RunDirError(f"{run.path} holds no pruned network to compare", "name a folder that `slim prune` wrote")
    return [RunDir(run.path / step) for step in shown]


def row(result: Result) -> dict[str, str]:
    """A run's line of the table: column -> cell, empty where the run did not measure it."""
    slim, metrics = result.slim, result.metrics
    latency, speedup = slim.get("latency_ms"), metrics.get("speedup")
    last = result.kept_iterations[-1] if result.kept_iterations else {}
    return {
        "run": result.name,
        "method": str(metrics.get("method", "")),
        "score": formats.scored(slim) if result.finished else "unfinished",
        "change": formats.score_change(result.dense, slim) if result.finished else "",
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
    """Top-1 against the MACs kept; or, where a network is masked, against the weights left: a mask saves no MACs."""
    masked = any(result.metrics.get("sparsity") for result in results)
    kept, measure = "weights left" if masked else "MACs kept", _measure(results)
    title, better = measure.title, "up" if measure.higher else "down"
    what = "Accuracy" if measure.is_top1 else measure.name
    return Plot(
        name="pareto",
        title=f"{what} against {'weights' if masked else 'MACs'}",
        caption=f"Further {better} and further left is better. Large markers are the networks on the test split; "
        "the faint lines are their iterations on the held-out split.",
        description=f"A scatter chart: to the right, {kept} in percent of the dense network; upwards, {title}. "
        "One marker per run, with bars for the standard deviation of its repetitions, a hollow diamond for the dense network, "
        "and a faint line through each run's iterations.",
        size=(9, 4.6),
        draw=lambda figure: _draw(figure, results, masked),
        head=("run", "iteration", kept, f"held-out {title}"),
        rows=tuple(
            (result.name, str(step["index"]), formats.percent(_share(step, result, masked)), _shown(step, result))
            for result in results
            for step in result.kept_iterations
        ),
    )


def _shown(step: JsonDict, result: Result) -> str:
    return result.measure.figure(value_of(step)) + result.measure.unit


def _measure(results: Sequence[Result]) -> Measure:
    """What all of them are judged by; `gather` sees to it that they are."""
    return results[0].measure


def _share(step: JsonDict, result: Result, masked: bool) -> float:
    """What an iteration left of the dense network: of its weights, or of its MACs."""
    return float(step["remaining"] if masked else step["macs"] / result.dense["macs"])


def _left(result: Result, masked: bool) -> float:
    """What the run left of the dense network: of its weights, or of its MACs."""
    if not masked:
        return result.kept("macs")
    return _share(result.kept_iterations[-1], result, masked) if result.kept_iterations else 1.0


Series = list[Result]
"""Repetitions of one run with other seeds."""


def _series(results: Sequence[Result]) -> dict[str, Series]:
    found: dict[str, Series] = {}
    for result in results:
        found.setdefault(result.series, []).append(result)
    return {(name if len(series) > 1 else series[0].name): series for name, series in found.items()}


def _draw(figure: Figure, results: Sequence[Result], masked: bool) -> None:
    axes = figure.subplots()
    for (name, series), color, marker in zip(_series(results).items(), cycle(COLORS), cycle(MARKERS), strict=False):
        for result in series:
            steps = [(100 * _share(step, result, masked), value_of(step)) for step in result.kept_iterations]
            line(axes, steps, "", color=color, linewidth=1, alpha=0.5, marker=".", markersize=3)
        ends = [(100 * _left(result, masked), value_of(result.slim)) for result in series if result.finished]
        shares, scores = ([end[axis] for end in ends] or [math.nan] for axis in (0, 1))
        axes.errorbar(
            fmean(shares),
            fmean(scores),
            yerr=_deviation(scores),
            xerr=_deviation(shares),
            label=name,
            color=color,
            marker=marker,
            markersize=9,
            markeredgecolor=INK,
            linestyle="",
            elinewidth=1,
        )
    dense = [(100, score) for score in sorted({value_of(result.dense) for result in results})]
    line(axes, dense, "dense", color=INK, marker="D", markersize=7, markerfacecolor="none", linestyle="")
    axes.set(xlabel="weights left (%)" if masked else "MACs kept (%)", ylabel=_measure(results).axis, xlim=(0, 104))
    figure.legend(loc="outside right upper")


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def courses(results: Sequence[Result]) -> Plot:
    """Accuracy, epochs and weights left after each iteration, and the time of all (Figs. 3 to 6 of InCoP)."""
    title = _measure(results).title
    return Plot(
        name="courses",
        title="How the runs got there",
        caption=f"After each iteration: held-out {title}, epochs of its retraining, weights left. Below on the right the time "
        "of the whole run, with all its epochs in brackets. Repetitions with other seeds are drawn as their mean and standard "
        "deviation.",
        description=f"Three line charts over the iterations: held-out {title}, epochs of retraining, weights left in percent; "
        "and bars: minutes of each run. One colour and marker per run, as above, with a band for its standard deviation.",
        size=(9, 6.4 + 0.14 * len(_series(results))),
        draw=lambda figure: _draw_courses(figure, results),
        head=("run", "iteration", f"held-out {title}", "epochs", "weights left", "seconds"),
        rows=tuple(
            (
                result.name,
                str(step["index"]),
                _shown(step, result),
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
    drawn = list(zip(_series(results).items(), cycle(COLORS), cycle(MARKERS), strict=False))
    wanted = (
        ("score", 1, f"held-out {_measure(results).axis}"),
        ("epochs", 1, "epochs of retraining"),
        ("remaining", 100, "weights left (%)"),
    )
    for axes, (key, scale, label) in zip(panels.flat, wanted, strict=False):
        for (name, series), color, marker in drawn:
            points = _course(series, key, scale)
            means = [(index, fmean(values)) for index, values in points.items()]
            line(axes, means, name if axes is panels[0, 0] else "", color=color, marker=marker, markersize=4, linewidth=1)
            spread = [_deviation(values) for values in points.values()]
            if any(spread):
                low, high = ([mean + side * each for (_, mean), each in zip(means, spread, strict=True)] for side in (-1, 1))
                axes.fill_between(list(points), low, high, color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="iteration", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if key == "epochs":
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
            axes.set_ylim(0, None)
    bars = panels[1, 1]
    for place, ((_, series), color, _) in enumerate(drawn):
        minutes, epochs = ([each(result) for result in series] for each in (_minutes, _epochs))
        bars.barh(place, fmean(minutes), xerr=_deviation(minutes) or None, color=color, error_kw={"linewidth": 0.8})
        said = f" {formats.duration(60 * fmean(minutes))}" + ("" if math.isnan(fmean(epochs)) else f" ({fmean(epochs):.0f})")
        bars.annotate(said, (fmean(minutes) + _deviation(minutes), place), va="center", fontsize=7)
    bars.set(xlabel="minutes (epochs)", yticks=[])
    bars.invert_yaxis()
    bars.margins(x=0.25)
    if any(result.iterations for result in results):
        figure.legend(loc="outside lower center", ncols=3)


def _course(series: Series, key: str, scale: float) -> dict[int, list[float]]:
    """Iteration -> the value of each repetition that came so far."""
    found: dict[int, list[float]] = {}
    for result in series:
        for step in result.iterations:
            value = value_of(step) if key == "score" else step.get(key)
            if value is not None:
                found.setdefault(step["index"], []).append(scale * value)
    return dict(sorted(found.items()))


def _minutes(result: Result) -> float:
    return result.seconds / 60


def _epochs(result: Result) -> float:
    return float(result.metrics.get("epochs", math.nan))


def _named(results: Sequence[Result]) -> list[Result]:
    """A recipe's step is called what the recipe calls it, and shares that with its repetitions with other seeds; what would be
    called the same is told apart by its path.
    """
    parents = {Path(result.path).parent for result in results}
    steps = {parent / event["step"]: event for parent in parents for event in _steps(parent)}
    events = [steps.get(Path(result.path), {}) for result in results]
    keys = [
        (Path(result.path).parent, str(event["label"])) if event else (Path(result.path), result.name)
        for result, event in zip(results, events, strict=True)
    ]
    taken = Counter(name for _, name in dict.fromkeys(keys))
    named = []
    for result, event, (place, name) in zip(results, events, keys, strict=True):
        series = name if taken[name] == 1 else f"{place}: {name}" if event else str(place)
        seed = f", seed {event['seed']}" if event.get("seed") is not None else ""
        named.append(replace(result, name=series + seed, series=series, seconds=event.get("seconds", result.seconds)))
    return named


def _steps(container: Path) -> list[JsonDict]:
    """Of a recipe's run folder: its finished steps; empty for any other folder."""
    journal = RunDir(container).read_journal() if RunDir(container).journal.exists() else []
    return [event for event in journal if event["event"] == "step"]


def _subjects(results: Sequence[Result]) -> list[str]:
    """The dense networks that the runs started from, each once."""
    return list(
        dict.fromkeys(
            f"{result.metrics.get('arch')} on {result.metrics.get('data')}, {result.dense['macs']:,} MACs, "
            f"{formats.scored(result.dense)}"
            for result in results
        )
    )
