"""`slim inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.errors import SettingsError


def inspect(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL_OR_ARCH", help="A checkpoint, or the name of a network.", show_default=False)
    ] = None,
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

    given, network = (model, arch) if model else (arch, None)
    if given is None:
        raise SettingsError("nothing was named to look at", "give a checkpoint, or a network: `slim list archs` shows some")
    if model is None or (network is None and not Path(given).exists()):
        given = arguments.arch_of(given, arch_arg)
    else:
        network = arguments.arch_of(network, arch_arg)
    result = run(given, network, trust_pickle, linear, arguments.shape(input_shape), classes)
    if json:
        console.print_json(result)
    else:
        tables.show(*tables.anatomy(result))
