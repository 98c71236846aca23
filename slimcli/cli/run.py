"""`slim run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o


def run(
    context: typer.Context,
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.toml", help="A recipe, or the recipe.toml of a run folder.", show_default=False),
    ] = None,
    resume: o.Resume = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Carry out a whole recipe: train, prune, export, bench, report."""
    if resume is None:
        path = Path(o.started(str(recipe) if recipe else None, "RECIPE.toml", "run"))
    from slimcli.cli import tables, terminal
    from slimcli.pipeline.recipe import resume_recipe, run_recipe

    progress = terminal.Terminal()
    if resume is not None:
        outcome = resume_recipe(resume, o.given(context), progress)
    else:
        outcome = run_recipe(path, out, progress, overwrite)
    if outcome is None:
        return 0
    if json:
        console.print_json({"steps": outcome.steps})
    else:
        for step in outcome.steps:
            if "method" in step["metrics"]:
                tables.show(tables.summary(step["metrics"]))
        console.echo(f"run folder: {outcome.folder}" + (f", card: {outcome.card}" if outcome.card else ""))
    return console.exit_code(*outcome.shortfalls)
