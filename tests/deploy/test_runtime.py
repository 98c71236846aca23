"""ONNX files as networks: what is none is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.ready import Ready
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.errors import InputError
from tests.tiny import SHAPE, Chain


def test_what_is_no_image_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    for path in (tmp_path / "text.onnx", tmp_path / "nowhere.onnx"):
        with pytest.raises(InputError):
            OnnxNetwork(path)


def test_pixels_whose_normalisation_is_unknown_are_refused(tmp_path: Path) -> None:
    pixels = torch.randint(0, 256, (2, *SHAPE[1:], 3), dtype=torch.uint8)
    export_onnx(Ready(Chain().eval(), (0.5,) * 3, (0.5,) * 3), tmp_path / "m.onnx", pixels)
    with pytest.raises(InputError, match="how they were normalised"):
        OnnxNetwork(tmp_path / "m.onnx")
