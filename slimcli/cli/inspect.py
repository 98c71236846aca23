"""`slim inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o


def inspect(
    model: Annotated[str, typer.Argument(metavar="MODEL_OR_ARCH", help="A checkpoint, or the name of a network.")],
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    input_shape: o.InputShape = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Of a network that is named.", show_default="10, or 1000")] = None,
    trust_pickle: o.TrustPickle = False,
    linear: o.Linear = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Layers, channel groups, MACs and parameters: what can be pruned, what cannot, and why."""
    from slimcli.cli import tables
    from slimcli.pipeline.inspect import inspect as run

    if arch is None and not Path(model).exists():
        model = arguments.arch_of(model, arch_arg)
    else:
        arch = arguments.arch_of(arch, arch_arg)
    result = run(model, arch, trust_pickle, linear, arguments.shape(input_shape), classes)
    if json:
        console.print_json(result)
    else:
        tables.show(*tables.anatomy(result))
