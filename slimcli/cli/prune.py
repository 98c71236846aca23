"""`slim prune`."""

from __future__ import annotations

from typing import Annotated

import typer

from slimcli.cli import arguments, console
from slimcli.cli import options as o
from slimcli.settings import PruneSettings


def prune(
    context: typer.Context,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=o.MODEL_HELP, show_default=False)] = None,
    resume: o.Resume = None,
    method: o.Method = "hbfp",
    arch: o.Arch = None,
    arch_arg: o.ArchArg = None,
    trust_pickle: o.TrustPickle = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    json: o.Json = False,
    debug: o.Debug = False,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    deploy: Annotated[
        bool, typer.Option("--deploy/--no-deploy", help="End with export, bench and report.", rich_help_panel="Output")
    ] = True,
    macs: o.Macs = None,
    params: o.Params = None,
    latency: o.Latency = None,
    widths: o.Widths = None,
    round_to: o.RoundTo = None,
    leave_out: o.LeaveOut = None,
    iterations: o.Iterations = None,
    max_drop: o.MaxDrop = 1.0,
    amount: o.Amount = None,
    pq: o.Pq = "0.5,1",
    gamma: o.Gamma = 1.0,
    beta: o.Beta = 0.9,
    eta: o.Eta = 0.0,
    scope: o.Scope = "layer",
    history: o.History = None,
    criterion: o.Criterion = None,
    penalty: o.Penalty = None,
    merge: o.Merge = None,
    lambda_: o.Lambda = 1.0,
    granularity: o.Granularity = "filter",
    rewind: o.Rewind = None,
    stop: o.Stop = None,
    epsilon: o.Epsilon = None,
    margin: o.Margin = 0.5,
    flow_form: o.FlowForm = "correlation",
    flow_distance: o.FlowDistance = "relative",
    flow_samples: o.FlowSamples = None,
    norm: o.Norm = "l1",
    distance: o.Distance = "l1",
    window: o.Window = None,
    linear: o.Linear = False,
    include: o.Include = None,
    exclude: o.Exclude = None,
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
    observe_epochs: o.ObserveEpochs = 3,
    tie_epochs: o.TieEpochs = None,
    epochs: o.Epochs = None,
    final_epochs: o.FinalEpochs = 20,
    final: o.Final = None,
    final_lr: o.FinalLr = None,
    draws: o.Draws = None,
    distill: o.Distill = None,
    distill_weight: o.DistillWeight = 0.5,
    distill_temperature: o.DistillTemperature = 4.0,
    teacher: o.TeacherModel = None,
    batch_size: o.BatchSize = 128,
    lr: o.Lr = 0.02,
    momentum: o.Momentum = 0.9,
    weight_decay: o.WeightDecay = 5e-4,
    label_smoothing: o.LabelSmoothing = 0.0,
    clip_norm: o.ClipNorm = 1.0,
    schedule: o.Schedule = "onecycle",
    seed: o.Seed = 0,
    device: o.Device = "auto",
    devices: o.Devices = 1,
    precision: o.Precision = "auto",
    compile: o.Compile = False,
) -> int:
    """Remove filters from a trained network until a budget is met or the allowed accuracy is lost.

    With a checkpoint that `slim train` wrote no further option is needed.

    The run folder gets model.pt (the slim network), model.onnx, metrics.json, report.html, journal.jsonl, recipe.toml.
    """
    if resume is not None:
        changes = arguments.given(context)
    else:
        model = arguments.started(model, "MODEL", "prune")
        arch = arguments.arch_of(arch, arch_arg)
        settings = arguments.settings(PruneSettings, locals())
    from slimcli.cli import tables, terminal
    from slimcli.pipeline import job

    if dry_run and resume is None:
        plan = job.dry_run(settings)
        if json:
            console.print_json(plan)
        else:
            tables.show(tables.plan(plan))
        return 0
    progress = terminal.Terminal()
    result = job.resume(resume, changes, progress) if resume is not None else job.run(settings, out, progress, overwrite)
    if result is None:
        return 0
    if json:
        console.print_json(result.metrics)
    else:
        tables.show(tables.summary(result.metrics))
        console.echo(f"run folder: {result.folder.path}")
    return console.exit_code(result.shortfall)
