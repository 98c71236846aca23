"""`slim compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o
from slimcli.errors import SettingsError
from slimcli.rundir import RunDir


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders of `slim prune`, or of recipes.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")] = Path("compare.html"),
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Several runs side by side: a table, and one page with their accuracy against their MACs."""
    from slimcli.cli import tables
    from slimcli.report.compare import compare as write
    from slimcli.report.compare import gather

    results = gather([RunDir(run) for run in runs])
    if out.exists() and not overwrite:
        raise SettingsError(f"{out} exists", "name another file with -o, or pass --overwrite")
    write(results, out)
    if json:
        console.print_json({"runs": [{"path": result.path, "metrics": result.metrics} for result in results]})
    else:
        tables.show(tables.comparison([result.name for result in results], [result.metrics for result in results]))
        console.echo(str(out))
