"""`slim export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.errors import SettingsError
from slimcli.settings import DataSettings, ExportSettings, Int8Settings

if TYPE_CHECKING:
    from slimcli.networks.checkpoint import Checkpoint

_INT8 = "INT8"
_OF_A_RUN = {"run", "int8", "overwrite", "data_root", *Int8Settings.__annotations__}
_SUFFIXES = {"onnx": ".onnx", "int8": ".int8.onnx", "fp16": ".fp16.onnx", "pt2": ".pt2"}


def export(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=o.MODEL_HELP, show_default=False)] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="With --int8: both networks of a run, into its folder and metrics.json.")
    ] = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Export to ONNX.")] = False,
    fp16: Annotated[bool, typer.Option("--fp16", help="Export to ONNX in half precision, for GPUs.")] = False,
    pt2: Annotated[bool, typer.Option("--pt2", help="Export to torch's own format.")] = False,
    int8: Annotated[
        bool, typer.Option("--int8", help="Export to ONNX in 8-bit integers, calibrated on the training images.")
    ] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="The file to write.", show_default="beside MODEL")] = None,
    overwrite: o.Overwrite = False,
    pixels: Annotated[
        bool, typer.Option("--pixels", help="Take pixels, uint8 (N, H, W, C): the normalisation goes into the file.")
    ] = False,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Give probabilities, not logits: a softmax goes into the file.")
    ] = False,
    opset: Annotated[int | None, typer.Option(help="ONNX opset.", show_default="the exporter's")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest error allowed, as a share of the largest output (or of 1).", show_default="0.0001, in fp16 0.01"
        ),
    ] = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    input_shape: o.InputShape = None,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    trust_pickle: o.TrustPickle = False,
    calibration: Annotated[
        str, typer.Option(help="How ranges are found: percentile, entropy or minmax.", rich_help_panel=_INT8)
    ] = "percentile",
    calibration_images: Annotated[
        int, typer.Option(help="Training images to find ranges on.", min=1, rich_help_panel=_INT8)
    ] = 512,
    keep_float: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Layers that stay in float (repeat it).", rich_help_panel=_INT8)
    ] = None,
    max_drop: Annotated[
        float, typer.Option(help="Points of top-1 on the test split that INT8 may lose.", rich_help_panel=_INT8)
    ] = 1.0,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Export to one file and check that it computes what the network computes, on real images where there are any.

    A file that fails the check is not left behind (exit code 1). An INT8 file computes something else by design: its accuracy is
    measured beside the float file's on the test split, and where it loses more than --max-drop, the layers that hurt most are
    named (exit code 1; the file stays).
    """
    if (model is None) == (run is None):
        raise SettingsError("export takes a MODEL or --run RUN, one of the two", "slim export MODEL --onnx")
    named = [name for name, chosen in (("onnx", onnx), ("int8", int8), ("fp16", fp16), ("pt2", pt2)) if chosen]
    if len(named) != 1:
        raise SettingsError("one format at a time" if named else "no format was named", "give --onnx, --int8, --fp16 or --pt2")
    (format,) = named
    idle = [name for name in arguments.given(context) if not int8 and name in Int8Settings.__annotations__]
    if idle:
        raise SettingsError(f"--{idle[0].replace('_', '-')} says how to quantise", f"it goes with --int8, not with --{format}")
    if run is not None and not int8:
        raise SettingsError(f"--run goes with --int8, not with --{format}", "export the run's model.pt instead")
    odd = [name for name in arguments.given(context) if run is not None and name not in _OF_A_RUN]
    if odd:
        raise SettingsError(
            f"--{odd[0].replace('_', '-')} does not go with --run: the run's own files and data are used", "leave it out"
        )
    settings = arguments.settings(DataSettings, locals())
    exported, asked = arguments.settings(ExportSettings, locals()), arguments.settings(Int8Settings, locals())
    if model is None:
        assert run is not None
        return _quantize_run(run, settings, asked, overwrite, json)
    target = out or Path(model).with_suffix(_SUFFIXES[format])
    if target.exists() and not overwrite:
        raise SettingsError(f"{target} exists", "name another file with -o, or pass --overwrite")
    from slimcli.networks import checkpoint

    loaded = checkpoint.load(model, arguments.arch_of(arch, arch_arg), trust_pickle, arguments.shape(input_shape))
    if int8:
        return _export_int8(loaded, target, settings, exported, asked, json)
    from slimcli.pipeline.deploy import export_checkpoint

    done, images = export_checkpoint(loaded, target, settings, exported)
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
            f"{done.path}: {done.file_bytes:,} bytes, images {tuple(done.input_shape)}, "
            + (f"opset {done.opset}, " if done.opset else "")
            + f"max abs error against torch {done.max_error:.2e} on {done.samples} {images} images"
        )
    return 0


def _export_int8(
    loaded: Checkpoint, target: Path, settings: DataSettings, exported: ExportSettings, asked: Int8Settings, json: bool
) -> int:
    from slimcli.cli import tables, terminal
    from slimcli.pipeline.quantize import quantize_checkpoint

    done = quantize_checkpoint(loaded, target, settings, exported, asked, terminal.Terminal()).to_json()
    if json:
        console.print_json(done)
    else:
        tables.show(tables.quantized(done))
    return console.exit_code(done["shortfall"])


def _quantize_run(run: Path, settings: DataSettings, asked: Int8Settings, overwrite: bool, json: bool) -> int:
    from slimcli.cli import tables, terminal
    from slimcli.pipeline.quantize import quantize_run
    from slimcli.rundir import RunDir

    folder = RunDir(run)
    for path in (folder.int8, folder.dense_int8):
        if path.exists() and not overwrite:
            raise SettingsError(f"{path} exists", "pass --overwrite to quantise again")
    metrics = quantize_run(folder, settings, asked, terminal.Terminal())
    if json:
        console.print_json(metrics["int8"])
    else:
        tables.show(tables.four(metrics))
    return console.exit_code(metrics["int8"]["shortfall"])
