"""`slim doctor`."""

from __future__ import annotations

import typer

from slimcli.cli import console
from slimcli.cli import options as o


def doctor(data_root: o.DataRoot = None, json: o.Json = False, debug: o.Debug = False) -> None:
    """Whether everything is here and fits together: packages, export, devices, data. Exit code 1 when something is broken.

    Each line says ok (perhaps with a remark in brackets), or names the way out.
    """
    from slimcli.pipeline.doctor import examine

    findings = examine(data_root)
    if json:
        console.print_json({"findings": findings})
    else:
        for finding in findings:
            mark = "ok  " if finding["ok"] else "!!  "
            console.echo(f"{mark}{finding['what']}: {finding['found']}")
            if finding["way_out"]:
                console.echo(f"      {finding['way_out']}")
    if not all(finding["ok"] for finding in findings):
        raise typer.Exit(1)
