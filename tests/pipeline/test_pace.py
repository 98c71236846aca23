"""A budget in time: the run stops where the measured network is within it, and goes on as it would have."""

from __future__ import annotations

import copy
import json
import math
import random
import tomllib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from slimcli.errors import ArchError, ParityError, SettingsError
from slimcli.networks import checkpoint, resolve
from slimcli.networks.cost import count
from slimcli.networks.shapes import shapes_of
from slimcli.pipeline import job
from slimcli.pipeline.finish import too_slow
from slimcli.pipeline.pace import Pace
from slimcli.pipeline.plan import Plan
from slimcli.pruning import methods, surgery
from slimcli.records import LayerShape, Timed
from slimcli.report.result import read
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings
from tests.pipeline.test_job import QUICK
from tests.said import Said
from tests.shrinking import dense

SHAPE = (1, 28, 28)
LENET = resolve.build("lenet5", 10, SHAPE)
MACS_PER_MS = 1e6


@pytest.fixture
def by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which networks take a millisecond for a million MACs, and layers one for as many of their weights."""
    whole = count(LENET, SHAPE).macs / MACS_PER_MS

    def time(self: Pace, model: nn.Module) -> Timed:
        return Timed(count(model, SHAPE).macs / MACS_PER_MS, whole)

    def of(self: object, shape: LayerShape) -> float:
        return shape.inputs * shape.outputs

    monkeypatch.setattr(Pace, "time", time)
    monkeypatch.setattr("slimcli.deploy.layer_times.LayerTimes.of", of)


def prune(model: Path, out: Path, **settings: Any) -> dict[str, Any]:
    assert job.run(PruneSettings(model=str(model), **QUICK, **settings), out) is not None
    return dict(json.loads((out / "metrics.json").read_text()))


@pytest.mark.parametrize(("latency", "limit"), [("0.5", 0.5 * 2.293), ("1.5ms", 1.5), ("900us", 0.9), (0.7, 0.7 * 2.293)])
def test_a_run_ends_within_its_time(
    latency: str | float, limit: float, tiny_checkpoint: Path, tmp_path: Path, by_macs: None
) -> None:
    metrics = prune(tiny_checkpoint, tmp_path / "run", latency=latency, deploy=False)
    steps = metrics["iterations"]
    assert metrics["budget_met"]
    assert all(step["latency_ms"] == pytest.approx(step["macs"] / MACS_PER_MS, abs=1e-3) for step in steps)
    assert steps[-1]["latency_ms"] <= limit < min([step["latency_ms"] for step in steps[:-1]], default=2.293)
    assert steps[-1]["latency_ms"] > 0.8 * limit
    assert tomllib.loads((tmp_path / "run/recipe.toml").read_text())["prune"]["latency"] == latency


def test_a_run_that_was_interrupted_ends_as_it_would_have(tiny_checkpoint: Path, tmp_path: Path, by_macs: None) -> None:
    prune(tiny_checkpoint, tmp_path / "a", latency="0.4", deploy=False)

    class Interrupted(Said):
        def say(self, line: str) -> None:
            super().say(line)
            if line.startswith("iteration 2"):
                raise KeyboardInterrupt

    settings = PruneSettings(model=str(tiny_checkpoint), **QUICK, latency="0.4", deploy=False)
    with pytest.raises(KeyboardInterrupt):
        job.run(settings, tmp_path / "b", Interrupted())
    job.resume(tmp_path / "b")
    one, other = (checkpoint.load(tmp_path / name / "model.pt").state_dict for name in "ab")
    assert all(torch.equal(value, other[key]) for key, value in one.items())


def test_interruptions_of_the_slower_network_make_it_no_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside other work most of its calls take thrice as long, and few of the fast one's: so do their medians."""

    def bench(paths: Sequence[Path], runs: int) -> Any:
        samples = np.empty((10, 100, 2))
        samples[:, :, 0], samples[:, :, 1] = 2.0, 0.5
        samples[:, 30:, 0], samples[:, 95:, 1] = 6.0, 1.5
        p50 = [SimpleNamespace(p50=float(np.median(samples[:, :, model]))) for model in (0, 1)]
        return SimpleNamespace(samples=samples, latencies=[("dense", p50[0]), ("slim", p50[1])])

    monkeypatch.setattr("slimcli.pipeline.pace.bench", bench)
    timed = Pace(LENET, SHAPE).time(LENET)
    assert timed.slim / timed.dense == pytest.approx(0.25)
    assert timed.dense == 6.0


@pytest.mark.parametrize("seed", range(6))
def test_widths_are_the_same_whatever_the_noise(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Of the measurements, as long as it is less than what two widths that are tried differ by.

    Most of a layer's time comes in steps of sixteen channels; a network takes what its layers take, and some more.
    """
    shape, noise = (3, 32, 32), random.Random(seed)
    model = resolve.build("resnet20-cifar", 10, shape)

    def of(layer: LayerShape) -> float:
        padded = math.ceil(layer.inputs / 16) * 16 * math.ceil(layer.outputs / 16) * 16
        return (0.7 * padded + 0.3 * layer.inputs * layer.outputs) * math.prod(layer.size) / 1e6

    def whole(model: nn.Module) -> float:
        return 0.05 + sum(map(of, shapes_of(model, shape).values()))

    def found(spread: float) -> dict[str, int] | None:
        def time(self: Pace, slim: nn.Module) -> Timed:
            return Timed(whole(slim) * noise.uniform(1 - spread, 1 + spread), whole(model))

        monkeypatch.setattr(Pace, "time", time)
        network = dense(model, shape)
        pace, plan = Pace(model, shape), Plan.of(methods.resolve(PruneSettings(latency="0.5", round_to=1)), network, shape)
        network.latency = pace.time(model)
        return pace.aim(network, plan.budget)

    monkeypatch.setattr("slimcli.deploy.layer_times.LayerTimes.of", lambda self, layer: of(layer))
    assert found(0.003) == found(0)


@pytest.mark.parametrize(
    ("latency", "speedup", "falls_short"),
    [
        (0.5, (1.9, 1.95), True),
        (0.5, (1.9, 2.05), False),  # its interval allows for it
        (0.5, (2.1, 2.2), False),
        ("3ms", (3.0, 3.2), True),
        ("3ms", (3.0, 3.4), False),
        (None, (1.0, 1.0), False),
    ],
)
def test_the_last_measurement_is_held_against_the_budget(
    latency: str | float | None, speedup: tuple[float, float], falls_short: bool
) -> None:
    ratio, high = speedup
    metrics = {"budget_met": True, "speedup": {"ratio": ratio, "low": ratio, "high": high}}
    metrics |= {side: {"latency_ms": {"p50": time}} for side, time in (("dense", 10.0), ("slim", 10 / ratio))}
    assert bool(too_slow(latency, metrics)) is falls_short
    assert not too_slow(latency, metrics | {"budget_met": False})  # is said already


def test_a_last_measurement_beyond_the_budget_falls_short(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), **QUICK, latency=0.001)
    monkeypatch.setattr(Pace, "aim", lambda self, network, *_: {each.name: each.channels // 2 for each in network.prunable})
    monkeypatch.setattr(Pace, "time", lambda self, model: Timed(1e-6, 1.0))
    result = job.run(settings, tmp_path / "run")
    assert result is not None
    assert not result.metrics["budget_met"]
    assert "but not at the end" in result.metrics["reason"]
    assert "--latency 0.001" in result.shortfall
    assert read(RunDir(tmp_path / "run")).metrics["budget_met"] is False
    (tmp_path / "run/metrics.json").unlink()
    assert read(RunDir(tmp_path / "run")).metrics["budget_met"] is False


def test_a_network_that_cannot_be_exported_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ParityError("no operator", "hint")

    monkeypatch.setattr("slimcli.pipeline.pace.export_onnx", fails)
    with pytest.raises(ArchError, match="cannot be timed, as it cannot be exported: no operator"):
        job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK, latency=0.5), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_within_the_budget_is_handed_over_as_it_is(tiny_checkpoint: Path, tmp_path: Path, by_macs: None) -> None:
    said = Said()
    result = job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK, latency="9ms", deploy=False), tmp_path / "run", said)
    assert result is not None
    assert [note for note in result.metrics["notes"] if "within the budget as it is" in note]
    assert not [note for note in result.metrics["notes"] if "observed first" in note]
    assert (result.metrics["epochs"], result.metrics["budget_met"], result.shortfall) == (0, True, "")
    before, after = (checkpoint.load(path).state_dict for path in (tiny_checkpoint, result.folder.model))
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_time_that_cannot_be_had_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, by_macs: None
) -> None:
    with pytest.raises(SettingsError, match=r"out of reach: the network takes 2\.29 ms here, and \d\.\d% of that"):
        job.run(PruneSettings(model=str(tiny_checkpoint), **QUICK, latency="1us"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_what_the_run_works_towards(tiny_checkpoint: Path, tmp_path: Path, by_macs: None) -> None:
    settings = PruneSettings(model=str(tiny_checkpoint), **QUICK, latency="0.9", deploy=False)
    said = job.dry_run(settings)
    assert sum("by the time that they take" in note for note in said["notes"]) == 2
    assert job.run(settings, tmp_path / "run") is not None
    removed = json.loads((tmp_path / "run/metrics.json").read_text())["iterations"][0]["removed"]
    assert sum(said["first_iteration"].values()) == removed


def test_widths_are_tried_until_they_are_near_the_budget(by_macs: None) -> None:
    """What is foretold here is far off: layers by their weights, networks by their MACs."""
    network = dense(LENET, SHAPE)
    plan = Plan.of(methods.resolve(PruneSettings(latency="0.5", round_to=(1,))), network, SHAPE)
    pace = Pace(LENET, SHAPE)
    network.latency = pace.time(LENET)
    units = pace.aim(network, plan.budget)
    assert units is not None
    slim = copy.deepcopy(LENET)
    surgery.remove(slim, SHAPE, {group.name: tuple(range(units[group.name], group.channels)) for group in network.prunable})
    assert 0.9 < count(slim, SHAPE).macs / (0.5 * count(LENET, SHAPE).macs) <= 1


@pytest.mark.parametrize("fixed", [0.2, 0.4])
def test_a_share_of_the_time_that_stays_is_reckoned_with(fixed: float, monkeypatch: pytest.MonkeyPatch, by_macs: None) -> None:
    whole, free = count(LENET, SHAPE).macs / MACS_PER_MS, Pace.time

    def time(self: Pace, model: nn.Module) -> Timed:
        return Timed(fixed * whole + (1 - fixed) * free(self, model).slim, whole)

    monkeypatch.setattr(Pace, "time", time)
    network = dense(LENET, SHAPE)
    pace, plan = Pace(LENET, SHAPE), Plan.of(methods.resolve(PruneSettings(latency=fixed + 0.1)), network, SHAPE)
    network.latency = pace.time(LENET)
    units = pace.aim(network, plan.budget)
    assert units is not None
    slim = network.narrowed({group.name: group.channels - units[group.name] for group in network.prunable}, SHAPE)
    assert pace.time(slim).slim <= (fixed + 0.1) * whole
    network = dense(LENET, SHAPE)
    network.latency = pace.time(LENET)
    assert pace.aim(network, Plan.of(methods.resolve(PruneSettings(latency=fixed)), network, SHAPE).budget) is None


def test_a_network_within_the_budget_stays_and_one_beyond_it_does_not(monkeypatch: pytest.MonkeyPatch, by_macs: None) -> None:
    """Whatever the next measurement of the same network says."""
    network = dense(LENET, SHAPE)
    plan = Plan.of(methods.resolve(PruneSettings(latency="2ms", round_to=1)), network, SHAPE)
    channels = {group.name: group.channels for group in network.prunable}
    pace = Pace(LENET, SHAPE)
    network.latency = Timed(1.9, 2.293)
    assert pace.aim(network, plan.budget) == channels
    network.latency = Timed(2.01, 2.293)
    monkeypatch.setattr(Pace, "time", lambda self, model: Timed(1.97, 2.293))
    found = pace.aim(network, plan.budget)
    assert found is not None
    assert found != channels


def test_a_narrower_network_is_timed_as_faster() -> None:
    """In onnxruntime, in turn with the dense one: not by how much, machines differ."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(64 * 28 * 28, 10))
    narrow = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, 10))
    timed = Pace(network, (3, 32, 32)).time(narrow)
    assert 0 < timed.slim < timed.dense


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latency": "0.5", "macs": 0.5}, "--latency and --macs"),
        ({"latency": "0.5", "widths": (4, 5)}, "--latency and --widths"),
        ({"latency": "2ms", "method": "sap", "granularity": "weight"}, "--latency cannot be reached by masking"),
    ],
    ids=str,
)
def test_what_does_not_go_with_a_time_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        methods.resolve(PruneSettings(**settings))


def test_progress_tells_the_time(tiny_checkpoint: Path, tmp_path: Path, by_macs: None) -> None:
    said = Said()
    settings = PruneSettings(model=str(tiny_checkpoint), **QUICK, latency="0.8", deploy=False)
    job.run(settings, tmp_path / "run", said)
    assert any("latency" in line and "ms (" in line for line in said.lines)
