"""The main job on the built-in digits, small: every file it leaves, and what the other commands make of them."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import slimcli
from slimcli.cli.main import main
from slimcli.errors import ArchError, CheckpointError, DataError, DivergedError, RunDirError, SettingsError
from slimcli.networks.cost import count
from slimcli.pipeline import budget, job
from slimcli.pipeline.prune import LOWERED
from slimcli.pipeline.recipe import run_recipe
from slimcli.pipeline.train import train
from slimcli.progress import Progress
from slimcli.report import page
from slimcli.report.journal import rebuild
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings
from slimcli.training.engine import Engine
from tests.said import Said

QUICK: dict[str, Any] = {
    "train_samples": 500,
    "tie_epochs": 1,
    "epochs": 1,
    "final_epochs": 1,
    "max_drop": 100.0,
    "amount": "25%",
}


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    out = tmp_path_factory.mktemp("job") / "run"
    job.run(PruneSettings(model=str(tiny_checkpoint), iterations=2, **QUICK), out)
    return RunDir(out)


def test_a_run_leaves_what_the_contract_names(run: RunDir) -> None:
    for path in (run.recipe, run.journal, run.model, run.onnx, run.metrics, run.report):
        assert path.stat().st_size > 0
    metrics = run.read_metrics()
    assert {"schema", "method", "arch", "data", "dense", "slim", "removed", "iterations", "layers", "environment"} <= set(metrics)
    for side in ("dense", "slim"):
        assert {"top1", "loss", "macs", "params", "file_bytes", "latency_ms"} <= set(metrics[side])
        assert {"p50", "p90", "p99", "mean", "runs", "threads", "batch", "provider"} <= set(metrics[side]["latency_ms"])
    assert {"index", "macs", "params", "top1", "epochs", "removed", "seconds"} <= set(metrics["iterations"][0])
    assert (metrics["dense"]["macs"], metrics["dense"]["params"]) == (2_293_000, 431_080)


def test_the_slim_network_is_as_small_as_the_metrics_say(run: RunDir) -> None:
    metrics = run.read_metrics()
    network = slimcli.load(run.model)
    cost = count(network, (1, 28, 28))
    assert (cost.macs, cost.params) == (metrics["slim"]["macs"], metrics["slim"]["params"])
    # A quarter of (20, 50), rounded up, twice: 20 - 5 - 4 and 50 - 13 - 10.
    assert [layer["filters"][1] for layer in metrics["layers"]][:2] == [11, 27]
    assert metrics["removed"]["macs"] == pytest.approx(1 - cost.macs / 2_293_000)


def test_removed_filters_and_survivors_make_up_the_dense_layer(run: RunDir) -> None:
    saved = torch.load(run.model, weights_only=True)
    for layer, width in (("conv1", 20), ("conv2", 50)):
        gone = saved["removed"][layer]
        assert sorted(set(gone)) == gone
        assert len(gone) + saved["state_dict"][f"{layer}.weight"].shape[0] == width
        assert all(0 <= index < width for index in gone)


def test_the_survivors_keep_their_history(run: RunDir, tiny_checkpoint: Path) -> None:
    dense = torch.load(tiny_checkpoint, weights_only=True)["history"]["layers"]
    slim = torch.load(run.model, weights_only=True)
    epochs = dense["conv1"].shape[0]
    for layer, width in (("conv1", 20), ("conv2", 50)):
        alive = [index for index in range(width) if index not in slim["removed"][layer]]
        rows = slim["history"]["layers"][layer]
        assert torch.equal(rows[:epochs], dense[layer][:, alive])
        assert len(rows) == epochs + 2 * (1 + 1) + 1  # two iterations of tie and retraining, and the last epoch
    weight = slim["state_dict"]["conv2.weight"].abs().flatten(1).sum(1)
    assert torch.allclose(slim["history"]["layers"]["conv2"][-1], weight, rtol=1e-5)


def test_the_onnx_file_has_the_slim_shapes_and_outputs(run: RunDir) -> None:
    import onnxruntime

    network = slimcli.load(run.model)
    shapes = {tuple(tensor.dims) for tensor in onnx.load(run.onnx).graph.initializer}
    assert tuple(network.get_submodule("conv2").weight.shape) in shapes
    session = onnxruntime.InferenceSession(str(run.onnx), providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        images = torch.randn(batch, 1, 28, 28)
        with torch.no_grad():
            expected = network(images).numpy()
        np.testing.assert_allclose(session.run(["logits"], {"input": images.numpy()})[0], expected, atol=1e-4)
    facts = session.get_modelmeta().custom_metadata_map
    assert facts["arch"] == "lenet5"
    assert int(facts["macs"]) == run.read_metrics()["slim"]["macs"]


def test_the_journal_has_every_epoch_and_surgery(run: RunDir) -> None:
    events = run.read_journal()
    assert [event["event"] for event in events if event["event"] != "epoch"] == [
        "start",
        *["surgery", "iteration"] * 2,
        "trial",
        "end",
        "deployed",
        "finished",
    ]
    phases = [event["phase"] for event in events if event["event"] == "epoch"]
    assert phases == ["tie 1", "retrain 1", "tie 2", "retrain 2", "final"]


def test_the_journal_alone_gives_the_metrics(run: RunDir) -> None:
    assert rebuild(run.read_journal()) == run.read_metrics()


def test_the_same_settings_give_the_same_network(run: RunDir, tmp_path: Path) -> None:
    recipe = tomllib.loads(run.recipe.read_text())
    assert recipe["prune"]["seed"] == 0
    path = tmp_path / "recipe.toml"
    shutil.copy(run.recipe, path)
    again = run_recipe(path, tmp_path / "again")
    first, second = torch.load(run.model, weights_only=True), torch.load(again.folder / "model.pt", weights_only=True)
    assert all(torch.equal(value, second["state_dict"][key]) for key, value in first["state_dict"].items())
    assert first["removed"] == second["removed"]


def test_a_taken_folder_is_left_alone(run: RunDir, tiny_checkpoint: Path, tmp_path: Path) -> None:
    before = run.metrics.read_bytes()
    with pytest.raises(RunDirError, match="already holds a run"):
        job.run(PruneSettings(model=str(tiny_checkpoint)), run.path)
    assert run.metrics.read_bytes() == before
    other = tmp_path / "photos"
    other.mkdir()
    (other / "photo.jpg").write_text("mine")
    with pytest.raises(RunDirError, match="no run"):
        job.run(PruneSettings(model=str(tiny_checkpoint)), other, overwrite=True)
    assert (other / "photo.jpg").read_text() == "mine"


@pytest.mark.parametrize("method", ["hbfp-paper", "cfp", "l1", "l2", "fpgm", "taylor", "hrank", "random"])
def test_the_other_methods_reach_the_same_widths(method: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = job.run(
        PruneSettings(model=str(tiny_checkpoint), method=method, iterations=1, deploy=False, **QUICK), tmp_path / "run"
    )
    assert [layer["filters"][1] for layer in result.metrics["layers"]][:2] == [15, 37]
    assert result.metrics["dense"]["file_bytes"] is None


@pytest.mark.parametrize("settings", [{"method": "bn"}, {"method": "l1", "penalty": "scales"}])
def test_scales_of_batch_norms_want_batch_norms(settings: dict[str, str], tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArchError, match="batch norm"):
        job.run(PruneSettings(model=str(tiny_checkpoint), **settings, **QUICK), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_batch_norms_scales_choose_and_shrink(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    conv = nn.Sequential(nn.Conv2d(1, 8, 5, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4))\n"
        "    return nn.Sequential(*conv, nn.Flatten(), nn.Linear(8 * 36, 10))\n"
    )
    arch = f"{tmp_path}/mine.py:build"
    train(TrainSettings(arch=arch, epochs=1, train_samples=400), RunDir(tmp_path / "dense"))
    scales = {}
    for strength in (0.0, 1e3):
        settings = QUICK | {"epochs": 0, "final_epochs": 0, "lr": 0.01}
        job.run(
            PruneSettings(
                model=str(tmp_path / "dense" / "model.pt"),
                arch=arch,
                method="bn",
                lambda_=strength,
                iterations=1,
                **settings,
                deploy=False,
            ),
            tmp_path / str(strength),
        )
        scales[strength] = slimcli.load(tmp_path / str(strength) / "model.pt", arch).get_submodule("1").weight.detach().abs()
    assert {len(each) for each in scales.values()} == {6}
    assert bool((scales[1e3] < scales[0.0]).all())


def test_widths_are_met_exactly(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), widths=(4, 5), deploy=False, **{**QUICK, "amount": "50%"})
    result = job.run(settings, tmp_path / "run")
    assert [layer["filters"][1] for layer in result.metrics["layers"]][:2] == [4, 5]
    assert not result.shortfall


def test_a_budget_beyond_the_allowed_drop_falls_short_and_keeps_the_last_good_network(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PruneSettings(
        model=str(tiny_checkpoint), macs=0.02, deploy=False, **{**QUICK, "max_drop": 0.0, "lr": 10.0, "schedule": "constant"}
    )
    result = job.run(settings, tmp_path / "run")
    assert "budget was not reached" in result.shortfall
    assert result.metrics["slim"]["macs"] == result.metrics["dense"]["macs"]
    assert not result.metrics["budget_met"]


def test_a_loss_that_stays_lost_ends_the_run_with_the_network_it_has(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), iterations=1, deploy=False, **{**QUICK, "lr": 1e6})
    result = job.run(settings, tmp_path / "run")
    assert "also with a lowered learning rate" in result.shortfall
    assert str(result.folder.model) in result.shortfall
    assert result.metrics["slim"]["macs"] == result.metrics["dense"]["macs"]
    assert slimcli.load(result.folder.model) is not None
    lowered = [event["lr"] for event in result.folder.read_journal() if event["event"] == "diverged"]
    assert lowered == [pytest.approx(1e6 / 3)]


@pytest.mark.parametrize("when", ["tie 1", "retrain 2", "final"])
def test_a_loss_that_is_lost_once_costs_a_lower_learning_rate(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    fit, rates = Engine.fit, []

    def unlucky(self: Engine, model: nn.Module, train: Any, epochs: int, phase: str, *rest: Any) -> None:
        rates.append((phase, self.lr_scale))
        fit(self, model, train, epochs, phase, *rest)
        if phase == when and self.lr_scale == 1:
            with torch.no_grad():
                next(model.parameters()).fill_(float("nan"))
            raise DivergedError("the loss is nan", "")

    monkeypatch.setattr(Engine, "fit", unlucky)
    result = job.run(PruneSettings(model=str(tiny_checkpoint), iterations=2, deploy=False, **QUICK), tmp_path / "run")
    assert not result.shortfall
    assert len(result.metrics["iterations"]) == 2
    assert [scale for phase, scale in rates if phase == when] == [1, LOWERED]
    assert rates[-1] == ("final", LOWERED)
    saved = torch.load(result.folder.model, weights_only=True)
    assert all(bool(value.isfinite().all()) for value in saved["state_dict"].values())
    assert "diverged" in [event["event"] for event in result.folder.read_journal()]


def test_ctrl_c_leaves_the_last_good_network_and_exits_130(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(Progress):
        def say(self, message: str) -> None:
            if message.startswith("iteration 2"):
                raise KeyboardInterrupt

    monkeypatch.setattr("slimcli.cli.terminal.Terminal", Impatient)
    with pytest.raises(SystemExit) as caught:
        main(f"prune {tiny_checkpoint} -o {tmp_path / 'run'} --train-samples 500 --epochs 1 --max-drop 100 --no-deploy".split())
    assert caught.value.code == 130
    run = RunDir(tmp_path / "run")
    assert slimcli.load(run.last_good) is not None
    assert [event["event"] for event in run.read_journal()][-2:] == ["iteration", "interrupted"]
    assert "interrupted" in capsys.readouterr().err


def test_a_retraining_that_does_harm_is_undone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    harm: dict[str, Any] = {"lr": 1.0, "epochs": 2, "schedule": "constant", "max_drop": 20.0}
    said = Said()
    result = job.run(
        PruneSettings(
            model=str(tiny_checkpoint),
            method="l1",
            iterations=1,
            tie_epochs=0,
            final_epochs=0,
            train_samples=200,
            deploy=False,
            **harm,
        ),
        tmp_path / "run",
        said,
    )
    assert result is not None
    (step,) = result.metrics["iterations"]
    assert (step["kept"], step["undone"], step["epochs"], step["stopped"]) == (True, True, 2, False)
    assert step["top1"] == step["top1_after_surgery"] == result.metrics["held_out"]["slim"]["top1"]
    assert any("kept as it was right after surgery" in line for line in said.lines)
    assert "<td>as after surgery</td>" in page.write(result.folder).read_text()
    dense, slim = slimcli.load(tiny_checkpoint).conv1.weight, slimcli.load(result.folder.model).conv1.weight
    assert all(any(torch.equal(row, other) for other in dense) for row in slim)


def test_a_dry_run_says_what_would_go_and_writes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = job.dry_run(PruneSettings(model=str(tiny_checkpoint)))
    assert plan["first_iteration"] == {"conv1": 2, "conv2": 5}
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_trains_prunes_and_writes_its_card(tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(
        """
        [card]
        file = "small.md"
        title = "Small"
        [train]
        arch = "lenet5"
        epochs = 1
        train_samples = 300
        [[prune]]
        name = "half"
        reference = 1.5
        amount = "50%"
        iterations = 1
        train_samples = 300
        epochs = 1
        final_epochs = 1
        max_drop = 100.0
        deploy = false
        [[prune]]
        widths = [4, 20]
        amount = "50%"
        train_samples = 300
        epochs = 1
        final_epochs = 1
        max_drop = 100.0
        deploy = false
        """
    )
    result = run_recipe(tmp_path / "small.toml", tmp_path / "out")
    assert [step["step"] for step in result.steps] == ["train", "prune-1", "prune-2"]
    card = (tmp_path / "small.md").read_text()
    assert "| half | 10, 25 |" in card
    assert "1.5" in card
    saved = torch.load(tmp_path / "out" / "prune-2" / "model.pt", weights_only=True)
    assert len(saved["removed"]["conv1"]) == 16  # both steps together


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[train]\narch = 'lenet5'\nepoch = 3", "epoch"),
        ("[trian]\narch = 'lenet5'", "trian"),
        ("[[prune]]\nmethod = 'hbfp'", "nothing to start from"),
        ("[train]\nepochs = 3", "arch"),
        ("[train]\narch = 'lenet5'\ndata_root = '${NOT_SET_ANYWHERE}'", "NOT_SET_ANYWHERE"),
        ("", "nothing to do"),
        ("[train", "TOML"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(SettingsError, match=words):
        run_recipe(tmp_path / "r.toml", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_metrics_are_json_that_can_be_read_back(run: RunDir) -> None:
    assert json.loads(run.metrics.read_text()) == run.read_metrics()


def test_a_last_retraining_that_ruins_the_network_is_taken_back(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Engine.fit

    def ruinous(self: Engine, model: nn.Module, train: Any, epochs: int, phase: str, *rest: Any) -> None:
        fit(self, model, train, epochs, phase, *rest)
        if phase == "final":
            with torch.no_grad():
                model.get_submodule("fc2").weight.zero_()  # type: ignore[union-attr, operator]

    monkeypatch.setattr(Engine, "fit", ruinous)
    settings = PruneSettings(model=str(tiny_checkpoint), iterations=1, deploy=False, **{**QUICK, "max_drop": 30.0})
    said = Said()
    result = job.run(settings, tmp_path / "run", said)
    assert "taken back" in result.metrics["reason"]
    (retrained,) = [line for line in said.lines if line.startswith("last retraining (finetune, 1 epoch, taught)")]
    assert any("the last retraining is taken back" in line for line in said.lines[said.lines.index(retrained) :])
    assert result.metrics["held_out"]["slim"]["top1"] > result.metrics["held_out"]["dense"]["top1"] - 30
    assert slimcli.load(tmp_path / "run" / "model.pt").get_submodule("fc2").weight.abs().sum() > 0  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(("asked", "way_out"), [({"iterations": 1, "macs": 0.2}, "--iterations"), ({"macs": 0.02}, "--max-drop")])
def test_the_way_out_of_a_shortfall_is_one(tiny_checkpoint: Path, tmp_path: Path, asked: Any, way_out: str) -> None:
    drop = {"max_drop": 100.0 if "iterations" in asked else 0.0, "lr": 1e-3 if "iterations" in asked else 10.0}
    settings = PruneSettings(model=str(tiny_checkpoint), deploy=False, **(QUICK | drop | {"schedule": "constant"} | asked))
    result = job.run(settings, tmp_path / "run")
    assert result is not None
    assert way_out in result.shortfall


def test_a_budget_that_is_met_already_needs_no_removal(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = job.run(PruneSettings(model=str(tiny_checkpoint), macs=1.0, deploy=False, **QUICK), tmp_path / "run")
    assert (result.shortfall, result.metrics["iterations"]) == ("", [])


def test_a_run_says_what_it_rounded_to_and_does_not_measure_it_again(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run(PruneSettings(model=str(tiny_checkpoint), macs=0.5, **QUICK), tmp_path / "a")
    assert tomllib.loads((tmp_path / "a/recipe.toml").read_text())["prune"]["round_to"] == [4, 8]
    widths = [layer["filters"][1] for layer in json.loads((tmp_path / "a/metrics.json").read_text())["layers"][:2]]
    assert widths == [12, 32]
    monkeypatch.setattr(budget, "fast_multiples", dict)
    again = run_recipe(tmp_path / "a/recipe.toml", tmp_path / "b")
    assert again is not None
    assert [layer["filters"][1] for layer in again.steps[0]["metrics"]["layers"][:2]] == widths


def test_iterations_cap_a_budget_in_size(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = job.run(PruneSettings(model=str(tiny_checkpoint), macs=0.1, iterations=1, deploy=False, **QUICK), tmp_path / "run")
    assert len(result.metrics["iterations"]) == 1
    assert "budget was not reached" in result.shortfall


def test_overwriting_never_takes_what_the_run_starts_from(tiny_checkpoint: Path, tmp_path: Path) -> None:
    first = job.run(PruneSettings(model=str(tiny_checkpoint), iterations=1, deploy=False, **QUICK), tmp_path / "run").folder
    with pytest.raises(RunDirError, match="lies in"):
        job.run(PruneSettings(model=str(first.model), iterations=1, **QUICK), first.path, overwrite=True)
    assert slimcli.load(first.model) is not None
    (first.path / "recipe.toml").rename(tmp_path / "recipe.toml")
    (tmp_path / "state").mkdir()
    with pytest.raises(RunDirError, match="no run"):  # a folder with a recipe alone is no run
        job.run(PruneSettings(model="models/lenet5-digits.pt", **QUICK), tmp_path, overwrite=True)


def test_the_recipe_of_a_run_means_the_same_from_another_folder(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 28, 28), dtype=np.uint8), np.arange(60) % 10
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    monkeypatch.chdir(tmp_path)
    settings = PruneSettings(model=str(tiny_checkpoint), data="npz:d.npz", iterations=1, deploy=False, **QUICK)
    first = job.run(settings, Path("run"))
    assert any("share images" in note for note in first.metrics["notes"])
    recipe = (tmp_path / "run" / "recipe.toml").resolve()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = run_recipe(recipe, Path("again"))
    assert second.steps[0]["metrics"]["slim"] == first.metrics["slim"]


def test_a_card_replaces_nothing_but_a_card(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    for name in ("notes.md", "../up.md", "/tmp/abs.md", "card.txt"):
        (tmp_path / "r.toml").write_text(f"[train]\narch = 'lenet5'\n[card]\nfile = '{name}'")
        with pytest.raises(SettingsError, match="card"):
            run_recipe(tmp_path / "r.toml", tmp_path / "out")
    assert (tmp_path / "notes.md").read_text() == "mine"


def test_a_network_that_cannot_take_the_data_leaves_no_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def five():\n    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 5))\n"
        "def colour():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))\n"
    )
    for name, words in (("five", "10 classes"), ("colour", "cannot take images")):
        with pytest.raises(DataError, match=words):
            train(TrainSettings(arch=f"{tmp_path / 'net.py'}:{name}"), RunDir(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_norm_needs_no_history_where_nothing_goes_by_it(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = {"model": str(tiny_checkpoint), "norm": "l2", "iterations": 1, **QUICK}
    result = job.run(PruneSettings(method="sap", deploy=False, **settings), tmp_path / "run")
    assert result is not None
    assert result.metrics["iterations"]
    with pytest.raises(CheckpointError, match="history of l1 norms"):
        job.run(PruneSettings(method="hbfp", **settings), tmp_path / "other")
