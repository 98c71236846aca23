"""Both networks of a run in INT8: what stands in its metrics is what its files do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from slimcli.errors import RunDirError
from slimcli.pipeline import job
from slimcli.pipeline.deploy import bench_folder
from slimcli.pipeline.evaluate import evaluate_onnx
from slimcli.pipeline.quantize import quantize_run
from slimcli.progress import Progress
from slimcli.report import page
from slimcli.rundir import RunDir
from slimcli.settings import DataSettings, Int8Settings, PruneSettings

QUICK = {"epochs": 1, "tie_epochs": 0, "final_epochs": 1, "max_drop": 100.0, "widths": (6, 12), "train_samples": 500}


def test_the_four_networks_of_a_run_are_measured_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK), tmp_path / "run")
    assert result is not None
    run, before = result.folder, result.metrics
    quantize_run(run, DataSettings(), Int8Settings(calibration_images=64), Progress(), runs=20)
    metrics = run.read_metrics()
    small = metrics["int8"]
    assert (small["calibration"], small["images"], small["shortfall"]) == ("percentile", 64, "")
    for side, path in (("dense", run.dense_int8), ("slim", run.int8)):
        assert small[side]["file_bytes"] == path.stat().st_size < before[side]["file_bytes"] / 2
        score, _ = evaluate_onnx(path, DataSettings())
        assert (small[side]["top1"], small[side]["samples"]) == (score.top1, score.samples)
        for facts in (metrics[side], small[side]):
            assert facts["latency_ms"]["runs"] == 20
    assert small["speedups"]["model.onnx"] == metrics["speedup"]
    assert set(small["speedups"]) == {"model.onnx", "dense.int8.onnx", "model.int8.onnx"}
    unmeasured = {key: value for key, value in metrics.items() if key not in ("int8", "speedup", "dense", "slim")}
    assert unmeasured == {key: json.loads(json.dumps(value)) for key, value in before.items() if key in unmeasured}
    assert not any(path.is_dir() for path in run.path.iterdir())
    bench_folder(run.path, runs=10)  # all four again, together
    again = run.read_metrics()
    assert all(facts["latency_ms"]["runs"] == 10 for facts in (again["dense"], again["int8"]["slim"], again["int8"]["dense"]))
    assert again["int8"]["speedups"]["model.onnx"] == again["speedup"]
    html = page.write(run).read_text()
    assert "top-1, INT8" in html
    assert f"{small['slim']['top1']:.2f} %" in html


def test_a_run_without_exports_is_refused_and_an_overwritten_one_loses_its_int8_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), deploy=False, **QUICK)
    for overwrite in (False, True):
        result = job.run(settings, tmp_path / "run", overwrite=overwrite)
        assert result is not None
        with pytest.raises(RunDirError, match=r"no dense\.onnx"):
            quantize_run(result.folder, DataSettings(), Int8Settings(), Progress())
        run = RunDir(tmp_path / "run")
        assert not run.int8.exists()
        run.int8.write_bytes(b"of the run before")
