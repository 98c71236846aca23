"""`slim train`."""

from __future__ import annotations

from typing import Annotated

import typer

from slimcli.cli import console
from slimcli.cli import options as o
from slimcli.rundir import RunDir, default_path
from slimcli.settings import TrainSettings

Name = Annotated[str, typer.Argument(metavar="ARCH", help="A built-in network, torchvision:NAME, timm:NAME or file.py:callable.")]


def train(
    arch: Name,
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = 20,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    data: o.DataName = None,
    data_root: o.DataRoot = None,
    mean: o.Mean = None,
    std: o.Std = None,
    holdout: o.Holdout = None,
    val_data: o.ValData = None,
    train_samples: o.TrainSamples = None,
    augment: o.Augment = "auto",
    batch_size: o.BatchSize = 128,
    lr: o.Lr = 0.05,
    momentum: o.Momentum = 0.9,
    weight_decay: o.WeightDecay = 5e-4,
    label_smoothing: o.LabelSmoothing = 0.05,
    clip_norm: o.ClipNorm = 1.0,
    schedule: o.Schedule = "onecycle",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    norm: o.Norm = "l1",
    json: o.Json = False,
    debug: o.Debug = False,
) -> None:
    """Train a network from scratch and record the norm history that HBFP chooses by.

    The run folder gets model.pt (weights, history, preprocessing, data), journal.jsonl, metrics.json and recipe.toml.
    """
    settings = o.settings(TrainSettings, locals())
    folder = RunDir(out or default_path(arch, "train"))
    from slimcli.cli import terminal
    from slimcli.pipeline.train import train as run

    metrics = run(settings, folder, terminal.Terminal(), overwrite)
    if json:
        console.print_json(metrics)
    else:
        dense = metrics["dense"]
        console.echo(
            f"top-1 {dense['top1']:.2f} % (test), {metrics['held_out']['top1']:.2f} % (held out), "
            f"{dense['macs']:,} MACs, {dense['params']:,} parameters: {folder.model}"
        )
