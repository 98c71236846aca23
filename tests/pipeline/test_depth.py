"""Runs that leave out whole blocks: what is handed over, said, saved and gone on with."""

from __future__ import annotations

import copy
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slimcli
from slimcli.errors import SettingsError
from slimcli.networks import checkpoint
from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.networks.shapes import shapes_of
from slimcli.pipeline import job
from slimcli.pipeline.pace import Pace
from slimcli.pipeline.state import units_of_others
from slimcli.pipeline.train import train
from slimcli.records import ChannelGroup, LayerShape, Member, Timed
from slimcli.report.journal import rebuild
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings
from tests.pipeline.test_job import QUICK
from tests.said import Said

SHAPE = (1, 28, 28)
CODE = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x):
        return F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(1, 8, 3, stride=4), nn.Sequential(*(Block() for _ in range(4)))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def build():
    return Network()
"""


@pytest.fixture
def network(tmp_path: Path) -> dict[str, Any]:
    """A checkpoint of a network with four blocks, and how it is opened."""
    (tmp_path / "net.py").write_text(CODE)
    torch.manual_seed(0)
    arch = f"{tmp_path / 'net.py'}:build"
    torch.save(build(arch, 10, SHAPE).state_dict(), tmp_path / "net.pth")
    return {"model": str(tmp_path / "net.pth"), "arch": arch, "data": "digits", "observe_epochs": 1, "deploy": False} | QUICK


@pytest.fixture
def by_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which every layer takes a millisecond, whatever its width."""

    def time(self: Pace, model: nn.Module) -> Timed:
        return Timed(len(shapes_of(model, SHAPE)), 10)

    def of(self: object, shape: LayerShape) -> float:
        return 1.0

    monkeypatch.setattr(Pace, "time", time)
    monkeypatch.setattr("slimcli.deploy.layer_times.LayerTimes.of", of)


def saved_in(run: Path, network: dict[str, Any]) -> checkpoint.Checkpoint:
    return checkpoint.load(run / "model.pt", network["arch"])


def pruned(out: Path, network: dict[str, Any], **settings: Any) -> dict[str, Any]:
    assert job.run(PruneSettings(**network | settings), out) is not None
    return dict(json.loads((out / "metrics.json").read_text()))


def test_named_blocks_are_gone_from_all_that_is_handed_over(network: dict[str, Any], tmp_path: Path) -> None:
    metrics = pruned(tmp_path / "run", network, leave_out=("body.[12]",), macs=0.3)
    assert metrics["left_out"] == ["body.1", "body.2"]
    assert any("2 blocks left out whole: body.1, body.2" in note for note in metrics["notes"])
    filters = {layer["name"]: layer["filters"] for layer in metrics["layers"]}
    assert [filters[f"body.{block}.conv1"] for block in (1, 2)] == [[8, 0], [8, 0]]
    assert 0 < filters["body.0.conv1"][1] < 8
    saved = saved_in(tmp_path / "run", network)
    assert saved.left_out == ("body.1", "body.2")
    assert saved.removed["body.1.conv2"] == list(range(8))
    slim = saved.build()
    assert isinstance(slim.body[1], nn.Identity)  # type: ignore[index]
    assert metrics["slim"]["macs"] == count(slim, SHAPE).macs <= 0.3 * metrics["dense"]["macs"]
    assert not {key for key in saved.history["layers"] if key.startswith("body.1")}  # type: ignore[index]
    assert tomllib.loads((tmp_path / "run/recipe.toml").read_text())["prune"]["leave_out"] == ["body.1", "body.2"]
    rebuilt = rebuild(RunDir(tmp_path / "run").read_journal())
    assert rebuilt is not None
    assert (rebuilt["layers"], rebuilt["left_out"]) == (metrics["layers"], metrics["left_out"])


def test_a_slim_network_is_pruned_further(network: dict[str, Any], tmp_path: Path) -> None:
    pruned(tmp_path / "one", network, leave_out=("body.1",), iterations=1)
    again = {**QUICK, "model": str(tmp_path / "one/model.pt"), "arch": network["arch"], "deploy": False, "iterations": 1}
    pruned(tmp_path / "two", again, leave_out=("body.3",))
    saved = saved_in(tmp_path / "two", network)
    assert saved.left_out == ("body.1", "body.3")
    assert all(saved.removed[f"body.{block}.conv1"] == list(range(8)) for block in (1, 3))
    saved.build()


@pytest.mark.parametrize("final", ["rewind", "fresh"])
def test_other_starts_are_as_short(network: dict[str, Any], tmp_path: Path, final: str) -> None:
    metrics = pruned(tmp_path / "run", network, leave_out=("body.0",), iterations=1, final=final)
    assert metrics["final"]["chosen"] == final
    assert isinstance(saved_in(tmp_path / "run", network).build().body[0], nn.Identity)  # type: ignore[index]


def test_blocks_alone_may_meet_the_budget_and_are_retrained(network: dict[str, Any], tmp_path: Path) -> None:
    metrics = pruned(tmp_path / "run", network, leave_out=("body.0", "body.1", "body.3"), macs=0.4, round_to=1)
    (step,) = metrics["iterations"]
    assert (step["kept"], step["epochs"], step["removed"]) == (True, QUICK["epochs"], 48)
    assert metrics["budget_met"]
    assert metrics["epochs"] == QUICK["epochs"] + QUICK["final_epochs"]
    assert not [note for note in metrics["notes"] if "observed first" in note]


@pytest.fixture
def trained(network: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """The same, of a network that can do something."""
    settings = TrainSettings(arch=network["arch"], data="digits", epochs=3, lr=0.1)
    return network | {"model": str(train(settings, RunDir(tmp_path / "trained")).folder.model)}  # type: ignore[union-attr]


def test_blocks_that_cost_too_much_are_taken_back(trained: dict[str, Any], tmp_path: Path) -> None:
    settings = trained | {"max_drop": 1.0, "epochs": 0, "leave_out": ("body.*",), "macs": 0.9}
    result = job.run(PruneSettings(**settings), tmp_path / "run")
    assert result is not None
    assert [step["kept"] for step in result.metrics["iterations"]] == [False]
    assert "iteration 1 lost more than the allowed" in result.shortfall
    assert result.metrics["left_out"] == []
    before, after = (checkpoint.load(path, trained["arch"]).state_dict for path in (trained["model"], result.folder.model))
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_blocks_that_can_be_done_without_stay_out(trained: dict[str, Any], tmp_path: Path) -> None:
    loaded = checkpoint.load(trained["model"], trained["arch"])
    for key in ("weight", "bias"):
        loaded.state_dict[f"body.2.norm2.{key}"].zero_()
    checkpoint.save(Path(trained["model"]), loaded)
    settings = trained | {"max_drop": 0.0, "epochs": 0, "final_epochs": 0, "leave_out": ("body.2",), "iterations": 0}
    metrics = pruned(tmp_path / "run", settings)
    assert [step["kept"] for step in metrics["iterations"]] == [True]
    assert metrics["left_out"] == ["body.2"]
    assert metrics["slim"]["top1"] == metrics["dense"]["top1"]
    assert metrics["final"]["distilled"]


def test_turns_are_counted_without_it(network: dict[str, Any], tmp_path: Path) -> None:
    metrics = pruned(tmp_path / "run", network, leave_out=("body.1",), iterations=2)
    assert len(metrics["iterations"]) == 3


def test_another_network_is_trained_in_the_same_shape(network: dict[str, Any], tmp_path: Path) -> None:
    pruned(tmp_path / "run", network, leave_out=("body.1",), iterations=1)
    slim = saved_in(tmp_path / "run", network)
    settings = TrainSettings(arch=network["arch"], like=str(tmp_path / "run/model.pt"), data="digits", epochs=1)
    train(settings, RunDir(tmp_path / "like"))
    found = saved_in(tmp_path / "like", network)
    assert found.left_out == ("body.1",)
    assert {key: value.shape for key, value in found.state_dict.items()} == {
        key: value.shape for key, value in slim.state_dict.items()
    }
    found.build()


def test_auto_leaves_out_what_saves_time(network: dict[str, Any], tmp_path: Path, by_layers: None) -> None:
    """Where widths save none, blocks do: of ten layers six may stay."""
    metrics = pruned(tmp_path / "run", network, leave_out=("auto",), latency=0.65)
    assert len(metrics["left_out"]) == 2
    assert metrics["slim"]["params"] < metrics["dense"]["params"]
    assert [layer["filters"] for layer in metrics["layers"] if layer["filters"][1] not in (layer["filters"][0], 0)] == []
    assert tomllib.loads((tmp_path / "run/recipe.toml").read_text())["prune"]["leave_out"] == metrics["left_out"]


def test_auto_leaves_out_those_that_change_least(network: dict[str, Any], tmp_path: Path, by_layers: None) -> None:
    model = build(network["arch"], 10, SHAPE)
    with torch.no_grad():
        for block, scale in enumerate((1.0, 0.01, 1.0, 0.02)):
            model.body[block].norm2.weight.fill_(scale)  # type: ignore[index, union-attr, operator]
    torch.save(model.state_dict(), network["model"])
    metrics = pruned(tmp_path / "run", network, leave_out=("auto",), latency=0.65)
    assert sorted(metrics["left_out"]) == ["body.1", "body.3"]


def test_auto_takes_first_what_changes_nothing(network: dict[str, Any], tmp_path: Path, by_layers: None) -> None:
    model = build(network["arch"], 10, SHAPE)
    with torch.no_grad():
        for block in (1, 2):
            model.body[block].norm2.weight.zero_()  # type: ignore[index, union-attr, operator]
    torch.save(model.state_dict(), network["model"])
    metrics = pruned(tmp_path / "run", network, leave_out=("auto",), latency=0.65)
    assert sorted(metrics["left_out"]) == ["body.1", "body.2"]


def test_patterns_are_of_the_whole_network(network: dict[str, Any], tmp_path: Path, by_layers: None) -> None:
    settings = {"leave_out": ("auto",), "latency": 0.65, "include": ("body.1.*", "body.2.*")}
    assert sorted(pruned(tmp_path / "run", network, **settings)["left_out"]) == ["body.1", "body.2"]
    named = {"leave_out": ("body.*",), "exclude": ("body.1.*",), "iterations": 0}
    assert pruned(tmp_path / "other", network, **named)["left_out"] == ["body.0", "body.2", "body.3"]


def test_auto_heeds_what_is_excluded(network: dict[str, Any], tmp_path: Path, by_layers: None) -> None:
    metrics = pruned(tmp_path / "run", network, leave_out=("auto",), latency=0.65, exclude=("body.[01].*",))
    assert sorted(metrics["left_out"]) == ["body.2", "body.3"]


def test_a_run_that_was_interrupted_ends_as_it_would_have(network: dict[str, Any], tmp_path: Path) -> None:
    settings = {"leave_out": ("body.2",), "macs": 0.4, "round_to": 1}
    pruned(tmp_path / "a", network, **settings)

    class Interrupted(Said):
        def say(self, line: str) -> None:
            super().say(line)
            if line.startswith("iteration 1"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(PruneSettings(**network | settings), tmp_path / "b", Interrupted())
    job.resume(tmp_path / "b")
    one, other = (saved_in(tmp_path / name, network) for name in "ab")
    assert all(torch.equal(value, other.state_dict[key]) for key, value in one.state_dict.items())
    assert (one.left_out, one.removed) == (other.left_out, other.removed)


def test_in_memory_the_given_network_stays_whole(network: dict[str, Any]) -> None:
    model = build(network["arch"], 10, SHAPE)
    before = copy.deepcopy(model.state_dict())
    settings = {key: value for key, value in network.items() if key not in ("model", "arch", "deploy")}
    found = slimcli.prune(model, leave_out=("body.1",), iterations=1, **settings)
    assert found.left_out == ("body.1",)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert isinstance(found.model.body[1], nn.Identity)  # type: ignore[index]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"leave_out": ("body.7",)}, "--leave-out 'body.7' matches no residual block"),
        ({"leave_out": ("auto",), "macs": 0.5}, "there is no --latency"),
        ({"leave_out": ("body.1",), "stop": "if"}, "--stop if compares flows"),
        ({"leave_out": ("body.1",), "method": "sap", "granularity": "weight"}, "takes layers away"),
        ({"leave_out": ("auto",), "latency": 0.5, "exclude": ("body.*",)}, "no residual block takes part"),
        ({"leave_out": ("body.1",), "exclude": ("body.1.*",)}, "are of the same layers"),
        ({"leave_out": ("auto",), "latency": 0.5, "devices": 2, "device": "cpu"}, "in one process"),
        ({"leave_out": ("auto",), "latency": 0.5, "round_to": (4, 8)}, "--round-to has 2 numbers"),
        ({"leave_out": ("auto",), "latency": 0.5, "amount": "1,2"}, "--amount has 2 numbers"),
    ],
    ids=str,
)
def test_what_cannot_be_left_out_is_refused(
    network: dict[str, Any], tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        job.run(PruneSettings(**network | settings), tmp_path / "run")
    assert words in raised.value.message
    assert not (tmp_path / "run").exists()


def test_one_name_is_as_good_as_a_list() -> None:
    assert PruneSettings(leave_out="body.1").leave_out == ("body.1",)  # type: ignore[arg-type]
    assert PruneSettings(leave_out=["auto"], latency=0.5).leave_out == ("auto",)  # type: ignore[arg-type]
    assert PruneSettings(leave_out=()).leave_out is None
    with pytest.raises(SettingsError, match="chooses the blocks itself"):
        PruneSettings(leave_out=("auto", "body.1"))


def test_units_of_others_are_as_many_channels() -> None:
    """A group of four channels a unit, and the same layers with one a unit, or three."""
    four, one, three = (
        ChannelGroup("stem", (Member("stem", tuple(range(24 // each))),) * each, 24 // each) for each in (4, 1, 3)
    )
    assert [group.per_unit for group in (four, one, three)] == [4, 1, 3]
    assert units_of_others({"stem": 2}, [four], [one]) == {"stem": 8}
    assert units_of_others({"stem": 2}, [four], [three]) == {"stem": 3}
    assert units_of_others({}, [], [three]) == {"stem": 8}


def test_a_network_without_blocks_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no residual blocks"):
        job.run(PruneSettings(model=str(tiny_checkpoint), leave_out=("conv1",), **QUICK), tmp_path / "run")
