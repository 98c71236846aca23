"""A run as the terminal shows it: header, phase, loss, the last iterations, and how it stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from slimcli.measures import measure_of, value_of
from slimcli.report.formats import duration, percent
from slimcli.report.standing import Standing

BLOCKS, ASCII_BLOCKS = "▁▂▃▄▅▆▇█", "_.-~=+*#"
WIDTH = 24
LAST_ITERATIONS = 8
STYLES = {"running": "green", "finished": "bold green", "stopped": "bold red"}


def screen(standing: Standing) -> Group:
    """Everything about a run that fits on one screen."""
    start = standing.start
    step = f"{standing.step}: " if standing.step else ""
    subject = f"{start['arch']} on {start['data']}, {start.get('method', 'train')}" if start else str(standing.run)
    process = f" (process {standing.pid})" if standing.pid else ""
    header = Text.assemble(
        step, (subject, "bold"), "  ", (standing.state, STYLES[standing.state]), f"{process}, {duration(standing.seconds)}"
    )
    parts: list[RenderableType] = [header, _progress(standing)]
    if standing.iterations and "macs" in start.get("dense", {}):
        parts.append(_iterations(standing))
    if standing.remark:
        parts.append(Text(f"note: {standing.remark}", "yellow"))
    if standing.reason:
        parts.append(Text(f"it ended because {standing.reason}"))
    if standing.shortfall:
        parts.append(Text(f"it fell short: {standing.shortfall}", "yellow"))
    return Group(*parts)


def _progress(standing: Standing) -> RenderableType:
    if standing.phase == "deploy":
        return Text("exporting, measuring, reporting")
    if not standing.phase:
        return Text("no epoch is done yet")
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=standing.epochs, completed=standing.epoch, width=WIDTH) if standing.epochs else ""
    grid.add_row(
        standing.phase,
        bar,
        f"epoch {standing.epoch}" + (f" of {standing.epochs}" if standing.epochs else ""),
        f"loss {standing.loss:.4f}" if standing.loss is not None else "",
        f"top-1 {standing.top1:.2f} %" if standing.top1 is not None else "",
    )
    grid.add_row("loss", _Losses(standing.losses), "", "", "")
    return grid


@dataclass(frozen=True)
class _Losses:
    """The sparkline, in characters that the terminal has."""

    losses: tuple[float, ...]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(WIDTH, WIDTH)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self.losses, WIDTH, ASCII_BLOCKS if options.ascii_only else BLOCKS))


def _iterations(standing: Standing) -> Table:
    dense, table = standing.start["dense"], Table()
    measure = measure_of(dense)
    for column in ("iteration", "MACs kept", "parameters kept", f"held-out {measure.heading}", "kept"):
        table.add_column(column, justify="left" if column == "kept" else "right")
    for step in standing.iterations[-LAST_ITERATIONS:]:
        table.add_row(
            str(step["index"]),
            percent(step["macs"] / dense["macs"]),
            percent(step["params"] / dense["params"]),
            measure.figure(value_of(step)) + measure.unit,
            "no, taken back" if not step["kept"] else "as after surgery" if step.get("undone") else "yes",
        )
    return table


def sparkline(values: Sequence[float], width: int, blocks: str = BLOCKS) -> str:
    """The values from first to last as a row of at most `width` blocks, each the mean of its stretch.

    On a logarithmic scale where it can be: a loss falls through orders of magnitude.
    """
    known = [value for value in values if math.isfinite(value)]
    if known and min(known) > 0:
        known = [math.log(value) for value in known]
    count = min(width, len(known))
    edges = [index * len(known) // count for index in range(count + 1)] if count else []
    means = [sum(known[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join(blocks[round((mean - low) / ((high - low) or 1) * (len(blocks) - 1))] for mean in means)
