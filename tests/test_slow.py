"""Minutes rather than seconds: the demo to its end, real data, real published-size networks (`make test-slow`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.pipeline import job
from slimcli.pipeline.train import train
from slimcli.pruning import surgery
from slimcli.pruning.verification import verify
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
REAL = os.environ.get("SLIM_DATA")
needs_real_data = pytest.mark.skipif(not REAL, reason="SLIM_DATA names no folder with the full data sets")


def test_the_demo_halves_the_network_at_most_two_points_below_dense(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slimcli", "prune", "--method", "hbfp", str(ROOT / "models/lenet5-digits.pt"), "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads(done.stdout)
    assert metrics["removed"]["macs"] > 0.5
    assert metrics["slim"]["top1"] > metrics["dense"]["top1"] - 2
    assert metrics["slim"]["latency_ms"]["p50"] < metrics["dense"]["latency_ms"]["p50"]


@pytest.mark.parametrize("arch", ["resnet56-cifar", "resnet110-cifar", "vgg16-cifar"])
def test_large_networks_verify_and_halve(arch: str) -> None:
    shape = (3, 32, 32)
    model = build(arch, 10, shape)
    groups = verify(model, shape, surgery.find_groups(model, shape))
    assert [
        group.reason for group in groups if not group.prunable and not group.reason.startswith(("the network", "linear"))
    ] == []
    before = count(model, shape).macs
    surgery.remove(model, shape, {group.name: range(0, group.channels, 2) for group in groups if group.prunable})
    assert 0.24 < count(model, shape).macs / before < 0.27
    assert model.eval()(torch.randn(3, *shape)).shape == (3, 10)


@needs_real_data
def test_a_resnet_on_cifar_is_trained_pruned_and_deployed(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "train")
    train(TrainSettings(arch="resnet20-cifar", data="cifar10", data_root=REAL, epochs=2, train_samples=2560), run)
    settings = PruneSettings(
        model=str(run.model), data_root=REAL, macs=0.7, max_drop=100.0, epochs=1, final_epochs=1, train_samples=1280
    )
    result = job.run(settings, tmp_path / "prune")
    assert result.metrics["slim"]["macs"] <= 0.7 * 40_551_040
    assert result.metrics["parity"]["max_error"] < 1e-3
