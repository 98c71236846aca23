"""`slim export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.errors import SettingsError
from slimcli.settings import DataSettings


def export(
    model: o.Model,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write.", show_default="beside MODEL")] = None,
    overwrite: o.Overwrite = False,
    tolerance: Annotated[float, typer.Option(help="Largest error allowed, as a share of the largest output (or of 1).")] = 1e-4,
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    input_shape: o.InputShape = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    trust_pickle: o.TrustPickle = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Export to one ONNX file and check that it computes what the network computes, on real images where there are any.

    A file that fails the check is not left behind (exit code 1).
    """
    if not onnx:
        raise SettingsError("no format was named", "add --onnx")
    target = out or Path(model).with_suffix(".onnx")
    if target.exists() and not overwrite:
        raise SettingsError(f"{target} exists", "name another file with -o, or pass --overwrite")
    settings = arguments.settings(DataSettings, locals())
    from slimcli.networks import checkpoint
    from slimcli.pipeline.deploy import export_checkpoint

    loaded = checkpoint.load(model, arguments.arch_of(arch, arch_arg), trust_pickle, arguments.shape(input_shape))
    done, images = export_checkpoint(loaded, target, settings, tolerance)
    if json:
        console.print_json(
            {
                "path": str(done.path),
                "file_bytes": done.file_bytes,
                "max_error": done.max_error,
                "samples": done.samples,
                "images": images,
                "opset": done.opset,
            }
        )
    else:
        console.echo(
            f"{done.path}: {done.file_bytes:,} bytes, images {tuple(done.input_shape)}, opset {done.opset}, "
            f"max abs error against torch {done.max_error:.2e} on {done.samples} {images} images"
        )
