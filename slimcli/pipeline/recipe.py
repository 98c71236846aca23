"""`slim run`: a whole recipe.

A recipe has at most one table `[train]`, then any number of `[[prune]]` (or one `[prune]`), whose keys are the flags of the
commands. Each step starts from the network that the one before it left; the first `[[prune]]` of a recipe without
`[train]` names its `model`. A prune step may carry a `name` and a `reference` for the card that `[card]` asks for:
`file` (beside the recipe), `title` and `about`. Text may use environment variables, as in `${SLIM_DATA}`.
"""

from __future__ import annotations

import os
import re
import time
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from slimcli import processes
from slimcli.data.sources import absolute
from slimcli.errors import SettingsError, suggest
from slimcli.pipeline import job
from slimcli.pipeline.finish import Result
from slimcli.pipeline.resume import folder_of
from slimcli.pipeline.train import Trained, train
from slimcli.pipeline.train import resume as resume_training
from slimcli.progress import Progress
from slimcli.pruning import methods
from slimcli.records import JsonDict
from slimcli.report import card
from slimcli.rundir import RunDir, default_path, free_path
from slimcli.settings import PruneSettings, TrainSettings

_TABLES = ("train", "prune", "card")


@dataclass(frozen=True)
class RecipeResult:
    """Each step's name, seconds and metrics; what fell short; where it all is."""

    folder: Path
    steps: list[JsonDict]
    shortfalls: list[str]
    card: Path | None


@dataclass(frozen=True)
class _Step:
    name: str
    settings: TrainSettings | PruneSettings
    labels: JsonDict


@dataclass(frozen=True)
class _Recipe:
    path: Path
    steps: tuple[_Step, ...]
    card: JsonDict | None

    @property
    def several(self) -> bool:
        """Whether the steps have folders of their own."""
        return len(self.steps) > 1 or self.card is not None

    def check_devices(self) -> None:
        """Raise `SettingsError` unless every step wants as many processes: they are started once."""
        if len({step.settings.devices for step in self.steps}) > 1:
            raise SettingsError(f"{self.path}: the steps differ in their devices", "give all of them the same number")

    def folder_of(self, step: _Step, folder: Path) -> Path:
        """Where the step's run goes."""
        return folder / step.name if self.several else folder

    def changed(self, changes: Mapping[str, Any]) -> _Recipe:
        """The same steps, computed otherwise."""
        return replace(self, steps=tuple(replace(step, settings=replace(step.settings, **changes)) for step in self.steps))

    def to_toml(self) -> JsonDict:
        """The recipe as it can be repeated and gone on with from elsewhere: every path is absolute."""
        tables: JsonDict = {"prune": []}
        for step in self.steps:
            table = step.labels | _from_anywhere(step.settings.to_recipe())
            if isinstance(step.settings, TrainSettings):
                tables["train"] = table
            else:
                tables["prune"].append(table)
        if self.card is not None:
            tables["card"] = self.card | {"recipe": str(self.path.resolve())}
        return tables


def _from_anywhere(table: JsonDict) -> JsonDict:
    specs = {key: absolute(table[key]) for key in ("arch", "data", "val_data") if key in table}
    paths = {key: str(Path(table[key]).resolve()) for key in ("model", "data_root") if table.get(key)}
    if "history" in table:
        paths["history"] = [str(Path(name).resolve()) for name in table["history"]]  # type: ignore[assignment]
    return {key: value for key, value in (table | specs | paths).items() if (key, value) != ("model", "")}


def run_recipe(
    path: Path,
    out: Path | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> RecipeResult | None:
    """Carry out the recipe: one step without a card directly in the run folder; else in `train/`, `prune-1/`, ... below it.

    `changes` are settings of how and where to compute, for every step. All settings and folders are checked before the
    first step. Raises an `InputError`, or what a step raises. None in a process that only helps process 0. A recipe is
    trusted like a Makefile: it may name code (`arch = "file.py:build"`, `trust_pickle = true`), so read one before you run it.
    """
    progress = progress or Progress()
    recipe = _read(path).changed(changes or {})
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
    recipe = _read(container.recipe).changed(changes)
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
        recipe: _Recipe,
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
            self._replaced = {recipe.steps[0].name: None}

    def carry_out(self) -> RecipeResult | None:
        """Each step starts from the network that the one before it left."""
        steps: list[JsonDict] = []
        model = ""
        for step in self.recipe.steps:
            run = RunDir(self.recipe.folder_of(step, self.folder))
            done = self._finished.get(step.name) or self._carry_out(step, run, model)
            steps += [done] if done else []
            model = str(run.model)
        if not processes.is_main():
            return None
        card_path = None
        if self.recipe.card is not None:
            wanted = self.recipe.card
            card_path = card.write(self.recipe.path.parent / wanted["file"], wanted, self.recipe.path, steps)
        shortfalls = [step["shortfall"] for step in steps if step["shortfall"]]
        return RecipeResult(self.folder, steps, shortfalls, card_path)

    def _carry_out(self, step: _Step, run: RunDir, model: str) -> JsonDict | None:
        started = time.perf_counter()
        present = run.recipe.stat().st_mtime_ns if run.recipe.exists() else None
        again = step.name in self._replaced and present not in (None, self._replaced[step.name])
        if self.container is not None and step.name not in self._replaced:
            self.container.append("begun", step=step.name, overwrite=self.overwrite, replaced=present)
        result: Trained | Result | None
        if isinstance(step.settings, TrainSettings):
            train_again = partial(resume_training, run.path, self.changes, self.progress)
            result = train_again() if again else train(step.settings, run, self.progress, self.overwrite)
        else:
            chosen = replace(step.settings, model=step.settings.model or model)
            prune_again = partial(job.resume, run.path, self.changes, self.progress)
            result = prune_again() if again else job.run(chosen, run.path, self.progress, self.overwrite)
        if result is None:
            return None
        facts = {
            "step": step.name,
            "path": str(run.path),
            "seconds": round(time.perf_counter() - started, 1),
            "metrics": result.metrics,
            "shortfall": result.shortfall,
            **step.labels,
        }
        if self.container is not None:
            self.container.append("step", **facts)
        return facts


def _default_folder(recipe: _Recipe) -> Path:
    if recipe.path.name != "recipe.toml":
        return free_path(Path("runs") / recipe.path.stem)
    first = recipe.steps[0].settings
    if isinstance(first, TrainSettings):
        return default_path(first.arch, "train" if len(recipe.steps) == 1 else "run")
    return default_path(first.arch or "recipe", first.method)


def _read(path: Path) -> _Recipe:
    if not path.is_file():
        raise SettingsError(f"there is no recipe {path}", "check the path")
    try:
        content = _expand(tomllib.loads(path.read_text()), path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is no TOML file: {error}", "mend that line") from error
    for table in content:
        if table not in _TABLES:
            raise SettingsError(f"{path} has an unknown table [{table}]", suggest(table, _TABLES))
    tables = content.get("prune", [])
    tables = tables if isinstance(tables, list) else [tables]
    for table in (*tables, content.get("train", {}), content.get("card", {})):
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {table!r} stands where a table is wanted", "write [train], [[prune]] or [card]")
    steps = [_Step("train", TrainSettings.from_recipe(content["train"]), {})] if "train" in content else []
    steps += [_prune(table, path, f"prune-{index}") for index, table in enumerate(tables, start=1)]
    if not steps:
        raise SettingsError(f"{path} has nothing to do", "it needs a table [train] or [[prune]]")
    if isinstance(steps[0].settings, PruneSettings) and not steps[0].settings.model:
        raise SettingsError(f"{path}: the first [[prune]] has nothing to start from", "name its model, or add [train]")
    wanted = content.get("card")
    if wanted is not None:
        _check_card(Path(wanted.get("recipe", path)), str(wanted.get("file", "")))
    return _Recipe(path, tuple(steps), wanted)


def _check_card(recipe: Path, name: str) -> None:
    """Raise `SettingsError` unless the card is a Markdown file beside the recipe that does not exist or is an older card."""
    if Path(name).name != name or not name.endswith(".md"):
        raise SettingsError(f"{recipe}: [card] has the file {name!r}", 'name a Markdown file beside the recipe: file = "name.md"')
    existing = recipe.parent / name
    if existing.exists() and card.SIGNATURE not in existing.read_text(errors="replace"):
        raise SettingsError(f"{existing} exists and is no result card", "name another file in [card]")


def _prune(table: JsonDict, path: Path, name: str) -> _Step:
    labels: JsonDict = {key: table.pop(key) for key in ("name", "reference") if key in table}
    if "model" in table:
        table["model"] = str((path.parent / table["model"]).resolve())
    settings = PruneSettings.from_recipe(table)
    methods.resolve(settings)
    return _Step(name, settings, labels)


def _expand(value: Any, path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(entry, path) for key, entry in value.items()}
    if isinstance(value, list):
        return [_expand(entry, path) for entry in value]
    if not isinstance(value, str):
        return value
    for name in re.findall(r"\$\{(\w+)\}", value):
        if name not in os.environ:
            raise SettingsError(f"{path} uses ${{{name}}}, which is not set", f"set it: export {name}=...")
        value = value.replace(f"${{{name}}}", os.environ[name])
    return value
