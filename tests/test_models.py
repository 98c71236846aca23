"""The recipes in models/: each can be read, and those that wait for a GPU run unchanged but for their size."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from PIL import Image

from slimcli.networks import resolve
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.recipe import run_recipe
from slimcli.pipeline.steps import read
from slimcli.pruning import methods
from slimcli.settings import PruneSettings, TrainSettings
from tests.shrinking import dense, pruned

MODELS = Path(__file__).parent.parent / "models"
SMALL = {"epochs": 1, "label_smoothing": 0.0, "lr": 0.01}


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_recipe_means_something(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLIM_DATA", str(tmp_path))
    monkeypatch.setenv("SLIM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("NETWORK", "resnet18")
    monkeypatch.setenv("DATA", "cifar10" if path.stem == "incop" else "fashion-mnist")
    recipe = read(path)
    assert recipe.card is not None
    assert (MODELS / recipe.card["file"]).exists(), "a recipe has its card, which says what has not been run"
    for step in recipe.plain:
        assert isinstance(step.settings, TrainSettings | PruneSettings)
        assert step.settings.data_root in (None, str(tmp_path))
        if isinstance(step.settings, PruneSettings):
            assert methods.without_effect(methods.resolve(step.settings)) == []


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.toml")), ids=lambda path: path.stem)
def test_a_card_has_a_row_for_each_network(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLIM_DATA": "x", "SLIM_WEIGHTS": "x", "NETWORK": "resnet18", "DATA": "cifar10"}.items():
        monkeypatch.setenv(name, value)
    if path.stem == "incop-lenet5":
        monkeypatch.setenv("DATA", "mnist")
    recipe = read(path)
    assert recipe.card is not None
    card = (MODELS / recipe.card["file"]).read_text()
    names = {step.label for step in recipe.plain if not step.labels.get("hidden")}
    assert {line.split(" | ")[0].removeprefix("| ") for line in card.splitlines() if line.startswith("| ")} >= names


@pytest.mark.parametrize(
    "name",
    [
        "vgg16-cifar10",
        "resnet56-cifar10",
        pytest.param("resnet110-cifar10", marks=pytest.mark.slow),
        pytest.param("resnet50-imagenet", marks=pytest.mark.slow),
    ],
)
def test_the_operating_points_are_the_paper_s(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The share of MACs removed is what stands in the paper's table; no group is emptied on the way there."""
    monkeypatch.setenv("SLIM_DATA", "x")
    recipe = read(MODELS / f"{name}.toml")
    shape = (3, 224, 224) if name == "resnet50-imagenet" else (3, 32, 32)
    trained = recipe.plain[0].settings
    assert isinstance(trained, TrainSettings)
    network = dense(resolve.build(trained.arch, 1000 if name == "resnet50-imagenet" else 10, shape), shape)
    points = {step.label: step for step in recipe.plain if step.label.startswith("hbfp ")}
    assert list(points) == ["hbfp I", "hbfp II", "hbfp III", "hbfp IV"]
    for step in points.values():
        assert isinstance(step.settings, PruneSettings)
        slim = pruned(network, Plan.of(methods.resolve(step.settings), network, shape), shape)
        paper = float(step.labels["reference"].split("-")[1].removesuffix(" %"))
        assert 100 * (1 - slim.cost.macs / network.cost.macs) == pytest.approx(paper, abs=0.5)
        for before, after in zip(network.prunable, slim.prunable, strict=True):
            assert after.channels >= before.channels / 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16-cifar10", "resnet56-cifar10", "resnet110-cifar10", "resnet50-imagenet"])
def test_a_recipe_for_a_gpu_runs_on_a_small_slice(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first operating point of every arm and its control from scratch, with few images and short phases."""
    make_data(tmp_path)
    monkeypatch.setenv("SLIM_DATA", str(tmp_path))
    content = tomllib.loads((MODELS / f"{name}.toml").read_text())
    content.pop("seeds", None)
    content["card"]["file"] = "card.md"
    slices: dict[str, Any] = {} if name == "resnet50-imagenet" else {"train_samples": 96}
    for table in content["train"]:
        table |= SMALL | slices | {"batch_size": 16}
    if name == "resnet50-imagenet":  # minutes for every step on a CPU: one arm is enough
        content["prune"] = content["prune"][:1]
    for table in content["prune"]:
        table |= slices | {"epochs": 1, "tie_epochs": 1, "final_epochs": 6, "max_drop": 100.0, "deploy": False, "batch_size": 16}
        for budget in {"macs", "widths"} & set(table):
            del table[budget]
        table["iterations"] = 2
    content["train"] = content["train"][:2]
    content["prune"] = [table for table in content["prune"] if table["name"].endswith(" I") or "Fig" in table["name"]]
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(content))
    if name == "resnet50-imagenet":
        monkeypatch.chdir(MODELS.parent)
    result = run_recipe(path, tmp_path / "run")
    assert result is not None
    assert not result.shortfalls
    steps = {step["label"]: step for step in result.steps}
    assert len(steps["hbfp I"]["metrics"]["iterations"]) == 2
    assert steps["hbfp I"]["metrics"]["slim"]["macs"] < steps["dense"]["metrics"]["dense"]["macs"]
    assert steps["scratch I"]["metrics"]["dense"]["macs"] == steps["hbfp I"]["metrics"]["slim"]["macs"]
    assert steps["scratch I"]["metrics"]["epochs"] == steps["hbfp I"]["total_epochs"]
    assert "scratch I" in (tmp_path / "card.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18", "vgg16"])
def test_incop_for_a_gpu_runs_on_a_small_slice(network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rule and method on a few images, with few removals."""
    make_data(tmp_path)
    for name, value in {"SLIM_DATA": str(tmp_path), "NETWORK": network, "DATA": "cifar10"}.items():
        monkeypatch.setenv(name, value)
    content = tomllib.loads((MODELS / "incop.toml").read_text()) | {"seeds": [0]}
    content["card"]["file"] = "card.md"
    content["every"]["train"] |= {"train_samples": 64}
    content["every"]["prune"] |= {"train_samples": 64, "iterations": 2, "final_epochs": 1, "flow_samples": 64}
    for table in content["prune"] + content["train"]:
        table["epochs"] = min(2, table.get("epochs", 2))
    (tmp_path / "recipe.toml").write_text(tomli_w.dumps(content))
    result = run_recipe(tmp_path / "recipe.toml", tmp_path / "run")
    assert result is not None
    steps = {step["label"]: step["metrics"] for step in result.steps}
    assert len(steps) == len(content["prune"]) + 1
    assert all(len(steps[table["name"]]["iterations"]) == 2 for table in content["prune"])
    assert steps["20 %, if"]["sparsity"]["zeros"] > 0


def make_data(root: Path) -> None:
    """CIFAR-10 in shape, and an ImageNet of four classes: noise around one colour a class."""
    generator = np.random.default_rng(0)
    labels = np.arange(400) % 10
    images = (generator.random((400, 32, 32, 3)) * 60 + labels[:, None, None, None] * 18).astype(np.uint8)
    np.savez(root / "cifar10.npz", x_train=images[:300], y_train=labels[:300], x_test=images[300:], y_test=labels[300:])
    for part, count in (("train", 25), ("val", 4)):
        for label in range(4):
            folder = root / "imagenet" / part / f"n{label}"
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = torch.randint(60, (240, 240, 3), dtype=torch.uint8) + 40 * label
                Image.fromarray(pixels.numpy()).save(folder / f"{number}.png")
