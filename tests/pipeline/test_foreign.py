"""Checkpoints that someone else wrote, and histories that a user brings."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import slimcli
from slimcli.errors import ArchError, CheckpointError, DataError
from slimcli.networks.resolve import build
from slimcli.pipeline import job
from slimcli.pruning.history import filter_norms
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings

QUICK: dict[str, Any] = {
    "data": "digits",
    "train_samples": 300,
    "epochs": 1,
    "final_epochs": 0,
    "max_drop": 100.0,
    "iterations": 1,
    "deploy": False,
}


@pytest.fixture
def foreign(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    """LeNet-5's weights as a training script leaves them: wrapped, prefixed, without a word about themselves."""
    state = slimcli.load(tiny_checkpoint).state_dict()
    path = tmp_path / "checkpoint.th"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "best_prec1": 81.2}, path)
    return path


def test_a_foreign_checkpoint_is_observed_first(foreign: Path, tmp_path: Path) -> None:
    settings = PruneSettings(model=str(foreign), arch="lenet5", observe_epochs=2, **QUICK)
    result = job.run(settings, tmp_path / "run")
    phases = [event["phase"] for event in RunDir(tmp_path / "run").read_journal() if event["event"] == "epoch"]
    assert phases == ["observe", "observe", "tie 1", "retrain 1"]
    assert any("trained elsewhere" in note for note in result.metrics["notes"])
    assert any("no norm history" in note for note in result.metrics["notes"])
    assert any("normalisation" in note for note in result.metrics["notes"])
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert saved["arch"] == "lenet5"
    assert len(saved["history"]["layers"]["conv1"]) == 4


def test_a_validation_set_of_the_user_silences_the_warning(foreign: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the data set itself"):
        job.prepare(PruneSettings(model=str(foreign), arch="lenet5", val_data="digits", **QUICK))
    images, labels = np.zeros((20, 28, 28), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    val_data = f"npz:{tmp_path / 'mine.npz'}"
    prepared = job.prepare(PruneSettings(model=str(foreign), arch="lenet5", val_data=val_data, **QUICK))
    assert not any("trained elsewhere" in note for note in prepared.notes)
    assert prepared.subject.data.held_out.samples == 20  # the test part of the set that was named


def test_the_history_of_epoch_checkpoints_equals_the_recorded_one(foreign: Path, tmp_path: Path) -> None:
    model = build("lenet5", 10, (1, 28, 28))
    recorded = slimcli.NormHistory(model)
    files = []
    for epoch in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1 + 0.1 * epoch)
        recorded.record()
        files.append(tmp_path / f"epoch{epoch}.pt")
        torch.save({"model": {f"module.{k}": v for k, v in model.state_dict().items()}}, files[-1])
    recorded.save(tmp_path / "history.pt")
    for history in ([tmp_path / "history.pt"], files):
        settings = PruneSettings(model=str(foreign), arch="lenet5", history=tuple(map(str, history)), **QUICK)
        rebuilt = job.prepare(settings).state.network.history
        assert rebuilt.layers.keys() == recorded.layers.keys()
        assert all(torch.equal(rows, rebuilt.layers[name]) for name, rows in recorded.layers.items())


def test_a_history_of_another_network_is_refused(foreign: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pt"
    torch.save(build("resnet20-cifar", 10, (3, 32, 32)).state_dict(), other)
    with pytest.raises(CheckpointError, match="conv1"):
        job.prepare(PruneSettings(model=str(foreign), arch="lenet5", history=(str(other),), **QUICK))


@pytest.mark.parametrize("key", ["conv1.weight", "fc2.weight", "fc2.bias"])
def test_a_key_that_is_named_wrong_is_told_before_what_follows_from_it(key: str, tmp_path: Path) -> None:
    """Channels and classes are guessed from the first and the last tensors, which may be others then."""
    state = build("lenet5", 10, (1, 28, 28)).state_dict()
    state["other." + key] = state.pop(key)
    torch.save(state, tmp_path / "wrong.pt")
    with pytest.raises(CheckpointError, match=rf"missing: {key}.*surplus: other\.{key}"):
        job.prepare(PruneSettings(model=str(tmp_path / "wrong.pt"), arch="lenet5", **QUICK))


def test_data_that_does_not_fit_the_network_is_refused(foreign: Path, tmp_path: Path) -> None:
    state = build("resnet20-cifar", 10, (3, 32, 32)).state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    with pytest.raises(DataError, match="3 channel"):
        job.prepare(PruneSettings(model=str(tmp_path / "resnet.pt"), arch="resnet20-cifar", **QUICK))
    torch.save(build("lenet5", 7, (1, 28, 28)).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(DataError, match="7 classes"):
        job.prepare(PruneSettings(model=str(tmp_path / "seven.pt"), arch="lenet5", **QUICK))


def test_a_network_without_anything_to_prune_is_refused_with_the_reasons(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict(), tmp_path / "net.pt")
    with pytest.raises(ArchError, match="the network's output"):
        job.prepare(PruneSettings(model=str(tmp_path / "net.pt"), arch=f"{tmp_path / 'net.py'}:build", **QUICK))


def test_data_code_named_by_a_file_does_not_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "data.py").write_text(f"open({str(marker)!r}, 'w')\ndef loaders(): ...\n")
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["data"] = {"name": f"{tmp_path / 'data.py'}:loaders"}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(DataError, match="may not start"):
        job.prepare(PruneSettings(model=str(tmp_path / "model.pt"), **{**QUICK, "data": None}))
    assert not marker.exists()


def test_pruning_from_python_leaves_the_given_network_alone(tiny_checkpoint: Path) -> None:
    model = slimcli.load(tiny_checkpoint)
    before = copy.deepcopy(model.state_dict())
    history = slimcli.NormHistory(model)
    history.record()
    pruned = slimcli.prune(
        model, history=history, data="digits", train_samples=300, epochs=1, final_epochs=0, iterations=1, max_drop=100.0
    )
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert history.epochs == 1
    assert pruned.budget_met
    assert pruned.cost.macs < slimcli.count(model, (1, 28, 28)).macs
    weight = pruned.model.get_submodule("conv1").weight
    assert torch.equal(pruned.history.layers["conv1"][-1], filter_norms(weight.detach()).float())


OWN = """
from torch import nn
class Own(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 5, 4), nn.Conv2d(8, width, 3)
        self.fc = nn.Linear(width * 16, 10)
    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        return self.fc(x.view(x.size(0), -1))
def build(width=6):
    return Own(width)
"""


def test_a_view_that_asks_for_the_usual_layout_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`x.view(len(x), -1)` behind a conv fails in channels-last; and the slim network is had again where its code has moved."""
    (tmp_path / "there").mkdir()
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    torch.save(build("own.py:build(width=7)", 10, (1, 28, 28)).state_dict(), "own.pt")
    settings = PruneSettings(model="own.pt", arch="own.py:build(width=7)", observe_epochs=1, **QUICK | {"final_epochs": 1})
    result = job.run(settings, tmp_path / "run")
    assert result is not None
    assert result.metrics["removed"]["macs"] > 0
    here = slimcli.load("run/model.pt", arch="own.py:build")
    (tmp_path / "own.py").rename(tmp_path / "there/moved.py")
    monkeypatch.chdir(tmp_path / "there")
    images = torch.randn(2, 1, 28, 28)
    for arch in ("moved.py:build", "moved.py:build(width=7)", str(tmp_path / "there/moved.py:build")):
        assert torch.equal(slimcli.load("../run/model.pt", arch=arch)(images), here(images))
    with pytest.raises(CheckpointError, match=r"not a moved\.py:another"):
        slimcli.load("../run/model.pt", arch="moved.py:another")
