"""Quantisation: weights within half a step, layers left alone on request, and the layer that hurts most is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from slimcli.deploy.int8 import BATCH, METHODS, Quantizer, _shorten
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.errors import InputError, ParityError
from slimcli.settings import CALIBRATIONS
from tests.tiny import SHAPE, Chain, Residual


def exported(model: nn.Module, folder: Path) -> Path:
    export_onnx(model, folder / "float.onnx", torch.randn(4, *SHAPE), {"arch": "tiny", "preprocessing": {"mean": [0.5]}})
    return folder / "float.onnx"


def constants(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def test_the_flags_name_every_calibration() -> None:
    assert set(CALIBRATIONS) == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("network", [Chain, Residual])
def test_each_weight_is_within_half_a_step_of_its_filter(tmp_path: Path, network: type[nn.Module], method: str) -> None:
    model = network().eval()
    with Quantizer(exported(model, tmp_path), torch.randn(100, *SHAPE), method) as quantizer:
        quantizer.write(tmp_path / "int8.onnx")
    stored, weights = constants(tmp_path / "int8.onnx"), dict(model.named_parameters())
    convs = [name for name in weights if name.endswith(".weight") and weights[name].ndim == 4 and f"{name}_quantized" in stored]
    assert convs == [f"{name}.weight" for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    for name in convs:
        whole, steps = stored[f"{name}_quantized"], stored[f"{name}_scale"].reshape(-1, 1, 1, 1)
        assert whole.dtype == np.int8
        assert steps.size == len(whole)
        norm = dict(model.named_modules())[{"stem": "bn0", "short": "bns"}.get(name.split(".")[0], _norm_of(name))]
        factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().view(-1, 1, 1, 1)  # folded in by the exporter
        assert np.all(np.abs(whole * steps - (weights[name] * factor).detach().numpy()) <= 0.5001 * steps + 1e-7)


def _norm_of(name: str) -> str:
    layer = name.split(".")[0]
    return layer.replace("conv", "bn") if "conv" in layer else f"bn{layer}"


def test_the_file_is_called_and_described_as_the_float_one(tmp_path: Path) -> None:
    model, images = Residual().eval(), torch.randn(70, *SHAPE)
    path = exported(model, tmp_path)
    with Quantizer(path, images) as quantizer:
        quantizer.write(tmp_path / "deep" / "int8.onnx")
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "deep" / "int8.onnx").metadata_props}
    before = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert facts == before | {"int8": "QDQ, weights per channel, percentile, 70 images"}
    network = OnnxNetwork(tmp_path / "deep" / "int8.onnx")
    for batch in (1, 5):
        with torch.no_grad():
            expected, found = model(images[:batch]), network(images[:batch])
        assert found.shape == expected.shape
        assert (found - expected).norm() < 0.1 * expected.norm()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["deep", "float.onnx"]


def test_a_file_without_ballast_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.randn(8, *SHAPE)
    with Quantizer(exported(Residual().eval(), tmp_path), images) as quantizer:
        quantizer.write(tmp_path / "int8.onnx")
        monkeypatch.setattr("slimcli.deploy.int8._shorten", lambda graph: None)
        quantizer.write(tmp_path / "long.onnx")
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)
    assert torch.equal(OnnxNetwork(tmp_path / "int8.onnx")(images), OnnxNetwork(tmp_path / "long.onnx")(images))
    assert (tmp_path / "int8.onnx").stat().st_size < 0.8 * (tmp_path / "long.onnx").stat().st_size


def test_short_names_are_new_ones() -> None:
    def tensor(name: str, value: float, kind: Any) -> onnx.TensorProto:
        return onnx.numpy_helper.from_array(np.array(value, kind), name)

    nodes = [
        onnx.helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero_point"], ["x_QuantizeLinear_Output"], "long"),
        onnx.helper.make_node(
            "DequantizeLinear", ["x_QuantizeLinear_Output", "x_scale", "x_zero_point"], ["x_DequantizeLinear_Output"], "longer"
        ),
        onnx.helper.make_node("Add", ["x_DequantizeLinear_Output", "q0"], ["y"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    tensors = [tensor("x_scale", 0.5, np.float32), tensor("x_zero_point", 3, np.uint8), tensor("q0", 100.0, np.float32)]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors), opset_imports=[onnx.helper.make_opsetid("", 21)]
    )
    _shorten(model.graph)
    onnx.checker.check_model(model)
    assert sorted(each.name for each in model.graph.initializer) == ["q0", "q1", "q2"]
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {"x": np.array([1.0, -0.5], np.float32)})
    assert found.tolist() == [101.0, 99.5]


def test_a_layer_that_is_kept_has_its_float_weights(tmp_path: Path) -> None:
    model = Chain().eval()
    with Quantizer(exported(model, tmp_path), torch.randn(8, *SHAPE)) as quantizer:
        assert quantizer.matching(["conv*"]) == ["conv1", "conv2"]
        assert quantizer.matching([]) == []
        with pytest.raises(InputError, match="conv3"):
            quantizer.matching(["conv3"])
        quantizer.write(tmp_path / "int8.onnx", quantizer.matching(["conv1", "fc*"]))
    stored = constants(tmp_path / "int8.onnx")
    assert "conv2.weight_quantized" in stored
    assert not {"conv1.weight_quantized", "fc1.weight_quantized", "fc2.weight_quantized"} & set(stored)
    assert np.array_equal(stored["fc1.weight"], model.fc1.weight.detach().numpy())


@pytest.mark.parametrize("spoiled", ["conv2", "fc1"])
def test_the_layer_that_hurts_most_is_named_first(tmp_path: Path, spoiled: str) -> None:
    """A layer with one output far larger than the others, which what follows makes small again: the network is the same, but a
    step of that range is larger than all the others' values.
    """
    model = Chain().eval()
    follows = {"conv2": model.fc1, "fc1": model.fc2}[spoiled]
    columns = slice(0, 4) if spoiled == "conv2" else slice(0, 1)  # flattened maps of 2 x 2
    with torch.no_grad():
        maker = model.bn2 if spoiled == "conv2" else model.fc1
        maker.weight[0] *= 1e4
        maker.bias[0] = 1e4
        follows.weight[:, columns] *= 1e-4
    images = torch.randn(2 * BATCH, *SHAPE)
    with Quantizer(exported(model, tmp_path), images) as quantizer:
        noise = quantizer.noise()
    assert set(noise) == {"conv1", "conv2", "fc1", "fc2"}
    assert list(noise.values()) == sorted(noise.values(), reverse=True)
    harmless = [
        share for name, share in noise.items() if name not in (spoiled, *(n for n, m in model.named_modules() if m is follows))
    ]
    assert noise[spoiled] > 3 * max(harmless)


class Twice(nn.Module):
    """One conv that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(self.c(self.c(images).relu()).mean((2, 3)))
        return logits


def test_a_layer_that_is_called_twice_stays_in_float_both_times(tmp_path: Path) -> None:
    with Quantizer(exported(Twice().eval(), tmp_path), torch.randn(8, *SHAPE)) as quantizer:
        assert set(quantizer.noise()) == {"c", "fc"}
        quantizer.write(tmp_path / "int8.onnx", ["c"], {"top1": 12.5})
    assert "c.weight" in constants(tmp_path / "int8.onnx")
    assert "c.weight_quantized" not in constants(tmp_path / "int8.onnx")
    assert {entry.key: entry.value for entry in onnx.load(tmp_path / "int8.onnx").metadata_props}["top1"] == "12.5"


def test_minmax_does_not_depend_on_how_the_images_are_dealt_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, images = exported(Chain().eval(), tmp_path), torch.randn(90, *SHAPE)
    for batch in (90, 7):
        monkeypatch.setattr("slimcli.deploy.int8.BATCH", batch)
        with Quantizer(path, images, "minmax") as quantizer:
            quantizer.write(tmp_path / f"{batch}.onnx")
    assert (tmp_path / "90.onnx").read_bytes() == (tmp_path / "7.onnx").read_bytes()


def test_a_file_that_cannot_be_quantised_is_told_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ParityError, match="cannot quantise"):
        Quantizer(tmp_path / "broken.onnx", torch.randn(2, *SHAPE))
    with pytest.raises(InputError, match="'percent'"):
        Quantizer(tmp_path / "broken.onnx", torch.randn(2, *SHAPE), "percent")
    assert capsys.readouterr().out == ""
