"""What every test shares: one thread, the same examples every time, weights and images that are not special."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from slimcli.deploy.layer_times import MULTIPLES_FILE
from slimcli.deploy.remembered import Remembered, this_machine
from slimcli.pipeline.train import train
from slimcli.rundir import RunDir
from slimcli.settings import TrainSettings

settings.register_profile(
    "slimcli",
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("slimcli")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny tensors are fastest on one thread, and sums come out the same; the commands that tests start inherit it."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def _same_machine(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Which widths are fast is not measured: every machine rounds alike, and so do the commands that tests start."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    path = Remembered(MULTIPLES_FILE).path
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({this_machine(): dict.fromkeys(("spatial", "pointwise", "depthwise", "linear"), 16)}))


@pytest.fixture(autouse=True)
def _same_start() -> None:
    """Each test draws the same random numbers, whichever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeNet-5 that `slim train` made in two short epochs on the built-in digits."""
    run = RunDir(tmp_path_factory.mktemp("tiny") / "run")
    train(TrainSettings(arch="lenet5", epochs=2, train_samples=1000), run)
    return run.model
