"""The figure of what was given for what: accuracy against MACs, and against measured latency."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from slimcli.measures import value_of
from slimcli.report.formats import milliseconds, percent, score
from slimcli.report.published import points
from slimcli.report.result import Result
from slimcli.report.svg import COLOURS, INK, SKY, Plot

_MARKERS = {"dense": "s", "slim": "o", "dense, INT8": "D", "slim, INT8": "^"}
_PAPER = {"color": SKY, "marker": "*", "linestyle": "", "markersize": 9, "markeredgecolor": INK, "markeredgewidth": 0.5}


@dataclass(frozen=True)
class _Network:
    """One that was measured on the test split."""

    name: str
    score: float
    shown: str
    macs: float
    """Percent of the dense network's."""
    p50: float | None


def tradeoff(result: Result) -> Plot | None:
    """The test score of every network that the run made against its MACs and its latency; None where none is smaller."""
    if not (result.finished and result.pruned) or result.slim["macs"] == result.dense["macs"]:
        return None
    networks, measure = _networks(result), result.measure
    paper = points(result.metrics["arch"], result.metrics["data"]) if measure.is_top1 else []
    timed = any(network.p50 is not None for network in networks)
    beside = " Stars are the networks that HBFP's paper reports for this network and these data." if paper else ""
    return Plot(
        name="tradeoff",
        title=f"{measure.opening} against MACs{' and measured latency' * timed}",
        caption=f"{measure.opening} on the test split. {'Up' if measure.higher else 'Down'} and to the left is better.{beside}",
        description=f"{'Two scatter charts' if timed else 'A scatter chart'}, {measure.title} upwards: to the right the MACs in "
        f"percent of the dense network{', and the p50 latency in milliseconds' * timed}. A square is the dense network, a circle "
        f"the slim one{', a diamond and a triangle are the same in INT8' * any('INT8' in each.name for each in networks)}.",
        size=(9, 3.4),
        draw=lambda figure: _draw(figure, networks, paper, measure.axis, timed),
        head=("network", measure.title, "MACs kept", "latency, p50"),
        rows=(
            *((n.name, n.shown, percent(n.macs / 100), milliseconds(n.p50) if n.p50 is not None else "") for n in networks),
            *(("paper" if kept < 100 else "paper, dense", f"{top1:.2f} %", percent(kept / 100), "") for kept, top1 in paper),
        ),
    )


def _networks(result: Result) -> list[_Network]:
    sides = {"dense": result.dense, "slim": result.slim}
    if small := result.metrics.get("int8"):
        sides |= {"dense, INT8": small["dense"], "slim, INT8": small["slim"]}
    share = {"dense": 100.0, "slim": 100 * result.kept("macs")}
    return [
        _Network(name, value_of(facts), score(facts), share[name.partition(",")[0]], (facts.get("latency_ms") or {}).get("p50"))
        for name, facts in sides.items()
        if value_of(facts) is not None
    ]


def _draw(figure: Figure, networks: list[_Network], paper: list[tuple[float, float]], axis: str, timed: bool) -> None:
    panels = figure.subplots(1, 2 if timed else 1, sharey=True, squeeze=False)[0]
    for network in networks:
        style: dict[str, Any] = {"linestyle": "", "markersize": 8, "markeredgecolor": INK}
        style |= {"color": COLOURS[network.name], "marker": _MARKERS[network.name]}
        panels[0].plot(network.macs, network.score, label=network.name, **style)
        if timed and network.p50 is not None:
            panels[1].plot(network.p50, network.score, **style)
    if paper:
        panels[0].plot(*zip(*paper, strict=True), label="paper", **_PAPER)
    panels[0].set(xlabel="MACs kept (%)", ylabel=axis, xlim=(0, 107))
    if timed:
        panels[1].set(xlabel="latency, p50 (ms)", xlim=(0, 1.07 * max(each.p50 for each in networks if each.p50 is not None)))
    for axes in panels:
        axes.margins(y=0.15)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=5)
