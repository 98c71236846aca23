"""`slim export --int8`: calibrate on training images, quantise, and measure on the test split what that costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from slimcli.data.loaders import Data
from slimcli.deploy.bench import bench
from slimcli.deploy.int8 import Quantizer
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.errors import DataError
from slimcli.measures import Score
from slimcli.networks import checkpoint, resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.pipeline.decisions import first_batches
from slimcli.pipeline.deploy import check_exported, export_subject
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
    networks measured side by side. Returns the metrics.

    The layers that `asked.keep_float` names stay in float in both.
    """
    metrics = run.read_metrics()
    check_exported(run)
    arch = run.read_recipe().get("prune", {}).get("arch")
    loaded = checkpoint.load(run.model, arch if arch and resolve.is_foreign(arch) else None)
    data = open_subject(loaded, settings, device="cpu").data
    sides = {"dense": (run.dense_onnx, run.dense_int8), "slim": (run.onnx, run.int8)}
    done = {side: quantize_file(*paths, data, asked, progress) for side, paths in sides.items()}
    progress.say("measuring the latency of all four")
    files = [path for at in (0, 1) for path in (sides["dense"][at], sides["slim"][at])]
    found = bench(files, names=[path.name for path in files], **options)
    latencies = {name: asdict(latency) for name, latency in found.latencies}
    metrics["int8"] = {
        "calibration": asked.calibration,
        "images": asked.calibration_images,
        "shortfall": done["slim"].shortfall,
        "speedups": {ratio.to: {"ratio": ratio.ratio, "low": ratio.low, "high": ratio.high} for ratio in found.ratios},
    }
    for side, (plain, small) in sides.items():
        metrics[side]["latency_ms"] = latencies[plain.name]
        facts = done[side].to_json()
        metrics["int8"][side] = {key: facts[key] for key in facts if key not in ("path", "float", "shortfall")}
        metrics["int8"][side]["latency_ms"] = latencies[small.name]
    metrics["speedup"] = metrics["int8"]["speedups"][run.onnx.name]
    run.write_metrics(metrics)
    return metrics


def quantize_file(plain: Path, target: Path, data: Data, asked: Int8Settings, progress: Progress) -> Quantized:
    """Write the INT8 file of a float one, as `quantize_checkpoint`."""
    batches = [batch[0].cpu() for batch in first_batches(data.train, asked.calibration_images)]
    images = torch.cat(batches)[: asked.calibration_images]
    progress.say(f"calibrating on {len(images)} training images ({asked.calibration})")
    network = OnnxNetwork(plain)
    with Quantizer(plain, network.feed(images), asked.calibration) as quantizer:
        kept = quantizer.matching(asked.keep_float or ())
        quantizer.write(target, kept)
        progress.say("measuring both files on the test split")
        before, after = (score_of_file(each, data) for each in (network, OnnxNetwork(target)))
        measure, noise, shortfall = before.measure, {}, ""
        lost = -measure.gain(after.value, before.value)
        if measure.gain(after.value, measure.limit(before.value, asked.max_drop)) < 0:
            hurting = {name: share for name, share in quantizer.noise().items() if name not in kept}
            noise = dict(list(hurting.items())[:NAMED])
            shortfall = (
                f"INT8 loses {measure.figure(lost)} of {measure.title}, more than the allowed {asked.max_drop:g} "
                f"{measure.allowance}; {target} is left for a look. What quantising one layer alone changes of the output: "
                + ", ".join(f"{name} {share:.1%}" for name, share in noise.items())
            )
            if noise:
                shortfall += f" (--keep-float {next(iter(noise))} leaves that one in float)"
    return Quantized(target, target.stat().st_size, plain.stat().st_size, after, before, tuple(kept), noise, shortfall)
