"""`slim run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.errors import SettingsError


def run(
    recipe: Annotated[
        Path | None,
        typer.Argument(metavar="RECIPE.toml", help="A recipe, or the recipe.toml of a run folder.", show_default=False),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option("--resume", metavar="RUN", help="Go on with the recipe that was run into this folder."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda, for every step.", show_default="the recipe's")] = None,
    devices: Annotated[int | None, typer.Option(help="Processes on this machine.", show_default="the recipe's")] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Repeat it with these seeds: 0,1,2. Its card then goes into the run folder.", show_default="the recipe's"
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Of its steps these alone, and what they start from; may be repeated, and be a pattern: 'SAP*'."
        ),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="32, bf16 or auto, for every step.", show_default="the recipe's")] = None,
    jobs: Annotated[
        int, typer.Option(help="Steps carried out side by side, each with its share of the cores and a log of its own.", min=1)
    ] = 1,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Carry out a whole recipe: train, prune, export, bench, report."""
    how = {"device": device, "devices": devices, "precision": precision}
    changes = {name: value for name, value in how.items() if value is not None}
    if resume is not None and (recipe is not None or out is not None or overwrite or seeds or only):
        raise SettingsError(
            "--resume goes on in its own folder with its own recipe", "leave RECIPE.toml, -o, --overwrite, --seeds and --only out"
        )
    if resume is None:
        path = Path(arguments.started(str(recipe) if recipe else None, "RECIPE.toml", "run"))
    from slimcli.cli import tables, terminal
    from slimcli.pipeline.recipe import resume_recipe, run_recipe

    progress = terminal.Terminal()
    if resume is not None:
        outcome = resume_recipe(resume, changes, progress, jobs)
    else:
        chosen = arguments.numbers(seeds, "--seeds", int)
        outcome = run_recipe(path, out, progress, overwrite, changes, chosen, jobs, only or ())
    if outcome is None:
        return 0
    if json:
        console.print_json({"steps": outcome.steps})
    else:
        pruned = [step["metrics"] for step in outcome.steps if "method" in step["metrics"]]
        tables.show(tables.summary(pruned[0]) if len(pruned) == 1 else tables.steps(outcome.steps))
        console.echo(f"run folder: {outcome.folder}" + (f", card: {outcome.card}" if outcome.card else ""))
    return console.exit_code(*outcome.shortfalls)
