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
PATIENCE = 30.0  # seconds for a folder to appear


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

    if sys.stdout.isatty() and not once and not json:
        _wait_for(run)
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


def _wait_for(run: Path) -> None:
    """A run that was started a moment ago has no folder yet: it reads and checks everything first."""
    deadline = time.monotonic() + PATIENCE
    if not run.exists():
        console.remark(f"waiting for {run} ...")
    while not run.exists() and time.monotonic() < deadline:
        time.sleep(SECONDS / 4)


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
