"""`slim report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o
from slimcli.rundir import RunDir


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder of `slim prune`.")],
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Write RUN/report.html, one page that opens offline, and print its summary."""
    folder = RunDir(run)
    metrics = folder.read_metrics()
    from slimcli.cli import tables
    from slimcli.report import page

    page.write(folder)
    if json:
        console.print_json(metrics)
    else:
        tables.show(tables.summary(metrics))
        console.echo(str(folder.report))
