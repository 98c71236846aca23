"""A run that was broken off and goes on ends as one that was not, to the last bit; and what else going on promises."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import slimcli
from slimcli.cli.main import main
from slimcli.errors import CheckpointError, DataError, RunDirError, SettingsError, StorageError
from slimcli.pipeline import job
from slimcli.pipeline import train as training
from slimcli.pipeline.recipe import resume_recipe, run_recipe
from slimcli.progress import Progress
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings
from tests.resuming import KILLER, CountingDisk, FailingDisk, call, end_of, slim

QUICK: dict[str, Any] = {
    "train_samples": 200,
    "tie_epochs": 1,
    "epochs": 2,
    "final_epochs": 2,
    "max_drop": 100.0,
    "iterations": 2,
    "amount": "25%",
    "deploy": False,
}
Break = Callable[[int], None]


class BreakError(Exception):
    """What ends a run in these tests."""


class BreakingDisk(CountingDisk):
    """Ends the run at its n-th rename: right before a state, a checkpoint or the metrics appear."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.renames = at, 0

    def rename(self, source: Path, target: Path) -> None:
        self.renames += 1
        if self.renames == self.at:
            raise BreakError
        super().rename(source, target)


def broken_off(at: int, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> bool:
    """Whether `act` was ended at rename number `at`."""
    with monkeypatch.context() as patch:
        patch.setattr("slimcli.disk.disk", BreakingDisk(at))
        try:
            act()
        except BreakError:
            return True
        return False


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole") / "run"
    job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK), out)
    return end_of(out)


@pytest.mark.parametrize("at", range(2, 40, 4))
def test_a_pruning_that_was_broken_off_ends_the_same(
    whole: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out = tmp_path / "run"
    settings = PruneSettings(model=str(tiny_checkpoint), **QUICK)
    if broken_off(at, monkeypatch, lambda: job.run(settings, out)):
        job.resume(out)
    assert end_of(out) == whole


def test_a_run_may_be_broken_off_again_and_again(
    whole: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert broken_off(3, monkeypatch, lambda: job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK), out))
    times = 1
    while broken_off(4, monkeypatch, lambda: job.resume(out)):
        times += 1
    assert times > 5
    assert end_of(out) == whole


@pytest.mark.parametrize("method", ["random", "l1", "hbfp-paper", "cfp", "taylor"])
def test_every_method_goes_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), method=method, **QUICK)
    job.run(settings, tmp_path / "whole")
    for at in (9, 17):
        out = tmp_path / str(at)
        assert broken_off(at, monkeypatch, lambda out=out: job.run(settings, out))
        job.resume(out)
        assert end_of(out) == end_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "how",
    [
        {"method": "incop-if", "epochs": 3},
        {"method": "incop-gf", "granularity": "weight", "epochs": 2},
        {"method": "lth", "granularity": "weight"},
        {"method": "lth", "amount": "20%", "final": "rewind"},
        {"stop": "accuracy", "margin": 1.0, "epochs": 4},
        {"stop": "plateau", "epochs": 4},
        {"stop": "flow", "epochs": 4},
    ],
    ids=str,
)
def test_every_stopping_rule_and_granularity_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    """Broken off twice, and at a place that moves with the case."""
    own = {} if how.get("stop") else {"amount": None, "tie_epochs": None}
    settings = PruneSettings(model=str(tiny_checkpoint), **(QUICK | own | how))
    job.run(settings, tmp_path / "whole")
    out = tmp_path / "run"
    assert broken_off(6 + len(str(how)) % 5, monkeypatch, lambda: job.run(settings, out))
    assert broken_off(4, monkeypatch, lambda: job.resume(out))
    job.resume(out)
    assert end_of(out) == end_of(tmp_path / "whole")


def test_a_retraining_that_is_undone_goes_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    harm = {"stop": "plateau", "lr": 1.0, "tie_epochs": 0, "amount": "10%", "max_drop": 20.0, "final_epochs": 0}
    settings = PruneSettings(model=str(tiny_checkpoint), **(QUICK | harm))
    result = job.run(settings, tmp_path / "whole")
    assert result is not None
    assert any(step["undone"] for step in result.metrics["iterations"])
    for at in range(5, 12):
        out = tmp_path / str(at)
        assert broken_off(at, monkeypatch, lambda out=out: job.run(settings, out))
        job.resume(out)
        assert end_of(out) == end_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "how",
    [{"final": "auto", "final_epochs": 6}, {"final": "rewind"}, {"final": "fresh", "distill": True}, {"merge": False}],
    ids=str,
)
def test_every_last_retraining_goes_on(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]
) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), **(QUICK | how))
    job.run(settings, tmp_path / "whole")
    finished = False
    for at in range(14, 60, 7):
        out = tmp_path / str(at)
        if broken_off(at, monkeypatch, lambda out=out: job.run(settings, out)):
            job.resume(out)
        else:
            finished = True
        assert end_of(out) == end_of(tmp_path / "whole")
    assert finished or how.get("final") == "auto"


def test_a_foreign_network_goes_on_from_its_observation_without_its_file(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "theirs.th")
    settings = PruneSettings(
        model=str(tmp_path / "theirs.th"), arch="lenet5", data="digits", observe_epochs=2, **{**QUICK, "iterations": 1}
    )
    job.run(settings, tmp_path / "whole")
    outs = [tmp_path / str(at) for at in (5, 7)]
    for at, out in zip((5, 7), outs, strict=True):
        assert broken_off(at, monkeypatch, lambda out=out: job.run(settings, out))
    (tmp_path / "theirs.th").unlink()
    for out in outs:
        job.resume(out)
        assert end_of(out) == end_of(tmp_path / "whole")


def test_a_training_that_was_broken_off_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = TrainSettings(arch="lenet5", epochs=3, train_samples=200)
    training.train(settings, RunDir(tmp_path / "whole"))
    for at in range(1, 11):
        out = tmp_path / str(at)
        if broken_off(at, monkeypatch, lambda out=out: training.train(settings, RunDir(out))) and (out / "recipe.toml").exists():
            training.resume(out)
        if (out / "recipe.toml").exists():
            assert end_of(out) == end_of(tmp_path / "whole"), at


CODE = """
import random
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.3)
    def forward(self, x):
        x = torch.relu(self.norm(self.a(x)))
        return self.fc(self.drop(torch.relu(self.b(x)).mean((2, 3))))

class Images(Dataset):
    def __len__(self):
        return 120
    def __getitem__(self, i):
        noise = random.random() + np.random.rand() + float(torch.rand(1))
        return torch.full((1, 8, 8), i % 4 + 0.1 * noise), i % 4

def loaders():
    own = torch.Generator()
    train = DataLoader(Images(), 16, shuffle=True, generator=own)
    return train, DataLoader(Images(), 16), DataLoader([(torch.full((1, 8, 8), float(i % 4)), i % 4) for i in range(40)], 16)
"""


def test_what_users_loaders_and_networks_draw_at_random_is_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    code, data = f"{tmp_path}/mine.py:Net", f"{tmp_path}/mine.py:loaders"
    settings = TrainSettings(arch=code, data=data, epochs=3)
    training.train(settings, RunDir(tmp_path / "whole"))
    for at in (4, 6, 8):
        out = tmp_path / str(at)
        assert broken_off(at, monkeypatch, lambda out=out: training.train(settings, RunDir(out)))
        training.resume(out)
        assert end_of(out) == end_of(tmp_path / "whole")


def test_filters_are_chosen_on_the_same_images_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a criterion that goes through batches of a user's loader that shuffles."""
    (tmp_path / "mine.py").write_text(CODE)
    code, data = f"{tmp_path}/mine.py:Net", f"{tmp_path}/mine.py:loaders"
    training.train(TrainSettings(arch=code, data=data, epochs=1), RunDir(tmp_path / "dense"))
    settings = PruneSettings(
        model=f"{tmp_path}/dense/model.pt",
        arch=code,
        data=data,
        method="taylor",
        iterations=2,
        max_drop=100.0,
        deploy=False,
        epochs=1,
        final_epochs=1,
    )
    job.run(settings, tmp_path / "whole")
    for at in (7, 11, 15):
        out = tmp_path / str(at)
        assert broken_off(at, monkeypatch, lambda out=out: job.run(settings, out))
        job.resume(out)
        assert end_of(out) == end_of(tmp_path / "whole")


def test_code_named_by_a_relative_path_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = TrainSettings(arch="mine.py:Net", data="mine.py:loaders", epochs=2)
    training.train(settings, RunDir("whole"))
    pruning = PruneSettings(
        model="whole/model.pt", arch="mine.py:Net", data="mine.py:loaders", iterations=1, max_drop=100.0, deploy=False, epochs=1
    )
    job.run(pruning, Path("whole-prune"))
    assert broken_off(4, monkeypatch, lambda: training.train(settings, RunDir("train")))
    assert broken_off(9, monkeypatch, lambda: job.run(pruning, Path("prune")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    training.resume(Path("../train"))
    job.resume(Path("../prune"))
    for name, whole in (("train", "whole"), ("prune", "whole-prune")):
        assert end_of(tmp_path / name) == end_of(tmp_path / whole)
        assert RunDir(tmp_path / name).read_metrics()["arch"] == "mine.py:Net"


RECIPE = """
[card]
file = "small.md"
[train]
arch = "lenet5"
epochs = 2
train_samples = 200
[[prune]]
name = "first"
iterations = 1
train_samples = 200
epochs = 1
final_epochs = 1
max_drop = 100.0
deploy = false
[[prune]]
iterations = 1
train_samples = 200
epochs = 1
final_epochs = 1
max_drop = 100.0
deploy = false
"""


def test_a_recipe_goes_on_in_the_step_that_was_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "small.toml"
    path.write_text(RECIPE)
    run_recipe(path, tmp_path / "whole")
    (tmp_path / "small.md").unlink()
    for at in (1, 2, 4, 9, 12, 18, 21, 26):
        out = tmp_path / str(at)
        assert broken_off(at, monkeypatch, lambda out=out: run_recipe(path, out))
        if not (out / "recipe.toml").exists():
            assert at == 1
            continue
        result = resume_recipe(out)
        assert [step["step"] for step in result.steps] == ["train", "prune-1", "prune-2"]
        for step in ("train", "prune-1", "prune-2"):
            assert end_of(out / step) == end_of(tmp_path / "whole" / step), (at, step)
        assert "| first |" in (tmp_path / "small.md").read_text()  # beside the recipe, as if it had not been broken off
        (tmp_path / "small.md").unlink()


def test_a_recipe_that_overwrote_another_goes_on_with_its_own_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old.toml").write_text(RECIPE)
    (tmp_path / "new.toml").write_text(RECIPE.replace("train_samples = 200", "train_samples = 200\nseed = 7"))
    run_recipe(tmp_path / "old.toml", tmp_path / "out")
    run_recipe(tmp_path / "new.toml", tmp_path / "whole")
    new = tmp_path / "new.toml"
    for at in (1, 2, 3, 12):  # the container's recipe, the first step's, a state of it, the second step's
        assert broken_off(at, monkeypatch, lambda: run_recipe(new, tmp_path / "out", overwrite=True))
        if at == 1:
            continue
        resume_recipe(tmp_path / "out")
        for step in ("train", "prune-1", "prune-2"):
            assert end_of(tmp_path / "out" / step) == end_of(tmp_path / "whole" / step), (at, step)
        run_recipe(tmp_path / "old.toml", tmp_path / "out", overwrite=True)


def test_a_recipe_with_relative_paths_goes_on_from_another_folder(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny_checkpoint, tmp_path / "m.pt")
    step = "[[prune]]\nmodel = 'm.pt'\n" + RECIPE.partition('[[prune]]\nname = "first"\n')[2].partition("[[prune]]")[0]
    (tmp_path / "r.toml").write_text(step + step)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    assert broken_off(7, monkeypatch, lambda: run_recipe(Path("r.toml"), Path("out")))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(resume_recipe(Path("../out")).steps) == 2


def test_steps_that_want_different_numbers_of_processes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE.replace("[train]", "[train]\ndevices = 2"))
    with pytest.raises(SettingsError, match="differ in their devices"):
        run_recipe(tmp_path / "r.toml", tmp_path / "out")


def test_a_loss_that_is_lost_while_observing_leaves_the_network_as_it_was(tiny_checkpoint: Path, tmp_path: Path) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    torch.save(state, tmp_path / "theirs.th")
    settings = PruneSettings(
        model=str(tmp_path / "theirs.th"), arch="lenet5", data="digits", **{**QUICK, "lr": 1e30, "clip_norm": 0.0}
    )
    result = job.run(settings, tmp_path / "run")
    assert "lowered learning rate" in result.shortfall
    saved = torch.load(result.folder.model, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[key]) for key, value in saved.items())


def test_a_disk_that_fills_while_exporting_is_no_fault_of_the_network(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FailingDisk):
        def before(self, number: int, file: Any = None, data: bytes = b"") -> None:
            if file is not None and "onnx" in str(file.name):
                self.at = number
            super().before(number, file, data)

    settings = PruneSettings(model=str(tiny_checkpoint), **{**QUICK, "iterations": 1, "deploy": True})
    with monkeypatch.context() as patch:
        patch.setattr("slimcli.disk.disk", Full(0))
        with pytest.raises(StorageError, match=r"dense\.onnx"):
            job.run(settings, tmp_path / "run")
    assert job.resume(tmp_path / "run").folder.onnx.exists()


def test_a_run_that_is_complete_is_left_alone(tiny_checkpoint: Path, tmp_path: Path) -> None:
    result = job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}
    again = job.resume(tmp_path / "run")
    assert again.metrics == result.metrics
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if path.is_file()}


@pytest.fixture
def halfway(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run on data of the user's, broken off in its second iteration."""
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (80, 28, 28), dtype=np.uint8), np.arange(80) % 10
    np.savez(tmp_path / "mine.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    settings = PruneSettings(model=str(tiny_checkpoint), data=f"npz:{tmp_path}/mine.npz", **QUICK)
    assert broken_off(18, monkeypatch, lambda: job.run(settings, tmp_path / "run"))
    return RunDir(tmp_path / "run")


def test_data_that_changed_are_refused(halfway: RunDir, tmp_path: Path) -> None:
    with np.load(tmp_path / "mine.npz") as content:
        arrays = dict(content)
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(tmp_path / "mine.npz", **arrays)
    before = halfway.journal.read_bytes()
    with pytest.raises(DataError, match=r"mine\.npz has changed") as caught:
        job.resume(halfway.path)
    assert "put the old data back" in caught.value.hint
    assert halfway.journal.read_bytes() == before
    arrays["x_train"][0, 0, 0] ^= 1
    np.savez(tmp_path / "mine.npz", **arrays)
    assert job.resume(halfway.path) is not None


def test_only_how_and_where_may_change(halfway: RunDir) -> None:
    with pytest.raises(SettingsError, match="--amount cannot change"):
        job.resume(halfway.path, {"amount": "50%"})
    result = job.resume(halfway.path, {"batch_size": 64, "precision": "bf16"})
    assert len(result.metrics["iterations"]) == 2
    resumed = next(event for event in halfway.read_journal() if event["event"] == "resumed")
    assert (resumed["batch_size"], resumed["precision"]) == (64, "bf16")
    recipe = halfway.read_recipe()["prune"]  # the next time nothing has to be said again
    assert (recipe["batch_size"], recipe["precision"]) == (64, "bf16")


def test_a_damaged_state_costs_one_step_and_two_are_told(halfway: RunDir, tmp_path: Path) -> None:
    shutil.copytree(halfway.path, tmp_path / "copy")
    expected = end_of(job.resume(tmp_path / "copy").folder.path)
    shutil.copytree(halfway.path, tmp_path / "both")
    halfway.last_good.write_bytes(halfway.last_good.read_bytes()[:-1000])
    said: list[str] = []

    class Listening(Progress):
        def warn(self, message: str) -> None:
            said.append(message)

    job.resume(halfway.path, progress=Listening())
    assert any("damaged" in message for message in said)
    assert end_of(halfway.path) == expected
    both = RunDir(tmp_path / "both")
    for path in (both.last_good, both.previous):
        path.write_bytes(b"PK")
    with pytest.raises(RunDirError, match="damaged"):
        job.resume(both.path)
    assert both.last_good.read_bytes() == b"PK"


def test_a_damaged_dense_network_is_told(halfway: RunDir) -> None:
    halfway.dense.write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"dense\.pt"):
        job.resume(halfway.path)


def test_a_run_of_another_command_is_told(halfway: RunDir) -> None:
    with pytest.raises(RunDirError, match="slim train") as caught:
        training.resume(halfway.path)
    assert "slim prune --resume" in caught.value.hint


def test_a_damaged_checkpoint_is_refused_by_every_command(halfway: RunDir) -> None:
    data = bytearray(halfway.model.read_bytes() if halfway.model.exists() else halfway.last_good.read_bytes())
    data[len(data) // 2] ^= 0x40
    halfway.last_good.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        slimcli.load(halfway.last_good)


def test_what_is_missing_is_told(halfway: RunDir, tmp_path: Path) -> None:
    shutil.copytree(halfway.path, tmp_path / "copy")
    copy = RunDir(tmp_path / "copy")
    copy.dense.unlink()
    with pytest.raises(RunDirError, match=r"dense\.pt is missing") as caught:
        job.resume(copy.path)
    assert "slim run" in caught.value.hint
    said: list[str] = []

    class Listening(Progress):
        def say(self, message: str) -> None:
            said.append(message)

        def warn(self, message: str) -> None:
            said.append(message)

    halfway.journal.write_bytes(halfway.journal.read_bytes()[:900])
    result = job.resume(halfway.path, progress=Listening())
    assert any("has lost" in message for message in said)
    assert len(result.metrics["iterations"]) == 2
    assert not halfway.state.exists()
    halfway.model.unlink()
    with pytest.raises(RunDirError, match=r"is finished, and its model\.pt is missing"):
        job.resume(halfway.path)


@pytest.mark.parametrize("place", ["slimcli.rundir.shutil.rmtree", "slimcli.rundir.RunDir._sync_journal"])
def test_a_run_that_is_interrupted_when_it_was_finished_is_complete(
    place: str, halfway: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done anew, and no states stay."""
    with monkeypatch.context() as patch:
        right = RunDir.finish

        def finish(run: RunDir, shortfall: str) -> None:
            def interrupted(*_: Any, **__: Any) -> None:
                raise KeyboardInterrupt

            patch.setattr(place, interrupted)
            right(run, shortfall)

        patch.setattr(RunDir, "finish", finish)
        with pytest.raises(KeyboardInterrupt):
            job.resume(halfway.path)
    model, journal = halfway.model.read_bytes(), halfway.journal.read_bytes()
    result = job.resume(halfway.path)
    assert result is not None
    assert (halfway.model.read_bytes(), halfway.journal.read_bytes()) == (model, journal)
    assert not halfway.state.exists()
    assert not (halfway.path / ".state").exists()


def test_a_run_in_use_is_left_alone(halfway: RunDir) -> None:
    with RunDir(halfway.path).reopen(), pytest.raises(RunDirError, match="in use by process"):
        job.resume(halfway.path)


def test_a_saved_state_is_a_checkpoint_of_the_last_kept_network(halfway: RunDir) -> None:
    step = [event for event in halfway.read_journal() if event["event"] == "iteration"][-1]
    saved = torch.load(halfway.last_good, weights_only=True)
    assert sum(value.numel() for value in saved["state_dict"].values()) == step["params"]


def test_a_full_disk_stops_the_run_with_the_way_on(
    whole: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("slimcli.disk.disk", FailingDisk(40, for_ever=True))
        with pytest.raises(StorageError, match="No space left on device") as caught:
            job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK), tmp_path / "run")
    assert f"slim prune --resume {tmp_path / 'run'}" in caught.value.hint
    job.resume(tmp_path / "run")
    assert end_of(tmp_path / "run") == whole


ARGUMENTS = [f"--{flag}" for flag in ("train-samples=200", "epochs=2", "final-epochs=2", "max-drop=100", "iterations=2")]
ARGUMENTS += ["--amount=25%", "--no-deploy"]


@pytest.mark.parametrize("when", ["state 5", "surgery 2", "30"])
def test_a_killed_process_leaves_a_run_that_goes_on(
    whole: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "run"
    killed = call([sys.executable, "-c", KILLER, when, "0", "prune", str(tiny_checkpoint), "-o", str(out), *ARGUMENTS])
    assert killed.returncode == -9, killed.stderr
    done = call(slim("prune", "--resume", out, "--json"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iterations"]
    assert end_of(out) == whole


def test_a_real_limit_on_file_sizes_stops_the_run_and_names_the_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    code = (
        "import resource, sys\nfrom slimcli.cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_200_000, 4_200_000))\nmain(sys.argv[1:])"
    )
    done = call([sys.executable, "-c", code, "prune", str(tiny_checkpoint), "-o", str(out), *ARGUMENTS])
    assert done.returncode == 1
    for words in ("last.pt cannot be written", "MB free", f"slim prune --resume {out}"):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert call(slim("prune", "--resume", out)).returncode == 0


def test_memory_that_really_runs_out_names_a_batch_size_that_goes_on(tmp_path: Path) -> None:
    images, labels = np.zeros((2000, 32, 32, 3), np.uint8), np.arange(2000) % 10
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    code = (
        "import re, resource, sys\nfrom slimcli.cli.main import main\nimport slimcli.pipeline.train\n"
        "used = int(re.search(r'VmSize:\\s+(\\d+)', open('/proc/self/status').read())[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 700_000_000,) * 2)\nmain(sys.argv[1:])"
    )
    arguments = ["train", "resnet20-cifar", "--data", f"npz:{tmp_path}/d.npz", "--epochs=1", "--batch-size=1800"]
    done = call([sys.executable, "-c", code, *arguments, "-o", str(tmp_path / "run")])
    assert done.returncode == 1
    assert "out of memory" in done.stderr
    assert f"slim train --resume {tmp_path / 'run'} --batch-size 900" in done.stderr
    assert "Traceback" not in done.stderr


def test_resuming_from_the_command_line_asks_for_no_flag_again(halfway: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["prune", "--resume", str(halfway.path), "--json"])
    assert not caught.value.code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["method"] == "hbfp"
