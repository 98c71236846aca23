"""The fault loop: operation number 1, 2, 3, ... of a run's disk fails; what is on disk afterwards goes on to the very same end.

The way in which SQLite tests itself (https://sqlite.org/testing.html, "I/O error testing").
"""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimcli.errors import StorageError
from slimcli.pipeline import job
from slimcli.pipeline import train as training
from slimcli.pipeline.recipe import resume_recipe, run_recipe
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, TrainSettings
from tests.resuming import FailingDisk, end_of

ARCH = f"{Path(__file__).with_name('tiny.py')}:Chain"
SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 16}
PRUNE: dict[str, Any] = {**SMALL, "tie_epochs": 1, "final_epochs": 1, "max_drop": 100.0, "iterations": 2, "deploy": False}
MODES = [(fault, for_ever) for fault in (errno.ENOSPC, errno.EIO) for for_ever in (False, True)]

Act = Callable[[Path], object]


class Subject:
    """One kind of run: how it begins and goes on in a folder, and where in it the runs lie that must end the same."""

    def __init__(self, begin: Act, go_on: Act, runs: tuple[str, ...] = (".",)) -> None:
        self.begin, self.go_on, self.runs = begin, go_on, runs

    def end(self, folder: Path) -> list[dict[str, Any]]:
        return [end_of(folder / run) for run in self.runs]

    def finish(self, folder: Path) -> None:
        """What a user does after the message: go on where there is a run, start it where there is none."""
        (self.go_on if (folder / "recipe.toml").exists() else self.begin)(folder)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    folder = tmp_path_factory.mktemp("subjects")
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), np.arange(60) % 4
    np.savez(folder / "d.npz", x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    data = f"npz:{folder}/d.npz"
    train = TrainSettings(arch=ARCH, data=data, **{**SMALL, "epochs": 2})
    training.train(train, RunDir(folder / "trained"))
    model = str(folder / "trained" / "model.pt")
    prune = PruneSettings(model=model, arch=ARCH, data=data, **PRUNE)
    deployed = PruneSettings(model=model, arch=ARCH, data=data, **{**PRUNE, "iterations": 1, "deploy": True})
    table = f"arch = '{ARCH}'\ndata = '{data}'\nbatch_size = 16\n"
    pruning = "epochs = 1\nfinal_epochs = 1\nmax_drop = 100.0\niterations = 1\ndeploy = false\n"
    (folder / "r.toml").write_text(f"[train]\n{table}epochs = 1\n[[prune]]\n{table}{pruning}")
    return {
        "train": Subject(lambda out: training.train(train, RunDir(out)), training.resume),
        "prune": Subject(lambda out: job.run(prune, out), job.resume),
        "prune with deployment": Subject(lambda out: job.run(deployed, out), job.resume),
        "recipe": Subject(lambda out: run_recipe(folder / "r.toml", out), resume_recipe, ("train", "prune-1")),
    }


def failed(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object], disk: FailingDisk) -> bool:
    """Whether the disk failed; then the message named a file, and no fault went by in silence."""
    with monkeypatch.context() as patch:
        patch.setattr("slimcli.disk.disk", disk)
        try:
            act()
        except StorageError:
            return True
    assert disk.count < disk.at, f"operation {disk.at} failed and nobody noticed"
    return False


def loop(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fault: int, for_ever: bool) -> int:
    """Fail every `step`-th operation of a whole run; returns how many operations it has."""
    subject.begin(tmp_path / "whole")
    whole = subject.end(tmp_path / "whole")
    for at in itertools.count(1, step):
        out = tmp_path / str(at)
        again = failed(monkeypatch, lambda out=out: subject.begin(out), FailingDisk(at, fault, for_ever))
        if again:
            subject.finish(out)
        assert subject.end(out) == whole, f"operation {at}"
        shutil.rmtree(out)
        if not again:
            return at
    raise AssertionError


def loop_while_resuming(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, fault: int, for_ever: bool
) -> int:
    """The same for the operations of a run that goes on."""
    subject.begin(tmp_path / "whole")
    whole = subject.end(tmp_path / "whole")
    assert failed(monkeypatch, lambda: subject.begin(tmp_path / "half"), FailingDisk(22))
    for at in itertools.count(1, step):
        out = tmp_path / str(at)
        shutil.copytree(tmp_path / "half", out)
        again = failed(monkeypatch, lambda out=out: subject.go_on(out), FailingDisk(at, fault, for_ever))
        if again:
            subject.go_on(out)
        assert subject.end(out) == whole, f"operation {at}"
        shutil.rmtree(out)
        if not again:
            return at
    raise AssertionError


@pytest.mark.parametrize("kind", ["train", "prune", "recipe"])
@pytest.mark.parametrize("way", [loop, loop_while_resuming])
def test_some_faults(
    subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, way: Callable[..., int]
) -> None:
    assert way(subjects[kind], tmp_path, monkeypatch, 9, errno.ENOSPC, True) > 20


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "for_ever"), MODES)
@pytest.mark.parametrize("kind", ["train", "prune", "recipe"])
@pytest.mark.parametrize("way", [loop, loop_while_resuming])
def test_every_fault(
    subjects: dict[str, Subject],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    way: Callable[..., int],
    fault: int,
    for_ever: bool,
) -> None:
    assert way(subjects[kind], tmp_path, monkeypatch, 1, fault, for_ever) > 20


@pytest.mark.slow
def test_every_fault_of_a_run_that_is_deployed(
    subjects: dict[str, Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loop(subjects["prune with deployment"], tmp_path, monkeypatch, 1, errno.ENOSPC, False) > 20
