"""The figure of how compared runs got there: after each iteration, and the time of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimcli.measures import value_of
from slimcli.report import formats
from slimcli.report.result import Result
from slimcli.report.series import Series, deviation, looks, measure_of_all, series_of, shown
from slimcli.report.svg import Plot, line


def courses(results: Sequence[Result]) -> Plot:
    """Accuracy, epochs and weights left after each iteration, and the time of all (Figs. 3 to 6 of InCoP)."""
    title = measure_of_all(results).title
    return Plot(
        name="courses",
        title="How the runs got there",
        caption=f"After each iteration: held-out {title}, epochs of its retraining, weights left. Below on the right the time "
        "of the whole run, with all its epochs in brackets. Repetitions with other seeds are drawn as their mean and standard "
        "deviation.",
        description=f"Three line charts over the iterations: held-out {title}, epochs of retraining, weights left in percent; "
        "and bars: minutes of each run. One colour and marker per run, as above, with a band for its standard deviation.",
        size=(9, 6.4 + 0.14 * len(series_of(results))),
        draw=lambda figure: _draw_courses(figure, results),
        head=("run", "iteration", f"held-out {title}", "epochs", "weights left", "seconds"),
        rows=tuple(
            (
                result.name,
                str(step["index"]),
                shown(step, result),
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
    drawn = [(item, *look) for item, look in zip(series_of(results).items(), looks(), strict=False)]
    wanted = (
        ("score", 1, f"held-out {measure_of_all(results).axis}"),
        ("epochs", 1, "epochs of retraining"),
        ("remaining", 100, "weights left (%)"),
    )
    for axes, (key, scale, label) in zip(panels.flat, wanted, strict=False):
        for (name, series), color, marker in drawn:
            points = _course(series, key, scale)
            means = [(index, fmean(values)) for index, values in points.items()]
            line(axes, means, name if axes is panels[0, 0] else "", color=color, marker=marker, markersize=4, linewidth=1)
            spread = [deviation(values) for values in points.values()]
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
        bars.barh(place, fmean(minutes), xerr=deviation(minutes) or None, color=color, error_kw={"linewidth": 0.8})
        said = f" {formats.duration(60 * fmean(minutes))}" + ("" if math.isnan(fmean(epochs)) else f" ({fmean(epochs):.0f})")
        bars.annotate(said, (fmean(minutes) + deviation(minutes), place), va="center", fontsize=7)
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
