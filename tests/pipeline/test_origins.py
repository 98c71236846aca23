"""Where a last retraining starts: in the found shape, with the weights that its name says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import slimcli
from slimcli.errors import CheckpointError, DivergedError, RunDirError, SettingsError
from slimcli.networks import resolve
from slimcli.pipeline import job
from slimcli.pipeline.origins import UNKNOWN, Known, Origins
from slimcli.pipeline.train import resume, train
from slimcli.pruning import surgery
from slimcli.rundir import RunDir
from slimcli.settings import FINALS, PruneSettings, TrainSettings
from slimcli.training.engine import Engine
from tests.shrinking import dense

QUICK: dict[str, Any] = {
    "train_samples": 400,
    "tie_epochs": 1,
    "epochs": 0,
    "iterations": 1,
    "max_drop": 100.0,
    "amount": "25%",
    "deploy": False,
}


def origins_of(arch: str, shape: tuple[int, int, int], known: Known = UNKNOWN) -> Origins:
    model = resolve.build(arch, 10, shape).eval()
    return Origins(model, tuple(surgery.find_groups(model, shape)), shape, known)


@pytest.mark.parametrize(("arch", "shape"), [("lenet5", (1, 28, 28)), ("resnet20-cifar", (3, 32, 32))])
def test_rewound_survivors_have_their_first_weights(arch: str, shape: tuple[int, int, int]) -> None:
    origins = origins_of(arch, shape)
    first = {name: torch.randn_like(value) if value.ndim > 1 else value for name, value in origins.dense.state_dict().items()}
    first |= {name: value for name, value in origins.dense.state_dict().items() if name.endswith("selects")}
    origins = Origins(origins.dense, origins.groups, shape, Known(first=first))
    group = origins.groups[1]
    removed = {member.layer: [member.channels[unit] for unit in (0, 2)] for member in group.members}
    model = origins.rewound(replace(dense(origins.dense, shape), removed=removed))
    for member in group.members:
        kept = [c for c in range(first[f"{member.layer}.weight"].shape[0]) if c not in removed[member.layer]]
        weight = model.get_submodule(member.layer).weight
        assert isinstance(weight, torch.Tensor)
        expected = first[f"{member.layer}.weight"][kept]
        if expected.shape == weight.shape:  # its inputs are all there
            assert torch.equal(weight, expected)
    assert torch.equal(origins.dense.get_submodule(group.name).weight, origins.dense.state_dict()[f"{group.name}.weight"])  # type: ignore[arg-type]
    with torch.no_grad():
        assert model(torch.zeros(2, *shape)).shape == (2, 10)


@pytest.mark.parametrize("final", FINALS)
@pytest.mark.parametrize("distill", [False, True])
def test_every_start_ends_in_the_found_shape_and_says_what_it_did(
    tiny_checkpoint: Path, tmp_path: Path, final: str, distill: bool
) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), final=final, distill=distill, final_epochs=6, **QUICK)
    metrics = job.run(settings, tmp_path / "run").metrics  # type: ignore[union-attr]
    assert [layer["filters"][1] for layer in metrics["layers"]][:2] == [15, 37]
    trials = metrics["final"]["trials"]
    assert sum(trial["epochs"] for trial in trials) == 6
    assert metrics["final"]["distilled"] is distill
    (chosen,) = [trial for trial in trials if trial["chosen"]]
    assert metrics["final"]["chosen"] == chosen["start"]
    assert chosen["top1"] == metrics["held_out"]["slim"]["top1"]
    noise = 100 * (chosen["top1"] / 100 * (1 - chosen["top1"] / 100) / metrics["held_out"]["slim"]["samples"]) ** 0.5
    assert chosen["top1"] >= max(trial["top1"] for trial in trials) - 2 * noise
    if final == "auto":
        assert [trial["start"] for trial in trials[:3]] == ["finetune", "fresh", "rewind"]
        assert [trial["epochs"] for trial in trials] == [1, 1, 1, 3]
        assert trials[3]["continued"]
    saved = torch.load(tmp_path / "run" / "model.pt", weights_only=True)
    assert {name: value.shape for name, value in saved["first"].items()} == {
        name: value.shape for name, value in saved["state_dict"].items()
    }
    assert slimcli.load(tmp_path / "run" / "model.pt")(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_without_a_turn_of_the_loop_the_network_is_only_retrained(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), final="fresh", final_epochs=1, **{**QUICK, "iterations": 0})
    metrics = job.run(settings, tmp_path / "run").metrics  # type: ignore[union-attr]
    assert (metrics["removed"]["macs"], metrics["epochs"], metrics["final"]["chosen"]) == (0, 1, "fresh")
    assert metrics["training_macs"] == 400 * 3 * metrics["dense"]["macs"]


def test_a_network_that_nobody_can_build_starts_fresh_only_where_it_is_named() -> None:
    model = resolve.build("lenet5", 10, (1, 28, 28))
    arguments: dict[str, Any] = {**QUICK, "observe_epochs": 1, "data": "digits", "final_epochs": 6}
    with pytest.raises(SettingsError, match="fresh") as caught:
        slimcli.prune(model, final="fresh", **arguments)
    assert "arch=" in caught.value.hint
    assert slimcli.prune(model, final="auto", **arguments).budget_met
    assert slimcli.prune(model, final="fresh", arch="lenet5", **arguments).budget_met


def test_a_retraining_alone_falls_short_of_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), final_epochs=1, **{**QUICK, "iterations": 0})
    assert job.run(settings, tmp_path / "run").shortfall == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(("lost", "chosen"), [(["fresh"], {"finetune", "rewind"}), (["finetune", "fresh", "rewind"], {None})])
def test_a_start_whose_loss_is_lost_is_given_up_and_the_others_go_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[str], chosen: set[str | None]
) -> None:
    fit = Engine.fit

    def unlucky(self: Engine, model: Any, train: Any, epochs: int, phase: str, *rest: Any, **named: Any) -> None:
        if any(f"({start})" in phase for start in lost):
            raise DivergedError("the loss is nan", "")
        fit(self, model, train, epochs, phase, *rest, **named)

    monkeypatch.setattr(Engine, "fit", unlucky)
    settings = PruneSettings(model=str(tiny_checkpoint), final="auto", final_epochs=6, **QUICK)
    result = job.run(settings, tmp_path / "run")
    assert result is not None
    assert not result.shortfall
    trials = result.metrics["final"]["trials"]
    assert [trial["start"] for trial in trials if trial["lost"]] == lost
    assert result.metrics["final"]["chosen"] in chosen


def test_a_teacher_and_a_shape_are_kept_for_going_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run(PruneSettings(model=str(tiny_checkpoint), final_epochs=0, **QUICK), tmp_path / "slim")
    slim, teacher = tmp_path / "slim" / "model.pt", tmp_path / "teacher.pt"
    arguments: dict[str, Any] = {**QUICK, "iterations": 0, "final_epochs": 2, "distill": True}

    def begun(out: Path, act: Callable[[], Any]) -> None:
        fit = Engine.fit

        def stopped(self: Engine, *rest: Any, **named: Any) -> None:
            after = named.get("after_epoch") or rest[5]

            def once(*epoch: Any) -> None:
                after(*epoch)
                raise KeyboardInterrupt

            rest, named = (
                (*rest[:5], once, *rest[6:]) if len(rest) > 5 else rest,
                named | ({"after_epoch": once} if len(rest) <= 5 else {}),
            )
            fit(self, *rest, **named)

        with monkeypatch.context() as patch:
            patch.setattr(Engine, "fit", stopped)
            with pytest.raises(KeyboardInterrupt):
                act()

    for name in ("whole", "broken"):
        shutil.copy(tiny_checkpoint, teacher)
        settings = PruneSettings(model=str(slim), teacher=str(teacher), **arguments)
        like = TrainSettings(arch="lenet5", epochs=2, train_samples=200, like=str(slim))
        if name == "whole":
            job.run(settings, tmp_path / "whole")
            train(like, RunDir(tmp_path / "whole-like"))
            continue
        begun(tmp_path / "broken", lambda settings=settings: job.run(settings, tmp_path / "broken"))
        begun(tmp_path / "broken-like", lambda like=like: train(like, RunDir(tmp_path / "broken-like")))
        teacher.unlink()
        slim.unlink()
        job.resume(tmp_path / "broken")
        resume(tmp_path / "broken-like")
    for suffix in ("", "-like"):
        one, other = (torch.load(tmp_path / f"{name}{suffix}" / "model.pt", weights_only=True) for name in ("whole", "broken"))
        assert all(torch.equal(value, other["state_dict"][key]) for key, value in one["state_dict"].items())
        assert one.get("first", {}).keys() == other.get("first", {}).keys()
        assert all(torch.equal(value, other["first"][key]) for key, value in one.get("first", {}).items())


def test_a_shape_does_not_destroy_the_file_that_it_is_taken_from(tiny_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint.parent, tmp_path / "run")
    settings = TrainSettings(arch="lenet5", epochs=1, train_samples=200, like=str(tmp_path / "run" / "model.pt"))
    with pytest.raises(RunDirError, match="lies in"):
        train(settings, RunDir(tmp_path / "run"), overwrite=True)
    with pytest.raises(CheckpointError, match="not a resnet20-cifar") as caught:
        train(
            TrainSettings(arch="resnet20-cifar", data="digits", like=str(tmp_path / "run" / "model.pt")), RunDir(tmp_path / "x")
        )
    assert "slim train lenet5" in caught.value.hint


def test_a_shape_is_trained_from_scratch_with_like(tiny_checkpoint: Path, tmp_path: Path) -> None:
    job.run(PruneSettings(model=str(tiny_checkpoint), final_epochs=0, **QUICK), tmp_path / "slim")
    settings = TrainSettings(arch="lenet5", epochs=1, train_samples=300, like=str(tmp_path / "slim" / "model.pt"))
    trained = train(settings, RunDir(tmp_path / "scratch"))
    assert trained is not None
    slim = json.loads((tmp_path / "slim" / "metrics.json").read_text())["slim"]
    assert trained.metrics["dense"]["params"] == slim["params"]
    assert slimcli.load(tmp_path / "scratch" / "model.pt").get_submodule("conv1").weight.shape[0] == 15  # type: ignore[union-attr]
    scratch, dense = (torch.load(path, weights_only=True)["first"] for path in (trained.folder.model, tiny_checkpoint))
    bias, cut = scratch["conv1.bias"], dense["conv1.bias"][:15]  # conv1 reads as many inputs as before: not scaled
    assert not torch.equal(bias, cut), "the first weights of the dense training of the same seed"


def test_a_teacher_may_be_another_network_and_without_distilling_there_is_none(tiny_checkpoint: Path, tmp_path: Path) -> None:
    job.run(PruneSettings(model=str(tiny_checkpoint), final_epochs=0, **QUICK), tmp_path / "slim")
    arguments = {**QUICK, "iterations": 0}
    model = str(tmp_path / "slim" / "model.pt")
    losses = {}
    for name, teacher in (("self", None), ("dense", str(tiny_checkpoint))):
        settings = PruneSettings(model=model, final_epochs=1, distill=True, teacher=teacher, distill_weight=1.0, **arguments)
        job.run(settings, tmp_path / name)
        losses[name] = [e["loss"] for e in RunDir(tmp_path / name).read_journal() if e["event"] == "epoch"]
    assert losses["self"] != losses["dense"]
    with pytest.raises(SettingsError, match="--distill"):
        PruneSettings(teacher="x.pt", distill=False)
