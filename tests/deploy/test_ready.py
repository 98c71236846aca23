"""A file that takes pixels gives what the network gives for the images that are made of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from slimcli.data.memory import ImageLoader
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.ready import Ready, pixels_of
from slimcli.deploy.runtime import OnnxNetwork
from tests.tiny import SHAPE, Chain

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PREPROCESSING = {"preprocessing": {"mean": MEAN, "std": STD}}


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 2)), min_size=3, max_size=3))
def test_every_pixel_comes_back(statistics: list[tuple[float, float]]) -> None:
    mean, std = (tuple(each) for each in zip(*statistics, strict=True))
    raw = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    ((images, _),) = ImageLoader(raw, torch.zeros(1, dtype=torch.int64), mean, std, 1).epoch(0)
    assert torch.equal(pixels_of(images, mean, std), raw.permute(0, 2, 3, 1))


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("pixels", [False, True])
def test_the_file_gives_what_the_network_gives(tmp_path: Path, pixels: bool, probabilities: bool) -> None:
    model, path = Chain().eval(), tmp_path / "ready.onnx"
    raw = torch.randint(0, 256, (5, *SHAPE[1:], 3), dtype=torch.uint8)
    images = (raw.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    ready = Ready(model, *(MEAN, STD) if pixels else (None, None), probabilities)
    export_onnx(ready, path, raw if pixels else images, PREPROCESSING)
    with torch.no_grad():
        expected = model(images)
    session = onnxruntime.InferenceSession(path)
    name = "probabilities" if probabilities else "logits"
    (found,) = session.run([name], {"input": raw.numpy() if pixels else images.numpy()})
    np.testing.assert_allclose(found, expected.softmax(1) if probabilities else expected, atol=1e-5)
    network = OnnxNetwork(path)
    assert network.input_shape == SHAPE
    np.testing.assert_allclose(network(images), expected.log_softmax(1) if probabilities else expected, atol=1e-4)
    names = {tensor.name for tensor in onnx.load(path).graph.initializer}
    assert {"conv1.weight", "conv2.weight"} <= names  # as in the network alone: what --keep-float goes by


def test_ready_alone_is_the_network() -> None:
    model, images = nn.Linear(4, 3), torch.randn(2, 4)
    assert torch.equal(Ready(model)(images), model(images))
