"""`slim report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o
from slimcli.rundir import RunDir


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `slim prune` or `slim train`, finished or not.")],
    md: Annotated[
        bool, typer.Option("--md", help="Write RUN/card.md too: the same in Markdown, to go along with the network.")
    ] = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write RUN/report.html, one page that opens offline, and print its summary."""
    folder = RunDir(run)
    from slimcli.cli import tables
    from slimcli.report import page
    from slimcli.report.result import read

    result = read(folder)
    page.write(folder)
    if md:
        page.write_card(folder)
    if json:
        console.print_json(result.metrics)
        return
    tables.show(tables.summary(result.metrics))
    if not result.finished:
        console.echo(" ".join(result.next_step))
    console.echo(str(folder.report))
    if md:
        console.echo(str(folder.card))
