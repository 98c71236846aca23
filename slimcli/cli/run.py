"""`slim run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o


def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="A recipe, or the recipe.toml of a run folder.")],
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Carry out a whole recipe: train, prune, export, bench, report."""
    from slimcli.cli import tables, terminal
    from slimcli.pipeline.recipe import run_recipe

    outcome = run_recipe(recipe, out, terminal.Terminal(), overwrite)
    if json:
        console.print_json({"steps": outcome.steps})
    else:
        for step in outcome.steps:
            if "method" in step["metrics"]:
                tables.show(tables.summary(step["metrics"]))
        console.echo(f"run folder: {outcome.folder}" + (f", card: {outcome.card}" if outcome.card else ""))
    for shortfall in outcome.shortfalls:
        console.remark(f"slim: {shortfall}")
    return 1 if outcome.shortfalls else 0
