"""`slim run`: a whole recipe, step after step. What a recipe may say stands in `pipeline/steps.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from slimcli import processes
from slimcli.errors import SettingsError
from slimcli.pipeline import job
from slimcli.pipeline.finish import Result
from slimcli.pipeline.resume import folder_of
from slimcli.pipeline.steps import Recipe, Step, read
from slimcli.pipeline.train import Trained, train
from slimcli.pipeline.train import resume as resume_training
from slimcli.progress import Progress
from slimcli.records import JsonDict
from slimcli.report import card
from slimcli.rundir import RunDir, default_path, free_path
from slimcli.settings import PruneSettings, TrainSettings


@dataclass(frozen=True)
class RecipeResult:
    """Each step's name, seconds and metrics; what fell short; where it all is."""

    folder: Path
    steps: list[JsonDict]
    shortfalls: list[str]
    card: Path | None


def run_recipe(
    path: Path,
    out: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    changes: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
) -> RecipeResult | None:
    """Carry out the recipe: one step without a card directly in the run folder; else in `train/`, `prune-1/`, ... below it.

    `changes` are settings of how and where to compute, for every step. All settings and folders are checked before the
    first step. Raises an `InputError`, or what a step raises. None in a process that only helps process 0. A recipe is
    trusted like a Makefile: it may name code (`arch = "file.py:build"`, `trust_pickle = true`), so read one before you run it.
    """
    progress = progress or Progress()
    recipe = read(path, seeds).changed(changes or {})
    recipe.check_devices()
    if recipe.several and out is None and processes.world() > 1:
        raise SettingsError("several processes need to know the run folder before it is there", "name it with -o")
    folder = out or _default_folder(recipe)
    if processes.is_main():
        for step in recipe.steps:
            RunDir(recipe.folder_of(step, folder)).check_free(overwrite)
        if out is None and recipe.several:
            processes.command += ["-o", str(folder)]  # a helper would find this folder taken, and name another one
    if not (recipe.several and processes.is_main()):
        return _Steps(recipe, folder, None, progress, overwrite).carry_out()
    with RunDir(folder).create(recipe.to_toml(), overwrite) as container:
        return _Steps(recipe, folder, container, progress, overwrite).carry_out()


def resume_recipe(
    folder: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None
) -> RecipeResult | None:
    """Go on with a recipe in the run folder that `run_recipe` made: finished steps are left alone."""
    progress = progress or Progress()
    container, changes = folder_of(folder), changes or {}
    recipe = read(container.recipe).changed(changes)
    recipe.check_devices()
    if recipe.card is not None:
        recipe = replace(recipe, path=Path(recipe.card.get("recipe", recipe.path)))
    if not (recipe.several and processes.is_main()):
        return _Steps(recipe, folder, None, progress, changes=changes).carry_out()
    with container.reopen():
        if changes:
            container.write_recipe(recipe.to_toml())
        return _Steps(recipe, folder, container, progress, changes=changes).carry_out()


class _Steps:
    """The steps of a recipe one after the other; the container's journal says which are finished."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        container: RunDir | None,
        progress: Progress,
        overwrite: bool = False,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe, self.folder, self.container, self.progress = recipe, folder, container, progress
        self.overwrite, self.changes = overwrite, changes
        self._finished: dict[str, JsonDict] = {}
        self._replaced: dict[str, int | None] = {}
        if changes is not None and recipe.several:
            events = RunDir(folder).read_journal()
            self._finished = {event["step"]: event for event in events if event["event"] == "step"}
            # What lies in the folder of a step that was not begun is an older run, which this one was told to overwrite.
            self._replaced = {event["step"]: event["replaced"] for event in events if event["event"] == "begun"}
            self.overwrite = any(event["overwrite"] for event in events if event["event"] == "begun")
        elif changes is not None:
            self._replaced = {recipe.steps[0].folder: None}

    def carry_out(self) -> RecipeResult | None:
        """One step after the other; what is finished is left alone."""
        steps: list[JsonDict] = []
        for step in self.recipe.steps:
            run = RunDir(self.recipe.folder_of(step, self.folder))
            done = self._finished.get(step.folder) or self._carry_out(step, run)
            steps += [done] if done else []
        if not processes.is_main():
            return None
        card_path = None
        if self.recipe.card is not None:
            wanted = self.recipe.card
            card_path = card.write(self.recipe.path.parent / wanted["file"], wanted, self.recipe.path, steps)
        shortfalls = [step["shortfall"] for step in steps if step["shortfall"]]
        return RecipeResult(self.folder, steps, shortfalls, card_path)

    def _carry_out(self, step: Step, run: RunDir) -> JsonDict | None:
        started = time.perf_counter()
        present = run.recipe.stat().st_mtime_ns if run.recipe.exists() else None
        again = step.folder in self._replaced and present not in (None, self._replaced[step.folder])
        if self.container is not None and step.folder not in self._replaced:
            self.container.append("begun", step=step.folder, overwrite=self.overwrite, replaced=present)
        result: Trained | Result | None
        settings = self._placed(step)
        if isinstance(settings, TrainSettings):
            train_again = partial(resume_training, run.path, self.changes, self.progress)
            result = train_again() if again else train(settings, run, self.progress, self.overwrite)
        else:
            prune_again = partial(job.resume, run.path, self.changes, self.progress)
            result = prune_again() if again else job.run(settings, run.path, self.progress, self.overwrite)
        if result is None:
            return None
        facts = {
            "step": step.folder,
            "path": str(run.path),
            "seconds": round(time.perf_counter() - started, 1),
            "metrics": result.metrics,
            "shortfall": result.shortfall,
            "total_epochs": self._total(step, "epochs"),
            "label": step.label,
            "seed": step.seed,
            **step.labels,
        }
        if self.container is not None:
            self.container.append("step", **facts)
        return facts

    def _placed(self, step: Step) -> TrainSettings | PruneSettings:
        """The step's settings with the networks that other steps left, and the epochs that it is to match."""
        if isinstance(step.settings, PruneSettings):
            model, teacher = self._model_of(step.start), self._model_of(step.teacher)
            placed = replace(step.settings, model=model) if model else step.settings
            return replace(placed, teacher=teacher) if teacher else placed
        settings = replace(step.settings, like=self._model_of(step.like) or step.settings.like)
        if "match" not in step.labels:
            return settings
        like = self._step(step.like)
        epochs = self._total(like, "epochs")
        if step.labels["match"] == "compute":
            metrics, dense = self._metrics(like), self._metrics(self.recipe.steps[0])
            images = dense["training_macs"] / (3 * dense["epochs"] * dense["dense"]["macs"])
            epochs = round(self._total(like, "training_macs") / (3 * metrics["slim"]["macs"] * images))
        return replace(settings, epochs=min(epochs, step.labels.get("at_most", epochs)))

    def _total(self, step: Step, what: str) -> int:
        """Epochs, or multiply-accumulates of training, of a step and of those that it started from."""
        return int(self._metrics(step)[what]) + (self._total(self._step(step.start), what) if step.start else 0)

    def _step(self, folder: str) -> Step:
        return next(step for step in self.recipe.steps if step.folder == folder)

    def _metrics(self, step: Step) -> JsonDict:
        return RunDir(self.recipe.folder_of(step, self.folder)).read_metrics()

    def _model_of(self, folder: str) -> str:
        return str(RunDir(self.folder / folder).model) if folder else ""


def _default_folder(recipe: Recipe) -> Path:
    if recipe.path.name != "recipe.toml":
        return free_path(Path("runs") / recipe.path.stem)
    first = recipe.steps[0].settings
    if isinstance(first, TrainSettings):
        return default_path(first.arch, "train" if len(recipe.steps) == 1 else "run")
    return default_path(first.arch or "recipe", first.method)
