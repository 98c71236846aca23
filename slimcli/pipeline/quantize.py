"""`slim export --int8`: calibrate on training images, quantise, and measure on the test split what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from slimcli.data.loaders import Data
from slimcli.data.sources import open_data
from slimcli.deploy.int8 import Quantizer
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.disk import disk
from slimcli.errors import DataError
from slimcli.measures import Score
from slimcli.networks import checkpoint, resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.pipeline.decisions import first_batches
from slimcli.pipeline.deploy import bench_run, check_exported, export_subject
from slimcli.pipeline.evaluate import score_of_file
from slimcli.pipeline.subject import open_subject
from slimcli.progress import Progress
from slimcli.records import JsonDict
from slimcli.rundir import RunDir
from slimcli.settings import DataSettings, ExportSettings, Int8Settings

NAMED = 5
"""How many layers are named where the loss is too large."""


@dataclass(frozen=True)
class Quantized:
    """An INT8 file beside the float one of the same network, both measured in onnxruntime on the test split.

    `noise` is empty unless more was lost than allowed; then it says of the layers that hurt most how much of the output changes
    when they alone are quantised.
    """

    path: Path
    file_bytes: int
    float_bytes: int
    score: Score
    float_score: Score
    kept_float: tuple[str, ...]
    noise: dict[str, float]
    shortfall: str

    def to_json(self) -> JsonDict:
        """The object that `slim export --int8 --json` prints."""
        return {
            "path": str(self.path),
            "file_bytes": self.file_bytes,
            **self.score.facts(),
            "float": {"file_bytes": self.float_bytes, **self.float_score.facts()},
            "kept_float": list(self.kept_float),
            "noise": self.noise,
            "shortfall": self.shortfall,
        }


def quantize_checkpoint(
    loaded: Checkpoint, target: Path, settings: DataSettings, exported: ExportSettings, asked: Int8Settings, progress: Progress
) -> Quantized:
    """Write the INT8 file; it stays, and `shortfall` says so, where more of the score is lost than `asked.max_drop`.

    Raises `DataError` where no data set is known: ranges of random images are no ranges.
    """
    if settings.data is None and not loaded.data:
        raise DataError(f"INT8 is calibrated on real images, and {loaded.path} names no data set", "name it with --data")
    subject = open_subject(loaded, settings, device="cpu")
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "float.onnx"
        export_subject(subject, plain, exported)
        return quantize_file(plain, target, subject.data, asked, progress)


def quantize_run(run: RunDir, settings: DataSettings, asked: Int8Settings, progress: Progress, **options: Any) -> JsonDict:
    """Quantise both networks of a run and put into its metrics (`int8`) what they are then: score, size and latency, all four
    networks measured side by side. Returns the metrics. Neither file is there before both are made.

    The layers that `asked.keep_float` names stay in float in both.
    """
    metrics = run.read_metrics()
    check_exported(run)
    arch = run.read_recipe().get("prune", {}).get("arch")
    loaded = checkpoint.load(run.model, arch if arch and resolve.is_foreign(arch) else None)
    normalisation = (loaded.mean, loaded.std) if loaded.mean is not None and loaded.std is not None else None
    data = open_data(settings, loaded.data, batch_size=500, seed=0, device="cpu", normalisation=normalisation)
    sides = {"dense": (run.dense_onnx, run.dense_int8), "slim": (run.onnx, run.int8)}
    with TemporaryDirectory(dir=run.path) as folder:
        made = {side: Path(folder) / final.name for side, (_, final) in sides.items()}
        done = {side: quantize_file(plain, made[side], data, asked, progress) for side, (plain, _) in sides.items()}
        for side, (_, final) in sides.items():
            disk.rename(made[side], final)
    metrics["int8"] = {"calibration": asked.calibration, "images": asked.calibration_images}
    for side, (_, final) in sides.items():
        facts = replace(done[side], path=final).to_json()
        metrics[side]["file_bytes"] = done[side].float_bytes
        metrics["int8"][side] = {key: facts[key] for key in facts if key not in ("path", "float")}
        if done[side].shortfall:
            progress.warn(f"{side}: {done[side].shortfall}")
    metrics["int8"]["shortfall"] = " and ".join(
        f"{side} in INT8 loses more than allowed" for side in sides if done[side].shortfall
    )
    progress.say("measuring the latency of all four")
    bench_run(run, metrics, **options)
    return metrics


def quantize_file(plain: Path, target: Path, data: Data, asked: Int8Settings, progress: Progress) -> Quantized:
    """Write the INT8 file of a float one, as `quantize_checkpoint`."""
    batches = [batch[0].cpu() for batch in first_batches(data.train, asked.calibration_images)]
    images = torch.cat(batches)[: asked.calibration_images]
    progress.say(f"calibrating on {len(images)} training images ({asked.calibration})")
    network = OnnxNetwork(plain)
    with TemporaryDirectory() as folder, Quantizer(plain, network.feed(images), asked.calibration) as quantizer:
        kept = quantizer.matching(asked.keep_float or ())
        quantizer.write(Path(folder) / "int8.onnx", kept)
        progress.say("measuring both files on the test split")
        before, after = (score_of_file(each, data) for each in (network, OnnxNetwork(Path(folder) / "int8.onnx")))
        quantizer.write(target, kept, {key: value for key, value in after.facts().items() if key not in ("loss", "samples")})
        measure, noise, shortfall = before.measure, {}, ""
        lost = -measure.gain(after.value, before.value)
        if measure.gain(after.value, measure.limit(before.value, asked.max_drop)) < 0:
            hurting = {name: share for name, share in quantizer.noise().items() if name not in kept}
            noise = dict(list(hurting.items())[:NAMED])
            shortfall = (
                f"INT8 loses {measure.figure(lost)} of {measure.title}, more than the allowed {asked.max_drop:g} "
                f"{measure.allowance}; the file is left for a look. What quantising one layer alone changes of the output: "
                + ", ".join(f"{name} {share:.1%}" for name, share in noise.items())
            )
            if noise:
                shortfall += f" (--keep-float {next(iter(noise))} leaves that one in float)"
    return Quantized(target, target.stat().st_size, plain.stat().st_size, after, before, tuple(kept), noise, shortfall)
