"""`slim list`."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o


class What(StrEnum):
    """What can be listed."""

    methods = "methods"
    archs = "archs"
    data = "data"
    providers = "providers"


def listing(
    what: Annotated[What, typer.Argument(metavar="methods|archs|data|providers")],
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """What there is: methods, networks, data sets, onnxruntime's providers."""
    entries = _entries(what)
    if json:
        console.print_json({what.value: [{"name": name, "summary": summary} for name, summary in entries.items()]})
    else:
        width = max(map(len, entries))
        for name, summary in entries.items():
            console.echo(f"{name:<{width}}  {summary}")


def _entries(what: What) -> dict[str, str]:
    if what is What.methods:
        from slimcli.pruning.methods import METHODS

        return {name: method.summary for name, method in METHODS.items()}
    if what is What.archs:
        from slimcli.networks import ARCHS, FORMS

        return {name: arch.summary for name, arch in ARCHS.items()} | FORMS
    if what is What.data:
        from slimcli.data import FORMS as DATA_FORMS
        from slimcli.data import KNOWN

        return {name: known.summary for name, known in KNOWN.items()} | DATA_FORMS
    from slimcli.deploy import providers

    return providers.available()
