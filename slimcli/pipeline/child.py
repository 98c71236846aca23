"""A step of a recipe as a command of its own, so that several can be carried out side by side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from slimcli.errors import FellShortError, InputError, SlimError
from slimcli.pipeline.steps import Step
from slimcli.records import JsonDict

_GRACE = 30.0  # seconds in which a step that is told to end may do so by itself


class Child:
    """A step's command, `slim ARGUMENTS`, in a process with one of `jobs` shares of the cores; what it says goes to `log`."""

    def __init__(self, step: Step, arguments: Sequence[str], log: Path, jobs: int) -> None:
        self.step, self.log, self._started = step, log, time.perf_counter()
        self._answer = log.with_suffix(".json")
        threads = max(1, torch.get_num_threads() // jobs)
        with log.open("ab") as words, self._answer.open("wb") as answer:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "slimcli", *arguments, "--json"],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=words,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )

    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None

    def terminate(self) -> None:
        """Tell it to stop; its last saved state stays."""
        self._process.terminate()

    def end(self) -> None:
        """Wait until it has stopped, as it was told to; not for ever."""
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def result(self) -> JsonDict:
        """What it measured, as the step of a recipe. Raises its error, named after the step."""
        code = self._process.wait()
        try:
            answer = json.loads(self._answer.read_text())
        except (OSError, ValueError):
            answer = {}
        if "steps" in answer:
            return dict(answer["steps"][0]) | {"seconds": round(time.perf_counter() - self._started, 1)}
        error = answer.get("error", {"message": f"its process ended with {code}", "hint": f"see {self.log}"})
        kind: type[SlimError] = InputError if code == InputError.exit_code else FellShortError
        raise kind(f"{self.step.label} ({self.step.folder}): {error['message']}", error["hint"])
