"""Export and latency: of any checkpoint, and what `slim prune` ends with in its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from slimcli.deploy.bench import bench
from slimcli.deploy.onnx import Export, export_onnx
from slimcli.deploy.pt2 import export_pt2
from slimcli.deploy.ready import Ready, pixels_of
from slimcli.errors import DataError, InputError, RunDirError, SettingsError
from slimcli.measures import SCORE_KEYS, Loader
from slimcli.networks import checkpoint
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.resolve import Shape
from slimcli.pipeline.subject import Subject, open_subject
from slimcli.records import JsonDict
from slimcli.rundir import RunDir
from slimcli.settings import DataSettings, ExportSettings

PARITY_IMAGES = 64
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2
"""How far an exported file may be off, as a share of the largest output (or of 1); in fp16."""


def first_images(loader: Loader, count: int = PARITY_IMAGES) -> Tensor:
    """The first images of a split, as the network gets them."""
    images: Tensor = next(iter(loader.epoch(0)))[0]
    return images[:count].cpu()


def describe(checkpoint: Checkpoint, measured: Mapping[str, Any]) -> dict[str, Any]:
    """What goes into an ONNX file's metadata beside MACs, parameters and version; `measured` holds the network's score."""
    return {
        "arch": checkpoint.arch,
        "data": checkpoint.data.get("name", ""),
        "top1": measured.get("top1"),
        **{key: measured[key] for key in SCORE_KEYS if key in measured},
        "preprocessing": {
            "mean": checkpoint.mean,
            "std": checkpoint.std,
            "scale": "pixels / 255, then (x - mean) / std",
        },
    }


def export_both(
    run: RunDir, dense: nn.Module, slim: nn.Module, images: Tensor, notes: Mapping[str, dict[str, Any]]
) -> dict[str, Export]:
    """`dense.onnx` and `model.onnx` in the run folder; raises `ParityError`."""
    return {
        "dense": export_onnx(dense, run.dense_onnx, images, notes["dense"]),
        "slim": export_onnx(slim, run.onnx, images, notes["slim"]),
    }


def export_checkpoint(loaded: Checkpoint, target: Path, settings: DataSettings, asked: ExportSettings) -> tuple[Export, str]:
    """Export a checkpoint; says whether parity was measured on real or on random images.

    Real ones where a data set is named or the checkpoint knows its own and it can be found; random ones else.
    """
    if settings.data is not None or loaded.data:
        try:
            subject = open_subject(loaded, settings, device="cpu")
        except DataError:
            if settings.data is not None:
                raise
        else:
            return export_subject(subject, target, asked), "real"
    if settings.mean is not None and settings.std is not None:
        for flag, values in (("--mean", settings.mean), ("--std", settings.std)):
            if len(values) != loaded.input_shape[0]:
                raise SettingsError(
                    f"{flag} has {len(values)} number(s), the images have {loaded.input_shape[0]} channel(s)", "give one for each"
                )
        loaded = replace(loaded, mean=settings.mean, std=settings.std)
    images = torch.randn(PARITY_IMAGES, *loaded.input_shape, generator=torch.Generator().manual_seed(0))
    return _export(loaded, loaded.build(), images, target, asked), "random"


def export_subject(subject: Subject, target: Path, asked: ExportSettings) -> Export:
    """Export a network, checked on the first test images."""
    return _export(subject.checkpoint, subject.model, first_images(subject.data.test), target, asked)


def _export(known: Checkpoint, model: nn.Module, images: Tensor, target: Path, asked: ExportSettings) -> Export:
    ready, images = made_ready(model, images, known, asked)
    notes, half = describe(known, known.metrics), asked.format == "fp16"
    if asked.pixels:
        notes["preprocessing"]["inside"] = True
    tolerance = asked.tolerance if asked.tolerance is not None else HALF_TOLERANCE if half else TOLERANCE
    if asked.format == "pt2":
        return export_pt2(ready, target, images, notes, tolerance)
    return export_onnx(ready, target, images, notes, tolerance, asked.opset, half)


def made_ready(model: nn.Module, images: Tensor, known: Checkpoint, asked: ExportSettings) -> tuple[nn.Module, Tensor]:
    """The network as the file is to have it, and these normalised images as that takes them."""
    if asked.probabilities:
        with torch.no_grad():
            output = model(images[:1].to(next(model.parameters()).device))
        if not isinstance(output, Tensor) or output.ndim != 2 or not known.classes:
            raise SettingsError("--probabilities is for classifiers, which give one logit for each class", "leave it out")
    if asked.pixels:
        if len(known.input_shape) != 3:
            raise SettingsError(f"--pixels is for images, and the network takes {known.input_shape}", "leave it out")
        if known.mean is None or known.std is None:
            raise SettingsError(
                "--pixels puts the normalisation into the file, and none is known",
                "give --mean and --std; where loaders from code normalise, leave it out",
            )
        return Ready(model, known.mean, known.std, asked.probabilities), pixels_of(images, known.mean, known.std)
    return (Ready(model, probabilities=True) if asked.probabilities else model), images


def bench_models(
    models: Sequence[str], arch: str | None, trust_pickle: bool, input_shape: Shape | None, **options: Any
) -> JsonDict:
    """Measure ONNX files and checkpoints side by side; checkpoints are exported for it and named as they were given."""
    with TemporaryDirectory() as folder:
        files = []
        for index, model in enumerate(models):
            if Path(model).suffix == ".onnx":
                if not Path(model).is_file():
                    raise InputError(f"there is no file {model}", "check the path")
                files.append(Path(model))
                continue
            loaded = checkpoint.load(model, arch, trust_pickle, input_shape)
            images = torch.randn(2, *loaded.input_shape, generator=torch.Generator().manual_seed(0))
            files.append(export_onnx(loaded.build(), Path(folder) / f"{index}.onnx", images).path)
        return bench(files, names=models, **options).to_json()


def bench_folder(folder: Path, **options: Any) -> JsonDict:
    """Measure a run's two networks and put their latencies into its `metrics.json`."""
    run = RunDir(folder)
    metrics = run.read_metrics()
    check_exported(run)
    return bench_run(run, metrics, **options)


def check_exported(run: RunDir) -> None:
    """Raise `RunDirError` unless both networks of the run were exported."""
    for path in (run.dense_onnx, run.onnx):
        if not path.exists():
            raise RunDirError(
                f"{run.path} has no {path.name}: its networks were not exported", "export its model.pt, and go on with that file"
            )


def bench_run(run: RunDir, metrics: JsonDict, **options: Any) -> JsonDict:
    """Measure the run's ONNX files side by side, those in INT8 with them where there are any, and put their latencies into its
    metrics; returns the bench's result.
    """
    sides: dict[Path, JsonDict] = {run.dense_onnx: metrics["dense"], run.onnx: metrics["slim"]}
    small = metrics.get("int8")
    if small and run.dense_int8.exists() and run.int8.exists():
        sides |= {run.dense_int8: small["dense"], run.int8: small["slim"]}
    measured = bench(list(sides), **options)
    for facts, (_, latency) in zip(sides.values(), measured.latencies, strict=True):
        facts["latency_ms"] = asdict(latency)
    speedups = [{"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high} for ratio in measured.ratios]
    metrics["speedup"] = speedups[0]
    if small and len(speedups) > 1:
        small["speedups"] = dict(zip([path.name for path in list(sides)[1:]], speedups, strict=True))
    run.write_metrics(metrics)
    return measured.to_json()
