"""`slim eval`."""

from __future__ import annotations

from pathlib import Path

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.settings import DataSettings


def evaluate(
    model: o.Model,
    data: o.DataName = None,
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    data_root: o.DataRoot = None,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    batch_size: o.BatchSize = 500,
    device: o.Device = "auto",
    trust_pickle: o.TrustPickle = False,
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Top-1 accuracy (or the data's own score) and loss on the test split; an ONNX file runs in onnxruntime."""
    settings = arguments.settings(DataSettings, locals())
    from slimcli.pipeline import evaluate as pipeline

    if Path(model).suffix == ".onnx":
        score, notes = pipeline.evaluate_onnx(Path(model), settings, batch_size)
    else:
        score, notes = pipeline.evaluate_checkpoint(
            model,
            settings,
            arch=arguments.arch_of(arch, arch_arg),
            trust_pickle=trust_pickle,
            batch_size=batch_size,
            device=device,
        )
    for note in notes:
        console.remark(f"note: {note}")
    if json:
        console.print_json(score.facts())
    else:
        measure = score.measure
        console.echo(
            f"{measure.heading} {measure.figure(score.value)}{measure.unit}, loss {score.loss:.4f}, {score.samples:,} images"
        )
