"""Export: the file computes what the network computes, or there is no file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from slimcli.deploy import onnx as deploy
from slimcli.deploy.onnx import OnnxNetwork, export_onnx
from slimcli.errors import InputError, ParityError
from slimcli.networks.resolve import build
from slimcli.pruning import surgery


@pytest.fixture(scope="module")
def slim_resnet() -> nn.Module:
    """A ResNet-20 that lost an uneven share of every group, shortcuts included."""
    torch.manual_seed(0)
    model = build("resnet20-cifar", 10, (3, 32, 32)).eval()
    groups = surgery.find_groups(model, (3, 32, 32))
    surgery.remove(model, (3, 32, 32), {g.name: list(range(0, g.channels, 3)) for g in groups if g.prunable})
    return model


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

    def tampered(network: nn.Module, images: Tensor) -> onnx.ModelProto:
        proto = honest(network, images)
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
    monkeypatch.setattr(deploy, "_exported", lambda network, images: honest(dense, images))
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


def test_what_is_no_image_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    for path in (tmp_path / "text.onnx", tmp_path / "nowhere.onnx"):
        with pytest.raises(InputError):
            OnnxNetwork(path)
