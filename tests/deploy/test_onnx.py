"""Export: the file computes what the network computes, or there is no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from slimcli.deploy import onnx as deploy
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.pt2 import export_pt2
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.errors import ParityError, SettingsError
from slimcli.networks.resolve import build
from slimcli.networks.shapes import constant_layers


def test_any_batch_size_gives_what_torch_gives(slim_resnet: nn.Module, tmp_path: Path) -> None:
    done = export_onnx(slim_resnet, tmp_path / "m.onnx", torch.randn(8, 3, 32, 32), {"arch": "resnet20-cifar"})
    assert done.max_error < 1e-4
    assert done.file_bytes == (tmp_path / "m.onnx").stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]
    network = OnnxNetwork(tmp_path / "m.onnx")
    for batch in (1, 5, 17):
        images = torch.randn(batch, 3, 32, 32)
        with torch.no_grad():
            np.testing.assert_allclose(network(images), slim_resnet(images), atol=1e-4)


def test_names_metadata_and_size(slim_resnet: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    export_onnx(slim_resnet, path, torch.randn(2, 3, 32, 32), {"arch": "resnet20-cifar", "top1": 91.5})
    loaded = onnx.load(path)
    assert (loaded.graph.input[0].name, loaded.graph.output[0].name) == ("input", "logits")
    assert loaded.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    facts = {entry.key: entry.value for entry in loaded.metadata_props}
    assert {"arch", "macs", "params", "top1", "slimcli_version"} <= set(facts)
    weights = sum(p.numel() for p in slim_resnet.parameters()) * 4
    assert path.stat().st_size < 1.3 * weights  # the exporter's notes do not outweigh the network


def test_a_file_that_computes_something_else_is_not_left(
    slim_resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = deploy._exported

    def tampered(network: nn.Module, images: Tensor, opset: int | None) -> onnx.ModelProto:
        proto = honest(network, images, opset)
        bias = next(t for t in proto.graph.initializer if list(t.dims) == [10])
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
        return proto

    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")
    monkeypatch.setattr(deploy, "_exported", tampered)
    with pytest.raises(ParityError, match="differs from torch"):
        export_onnx(slim_resnet, path, torch.randn(4, 3, 32, 32))
    assert path.read_bytes() == b"an older file"
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_with_the_dense_shapes_is_not_left(
    slim_resnet: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = build("resnet20-cifar", 10, (3, 32, 32)).eval()
    honest = deploy._exported
    monkeypatch.setattr(deploy, "_exported", lambda network, images, opset: honest(dense, images, opset))
    with pytest.raises(ParityError, match="shape"):
        export_onnx(slim_resnet, tmp_path / "m.onnx", torch.randn(4, 3, 32, 32))
    assert list(tmp_path.iterdir()) == []


class _Branching(nn.Module):
    """What it does depends on what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) * (2 if x.mean() > 0 else 3)


def test_control_flow_that_depends_on_values_is_named(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="data-dependent") as caught:
        export_onnx(_Branching(), tmp_path / "m.onnx", torch.randn(4, 1, 3, 3))
    assert "torch.where" in caught.value.hint
    assert "\x1b" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_logits_that_are_not_finite_are_no_parity(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[1].bias.fill_(float("nan"))
    with pytest.raises(ParityError):
        export_onnx(model, tmp_path / "m.onnx", torch.randn(2, 1, 2, 2))
    assert list(tmp_path.iterdir()) == []


def test_half_precision_is_half_as_large_and_near(slim_resnet: nn.Module, tmp_path: Path) -> None:
    images = torch.randn(4, 3, 32, 32)
    whole = export_onnx(slim_resnet, tmp_path / "float.onnx", images)
    half = export_onnx(slim_resnet, tmp_path / "half.onnx", images, tolerance=1e-2, half=True)
    assert half.file_bytes < 0.6 * whole.file_bytes
    assert 0 < half.max_error < 1e-2
    assert OnnxNetwork(tmp_path / "half.onnx")(images).dtype == torch.float32
    with pytest.raises(ParityError, match="differs"):
        export_onnx(slim_resnet, tmp_path / "half.onnx", images, tolerance=1e-7, half=True)


class Enlarged(nn.Module):
    """As a U-Net enlarges its maps; a class without an output beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor | None]:
        maps = nn.functional.interpolate(self.conv(images).relu(), scale_factor=2.0, mode="nearest")
        return {"out": maps, "aux": None}


def test_enlarged_maps_are_written_in_half_precision_too(tmp_path: Path) -> None:
    images = torch.randn(10, 3, 8, 8)
    assert export_onnx(Enlarged(), tmp_path / "half.onnx", images, tolerance=1e-2, half=True).max_error < 1e-2
    assert export_pt2(Enlarged(), tmp_path / "m.pt2", images).max_error < 1e-5


def test_what_half_precision_cannot_hold_is_no_parity(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e5)  # type: ignore[operator]
        model[2].weight.mul_(1e-5)  # type: ignore[operator]
    images = torch.randn(2, 1, 2, 2)
    export_onnx(model, tmp_path / "float.onnx", images)
    with pytest.raises(ParityError):
        export_onnx(model, tmp_path / "half.onnx", images, tolerance=1e-2, half=True)


@pytest.mark.parametrize("opset", [18, 21, 23])
def test_the_opset_is_what_was_asked_for(slim_resnet: nn.Module, tmp_path: Path, opset: int) -> None:
    done = export_onnx(slim_resnet, tmp_path / "m.onnx", torch.randn(2, 3, 32, 32), opset=opset)
    assert done.opset == opset == onnx.load(tmp_path / "m.onnx").opset_import[0].version


def test_an_opset_that_cannot_be_had_is_refused(slim_resnet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="opset 9"):
        export_onnx(slim_resnet, tmp_path / "m.onnx", torch.randn(2, 3, 32, 32), opset=9)
    assert list(tmp_path.iterdir()) == []


class TwoOutputs(nn.Module):
    """A spatial map and a vector."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.named, self.conv, self.fc = named, nn.Conv2d(3, 5, 3), nn.Linear(5, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        maps = self.conv(images).relu()
        vector = self.fc(maps.mean((2, 3)))
        return {"maps": maps, "vector": vector} if self.named else (maps, vector)


@pytest.mark.parametrize(("named", "names"), [(True, ["maps", "vector"]), (False, ["output_0", "output_1"])])
def test_all_outputs_are_exported_and_checked(
    named: bool, names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "two.onnx"
    done = export_onnx(TwoOutputs(named), path, torch.randn(3, 3, 8, 8))
    assert done.max_error < 1e-5
    assert [output.name for output in onnx.load(path).graph.output] == names
    network = OnnxNetwork(path)
    assert isinstance(network(torch.randn(3, 3, 8, 8)), dict if named else tuple)
    network.first_alone = True
    assert network(torch.randn(3, 3, 8, 8)).shape == (3, 5, 6, 6)
    honest = deploy._exported

    def tampered(network: nn.Module, images: Tensor, opset: int | None) -> onnx.ModelProto:
        other = TwoOutputs(named)
        other.conv.load_state_dict(network.conv.state_dict())  # type: ignore[union-attr,arg-type]
        return honest(other, images)

    monkeypatch.setattr(deploy, "_exported", tampered)
    with pytest.raises(ParityError, match="differs"):
        export_onnx(TwoOutputs(named), path, torch.randn(3, 3, 8, 8))


def test_a_signal_is_exported_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 3))
    export_onnx(model, tmp_path / "signal.onnx", torch.randn(1, 2, 10))
    signals = torch.randn(5, 2, 10)
    with torch.no_grad():
        np.testing.assert_allclose(OnnxNetwork(tmp_path / "signal.onnx")(signals), model(signals), atol=1e-5)


class Scales(nn.Module):
    """Outputs of very different sizes, and whole numbers."""

    def __init__(self, small: float) -> None:
        super().__init__()
        self.conv, self.small = nn.Conv2d(3, 5, 3), small

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.conv(images).mean((2, 3))
        return self.small * maps, maps * 0 + 1e5, maps.argmax(1), None  # type: ignore[return-value]


def test_a_large_output_hides_no_fault_in_a_small_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scales.onnx"
    network = Scales(1.0)
    assert export_onnx(network, path, torch.randn(3, 3, 8, 8)).max_error < 1e-3
    honest = deploy._exported

    def tampered(network: nn.Module, images: Tensor, opset: int | None) -> onnx.ModelProto:
        other = Scales(1.01)
        other.load_state_dict(network.state_dict())
        return honest(other, images)

    monkeypatch.setattr(deploy, "_exported", tampered)
    with pytest.raises(ParityError, match="in output_0"):
        export_onnx(network, path, torch.randn(3, 3, 8, 8))


class _Positions(nn.Module):
    """Adds what a small network makes of a table of positions, as Swin V2 does."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.bias, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(2, 4), nn.Linear(4, 5)
        self.register_buffer("table", torch.randn(36, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.body(x).flatten(2) + self.bias(self.table).T).relu().mean(2))


def test_what_no_image_passes_may_be_computed_by_the_exporter(tmp_path: Path) -> None:
    network = _Positions().eval()
    assert constant_layers(network, (3, 6, 6)) == {"bias"}
    assert all(parameter.requires_grad for parameter in network.parameters())
    images = torch.randn(4, 3, 6, 6)
    path = export_onnx(network, tmp_path / "model.onnx", images).path
    (found,) = ort.InferenceSession(str(path)).run(None, {"input": images.numpy()})
    assert np.allclose(found, network(images).detach().numpy(), atol=1e-5)
