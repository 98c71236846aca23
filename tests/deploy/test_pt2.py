"""Export to torch's own format: the file computes what the network computes, or there is no file."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from slimcli.deploy.pt2 import METADATA, export_pt2
from slimcli.deploy.ready import Ready
from slimcli.errors import ParityError
from tests.tiny import SHAPE, Chain, Residual


@pytest.mark.parametrize("network", [Chain, Residual])
def test_any_batch_size_gives_what_torch_gives(tmp_path: Path, network: type[nn.Module]) -> None:
    model, images = network().eval(), torch.randn(6, *SHAPE)
    done = export_pt2(model, tmp_path / "m.pt2", images, {"arch": "tiny"})
    assert done.max_error < 1e-5
    facts = {METADATA: ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=facts).module()
    for batch in (1, 5):
        with torch.no_grad():
            assert torch.allclose(loaded(images[:batch]), model(images[:batch]), atol=1e-5)
    assert json.loads(facts[METADATA])["arch"] == "tiny"


def test_no_image_is_in_the_file(tmp_path: Path) -> None:
    model, many = Chain().eval(), torch.randn(500, *SHAPE)
    done = export_pt2(model, tmp_path / "m.pt2", many[:4])
    assert done.file_bytes < 60_000 < many.nbytes
    (inputs, _) = torch.export.load(tmp_path / "m.pt2").example_inputs
    assert not inputs[0].any()
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:  # nor where the source lies
        assert not any(b"site-packages" in archive.read(name) or b"tiny.py" in archive.read(name) for name in archive.namelist())


def test_pixels_and_probabilities(tmp_path: Path) -> None:
    model, pixels = Chain().eval(), torch.randint(0, 256, (3, *SHAPE[1:], 3), dtype=torch.uint8)
    ready = Ready(model, (0.5,) * 3, (0.25,) * 3, probabilities=True)
    export_pt2(ready, tmp_path / "m.pt2", pixels)
    with torch.no_grad():
        expected = model((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25).softmax(1)
    assert torch.allclose(torch.export.load(tmp_path / "m.pt2").module()(pixels), expected, atol=1e-5)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.conv(images).mean((2, 3))
        return maps if maps.sum() > 0 else -maps


def test_what_cannot_be_exported_is_said_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParityError, match="cannot be exported"):
        export_pt2(Branches().eval(), tmp_path / "m.pt2", torch.randn(2, *SHAPE))
    model, other = Chain().eval(), Chain().eval()
    honest = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda network, *rest, **options: honest(other, *rest, **options))
    with pytest.raises(ParityError, match="differs"):
        export_pt2(model, tmp_path / "m.pt2", torch.randn(2, *SHAPE))
    assert list(tmp_path.iterdir()) == []
