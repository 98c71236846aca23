"""Thirty real `slim prune` processes are killed at random moments; each goes on to the end of one that was left alone."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.resuming import KILLER, call, end_of, slim

ARGUMENTS = ["--train-samples=500", "--epochs=2", "--final-epochs=2", "--max-drop=100", "--iterations=2", "--amount=25%"]
MOMENTS = 30


def begin(model: Path, out: Path, *more: str) -> list[str]:
    return slim("prune", model, "-o", out, *ARGUMENTS, *more)


def run_for(command: list[str], out: Path, seconds: float) -> None:
    """Let it run so long from when its folder has a recipe, then kill it (SIGKILL)."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "recipe.toml").exists() and process.poll() is None:
        time.sleep(0.005)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """How the run ends when it is left alone, and its seconds from the recipe to the end."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert call(begin(tiny_checkpoint, out, "--no-deploy")).returncode == 0
    return end_of(out), (out / "journal.jsonl").stat().st_mtime - (out / "recipe.toml").stat().st_mtime


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_run_that_is_killed_at_a_random_moment_ends_the_same(
    whole: tuple[dict[str, Any], float], tiny_checkpoint: Path, tmp_path: Path, moment: int
) -> None:
    end, duration = whole
    out, chance = tmp_path / "run", random.Random(moment)
    run_for(begin(tiny_checkpoint, out, "--no-deploy"), out, chance.uniform(0, 0.95 * duration))
    while chance.random() < 0.3:  # and killed again, counted from the start of its imports
        process = subprocess.Popen(slim("prune", "--resume", out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(3, 8))
        process.kill()
        process.wait()
    done = call(slim("prune", "--resume", out))
    assert done.returncode == 0, done.stderr
    assert end_of(out) == end


@pytest.mark.slow
@pytest.mark.parametrize("when", ["2", "5", "9", *(f"state {n}" for n in (1, 2, 4, 7, 11)), "surgery 1", "surgery 2"])
def test_a_run_that_is_killed_in_the_middle_of_a_write_ends_the_same(
    whole: tuple[dict[str, Any], float], tiny_checkpoint: Path, tmp_path: Path, when: str
) -> None:
    out = tmp_path / "run"
    command = begin(tiny_checkpoint, out, "--no-deploy")
    killed = call([sys.executable, "-c", KILLER, when, "0", *command[3:]])
    assert killed.returncode == -9, killed.stderr
    again = slim("prune", "--resume", out) if (out / "recipe.toml").exists() else command
    done = call(again)
    assert done.returncode == 0, done.stderr
    assert end_of(out) == whole[0]
