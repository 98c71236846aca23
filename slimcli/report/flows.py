"""The figures of InCoP: how many epochs each retraining took, how far the flow was from the dense network's, what SAP took."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimcli.pruning.stopping import NEARER, PER_EPOCH
from slimcli.records import JsonDict
from slimcli.report.formats import percent, plural
from slimcli.report.result import Result
from slimcli.report.svg import GREEN, INK, SKY, VERMILLION, Plot, line
from slimcli.settings import FLOW_STOPS


def stopping(result: Result) -> Plot | None:
    """Epochs, weights left and flow distances of each iteration; None where all ran for as many epochs as were asked for."""
    rule, steps = str(result.settings.get("stop", "epochs")), result.iterations
    if rule == "epochs" or not steps:
        return None
    met = sum(bool(step.get("stopped")) for step in steps)
    flows = any(_distances(step) or step.get("flow_moved") is not None for step in steps)
    return Plot(
        name="stopping",
        title="How long each retraining took",
        caption=_caption(rule, met, len(steps), any(step.get("epsilon") is not None for step in steps))
        + _held_back(sum(bool(step.get("held_back")) for step in steps)),
        description="Bars: the epochs of each iteration's retraining, hatched where the rule was not met; squares: weights left."
        + (
            " Below, for each iteration: a line, the distance of the flow from the dense network's after the removal and after "
            "each epoch, dotted what it was to come within; or a bar, how far the removal moved it." * flows
        ),
        size=(9, 5 if flows else 3),
        draw=lambda figure: _draw(figure, steps, flows),
        head=(
            "iteration",
            "weights left",
            "epochs",
            "rule met",
            "epsilon",
            "flow distance after the removal and each epoch",
            "flow moved by the removal",
        ),
        rows=tuple(
            (
                str(step["index"]),
                percent(step["remaining"]) if "remaining" in step else "",
                str(step["epochs"]),
                "yes" if step.get("stopped") else "yes, while too much was lost" if step.get("held_back") else "no",
                f"{step['epsilon']:.3f}" if step.get("epsilon") is not None else "",
                " ".join(f"{distance:.3f}" for distance in _distances(step)),
                f"{step['flow_moved']:.3f}" if step.get("flow_moved") is not None else "",
            )
            for step in steps
        ),
    )


def _distances(step: JsonDict) -> list[float]:
    """Right after the removal, and after each epoch."""
    first = step.get("flow_distance_after_surgery")
    return [*([] if first is None else [first]), *(step.get("flow_distance") or ())]


def _caption(rule: str, met: int, count: int, within: bool) -> str:
    if rule == "flow":
        return (
            "Epochs are given out for what removals broke of the flow: one for each part of the squared move that epsilon names "
            f"({PER_EPOCH} by default); less than one is carried over to the next removal, what is beyond the limit is not."
        )
    until = f"The rule {rule} ended {met} of {plural(count, 'retraining')}"
    if rule in FLOW_STOPS and not within:
        nearer = f"less than {NEARER:.0%} nearer to the dense network's (or further from it)"
        return f"{until}, at the first epoch that brought the flow {nearer}."
    return f"{until} before their limit."


def _held_back(count: int) -> str:
    return f" {count} went on beyond that, because more was lost than allowed." if count else ""


def shares(result: Result) -> Plot | None:
    """The share of filters that SAP's step took, and what it would have been by their norms; None without `--amount pq`."""
    events = result.of_kind("shares")
    if not events:
        return None
    kinds = {"weights": "by the weights (taken)", "norms": "by the norms of filters"}
    lines = {
        said: [(event["iteration"], 100 * statistics.mean(each[kind] for each in event["groups"].values())) for event in events]
        for kind, said in kinds.items()
    }
    return Plot(
        name="shares",
        title="What SAP's step takes",
        caption="The share of its filters that a group loses, mean over the groups: by the PQ-index of their weights, which is "
        "what went, and by that of their norms, which hardly differ.",
        description="Two lines over the iterations: the share in percent by weights and by norms.",
        size=(9, 2.6),
        draw=lambda figure: _draw_shares(figure, lines),
        head=("iteration", "group", *kinds.values()),
        rows=tuple(
            (str(event["iteration"]), group, *(percent(each[kind]) for kind in kinds))
            for event in events
            for group, each in event["groups"].items()
        ),
    )


def _draw_shares(figure: Figure, lines: dict[str, list[tuple[float, float]]]) -> None:
    axes = figure.subplots()
    for (label, points), color, marker in zip(lines.items(), (VERMILLION, SKY), ("o", "s"), strict=True):
        line(axes, points, label, color=color, marker=marker)
    axes.set(xlabel="iteration", ylabel="filters that go (%)", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=2)


def _draw(figure: Figure, steps: list[JsonDict], flows: bool) -> None:
    panels = figure.subplots(2 if flows else 1, 1, squeeze=False)[:, 0]
    top = panels[0]
    for stopped, hatch, name in ((True, "", "ended by the rule"), (False, "/////", "all epochs")):
        own = [step for step in steps if bool(step.get("stopped")) is stopped]
        places, epochs = [step["index"] for step in own], [step["epochs"] for step in own]
        top.bar(places, epochs, label=name if own else "", color=SKY, hatch=hatch, edgecolor=INK, linewidth=0.5)
    top.set(xlabel="iteration", ylabel="epochs", ylim=(0, max(1.0, top.get_ylim()[1])))
    for axis in (top.xaxis, top.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    weights = top.twinx()
    left = [(step["index"], 100 * step["remaining"]) for step in steps if "remaining" in step]
    line(weights, left, "weights left", color=VERMILLION, marker="s", linestyle=":")
    weights.set(ylabel="weights left (%)", ylim=(0, 107))
    weights.grid(visible=False)
    handles, labels = (one + other for one, other in zip(*(a.get_legend_handles_labels() for a in (top, weights)), strict=True))
    figure.legend(handles, labels, loc="outside upper center", ncols=3)
    if not flows:
        return
    bottom, done = panels[1], 0
    moved = [(step["index"], step["flow_moved"]) for step in steps if step.get("flow_moved") is not None]
    if moved:
        bottom.bar(*zip(*moved, strict=True), color=GREEN, edgecolor=INK, linewidth=0.5)
        bottom.set(xlabel="iteration", ylabel="flow moved", ylim=(0, None))
        bottom.xaxis.set_major_locator(MaxNLocator(integer=True))
        return
    for step in steps:
        distances = _distances(step)
        points = [(done + number, distance) for number, distance in enumerate(distances)]
        line(bottom, points, "", color=GREEN, marker="o")
        if distances and step.get("epsilon") is not None:
            bottom.hlines(step["epsilon"], done - 0.4, done + len(distances) - 0.6, color=INK, linestyle=":", linewidth=1)
        done += len(distances)
    bottom.set(xlabel="looks: after each removal, then after each epoch", ylabel="flow distance", ylim=(0, None), xticks=[])
