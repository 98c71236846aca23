"""The examples do what their pages say, on a few images."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from slimcli.pruning import surgery
from slimcli.pruning.verification import verify

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
    assert float(scenes.loss(scenes.build(4), (fields[:2], answers[:2]))) > 0
