"""`slim watch`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o

if TYPE_CHECKING:
    from slimcli.report.standing import Standing, Watch

SECONDS = 1.0  # between two looks


def watch(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a recipe's folder: then its newest step.")],
    once: Annotated[bool, typer.Option("--once", help="Show the run as it is now and end.")] = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Show how a run goes on until it ends; Ctrl-C leaves the run alone. Exit code 1 when its process died on the way.

    Where stdout is no terminal, and with --once or --json, the run is shown once, as it is now.
    """
    from slimcli.cli import tables
    from slimcli.report.screen import screen
    from slimcli.report.standing import Watch

    watched = Watch(run)
    standing = watched.look()
    if json:
        console.print_json(standing.to_json())
    elif once or not sys.stdout.isatty():
        tables.show(screen(standing))
    else:
        standing = _follow(watched, standing)
    if standing.state == "stopped":
        console.remark(f"slim: {standing.run} has stopped before its end (go on with: {standing.way_on})")
        return 1
    return 0


def _follow(watched: Watch, standing: Standing) -> Standing:
    from rich.live import Live

    from slimcli.report.screen import screen

    with Live(screen(standing), auto_refresh=False) as live:
        live.refresh()
        while standing.state == "running":
            time.sleep(SECONDS)
            standing = watched.look()
            live.update(screen(standing), refresh=True)
    return standing
