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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimcli.errors import SettingsError, suggest
from slimcli.pipeline import job
from slimcli.pipeline.train import train
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
class _Recipe:
    path: Path
    train: TrainSettings | None
    prunes: list[tuple[JsonDict, PruneSettings]]
    card: JsonDict | None


def run_recipe(path: Path, out: Path | None = None, progress: Progress | None = None, overwrite: bool = False) -> RecipeResult:
    """Carry out the recipe: one step directly in the run folder, several in `train/`, `prune-1/`, ... below it.

    All settings and folders are checked before the first step. Raises an `InputError`, or what a step raises. A recipe is
    trusted like a Makefile: it may name code (`arch = "file.py:build"`, `trust_pickle = true`), so read one before you run it.
    """
    progress = progress or Progress()
    recipe = _read(path)
    count = len(recipe.prunes) + (recipe.train is not None)
    folder = out or _default_folder(recipe, alone=count == 1)
    names = ["train"] * (recipe.train is not None) + [f"prune-{index}" for index in range(1, len(recipe.prunes) + 1)]
    for name in names:
        RunDir(folder if count == 1 else folder / name).check_free(overwrite)
    steps: list[JsonDict] = []
    shortfalls: list[str] = []
    model = ""
    if recipe.train is not None:
        step_folder = RunDir(folder if count == 1 else folder / "train")
        started = time.perf_counter()
        metrics = train(recipe.train, step_folder, progress, overwrite)
        steps.append(_step("train", step_folder, started, metrics, {}))
        model = str(step_folder.model)
    for index, (labels, settings) in enumerate(recipe.prunes, start=1):
        step_folder = RunDir(folder if count == 1 else folder / f"prune-{index}")
        started = time.perf_counter()
        chosen = settings if settings.model else _with_model(settings, model)
        result = job.run(chosen, step_folder.path, progress, overwrite)
        steps.append(_step(f"prune-{index}", step_folder, started, result.metrics, labels))
        shortfalls += [result.shortfall] if result.shortfall else []
        model = str(step_folder.model)
    written = None
    if recipe.card is not None:
        written = card.write(path.parent / recipe.card["file"], recipe.card, path, steps)
    return RecipeResult(folder, steps, shortfalls, written)


def _step(name: str, folder: RunDir, started: float, metrics: JsonDict, labels: JsonDict) -> JsonDict:
    return {
        "step": name,
        "path": str(folder.path),
        "seconds": round(time.perf_counter() - started, 1),
        "metrics": metrics,
        **labels,
    }


def _default_folder(recipe: _Recipe, alone: bool) -> Path:
    if recipe.path.name != "recipe.toml":
        return free_path(Path("runs") / recipe.path.stem)
    if alone and recipe.train is not None:
        return default_path(recipe.train.arch, "train")
    first = recipe.prunes[0][1] if recipe.prunes else None
    return default_path((first and first.arch) or "recipe", first.method if first else "run")


def _with_model(settings: PruneSettings, model: str) -> PruneSettings:
    return PruneSettings.from_recipe(settings.to_recipe() | {"model": model})


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
    train_settings = TrainSettings.from_recipe(content["train"]) if "train" in content else None
    prunes = [_prune(table, path) for table in tables]
    for _, settings in prunes:
        methods.resolve(settings)
    if train_settings is None and not prunes:
        raise SettingsError(f"{path} has nothing to do", "it needs a table [train] or [[prune]]")
    if train_settings is None and not prunes[0][1].model:
        raise SettingsError(f"{path}: the first [[prune]] has nothing to start from", "name its model, or add [train]")
    wanted = content.get("card")
    if wanted is not None:
        _check_card(path, str(wanted.get("file", "")))
    return _Recipe(path, train_settings, prunes, wanted)


def _check_card(recipe: Path, name: str) -> None:
    """Raise `SettingsError` unless the card is a Markdown file beside the recipe that does not exist or is an older card."""
    if Path(name).name != name or not name.endswith(".md"):
        raise SettingsError(f"{recipe}: [card] has the file {name!r}", 'name a Markdown file beside the recipe: file = "name.md"')
    existing = recipe.parent / name
    if existing.exists() and card.SIGNATURE not in existing.read_text(errors="replace"):
        raise SettingsError(f"{existing} exists and is no result card", "name another file in [card]")


def _prune(table: JsonDict, path: Path) -> tuple[JsonDict, PruneSettings]:
    labels: JsonDict = {key: table.pop(key) for key in ("name", "reference") if key in table}
    if "model" in table:
        table["model"] = str(path.parent / table["model"])
    return labels, PruneSettings.from_recipe(table)


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
