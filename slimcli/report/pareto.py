"""The figure of compared runs: the score against what is left of the network, and against what is left of its latency."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slimcli.measures import value_of
from slimcli.records import JsonDict
from slimcli.report import formats
from slimcli.report.result import Result
from slimcli.report.series import deviation, looks, measure_of_all, series_of, shown
from slimcli.report.svg import INK, Plot, line


def pareto(results: Sequence[Result]) -> Plot:
    """Top-1 against the MACs kept; or, where a network is masked, against the weights left: a mask saves no MACs. Beside it,
    where it was measured, against the latency.
    """
    masked = any(result.metrics.get("sparsity") for result in results)
    kept, measure = "weights left" if masked else "MACs kept", measure_of_all(results)
    title, better = measure.title, "up" if measure.higher else "down"
    what = "Accuracy" if measure.is_top1 else measure.name
    timed = any(_time_kept(result) is not None for result in results)
    beside = (
        " On the right: the p50 latency in percent of the dense network's, as each run measured the two in turn." if timed else ""
    )
    return Plot(
        name="pareto",
        title=f"{what} against {'weights' if masked else 'MACs'}{' and latency' * timed}",
        caption=f"Further {better} and further left is better. Large markers are the networks on the test split; "
        f"the faint lines are their iterations on the held-out split.{beside}",
        description=f"{'Two scatter charts' if timed else 'A scatter chart'}: to the right, {kept}"
        f"{' on the left and latency on the right' * timed}, in percent of the dense network; upwards, {title}. "
        "One marker per run, with bars for the standard deviation of its repetitions, a hollow diamond for the dense network, "
        "and a faint line through each run's iterations.",
        size=(9, 4.6),
        draw=lambda figure: _draw(figure, results, masked, timed),
        head=("run", "network", kept, *(["latency (of dense)"] if timed else []), title),
        rows=tuple(row for result in results for row in _rows(result, masked, timed)),
    )


def _rows(result: Result, masked: bool, timed: bool) -> list[tuple[str, ...]]:
    """The numbers of one run: each iteration on the held-out split, then the slim network on the test split."""
    rows: list[tuple[str, str, float, float | None, str]] = [
        (result.name, f"iteration {step['index']}, held out", _share(step, result, masked), None, shown(step, result))
        for step in result.kept_iterations
    ]
    if result.finished:
        rows.append((result.name, "slim, test", _left(result, masked), _time_kept(result), formats.scored(result.slim)))
    return [
        (name, network, formats.percent(left), *(["" if time is None else formats.percent(time)] if timed else []), score)
        for name, network, left, time, score in rows
    ]


def _time_kept(result: Result) -> float | None:
    """The slim network's share of the dense one's latency, where the run has measured it."""
    speedup = result.metrics.get("speedup")
    return 1 / float(speedup["ratio"]) if speedup and result.finished else None


def _share(step: JsonDict, result: Result, masked: bool) -> float:
    """What an iteration left of the dense network: of its weights, or of its MACs."""
    return float(step["remaining"] if masked else step["macs"] / result.dense["macs"])


def _left(result: Result, masked: bool) -> float:
    """What the run left of the dense network: of its weights, or of its MACs."""
    if not masked:
        return result.kept("macs")
    return _share(result.kept_iterations[-1], result, masked) if result.kept_iterations else 1.0


def _draw(figure: Figure, results: Sequence[Result], masked: bool, timed: bool) -> None:
    axes, *beside = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
    for (name, series), (color, marker) in zip(series_of(results).items(), looks(), strict=False):
        for result in series:
            steps = [(100 * _share(step, result, masked), value_of(step)) for step in result.kept_iterations]
            line(axes, steps, "", color=color, linewidth=1, alpha=0.5, marker=".", markersize=3)
        finished = [result for result in series if result.finished]
        _mark(axes, [(_left(result, masked), value_of(result.slim)) for result in finished], name, color, marker)
        for panel in beside:
            kept = [(share, value_of(result.slim)) for result in finished if (share := _time_kept(result)) is not None]
            _mark(panel, kept, "", color, marker)
    dense = [(100, score) for score in sorted({value_of(result.dense) for result in results})]
    for panel, label in zip((axes, *beside), ("dense", ""), strict=False):
        line(panel, dense, label, color=INK, marker="D", markersize=7, markerfacecolor="none", linestyle="")
    for panel in beside:
        panel.set(xlabel="latency, p50 (% of dense)", xlim=(0, None))
    axes.set(xlabel="weights left (%)" if masked else "MACs kept (%)", ylabel=measure_of_all(results).axis, xlim=(0, 104))
    figure.legend(loc="outside right upper")


def _mark(axes: Axes, ends: Sequence[tuple[float, float]], name: str, color: str, marker: str) -> None:
    """The networks that a run and its repetitions ended with: (share of the dense one, score), as their mean and deviation."""
    shares, scores = ([100 * share for share, _ in ends] or [math.nan], [score for _, score in ends] or [math.nan])
    axes.errorbar(
        fmean(shares),
        fmean(scores),
        yerr=deviation(scores),
        xerr=deviation(shares),
        label=name,
        color=color,
        marker=marker,
        markersize=9,
        markeredgecolor=INK,
        linestyle="",
        elinewidth=1,
    )
