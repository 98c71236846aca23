"""`slim bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.errors import SettingsError


def bench(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL_OR_ONNX...", help="Checkpoints and ONNX files.")] = None,
    run: Annotated[Path | None, typer.Option(help="Measure a run's dense and slim network and update its metrics.json.")] = None,
    runs: Annotated[int, typer.Option(help="Calls of each model.", min=10)] = 1000,
    batch: Annotated[int, typer.Option(help="Images per call.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="onnxruntime's threads.", min=1)] = 1,
    provider: Annotated[str, typer.Option(help="See `slim list providers`.")] = "cpu",
    profile: Annotated[bool, typer.Option("--profile", help="Also where the time goes, by layer.")] = False,
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    input_shape: o.InputShape = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Latency in onnxruntime, the models interleaved; the first one is what the others are compared with.

    Cold start is what creating a session takes, memory what a process grows by that loads the model and runs it once.
    """
    if bool(models) == (run is not None):
        raise SettingsError(
            "bench takes models or a run folder, one of the two", "slim bench A.pt B.onnx, or slim bench --run RUN"
        )
    from slimcli.cli import tables
    from slimcli.pipeline import deploy

    options = {"runs": runs, "batch": batch, "threads": threads, "provider": provider, "memory": True, "profiled": profile}
    if run:
        result = deploy.bench_folder(run, **options)
    else:
        result = deploy.bench_models(
            models or [], arguments.arch_of(arch, arch_arg), trust_pickle, arguments.shape(input_shape), **options
        )
    if json:
        console.print_json(result)
    else:
        tables.show(tables.latencies(result), *([tables.profiles(result)] if profile else []))
