"""The figure of what `hbfp` looks at: two filters whose norms ran alike, one of which was removed."""

from __future__ import annotations

import math
from itertools import zip_longest

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slimcli.records import JsonDict
from slimcli.report.result import Result
from slimcli.report.svg import INK, SKY, VERMILLION, Plot, line

MOST_GROUPS = 4
MOST_MARKERS = 25  # of one line


def pairs(result: Result) -> Plot | None:
    """The norm histories of one removed pair per group, from the first iteration that has them."""
    surgery = next((event for event in result.of_kind("surgery") if event.get("examples")), None)
    if surgery is None:
        return None
    examples = surgery["examples"][:MOST_GROUPS]
    # The pair is chosen before the epochs that pull it together, and the history goes on through them.
    tied = sum(event["phase"] == f"tie {surgery['iteration']}" for event in result.of_kind("epoch"))
    norm = str(result.settings.get("norm", "")).upper()
    which = "each group" if len(surgery["examples"]) <= MOST_GROUPS else f"the first {MOST_GROUPS} groups"
    losses = "; ".join(f"{each['group']}: filter {each['removed']} was removed, {_partner(each)} stayed" for each in examples)
    histories = zip_longest(*(history for each in examples for history in each["histories"]))
    return Plot(
        name="pairs",
        title="Filters whose norms ran alike",
        caption=f"The closest pair of {which} in iteration {surgery['iteration']}. {losses}. "
        "Where a group spans several layers, their norms are added up.",
        description=f"One line chart per channel group: the {norm} norms of two filters over the epochs. The dashed line "
        "with crosses is the filter that was removed, the solid line with circles the one that stayed. "
        "A dotted vertical line marks when the pair was chosen.",
        size=(9, 3.1 * math.ceil(len(examples) / 2)),
        draw=lambda figure: _draw(figure, examples, tied, f"{norm} norm".strip()),
        head=("epoch", *(f"{each['group']}, filter {unit}" for each in examples for unit in each["pair"])),
        rows=tuple(
            (str(epoch), *("" if norm is None else f"{norm:.4f}" for norm in norms))
            for epoch, norms in enumerate(histories, start=1)
        ),
    )


def _draw(figure: Figure, examples: list[JsonDict], tied: int, label: str) -> None:
    grid = figure.subplots(math.ceil(len(examples) / 2), min(len(examples), 2), squeeze=False)
    for axes in grid.flat[len(examples) :]:
        axes.remove()
    for axes, example in zip(grid.flat, examples, strict=False):
        _draw_pair(axes, example, tied)
        axes.set_ylabel(label)


def _draw_pair(axes: Axes, example: JsonDict, tied: int) -> None:
    for unit, history in zip(example["pair"], example["histories"], strict=True):
        gone = unit == example["removed"]
        line(
            axes,
            list(enumerate(history, start=1)),
            f"filter {unit}, {'removed' if gone else 'stayed'}",
            color=VERMILLION if gone else SKY,
            marker="x" if gone else "o",
            linestyle="--" if gone else "-",
            markevery=math.ceil(len(history) / MOST_MARKERS),
        )
    epochs = len(example["histories"][0])
    if 0 < tied < epochs:
        axes.axvline(epochs - tied + 0.5, color=INK, linestyle=":", linewidth=1, label="chosen")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(title=example["group"], loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, columnspacing=1, handlelength=1.8)


def _partner(example: JsonDict) -> int:
    return next(int(unit) for unit in example["pair"] if unit != example["removed"])
