"""The figures of one run."""

from __future__ import annotations

import math
from itertools import groupby

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from slimcli.measures import value_of
from slimcli.records import JsonDict
from slimcli.report.flows import shares, stopping
from slimcli.report.formats import change, milliseconds, percent, plural
from slimcli.report.histories import pairs
from slimcli.report.latencies import latencies
from slimcli.report.result import Result
from slimcli.report.svg import GREEN, INK, PURPLE, SKY, VERMILLION, Plot, line
from slimcli.report.tradeoff import tradeoff

MOST_NAMES = 60  # layer names that fit below one axis
PHASES = {
    "observe": ("D", PURPLE),
    "tie": ("^", SKY),
    "retrain": ("o", VERMILLION),
    "final": ("s", GREEN),
    "train": ("o", VERMILLION),
}


def plots(result: Result) -> list[Plot]:
    """Every figure that the run has the records for."""
    return [plot for make in (tradeoff, layers, iterations, latencies, stopping, shares, pairs, loss) if (plot := make(result))]


def layers(result: Result) -> Plot | None:
    """MACs and filters of each layer before and after, as in Fig. 3 of the HBFP paper."""
    records: list[JsonDict] = result.metrics.get("layers", []) if "slim" in result.metrics else []
    if not records:
        return None
    most = max(records, key=lambda layer: layer["macs"][0] - layer["macs"][1])
    saving = (
        f"The largest saving is in {most['name']}: {most['macs'][0]:,} MACs became {most['macs'][1]:,} ({change(*most['macs'])})."
    )
    if most["macs"][0] == most["macs"][1]:
        saving = "No MACs were saved."
    return Plot(
        name="layers",
        title="MACs and filters per layer",
        caption=f"{saving} The filters of a linear layer are its outputs.",
        description="Two bar charts over the layers from input to output: MACs above, filters below. "
        "Hatched bars are the dense network, plain bars the slim one.",
        size=(9, 4.6),
        draw=lambda figure: _draw_layers(figure, records),
        head=("layer", "MACs dense", "MACs slim", "filters dense", "filters slim"),
        rows=tuple((layer["name"], *(f"{n:,}" for key in ("macs", "filters") for n in layer[key])) for layer in records),
    )


def _draw_layers(figure: Figure, records: list[JsonDict]) -> None:
    panels = figure.subplots(2, 1, sharex=True)
    places, few = range(len(records)), len(records) <= 10
    for axes, key, label in zip(panels, ("macs", "filters"), ("MACs", "filters"), strict=True):
        numbers = EngFormatter(places=0 if key == "filters" else None, sep=" ")
        for side, name, color, hatch in ((0, "dense", SKY, "/////"), (1, "slim", VERMILLION, "")):
            bars = axes.bar(
                [x + 0.4 * side - 0.2 for x in places],
                [layer[key][side] for layer in records],
                width=0.4,
                label=name,
                color=color,
                hatch=hatch,
                edgecolor=INK,
                linewidth=0.5,
            )
            if few:
                axes.bar_label(bars, fmt=numbers, fontsize=7, padding=1)
        axes.set_ylabel(label)
        axes.yaxis.set_major_formatter(numbers)
        axes.grid(axis="x", visible=False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    named = places[:: math.ceil(len(records) / MOST_NAMES)]
    panels[1].set_xticks(named, [records[x]["name"] for x in named], rotation=0 if few else 90, fontsize=9 if few else 7)


def iterations(result: Result) -> Plot | None:
    """Held-out top-1 and MACs kept after each iteration and after the last training."""
    steps = result.iterations
    if not steps:
        return None
    kept, measure = len(result.kept_iterations), result.measure
    score = measure.title
    timed = ("latency, p50",) if all(step.get("latency_ms") for step in steps) else ()
    return Plot(
        name="iterations",
        title=f"{'Accuracy' if measure.is_top1 else measure.name} and MACs over the iterations",
        caption=f"{plural(kept, 'iteration')} kept, {len(steps) - kept} taken back. "
        f"{measure.opening} is measured on the held-out split, on which every choice is made.",
        description=f"Two line charts over the iterations. Above, {score} on the held-out split: circles after retraining, "
        "triangles right after surgery, crosses for iterations that were taken back, a star for the slim network. "
        "Below, the MACs kept in percent of the dense network.",
        size=(9, 5),
        draw=lambda figure: _draw_iterations(figure, result),
        head=(
            "iteration",
            "MACs kept",
            *timed,
            f"{score} after surgery",
            f"{score} after retraining",
            "weights removed" if result.metrics.get("sparsity") else "filters removed",
            "epochs",
            "kept",
        ),
        rows=tuple(
            (
                str(step["index"]),
                percent(step["macs"] / result.dense["macs"]),
                *(milliseconds(step["latency_ms"]) for _ in timed),
                *(measure.figure(value_of(step, key)) + measure.unit for key in ("score_after_surgery", "score")),
                str(step.get("removed", "")),
                str(step.get("epochs", "")),
                _kept(step),
            )
            for step in steps
        ),
    )


def _kept(step: JsonDict) -> str:
    if step.get("undone"):
        return "as after surgery"
    return "yes" if step.get("kept", True) else "no"


def _draw_iterations(figure: Figure, result: Result) -> None:
    steps, kept = result.iterations, result.kept_iterations
    taken_back = [step for step in steps if not step.get("kept", True)]
    last = len(steps) + 1

    def share(some: list[JsonDict]) -> list[tuple[float, float]]:
        return [(step["index"], 100 * step["macs"] / result.dense["macs"]) for step in some]

    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    after_surgery = [(step["index"], value_of(step, "score_after_surgery")) for step in steps]
    line(top, after_surgery, "right after surgery", color=SKY, marker="v", linestyle=":", linewidth=1)
    line(top, [(step["index"], value_of(step)) for step in kept], "after retraining", color=VERMILLION, marker="o")
    crosses = {"color": INK, "marker": "x", "linestyle": "", "markersize": 6}
    line(top, [(step["index"], value_of(step)) for step in taken_back], "taken back", **crosses)
    end = [(last, 100 * result.kept("macs"))] if result.finished else []
    if held_out := result.metrics.get("held_out"):
        star = {"color": GREEN, "marker": "*", "linestyle": "", "markersize": 10}
        line(top, [(last, value_of(held_out["slim"]))] if end else [], "slim network, after the final training", **star)
        line(top, [(0, value_of(held_out["dense"]))], "dense", color=INK, marker="s", linestyle="")
    line(bottom, [(0, 100), *share(kept), *end], "kept", color=VERMILLION, marker="o")
    line(bottom, share(taken_back), "taken back", **crosses)
    top.set_ylabel(f"held-out {result.measure.axis}")
    bottom.set(xlabel="iteration (0 is the dense network)", ylabel="MACs kept (%)", ylim=(0, 107))
    every = math.ceil(len(steps) / 25)
    numbered = range(0, last - every // 2, every)
    ticks = {number: str(number) for number in numbered} | ({last: "final"} if end else {})
    bottom.set_xticks(list(ticks), list(ticks.values()))
    figure.legend(*top.get_legend_handles_labels(), loc="outside upper center", ncols=4)


def loss(result: Result) -> Plot | None:
    """The training loss of every epoch, marked by phase."""
    epochs = result.of_kind("epoch")
    if not epochs:
        return None
    accuracy = any(epoch.get("top1") is not None for epoch in epochs)
    return Plot(
        name="loss",
        title="Training loss",
        caption=f"{plural(len(epochs), 'epoch')} in all; the loss holds the penalty where there is one.",
        description="A line chart of the training loss of each epoch; the markers tell the phases apart, "
        "dotted vertical lines mark surgeries.",
        size=(9, 3.4),
        draw=lambda figure: _draw_loss(figure, epochs, _surgeries(result)),
        head=("epoch", "phase", "loss", *(("training top-1",) if accuracy else ())),
        rows=tuple(
            (str(number), str(epoch["phase"]), f"{epoch['loss']:.4g}", *((_top1(epoch.get("top1")),) if accuracy else ()))
            for number, epoch in enumerate(epochs, start=1)
        ),
    )


def _draw_loss(figure: Figure, epochs: list[JsonDict], surgeries: list[int]) -> None:
    axes = figure.subplots()
    points = [(number, float(epoch["loss"])) for number, epoch in enumerate(epochs, start=1)]
    kinds = [str(epoch["phase"]).partition(" ")[0] for epoch in epochs]
    phases = groupby(range(len(points)), key=lambda at: (epochs[at]["phase"], at - epochs[at]["index"]))
    for _, places in phases:  # what one phase reached is not where the next begins
        line(axes, [points[at] for at in places], "", color=INK, linewidth=0.8, alpha=0.5)
    for kind in dict.fromkeys(kinds):
        marker, color = PHASES.get(kind, ("P", INK))
        own = [point for point, its_kind in zip(points, kinds, strict=True) if its_kind == kind]
        line(axes, own, kind, color=color, marker=marker, linestyle="")
    for number, done in enumerate(surgeries):
        axes.axvline(done + 0.5, color=INK, linestyle=":", linewidth=0.8, alpha=0.6, label="" if number else "surgery")
    if all(value > 0 for _, value in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="epoch", ylabel="training loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=6)


def _surgeries(result: Result) -> list[int]:
    """How many epochs lay behind each surgery."""
    done, found = 0, []
    for event in result.events:
        done += event.get("event") == "epoch"
        if event.get("event") == "surgery":
            found.append(done)
    return found


def _top1(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"
