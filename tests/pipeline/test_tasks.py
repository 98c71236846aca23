"""A network that does not classify is pruned by the same loop: by the data's own loss and score, down to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import slimcli
from slimcli.cli.main import main
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.report.journal import rebuild
from slimcli.rundir import RunDir

CODE = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

class Spots(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 1, 1)

    def forward(self, images):
        maps = self.head(F.relu(self.b(F.relu(self.norm(self.a(images))))))
        return {"maps": maps, "above": maps > 0, "aux": None}

def build():
    torch.manual_seed(3)
    return Spots()

def data():
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(120, 1, 10, 10, generator=draw)
    parts = TensorDataset(images, F.avg_pool2d(images, 3, 1, 1))
    train, test = torch.utils.data.random_split(parts, (90, 30), generator=draw)
    return {
        "train": DataLoader(train, 15, shuffle=True), "test": DataLoader(test, 30),
        "loss": loss, "score": error, "score_name": "RMSE", "higher_is_better": False,
    }

def loss(model, batch):
    return F.mse_loss(model(batch[0])["maps"].float(), batch[1])

def error(model, batches):
    squares = [(model(images)["maps"] - wanted).square().mean((1, 2, 3)) for images, wanted in batches]
    return float(torch.cat(squares).mean().sqrt())
"""


def slim(*arguments: object) -> int:
    """The exit code of the command."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the user's code and a network trained with it."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "spots.py").write_text(CODE)
    data = ("--data", f"{folder}/spots.py:data")
    assert slim("train", f"{folder}/spots.py:build", *data, "--epochs", 6, "--lr", 0.02, "-o", folder / "trained") == 0
    return folder


def pruned(here: Path, out: str, *more: str) -> int:
    data = ("--data", f"{here}/spots.py:data", "--arch", f"{here}/spots.py:build")
    quick = ("--tie-epochs", "1", "--epochs", "1", "--final-epochs", "1", "--max-drop", "100")
    return slim("prune", here / "trained/model.pt", *data, *quick, *more, "-o", here / out)


@pytest.fixture(scope="module")
def run(here: Path) -> RunDir:
    assert pruned(here, "run", "--macs", "0.6") == 0
    return RunDir(here / "run")


def test_the_score_and_its_name_stand_in_every_file(here: Path, run: RunDir) -> None:
    metrics = run.read_metrics()
    for side in ("dense", "slim"):
        assert metrics[side]["top1"] is None
        assert (metrics[side]["score_name"], metrics[side]["higher_is_better"]) == ("RMSE", False)
        assert metrics[side]["score"] > 0
    assert {"top1": None, "top1_after_surgery": None}.items() <= metrics["iterations"][0].items()
    assert {"score", "score_after_surgery"} <= metrics["iterations"][0].keys()
    assert metrics["slim"]["macs"] <= 0.6 * metrics["dense"]["macs"]
    found = rebuild(run.read_journal())
    assert found is not None
    assert {key: found[key] for key in ("dense", "slim", "held_out", "iterations")} == {
        key: metrics[key] for key in ("dense", "slim", "held_out", "iterations")
    }
    report = run.report.read_text()
    assert "RMSE (less is better)" in report
    assert "top-1" not in report
    assert "Rmse" not in report


def test_the_exported_file_gives_the_maps_and_the_score(here: Path, run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.randn(2, 1, 10, 10)
    model = slimcli.load(run.model, f"{here}/spots.py:build")
    with torch.no_grad():
        found, wanted = OnnxNetwork(run.onnx)(images), model(images)
    np.testing.assert_allclose(found["maps"], wanted["maps"], atol=1e-5)
    assert (found["above"] == wanted["above"]).float().mean() > 0.99
    for file in (run.model, run.onnx):
        arch = ["--arch", f"{here}/spots.py:build"] if file == run.model else []
        assert slim("eval", file, "--data", f"{here}/spots.py:data", "--json", *arch) == 0
        said = json.loads(capsys.readouterr().out)
        assert said["top1"] is None
        assert said["score"] == pytest.approx(run.read_metrics()["slim"]["score"], rel=1e-4)


@pytest.mark.parametrize("stop", ["accuracy", "gf", "if"])
def test_rules_and_criteria_go_by_the_loss_and_the_score(here: Path, stop: str) -> None:
    more = ("--method", "taylor", "--stop", stop, "--iterations", "1", "--no-deploy")
    assert pruned(here, stop, *more) == 0
    (step,) = RunDir(here / stop).read_metrics()["iterations"]
    assert step["removed"] > 0
    assert (step["flow_distance_after_surgery"] is None) == (stop == "accuracy")
    looks = [event for event in RunDir(here / stop).read_journal() if event["event"] == "look"]
    assert all((look["score"] is None) == (stop != "accuracy") for look in looks)
    assert looks


def test_less_may_not_be_worse_than_allowed(here: Path) -> None:
    assert pruned(here, "strict", "--macs", "0.3", "--max-drop", "0", "--no-deploy") == 1
    metrics = RunDir(here / "strict").read_metrics()
    dense = metrics["held_out"]["dense"]["score"]
    assert [step["kept"] for step in metrics["iterations"]] == [step["score"] <= dense for step in metrics["iterations"]]
    assert not metrics["iterations"][-1]["kept"]
    assert "% of RMSE" in metrics["reason"]


def test_there_is_nothing_for_a_teacher_to_teach(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pruned(here, "taught", "--distill") == 2
    assert "a teacher teaches classes" in capsys.readouterr().err
    assert not (here / "taught").exists()


LOSS, SCORE = 'F.mse_loss(model(batch[0])["maps"].float(), batch[1])', "float(torch.cat(squares).mean().sqrt())"


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ((LOSS, "batch[7]"), "the loss of the data fails: IndexError"),
        ((LOSS, LOSS + ".item()"), "the loss of the data is a float"),
        ((LOSS, LOSS + "[None]"), "the loss of the data is a tensor of shape (1,)"),
        ((SCORE, "float('nan')"), "the score RMSE of the data is nan"),
        ((SCORE, "squares"), "the score RMSE of the data is ["),
    ],
)
def test_what_does_not_work_is_told_before_anything_is_written(
    here: Path, instead: tuple[str, str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "bad.py").write_text(CODE.replace(*instead))
    arguments = ("--arch", f"{here}/spots.py:build", "--data", f"{here}/bad.py:data")
    assert slim("prune", here / "trained/model.pt", *arguments, "-o", here / "bad") == 2
    assert said in capsys.readouterr().err
    assert not (here / "bad").exists()


def test_two_runs_are_compared_by_the_score(here: Path, run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert slim("compare", run.path, "-o", here / "compare.html") == 0
    assert "RMSE (less is better)" in capsys.readouterr().out
    page = (here / "compare.html").read_text()
    assert "Further down and further left" in page
    assert "RMSE is measured on the test split" in page
    assert "op-1" not in page
    assert "ccuracy" not in page


def test_a_network_that_is_known_by_name_wants_to_know_its_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "angles.py").write_text(
        "import torch\nfrom torch.utils.data import DataLoader, TensorDataset\n"
        "def data():\n"
        "    whole = TensorDataset(torch.randn(40, 1, 28, 28), torch.rand(40, 2))\n"
        "    return {'train': DataLoader(whole, 10), 'test': DataLoader(whole, 10), 'loss': loss, 'score': score}\n"
        "def loss(model, batch):\n    return (model(batch[0]) - batch[1]).square().mean()\n"
        "def score(model, batches):\n    return -sum(float(loss(model, batch)) for batch in batches)\n"
    )
    arguments = ("lenet5", "--data", f"{tmp_path}/angles.py:data", "--epochs", 1)
    assert slim("train", *arguments, "-o", tmp_path / "run") == 2
    assert "--classes N" in capsys.readouterr().err
    assert slim("train", *arguments, "--classes", 2, "-o", tmp_path / "run") == 0
    quick = ("--iterations", 1, "--tie-epochs", 0, "--epochs", 0, "--final-epochs", 1, "--max-drop", 1000, "--no-deploy")
    data = ("--data", f"{tmp_path}/angles.py:data")
    assert slim("prune", tmp_path / "run/model.pt", *data, *quick, "-o", tmp_path / "slim") == 0
    assert RunDir(tmp_path / "slim").read_metrics()["slim"]["score"] < 0


BEYOND_IMAGES = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

def build(dimensions):
    conv, norm = {1: (nn.Conv1d, nn.BatchNorm1d), 3: (nn.Conv3d, nn.BatchNorm3d)}[dimensions]
    return nn.Sequential(
        conv(2, 6, 3), norm(6), nn.ReLU(), conv(6, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 2**dimensions, 3)
    )

def parts(dimensions):
    labels = torch.arange(60) % 3
    inputs = torch.randn(60, 2, *[6] * dimensions, generator=torch.Generator().manual_seed(0))
    inputs += labels.view(-1, 1, *[1] * dimensions)
    whole = TensorDataset(inputs, labels)
    return DataLoader(whole, 12, shuffle=True), DataLoader(whole, 20)

def signals():
    return parts(1)

def volumes():
    return parts(3)
"""


@pytest.mark.parametrize(("name", "dimensions"), [("signals", 1), ("volumes", 3)])
def test_signals_and_volumes_go_the_same_way(
    name: str, dimensions: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "beyond.py").write_text(BEYOND_IMAGES)
    code = tmp_path / "beyond.py"
    arch = ("--arch", f"{code}:build", "--arch-arg", f"dimensions={dimensions}")
    data = ("--data", f"{code}:{name}")
    assert slim("train", arch[1], *arch[2:], *data, "--epochs", 2, "-o", tmp_path / "dense") == 0
    quick = ("--tie-epochs", 1, "--epochs", 1, "--final-epochs", 1, "--max-drop", 100, "--macs", 0.6)
    assert slim("prune", tmp_path / "dense/model.pt", *arch, *data, *quick, "-o", tmp_path / "run") == 0
    metrics = RunDir(tmp_path / "run").read_metrics()
    assert metrics["slim"]["macs"] <= 0.6 * metrics["dense"]["macs"]
    capsys.readouterr()
    assert slim("eval", tmp_path / "run/model.onnx", *data, "--json") == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(metrics["slim"]["top1"])
