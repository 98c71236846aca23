"""Where the time goes: every layer of the network is named, in float and in INT8, and all of the time is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from slimcli.deploy.int8 import Quantizer
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.profile import OVERHEAD, profile
from slimcli.networks.layers import layers_of
from slimcli.networks.resolve import build


@pytest.mark.parametrize(("arch", "shape"), [("lenet5", (1, 28, 28)), ("resnet20-cifar", (3, 32, 32))])
def test_every_layer_is_named_in_the_order_of_its_calls(arch: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    model = build(arch, 10, shape).eval()
    path = export_onnx(model, tmp_path / "model.onnx", torch.randn(2, *shape)).path
    costs = profile(path, runs=20)
    assert [cost.name for cost in costs if cost.name] == list(layers_of(model))
    assert all(cost.op == "" for cost in costs if cost.name)
    assert costs[-1].op == OVERHEAD
    assert all(cost.milliseconds > 0 for cost in costs if cost.name)
    assert {"Conv", "Gemm", "FusedGemm"}.isdisjoint(cost.op for cost in costs)


def test_layers_of_a_quantized_file_are_named_too(slim_resnet: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(16, 3, 32, 32)
    path = export_onnx(slim_resnet, tmp_path / "model.onnx", images).path
    small = tmp_path / "int8.onnx"
    with Quantizer(path, images, "minmax") as quantizer:
        quantizer.write(small)
    assert [cost.name for cost in profile(small, runs=20) if cost.name] == list(layers_of(slim_resnet))


def test_a_wide_layer_takes_most_of_the_time(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 256, 5), nn.Conv2d(256, 4, 1), nn.Flatten(), nn.Linear(4 * 12 * 12, 10)
    )
    path = export_onnx(model.eval(), tmp_path / "model.onnx", torch.randn(2, 3, 16, 16)).path
    costs = profile(path, runs=20)
    assert max(costs, key=lambda cost: cost.milliseconds).name == "1"
    assert np.isfinite([cost.milliseconds for cost in costs]).all()
