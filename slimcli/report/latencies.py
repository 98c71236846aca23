"""The figure of measured latencies: not one number a network, but how its calls are spread."""

from __future__ import annotations

from matplotlib.figure import Figure

from slimcli.records import JsonDict
from slimcli.report.formats import milliseconds, plural
from slimcli.report.result import Result
from slimcli.report.svg import COLOURS, Plot

_REACH = 1.5
"""How far the figure reaches, in upper quartiles of the slowest network: a single hiccup would squeeze all else."""


def latencies(result: Result) -> Plot | None:
    """The share of each network's calls that took at most so long; None where the calls are not known."""
    sides = {"dense": result.dense, "slim": result.slim}
    if small := result.metrics.get("int8"):
        sides |= {"dense, INT8": small["dense"], "slim, INT8": small["slim"]}
    measured = {name: facts.get("latency_ms") or {} for name, facts in sides.items()}
    known = {name: facts for name, facts in measured.items() if len(facts.get("quantiles", ())) > 2}
    if not known:
        return None
    first = next(iter(known.values()))
    return Plot(
        name="latencies",
        title="Latency of single calls",
        caption=f"{plural(first['runs'], 'call')} of each network, interleaved; {plural(first['threads'], 'thread')}, batch "
        f"{first['batch']}. Calls that took far longer are cut off.",
        description="A line for each network that rises from 0 to 100 percent: the share of its calls (upwards) that took at "
        "most so many milliseconds (to the right). The further left a line, the faster the network; the steeper, the steadier.",
        size=(9, 3.2),
        draw=lambda figure: _draw(figure, known),
        head=("network", "fastest", "p10", "p50", "p90", "p99", "slowest"),
        rows=tuple(
            (name, *(milliseconds(_at(facts, share)) for share in (0, 0.1, 0.5, 0.9, 0.99, 1))) for name, facts in known.items()
        ),
    )


def _at(facts: JsonDict, share: float) -> float:
    """The quantile at that share: they stand at equal distances."""
    quantiles = facts["quantiles"]
    return float(quantiles[round(share * (len(quantiles) - 1))])


def _draw(figure: Figure, known: dict[str, JsonDict]) -> None:
    axes = figure.subplots()
    for name, facts in known.items():
        steps = len(facts["quantiles"]) - 1
        line = "--" if name.endswith("INT8") else "-"
        axes.plot(facts["quantiles"], [100 * at / steps for at in range(steps + 1)], line, label=name, color=COLOURS[name])
    reach = _REACH * max(_at(facts, 0.75) for facts in known.values())
    axes.set(xlabel="milliseconds", ylabel="calls (%)", xlim=(0, reach), ylim=(0, 100))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4)
