"""The examples do what their pages say, on a few images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from slimcli.deploy.runtime import OnnxNetwork
from slimcli.pipeline import job
from slimcli.pipeline.train import train
from slimcli.pruning import surgery
from slimcli.pruning.verification import verify
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def scenes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scenes", EXAMPLES / "scenes/scenes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_layer_of_the_unet_but_its_head_loses_channels(scenes: ModuleType) -> None:
    model, shape = scenes.build(4), (1, 16, 16)
    groups = verify(model, shape, surgery.find_groups(model, shape))
    assert {group.name for group in groups if not group.prunable} == {"head"}
    assert len(groups) == 13


def test_the_score_is_one_where_every_digit_is_found(scenes: ModuleType) -> None:
    images = np.full((10, 28, 28), 200, np.uint8)
    fields, answers = scenes.scenes(images, np.arange(10), 20, seed=0)
    assert fields.shape == (20, 1, 48, 48)
    assert set(answers.unique().tolist()) == set(range(11))
    assert torch.equal(fields[:, 0] > 0, answers < scenes.BACKGROUND)

    def said(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(right, 11).movedim(3, 1).float()

    right = answers
    assert scenes.mean_iou(said, [(fields, answers)]) == 1
    right = torch.full_like(answers, scenes.BACKGROUND)
    assert scenes.mean_iou(said, [(fields, answers)]) == 0
    assert scenes.loss(scenes.build(4), (fields[:2], answers[:2])).item() > 0


def test_the_unet_is_trained_pruned_and_exported(tmp_path: Path) -> None:
    (tmp_path / "few.py").write_text(
        f"import sys; sys.path.insert(0, {str(EXAMPLES / 'scenes')!r})\nimport scenes\n"
        "def build():\n    return scenes.build(4)\n\ndef data():\n    return scenes.data(40, 10)\n"
    )
    arch, data = f"{tmp_path}/few.py:build", f"{tmp_path}/few.py:data"
    train(TrainSettings(arch=arch, data=data, epochs=1), RunDir(tmp_path / "dense"))
    settings = PruneSettings(
        model=str(tmp_path / "dense/model.pt"),
        arch=arch,
        data=data,
        macs=0.5,
        max_drop=10_000.0,
        tie_epochs=1,
        epochs=0,
        final_epochs=1,
    )
    job.run(settings, tmp_path / "slim")
    metrics = RunDir(tmp_path / "slim").read_metrics()
    assert metrics["slim"]["macs"] <= 0.5 * metrics["dense"]["macs"]
    assert metrics["slim"]["score_name"] == "mIoU"
    assert OnnxNetwork(RunDir(tmp_path / "slim").onnx)(torch.rand(3, 1, 48, 48)).shape == (3, 11, 48, 48)
