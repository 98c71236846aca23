"""The files run elsewhere: in OpenVINO, and in ONNX's own reference, which knows nothing of either runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import openvino
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from slimcli.deploy.int8 import Quantizer
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.ready import Ready, pixels_of
from slimcli.networks import checkpoint
from slimcli.pipeline.subject import open_subject
from slimcli.settings import DataSettings

DIGITS = Path(__file__).parents[2] / "models" / "lenet5-digits.pt"


def in_openvino(path: Path, images: np.ndarray) -> np.ndarray:
    # Its CPUs with bf16 would round to that.
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.asarray(compiled({"input": images})[0])


def in_reference(path: Path, images: np.ndarray) -> np.ndarray:
    return np.asarray(ReferenceEvaluator(onnx.load(path)).run(None, {"input": images})[0])


@pytest.mark.parametrize("run", [in_openvino, in_reference])
@pytest.mark.parametrize("opset", [18, None])
def test_a_slim_network_gives_the_same_there(slim_resnet: nn.Module, tmp_path: Path, run: object, opset: int | None) -> None:
    images = torch.randn(4, 3, 32, 32)
    export_onnx(slim_resnet, tmp_path / "m.onnx", images, opset=opset)
    with torch.no_grad():
        expected = slim_resnet(images)
    assert callable(run)
    for batch in (4, 1):
        np.testing.assert_allclose(run(tmp_path / "m.onnx", images[:batch].numpy()), expected[:batch], atol=1e-4)


@pytest.mark.parametrize("run", [in_openvino, in_reference])
@pytest.mark.parametrize("pixels", [False, True])
def test_an_int8_file_tells_the_same_digits_there(tmp_path: Path, run: object, pixels: bool) -> None:
    subject = open_subject(checkpoint.load(DIGITS), DataSettings(), device="cpu")
    mean, std = subject.checkpoint.mean, subject.checkpoint.std
    assert mean is not None
    assert std is not None
    images, labels = next(iter(subject.data.test.epoch(0)))
    network = Ready(subject.model, mean, std, probabilities=True) if pixels else subject.model

    def fed(normalised: Tensor) -> Tensor:
        return pixels_of(normalised, mean, std) if pixels else normalised

    export_onnx(network, tmp_path / "float.onnx", fed(images[:8]))
    with Quantizer(tmp_path / "float.onnx", fed(next(iter(subject.data.train.epoch(0)))[0])) as quantizer:
        quantizer.write(tmp_path / "int8.onnx")
    assert callable(run)
    found = run(tmp_path / "int8.onnx", fed(images[:200]).numpy())
    assert (found.argmax(1) == labels[:200].numpy()).mean() > 0.97
    if pixels:
        np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
