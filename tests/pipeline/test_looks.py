"""Retraining ends where the rule says; masked weights stay out; what the run says of itself is so."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import slimcli
from slimcli.errors import ArchError, CheckpointError, DivergedError, FlowError, SettingsError
from slimcli.measures import Score
from slimcli.networks.layers import layers_of
from slimcli.pipeline import job
from slimcli.pipeline.decisions import remove
from slimcli.pipeline.looks import Watch, rule_of
from slimcli.pipeline.prune import Loop
from slimcli.pipeline.state import Network
from slimcli.pipeline.train import train
from slimcli.pipeline.work import Work
from slimcli.pruning import masks
from slimcli.pruning.stopping import NEARER, AccuracyBack, AllEpochs, Allotted, FlowNoNearer, FlowWithin, Look, LossPlateau
from slimcli.records import JsonDict
from slimcli.report import page
from slimcli.report.journal import rebuild
from slimcli.rundir import RunDir
from slimcli.settings import FLOW_STOPS, PruneSettings, TrainSettings
from slimcli.training.engine import Engine, Epoch
from tests.said import Said

QUICK: dict[str, Any] = {
    "train_samples": 400,
    "final_epochs": 1,
    "iterations": 2,
    "max_drop": 100.0,
    "deploy": False,
}


def run(model: Path, out: Path, **settings: Any) -> tuple[JsonDict, list[JsonDict], str]:
    """The metrics, the journal and the words of a quick run."""
    said = Said()
    result = job.run(PruneSettings(model=str(model), **(QUICK | settings)), out, said)
    assert result is not None
    return result.metrics, RunDir(out).read_journal(), "\n".join(said.lines)


def test_the_shares_by_weights_and_by_norms_are_noted_and_shown(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, journal, _ = run(tiny_checkpoint, tmp_path / "run", method="sap", epochs=1)
    noted = [event for event in journal if event["event"] == "shares"]
    surgeries = [event["removed"] for event in journal if event["event"] == "surgery"]
    assert len(noted) == len(surgeries) == 2
    for event, removed in zip(noted, surgeries, strict=True):
        for name, share in event["groups"].items():
            before = event["channels"][name]
            assert len(removed.get(name, ())) == min(int(share["weights"] * before), before - 1)
    assert "What SAP&#39;s step takes" in page.write(RunDir(tmp_path / "run")).read_text()


@pytest.mark.parametrize("stop", ["accuracy", "if", "gf", "flow"])
@pytest.mark.parametrize("method", ["hbfp", "sap", "random"])
def test_a_rule_that_is_met_at_once_takes_no_epoch_and_one_of_a_distance_takes_one(
    tiny_checkpoint: Path, tmp_path: Path, method: str, stop: str
) -> None:
    least = 1 if stop in FLOW_STOPS else 0
    easy = {"margin": 100.0} if stop == "accuracy" else {"epsilon": 1e9}
    metrics, journal, said = run(tiny_checkpoint, tmp_path / "run", method=method, stop=stop, epochs=5, **easy)
    assert [step["epochs"] for step in metrics["iterations"]] == [least, least]
    assert all(step["stopped"] and len(step["flow_distance"]) == least for step in metrics["iterations"])
    assert all((step["flow_distance_after_surgery"] is not None) == (stop in FLOW_STOPS) for step in metrics["iterations"])
    assert "not met" not in said
    looks = [event for event in journal if event["event"] == "look"]
    assert [look["epoch"] for look in looks] == ([] if stop == "flow" else [*range(least + 1)] * 2)
    assert sum(event["event"] == "epoch" and event["phase"].startswith("retrain") for event in journal) == 2 * least


@pytest.mark.parametrize("stop", ["accuracy", "if", "gf", "flow"])
def test_no_rule_ends_a_retraining_below_the_allowed_drop(tiny_checkpoint: Path, tmp_path: Path, stop: str) -> None:
    """Any distance is near enough for it, any accuracy: the network is retrained until it may be kept, or to the limit."""
    easy: dict[str, Any] = {"margin": 100.0} if stop == "accuracy" else {"epsilon": 1e9}
    settings = {"method": "sap", "amount": "40%", "iterations": 4, "epochs": 3, "max_drop": 5.0, "train_samples": 2000}
    metrics, _, _ = run(tiny_checkpoint, tmp_path / "run", stop=stop, lr=0.001, **(settings | easy))
    lowest = metrics["held_out"]["dense"]["top1"] - 5.0
    least = 1 if stop in FLOW_STOPS else 0
    assert max(step["epochs"] for step in metrics["iterations"]) > least
    for step in metrics["iterations"]:
        assert (step["epochs"] == 0) == (not least and step["top1_after_surgery"] >= lowest)
        assert step["stopped"] == step["kept"] == (step["top1"] >= lowest)
        assert step["held_back"] != step["stopped"]
        assert step["kept"] or step["epochs"] == 3


def test_a_rule_ends_a_retraining_as_soon_as_it_is_met(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracies = iter([10.0, 20.0, 99.0, 10.0, 99.0])
    original = Watch.look

    def look(self: Watch, network: Network, epoch: Epoch | None = None) -> Look:
        return replace(original(self, network, epoch), score=next(accuracies))

    monkeypatch.setattr(Watch, "look", look)
    metrics, journal, said = run(tiny_checkpoint, tmp_path / "run", method="random", stop="accuracy", margin=2.0, epochs=5)
    assert [(step["epochs"], step["stopped"]) for step in metrics["iterations"]] == [(2, True), (1, True)]
    assert [event["epoch"] for event in journal if event["event"] == "look"] == [0, 1, 2, 0, 1]
    assert "after 2 epochs, --stop accuracy met" in said


def test_epochs_are_given_out_for_the_flow_that_a_removal_broke(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"method": "lth", "granularity": "weight", "rewind": False, "stop": "flow", "epsilon": 0.01, "iterations": 3}
    metrics, journal, said = run(tiny_checkpoint, tmp_path / "run", epochs=50, **settings)
    owed = 0.0
    noted = [event for event in journal if event["event"] == "allotted"]
    for step, event in zip(metrics["iterations"], noted, strict=True):
        owed += step["flow_moved"] ** 2
        assert step["epochs"] == event["epochs"] == int(owed / 0.01)
        owed -= 0.01 * step["epochs"]
        assert event["owed"] == pytest.approx(owed)
        assert f"{step['flow_moved'] ** 2:.0%} of the flow broken and {owed:.0%} carried over" in said
        assert (step["epsilon"], step["stopped"]) == (0.01, True)
    assert sum(step["epochs"] for step in metrics["iterations"]) > 0
    assert "flow moved by the removal" in page.write(RunDir(tmp_path / "run")).read_text()


def test_a_flow_that_wants_more_epochs_than_there_are_is_not_met(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"method": "lth", "granularity": "weight", "amount": "60%", "stop": "flow", "epsilon": 0.001, "iterations": 1}
    metrics, _, said = run(tiny_checkpoint, tmp_path / "run", epochs=1, **settings)
    (step,) = metrics["iterations"]
    assert (step["epochs"], step["stopped"], step["held_back"]) == (1, False, False)
    assert "after 1 epoch, --stop flow not met" in said
    assert metrics["frozen"] == []  # masks are on all layers
    report = page.write(RunDir(tmp_path / "run")).read_text()
    assert "weights at zero" in report
    assert "weights removed" in report


@pytest.mark.parametrize("tie_epochs", [0, 1])
def test_a_merge_without_a_loss_breaks_no_flow(tiny_checkpoint: Path, tmp_path: Path, tie_epochs: int) -> None:
    """Two filters that are the same: without one, what is left of the flow is what it was; what an epoch of tying moves is not
    counted.
    """
    content = torch.load(tiny_checkpoint, weights_only=True)
    for name in ("conv1.weight", "conv1.bias"):
        content["state_dict"][name][1::2] = content["state_dict"][name][::2]
    norms = content["history"]["layers"]["conv1"]
    norms[:, 1::2] = norms[:, ::2]
    torch.save(content, tmp_path / "model.pt")
    settings = {"method": "hbfp", "stop": "flow", "iterations": 1, "tie_epochs": tie_epochs, "widths": (10, 50), "amount": "50%"}
    metrics, _, _ = run(tmp_path / "model.pt", tmp_path / "run", **settings)
    assert metrics["iterations"][0]["flow_moved"] < 1e-4
    assert metrics["iterations"][0]["epochs"] == 0


@pytest.mark.parametrize("stop", ["accuracy", "if", "gf"])
def test_a_rule_that_cannot_be_met_ends_at_the_limit_and_says_so(tiny_checkpoint: Path, tmp_path: Path, stop: str) -> None:
    hard = {"margin": 0.0} if stop == "accuracy" else {"epsilon": 0.0}
    metrics, journal, said = run(
        tiny_checkpoint,
        tmp_path / "run",
        method="random",
        amount="50%",
        stop=stop,
        epochs=2,
        iterations=1,
        lr=1e-6,
        tie_epochs=0,
        **hard,
    )
    assert [(step["epochs"], step["stopped"]) for step in metrics["iterations"]] == [(2, False)]
    assert f"after 2 epochs, --stop {stop} not met" in said
    assert ("asked for: at most 0.000" in said) == (stop != "accuracy")
    looks = [event for event in journal if event["event"] == "look"]
    assert [look["epoch"] for look in looks] == [0, 1, 2]
    assert all((look["distance"] is None) == (stop == "accuracy") for look in looks)
    if stop == "if":
        assert {name for look in looks for name, _ in look["furthest"]} <= {"conv1 -> conv2", "conv2 -> fc1", "fc1 -> fc2"}


@pytest.mark.parametrize("stop", FLOW_STOPS)
def test_without_an_epsilon_a_retraining_ends_where_the_flow_comes_no_nearer(
    tiny_checkpoint: Path, tmp_path: Path, stop: str
) -> None:
    metrics, _, said = run(tiny_checkpoint, tmp_path / "run", method=f"incop-{stop}", epochs=3, pq=(0.5, 1.0))
    drawn = page.write(RunDir(tmp_path / "run")).read_text()
    for step in metrics["iterations"]:
        distances = [step["flow_distance_after_surgery"], *step["flow_distance"]]
        nearer = [now <= (1 - NEARER) * before for before, now in itertools.pairwise(distances)]
        assert all(nearer[:-1])
        assert step["stopped"] == (not nearer[-1])
        assert step["stopped"] or step["epochs"] == 3
        assert len(step["flow_distance"]) == step["epochs"] > 0
        assert step["epsilon"] is None
        assert f"flow distance from the dense network {distances[-1]:.3f} ({distances[0]:.3f} before the retraining)" in said
        assert f"<td>{' '.join(f'{each:.3f}' for each in distances)}</td>" in drawn
    assert metrics["epochs"] == sum(step["epochs"] for step in metrics["iterations"]) + 1  # the last one
    assert "brought the flow less than 10% nearer" in drawn


def test_the_settings_name_the_rule() -> None:
    dense = Score(90.0, 0.1, 10)
    for stop in FLOW_STOPS:
        assert rule_of(PruneSettings(stop=stop), dense) == FlowNoNearer()
        assert rule_of(PruneSettings(stop=stop, epsilon=0.5), dense) == FlowWithin(0.5)
    assert rule_of(PruneSettings(stop="flow"), dense, 3) == Allotted(3)
    assert rule_of(PruneSettings(stop="accuracy", margin=0.5), dense) == AccuracyBack(89.5)
    assert rule_of(PruneSettings(stop="plateau"), dense) == LossPlateau()
    assert rule_of(PruneSettings(stop="epochs"), dense) == AllEpochs()


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("method", ["lth", "sap"])
def test_masked_weights_are_zeros_of_the_saved_network_and_save_nothing(
    tiny_checkpoint: Path, tmp_path: Path, method: str, scope: str
) -> None:
    metrics, _, said = run(tiny_checkpoint, tmp_path / "run", method=method, scope=scope, granularity="weight", epochs=1)
    assert metrics["slim"]["macs"] == metrics["dense"]["macs"]
    assert metrics["removed"] == {"macs": 0.0, "params": 0.0}
    model = slimcli.load(tmp_path / "run" / "model.pt")
    zeros = sum(int((layer.weight == 0).sum()) for layer in layers_of(model).values())
    assert metrics["sparsity"] == {"weights": 430_500, "zeros": zeros, "filters_removed": 0}
    remaining = metrics["iterations"][-1]["remaining"]
    assert remaining == pytest.approx(1 - zeros / 430_500)
    if method == "lth":
        assert remaining == pytest.approx(0.64, abs=1e-3)
    assert f"weights {remaining:.1%}" in said


def test_dead_filters_of_a_masked_network_are_taken_out_before_the_last_retraining(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Most of conv1's weights are so small that they go at once, and two filters with them."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["state_dict"]["conv1.weight"][[3, 7]] *= 1e-6
    torch.save(content, tmp_path / "model.pt")
    metrics, journal, said = run(
        tmp_path / "model.pt", tmp_path / "run", method="lth", granularity="weight", epochs=1, rewind=False
    )
    assert "2 filter(s) without a living weight are taken out" in said
    cleared = next(event for event in journal if event["event"] == "cleared")
    assert cleared["filters"] == {"conv1": 2}
    assert metrics["layers"][0]["filters"] == [20, 18]
    unfinished = rebuild(journal[: journal.index(cleared) + 1])
    assert unfinished is not None
    assert unfinished["slim"]["macs"] == metrics["slim"]["macs"]
    assert unfinished["layers"] == metrics["layers"]
    assert metrics["slim"]["macs"] < metrics["dense"]["macs"]
    assert metrics["sparsity"]["weights"] < 430_500
    assert slimcli.load(tmp_path / "run" / "model.pt").get_submodule("conv1").weight.shape[0] == 18  # type: ignore[union-attr]


@pytest.mark.parametrize(("hangs", "stays"), [(0.0, False), (8.0, True)])
def test_dead_filters_stay_where_accuracy_hangs_on_the_constants_that_they_give(
    tiny_checkpoint: Path, tmp_path: Path, hangs: float, stays: bool
) -> None:
    """Two filters of conv1 give nothing but their bias, and what conv2 makes of that is taken off its own."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    state = content["state_dict"]
    state["conv1.weight"][[3, 7]] *= 1e-6
    state["conv2.bias"] -= (hangs - state["conv1.bias"][[3, 7]].clamp(min=0)) @ state["conv2.weight"][:, [3, 7]].sum((2, 3)).T
    state["conv1.bias"][[3, 7]] = hangs
    torch.save(content, tmp_path / "model.pt")
    once = {"method": "lth", "granularity": "weight", "rewind": False, "iterations": 1, "epochs": 0, "final_epochs": 0}
    metrics, journal, said = run(tmp_path / "model.pt", tmp_path / "run", **once, max_drop=20.0)
    assert ("2 filter(s) without a living weight stay" in said) == stays
    assert any(event["event"] == "cleared" for event in journal) != stays
    assert metrics["layers"][0]["filters"] == [20, 20 if stays else 18]
    assert metrics["held_out"]["slim"]["top1"] >= metrics["held_out"]["dense"]["top1"] - 20.0


def test_what_reads_only_dead_filters_is_dead_too(tiny_checkpoint: Path, tmp_path: Path) -> None:
    content = torch.load(tiny_checkpoint, weights_only=True)
    weights = content["state_dict"]
    weights["conv1.weight"][3] = 0
    weights["conv2.weight"][9] = 0
    weights["conv2.weight"][9, 3] = 1.0  # all that it reads is that filter
    torch.save(content, tmp_path / "model.pt")
    once = {"method": "lth", "granularity": "weight", "rewind": False, "iterations": 1, "epochs": 0, "final_epochs": 0}
    metrics, _, _ = run(tmp_path / "model.pt", tmp_path / "run", **once)
    assert [layer["filters"] for layer in metrics["layers"][:2]] == [[20, 19], [50, 49]]


def test_rewinding_goes_back_to_the_dense_weights_after_each_removal(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """An epoch of training before each removal: what survives has none of it afterwards."""
    settings = {"method": "lth", "granularity": "weight", "tie_epochs": 1, "epochs": 0, "final_epochs": 0, "iterations": 2}
    _, journal, _ = run(tiny_checkpoint, tmp_path / "run", **settings)
    assert len([event for event in journal if event["event"] == "epoch"]) == 2
    dense = layers_of(slimcli.load(tiny_checkpoint))
    for name, layer in layers_of(slimcli.load(tmp_path / "run" / "model.pt")).items():
        alive = layer.weight != 0
        assert torch.equal(layer.weight[alive], dense[name].weight[alive])
        assert 0.6 < float(alive.float().mean()) < 0.68


@pytest.mark.parametrize("stop", ["accuracy", "if", "gf", "flow"])
def test_a_rewound_network_keeps_its_masks_where_no_epoch_follows(tiny_checkpoint: Path, tmp_path: Path, stop: str) -> None:
    easy: dict[str, Any] = {"margin": 100.0} if stop == "accuracy" else {"epsilon": 1e9}
    settings = {"method": "lth", "granularity": "weight", "final_epochs": 0, "stop": stop}
    if stop in FLOW_STOPS:
        easy["epochs"] = 0
    metrics, _, _ = run(tiny_checkpoint, tmp_path / "run", **settings, **easy)
    assert [step["epochs"] for step in metrics["iterations"]] == [0, 0]
    layers = layers_of(slimcli.load(tmp_path / "run" / "model.pt")).values()
    assert sum(int((layer.weight == 0).sum()) for layer in layers) >= metrics["sparsity"]["zeros"] > 100_000


def test_a_network_that_was_masked_before_stays_so(tiny_checkpoint: Path, tmp_path: Path) -> None:
    once = {"method": "lth", "granularity": "weight", "rewind": False, "iterations": 1, "epochs": 1, "final_epochs": 1}
    run(tiny_checkpoint, tmp_path / "one", **once, amount="50%")
    metrics, _, _ = run(tmp_path / "one" / "model.pt", tmp_path / "two", **once, amount="20%")
    assert "weights are zero already" in " ".join(metrics["notes"])
    assert metrics["iterations"][0]["remaining"] == pytest.approx(0.4, abs=1e-3)
    assert metrics["sparsity"]["zeros"] / metrics["sparsity"]["weights"] == pytest.approx(0.6, abs=1e-3)


@pytest.mark.parametrize("stop", ["if", "gf"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_removal_that_changes_nothing_moves_no_flow(tiny_checkpoint: Path, tmp_path: Path, stop: str, masked: bool) -> None:
    """Filters that nothing reads: what is left is compared like with like, without what came from them."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["state_dict"]["conv2.weight"][:, [1, 4]] = 0
    torch.save(content, tmp_path / "model.pt")
    prepared = job.prepare(PruneSettings(model=str(tmp_path / "model.pt"), stop=stop, epsilon=1.0, train_samples=400))
    data, network = prepared.subject.data, prepared.state.network
    watch = Watch(prepared.settings, prepared.origins, data, Engine(prepared.settings))
    if masked:
        network.masks = masks.full(network.model)
        network.masks["conv2"][:, [1, 4]] = False
        network.masks["conv1"][[1, 4]] = False
        masks.apply(network.model, network.masks)
    else:
        remove(network, {"conv1": (1, 4)}, data.shape, linear=False)
    assert watch.gap(network).total < 1e-3


LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

def build():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(96, 1, 28, 28), torch.arange(96) % 10)
    return [DataLoader(data, 16) for _ in range(3)]
"""


def test_a_flow_is_measured_on_so_many_images_whatever_a_loaders_batches_are(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.py").write_text(LOADERS)
    monkeypatch.chdir(tmp_path)
    prepared = job.prepare(PruneSettings(model=str(tiny_checkpoint), data="own.py:build", stop="if", flow_samples=64))
    watch = Watch(prepared.settings, prepared.origins, prepared.subject.data, Engine(prepared.settings))
    assert sum(len(labels) for _, labels in watch._batches()) == 64


@pytest.mark.parametrize("stop", ["accuracy", "plateau", "if", "gf", "flow"])
def test_no_rule_and_no_choice_sees_a_test_image(tiny_checkpoint: Path, stop: str) -> None:
    class Unseen:
        """A test split that may not be opened."""

        samples = 10

        def shard(self, rank: int, world: int) -> Unseen:
            raise AssertionError("a test image was looked at")

    settings = PruneSettings(model=str(tiny_checkpoint), stop=stop, tie_epochs=1, epochs=2, **QUICK)
    prepared = job.prepare(settings)
    data = replace(prepared.subject.data, test=Unseen())
    outcome = Loop(
        Work(prepared.state, prepared.plan, prepared.origins, data, prepared.settings, Engine(prepared.settings))
    ).run()
    assert len(outcome.iterations) == 2


def test_a_flow_that_training_has_lost_lowers_the_rate_and_one_that_was_never_there_ends_the_run(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Watch.look, iter(range(99))

    def lost(number: int) -> Callable[[Watch, Network, Epoch | None], Look]:
        def look(self: Watch, network: Network, epoch: Epoch | None = None) -> Look:
            if next(calls) == number:
                raise FlowError("conv1 has activations that are not finite", "try a lower --lr")
            return original(self, network, epoch)

        return look

    settings = {"method": "random", "stop": "if", "epsilon": 1e-9, "epochs": 2, "tie_epochs": 0, "iterations": 1}
    monkeypatch.setattr(Watch, "look", lost(1))
    metrics, journal, _ = run(tiny_checkpoint, tmp_path / "run", **settings)
    (lost_once,) = [event for event in journal if event["event"] == "diverged"]
    assert "not finite" in lost_once["message"]
    assert metrics["iterations"][0]["epochs"] == 2
    calls = iter(range(99))
    monkeypatch.setattr(Watch, "look", lost(0))
    with pytest.raises(FlowError, match="not finite"):
        run(tiny_checkpoint, tmp_path / "again", **settings)


def test_a_retraining_that_is_lost_for_good_leaves_the_network_as_it_was_after_surgery(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Engine.fit

    def losing(self: Engine, model: nn.Module, train: Any, epochs: int, phase: str, *arguments: Any, **named: Any) -> None:
        if phase.startswith("retrain"):
            raise DivergedError("the loss is nan", "try a lower --lr")
        fit(self, model, train, epochs, phase, *arguments, **named)

    monkeypatch.setattr(Engine, "fit", losing)
    metrics, _, _ = run(tiny_checkpoint, tmp_path / "run", method="random", tie_epochs=0, stop="if", epsilon=1e-9)
    assert [step["top1"] - step["top1_after_surgery"] for step in metrics["iterations"]] == [0, 0]
    assert [step["kept"] for step in metrics["iterations"]] == [True, True]
    assert metrics["layers"][0]["filters"][1] < 20
    assert metrics["budget_met"]


@pytest.mark.parametrize("stop", ["accuracy", "if", "gf", "plateau"])
def test_looking_at_a_network_does_not_change_how_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    """Weights and the statistics of batch norm are those of as many epochs without any look."""
    dense, slim = RunDir(tmp_path / "dense"), tmp_path / "slim"
    train(TrainSettings(arch="resnet20-cifar", data="digits", epochs=1, train_samples=200), dense)
    original = Watch.look

    def unmet(self: Watch, network: Network, epoch: Epoch | None = None) -> Look:
        return replace(original(self, network, epoch), score=-1.0, distance=9.0)

    monkeypatch.setattr(Watch, "look", unmet)
    settings = {"method": "random", "epochs": 2, "tie_epochs": 0, "final_epochs": 0, "iterations": 1, "train_samples": 200}
    metrics, _, _ = run(dense.model, slim, stop=stop, epsilon=0.1, **settings)
    assert [step["epochs"] for step in metrics["iterations"]] == [2]
    run(dense.model, tmp_path / "plain", stop="epochs", schedule="constant", **settings)
    looked, plain = (slimcli.load(path / "model.pt").state_dict() for path in (slim, tmp_path / "plain"))
    assert all(torch.equal(value, plain[name]) for name, value in looked.items())
    assert int(looked["bn1.num_batches_tracked"] - slimcli.load(dense.model).state_dict()["bn1.num_batches_tracked"]) == 2 * 2


def test_the_same_methods_on_filters_leave_a_smaller_network(tiny_checkpoint: Path, tmp_path: Path) -> None:
    metrics, _, _ = run(tiny_checkpoint, tmp_path / "run", method="sap", pq=(1.0, 2.0), epochs=1)
    assert metrics["sparsity"] is None
    assert metrics["removed"]["macs"] > 0.3
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["iterations"][0]["remaining"] < 0.9


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        ({"pq": (2.0, 1.0)}, "--pq"),
        ({"pq": (1.0,)}, "--pq"),
        ({"gamma": -1.0}, "--gamma"),
        ({"beta": 1.5}, "--beta"),
        ({"epsilon": -0.1}, "--epsilon"),
        ({"epsilon": float("nan")}, "--epsilon"),
        ({"epsilon": float("inf")}, "--epsilon"),
        ({"stop": "never"}, "--stop"),
        ({"granularity": "kernel"}, "--granularity"),
        ({"flow_samples": 1}, "--flow-samples"),
        ({"margin": -1.0}, "--margin"),
    ],
)
def test_settings_outside_their_ranges_are_refused(wrong: dict[str, Any], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        PruneSettings(**wrong)


def write_network(path: Path, code: str) -> None:
    """A user's file that builds a network, and a checkpoint of it."""
    path.with_suffix(".py").write_text(code)
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    torch.save(namespace["build"]().state_dict(), path.with_suffix(".pt"))


MASKED_MLP = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
"""


def test_masks_need_no_group_of_channels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(tmp_path / "mlp", MASKED_MLP)
    monkeypatch.chdir(tmp_path)
    metrics, _, _ = run(
        tmp_path / "mlp.pt", tmp_path / "run", arch="mlp.py:build", data="digits", method="lth", granularity="weight", epochs=1
    )
    assert metrics["iterations"][-1]["remaining"] == pytest.approx(0.64, abs=0.01)


ONE_LAYER = """
import torch
from torch import nn

class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10, 8))
    def forward(self, x):
        return x @ self.weight.T

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), Head())
"""


def test_a_network_of_one_layer_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_network(tmp_path / "one", ONE_LAYER)
    monkeypatch.chdir(tmp_path)
    settings = PruneSettings(model="one.pt", arch="one.py:build", data="digits", method="sap", stop="if", linear=True)
    with pytest.raises(ArchError, match="no information flows between layers"):
        job.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stop", ["epochs", "if", "gf", "flow"])
def test_a_network_without_finite_outputs_is_refused(tiny_checkpoint: Path, tmp_path: Path, stop: str) -> None:
    """Its weights are finite: only images show it."""
    content = torch.load(tiny_checkpoint, weights_only=True)
    content["state_dict"]["conv1.weight"][0] = 3e38
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="outputs on the held-out images are not finite"):
        run(tmp_path / "model.pt", tmp_path / "run", method="sap", stop=stop)
