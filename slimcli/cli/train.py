"""`slim train`."""

from __future__ import annotations

from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.rundir import RunDir, default_path
from slimcli.settings import TrainSettings

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="ARCH", help="A built-in network, torchvision:NAME, timm:NAME or file.py:callable.", show_default=False
    ),
]


def train(
    context: typer.Context,
    arch: Name = None,
    arch_arg: o.ArchArg = None,
    resume: o.Resume = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    classes: o.Classes = None,
    mean: o.Mean = None,
    std: o.Std = None,
    holdout: o.Holdout = None,
    val_data: o.ValData = None,
    train_samples: o.TrainSamples = None,
    augment: o.Augment = "auto",
    workers: o.Workers = None,
    batch_size: o.BatchSize = 128,
    lr: o.Lr = 0.05,
    momentum: o.Momentum = 0.9,
    weight_decay: o.WeightDecay = 5e-4,
    label_smoothing: o.LabelSmoothing = 0.05,
    clip_norm: o.ClipNorm = 1.0,
    schedule: o.Schedule = "onecycle",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    devices: o.Devices = 1,
    precision: o.Precision = "auto",
    compile: o.Compile = False,
    norm: o.Norm = "l1",
    like: o.Like = None,
    json: o.Json = False,
    debug: o.Debug = False,
) -> int:
    """Train a network from scratch and record the norm history that HBFP chooses by.

    The run folder gets model.pt (weights, history, preprocessing, data), journal.jsonl, metrics.json and recipe.toml.
    """
    if resume is not None:
        changes = arguments.given(context)
    else:
        arch = arguments.arch_of(arguments.started(arch, "ARCH", "train"), arch_arg)
        settings = arguments.settings(TrainSettings, locals())
        folder = RunDir(out or default_path(arch, "train"))
    from slimcli.cli import terminal
    from slimcli.pipeline import train as training
    from slimcli.report import formats

    progress = terminal.Terminal()
    if resume is not None:
        result = training.resume(resume, changes, progress)
    else:
        result = training.train(settings, folder, progress, overwrite)
    if result is None:
        return 0
    if json:
        console.print_json(result.metrics)
    else:
        dense = result.metrics["dense"]
        console.echo(
            f"{formats.scored(dense)} (test), {formats.score(result.metrics['held_out'])} (held out), "
            f"{dense['macs']:,} MACs, {dense['params']:,} parameters: {result.folder.model}"
        )
    return console.exit_code(result.shortfall)
