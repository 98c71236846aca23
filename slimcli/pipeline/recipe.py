"""`slim run`: a whole recipe, step after step or side by side. What a recipe may say stands in `pipeline/steps.py`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tomli_w

from slimcli import processes
from slimcli.errors import SettingsError, Terminated
from slimcli.measures import measure_of, value_of
from slimcli.pipeline import job
from slimcli.pipeline.child import Child
from slimcli.pipeline.finish import Result
from slimcli.pipeline.resume import folder_of
from slimcli.pipeline.steps import Recipe, Step, read
from slimcli.pipeline.train import Trained, train
from slimcli.pipeline.train import resume as resume_training
from slimcli.progress import Progress
from slimcli.records import JsonDict
from slimcli.report import card
from slimcli.report.standing import earlier_seconds
from slimcli.rundir import RunDir, default_path, free_path
from slimcli.settings import PruneSettings, TrainSettings

_LOOK_EVERY = 0.2  # seconds between two looks at the processes of steps


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
    jobs: int = 1,
    only: Sequence[str] = (),
) -> RecipeResult | None:
    """Carry out the recipe: one step without a card directly in the run folder; else in `train/`, `prune-1/`, ... below it.

    `changes` are settings of how and where to compute, for every step. With `only` some of its steps (by their names, or
    patterns; and those that they start from), with other `seeds` than its own, and where the recipe is that of a run folder, the
    card goes into the run folder. Up to `jobs` steps that do not wait for each other are carried out side by side, each in a
    process with its share of the cores. All settings and folders are checked before the first step. Raises an `InputError`, or
    what a step raises. None in a process that only helps process 0. A recipe is trusted like a Makefile: it may name code (`arch
    = "file.py:build"`, `trust_pickle = true`), so read one before you run it.
    """
    progress = progress or Progress()
    recipe = read(path, seeds).changed(changes or {})
    recipe = recipe.only(only) if only else recipe
    recipe.check_devices()
    _check_jobs(jobs)
    if recipe.several and out is None and processes.world() > 1:
        raise SettingsError("several processes need to know the run folder before it is there", "name it with -o")
    folder = out or _default_folder(recipe)
    elsewhere = only or recipe.seeds != read(path).seeds or "recipe" in (recipe.card or {})
    if recipe.card is not None and elsewhere:  # beside the recipe stands the card of all of it, run from it
        recipe = replace(recipe, path=folder / recipe.path.name)
    if processes.is_main():
        RunDir(folder).check_free(overwrite)
        for step in recipe.steps:
            RunDir(recipe.folder_of(step, folder)).check_free(overwrite)
        if out is None and recipe.several:
            processes.command += ["-o", str(folder)]  # a helper would find this folder taken, and name another one
    if not (recipe.several and processes.is_main()):
        return _Steps(recipe, folder, None, progress, overwrite).carry_out()
    with RunDir(folder).create(recipe.to_toml(), overwrite) as container:
        return _Steps(recipe, folder, container, progress, overwrite).carry_out(jobs)


def resume_recipe(
    folder: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None, jobs: int = 1
) -> RecipeResult | None:
    """Go on with a recipe in the run folder that `run_recipe` made: finished steps are left alone."""
    progress = progress or Progress()
    _check_jobs(jobs)
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
        return _Steps(recipe, folder, container, progress, changes=changes).carry_out(jobs)


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise SettingsError(f"--jobs {jobs} is no number of steps", "give 1 or more")
    if jobs > 1 and processes.world() > 1:
        raise SettingsError("--jobs starts processes of its own", "leave it out where a launcher starts them")


class _Steps:
    """The steps of a recipe, one after the other or side by side; the container's journal says which are finished."""

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

    def carry_out(self, jobs: int = 1) -> RecipeResult | None:
        """Every step that is not finished, up to `jobs` of them at a time."""
        waiting = [step for step in self.recipe.steps if step.folder not in self._finished]
        if self.container is not None and jobs > 1:
            self._side_by_side(waiting, self.container, jobs)
        else:
            for step in waiting:
                self._carry_out(step)
        if not processes.is_main():
            return None
        steps = [self._finished[step.folder] for step in self.recipe.steps]
        card_path = None
        if self.recipe.card is not None:
            wanted = self.recipe.card
            card_path = card.write(self.recipe.path.parent / wanted["file"], wanted, self.recipe.path, steps)
        shortfalls = [step["shortfall"] for step in steps if step["shortfall"]]
        return RecipeResult(self.folder, steps, shortfalls, card_path)

    def _carry_out(self, step: Step) -> None:
        """One step in this process."""
        started, run, again = time.perf_counter(), self._run_of(step), self._begin(step)
        result: Trained | Result | None
        settings = self._placed(step)
        if isinstance(settings, TrainSettings):
            train_again = partial(resume_training, run.path, self.changes, self.progress)
            result = train_again() if again else train(settings, run, self.progress, self.overwrite)
        else:
            prune_again = partial(job.resume, run.path, self.changes, self.progress)
            result = prune_again() if again else job.run(settings, run.path, self.progress, self.overwrite)
        if result is not None:
            seconds = round(time.perf_counter() - started, 1)
            self._end(step, {"seconds": seconds, "metrics": result.metrics, "shortfall": result.shortfall})

    def _side_by_side(self, waiting: list[Step], container: RunDir, jobs: int) -> None:
        """Steps in processes of their own, each as soon as those that it starts from are finished, up to `jobs` at a time."""
        children: list[Child] = []
        try:
            while waiting or children:
                ready = [step for step in waiting if self.recipe.needs(step) <= self._finished.keys()]
                for step in ready[: jobs - len(children)]:
                    waiting.remove(step)
                    log = container.path / f"{step.folder}.log"
                    children.append(Child(step, self._command(step, log.with_suffix(".toml")), log, jobs))
                    self.progress.say(f"{step.folder}, {step.label}: begun, see {log}")
                time.sleep(_LOOK_EVERY)
                for child in [child for child in children if not child.running()]:
                    children.remove(child)
                    result = child.result()
                    self._end(child.step, result, jobs)
                    network = result["metrics"].get("slim", result["metrics"]["dense"])
                    measure = measure_of(network)
                    score = f"{measure.title} {measure.figure(value_of(network))}"
                    self.progress.say(f"{child.step.folder}, {child.step.label}: done, {score} after {result['seconds']:.0f} s")
        except (KeyboardInterrupt, Terminated):
            self.progress.say(f"to go on: slim run --resume {container.path} --jobs {jobs}")
            raise
        finally:
            for child in children:
                child.terminate()
            for child in children:
                child.end()

    def _command(self, step: Step, recipe: Path) -> list[str]:
        """The arguments of `slim` that begin the step, by a recipe of its own, or go on with it."""
        folder = str(self._run_of(step).path)
        if self._begin(step):
            return ["run", "--resume", folder, *(f"--{name}={value}" for name, value in (self.changes or {}).items())]
        alone = Recipe(recipe, (Step(step.folder, self._placed(step)),), None)
        recipe.write_text(tomli_w.dumps(alone.to_toml()))
        return ["run", str(recipe), "-o", folder, *(["--overwrite"] if self.overwrite else [])]

    def _begin(self, step: Step) -> bool:
        """Note that the step is begun; whether it was before, so that it is gone on with."""
        run = self._run_of(step)
        present = run.recipe.stat().st_mtime_ns if run.recipe.exists() else None
        again = step.folder in self._replaced and present not in (None, self._replaced[step.folder])
        if self.container is not None and step.folder not in self._replaced:
            self.container.append("begun", step=step.folder, overwrite=self.overwrite, replaced=present)
        return again

    def _end(self, step: Step, result: JsonDict, jobs: int = 1) -> None:
        """Note what a finished step measured, beside how many others."""
        run = self._run_of(step)
        facts = {
            "step": step.folder,
            "path": str(run.path),
            "seconds": round(result["seconds"] + earlier_seconds(run.read_journal()), 1),
            "metrics": result["metrics"],
            "shortfall": result["shortfall"],
            "total_epochs": self._total(step, "epochs"),
            "label": step.label,
            "seed": step.seed,
            "jobs": jobs,
            **step.labels,
        }
        self._finished[step.folder] = facts
        if self.container is not None:
            self.container.append("step", **facts)

    def _run_of(self, step: Step) -> RunDir:
        return RunDir(self.recipe.folder_of(step, self.folder))

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
            network, dense = self._metrics(like), self._metrics(self.recipe.steps[0])
            images = dense["training_macs"] / (3 * dense["epochs"] * dense["dense"]["macs"])
            epochs = round(self._total(like, "training_macs") / (3 * (network.get("slim") or network["dense"])["macs"] * images))
        return replace(settings, epochs=min(epochs, step.labels.get("at_most", epochs)))

    def _total(self, step: Step, what: str) -> int:
        """Epochs, or multiply-accumulates of training, of a step and of those that it started from."""
        return int(self._metrics(step)[what]) + (self._total(self._step(step.start), what) if step.start else 0)

    def _step(self, folder: str) -> Step:
        return next(step for step in self.recipe.steps if step.folder == folder)

    def _metrics(self, step: Step) -> JsonDict:
        return self._run_of(step).read_metrics()

    def _model_of(self, folder: str) -> str:
        return str(RunDir(self.folder / folder).model) if folder else ""


def _default_folder(recipe: Recipe) -> Path:
    if recipe.path.name != "recipe.toml":
        return free_path(Path("runs") / recipe.path.stem)
    first = recipe.steps[0].settings
    if isinstance(first, TrainSettings):
        return default_path(first.arch, "train" if len(recipe.steps) == 1 else "run")
    return default_path(first.arch or "recipe", first.method)
