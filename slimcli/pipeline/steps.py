"""A recipe as it is written, and the steps that it means.

A recipe has tables `[train]` and `[prune]`, several of a kind as `[[train]]` and `[[prune]]`, whose keys are the flags of the
commands; `[every.train]` and `[every.prune]` hold what each of them says unless it says otherwise. First comes the first
`[train]`, then every `[prune]`, then the other `[train]`s; one that is `like` another step comes directly after that. A
`[prune]` starts from the network that the `[prune]` before it left, or from the step that it names with `from`; the first one
starts from the `[train]`, or without any names its `model`. `teacher` and `like` may name a step too. A `[train]` with
`match = "epochs"` is given as many epochs as led to the step that it is `like` (those of the steps before that included), with
`match = "compute"` as many as cost as much, at most `at_most`: what a pruned network must be compared with.

`seeds = [0, 1, 2]` above the tables repeats every step with each seed, `seeds` in a table that step with those alone. Steps may
carry a `name` and a `reference` for the card that `[card]` asks for (`file` beside the recipe, `title`, `about`), and
`hidden = true` to stay out of it. Text may use environment variables, as in `${SLIM_DATA}`.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from slimcli.data.sources import absolute
from slimcli.errors import SettingsError, suggest
from slimcli.networks import resolve
from slimcli.pruning import methods
from slimcli.records import JsonDict
from slimcli.report import card
from slimcli.settings import PruneSettings, TrainSettings

_TABLES = ("seeds", "every", "train", "prune", "card")
_LABELS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "train": {"name": str, "reference": (str, int, float), "hidden": bool, "match": str, "at_most": int, "seeds": list},
    "prune": {"name": str, "reference": (str, int, float), "hidden": bool, "from": str, "seeds": list},
}
"""What a table may say beside its command's settings, and of what type."""
_CARD = ("file", "title", "about", "recipe")
_MATCHES = ("epochs", "compute")
_REFERENCES = ("like", "teacher")


@dataclass(frozen=True)
class Step:
    """One command of a recipe. `folder` is its run folder's name, `label` what the card calls it.

    `start`, `like` and `teacher` are the folders of the steps whose networks it takes; empty where it takes none.
    """

    folder: str
    settings: TrainSettings | PruneSettings
    labels: JsonDict = field(default_factory=dict)
    start: str = ""
    like: str = ""
    teacher: str = ""
    seed: int | None = None

    @property
    def label(self) -> str:
        """The same for every seed."""
        own = self.folder if self.seed is None else self.folder.removeprefix(f"seed-{self.seed}-")
        return str(self.labels.get("name", own))

    def with_seed(self, seed: int) -> Step:
        """The same step of the repetition with that seed."""
        named = self.renamed(lambda folder: f"seed-{seed}-{folder}" if folder else "")
        return replace(named, settings=replace(self.settings, seed=seed), seed=seed)

    def renamed(self, name: Callable[[str], str]) -> Step:
        """The same step where all folders are called otherwise."""
        return replace(self, folder=name(self.folder), start=name(self.start), like=name(self.like), teacher=name(self.teacher))


@dataclass(frozen=True)
class Recipe:
    """A recipe's steps, each once and as written (`plain`), and the seeds that they are repeated with."""

    path: Path
    plain: tuple[Step, ...]
    card: JsonDict | None
    seeds: tuple[int, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step with every seed that it is for, in the order in which they are carried out and reported."""
        steps = _ordered(self.plain)
        if not self.seeds:
            return steps
        return tuple(step.with_seed(seed) for seed in self.seeds for step in steps if seed in step.labels.get("seeds", [seed]))

    @property
    def several(self) -> bool:
        """Whether the steps have folders of their own."""
        return len(self.steps) > 1 or self.card is not None

    def check_devices(self) -> None:
        """Raise `SettingsError` unless every step wants as many processes: they are started once."""
        if len({step.settings.devices for step in self.plain}) > 1:
            raise SettingsError(f"{self.path}: the steps differ in their devices", "give all of them the same number")

    def folder_of(self, step: Step, folder: Path) -> Path:
        """Where the step's run goes."""
        return folder / step.folder if self.several else folder

    def needs(self, step: Step) -> set[str]:
        """The folders of the steps that must be finished before it."""
        first = self.steps[0].folder if step.labels.get("match") == "compute" else ""
        return {folder for folder in (step.start, step.like, step.teacher, first) if folder}

    def only(self, names: Sequence[str]) -> Recipe:
        """The steps of these names (or patterns), and those that they need; `SettingsError` for a name that no step has."""
        labels = [step.label for step in self.plain]
        for name in names:
            if not any(_is_called(label, name) for label in labels):
                raise SettingsError(f"{self.path} has no step {name!r}", suggest(name, labels))
        plain = {step.folder: step for step in _ordered(self.plain)}
        alone = replace(self, seeds=())
        wanted = {step.folder for step in plain.values() if any(_is_called(step.label, name) for name in names)}
        while more := {folder for each in wanted for folder in alone.needs(plain[each])} - wanted:
            wanted |= more
        kept = [step for step in self.plain if step.folder in wanted]
        trains, prunes = ([step.folder for step in kept if step.settings.table() == kind] for kind in ("train", "prune"))
        numbered = dict(zip([*trains, *prunes], [*_folders("train", len(trains)), *_folders("prune", len(prunes))], strict=True))
        some = replace(self, plain=tuple(step.renamed(lambda folder: numbered.get(folder, "")) for step in kept))
        _check_whole(some)
        return some

    def changed(self, changes: Mapping[str, Any]) -> Recipe:
        """The same steps, computed otherwise."""
        return replace(self, plain=tuple(replace(step, settings=replace(step.settings, **changes)) for step in self.plain))

    def to_toml(self) -> JsonDict:
        """The recipe as it can be repeated and gone on with from elsewhere: every path is absolute."""
        tables: JsonDict = {"seeds": list(self.seeds)} if self.seeds else {}
        for kind in ("train", "prune"):
            tables[kind] = [_table(step) for step in self.plain if step.settings.table() == kind]
        if self.card is not None:
            tables["card"] = self.card | {"recipe": str(self.path.resolve())}
        return tables


def _table(step: Step) -> JsonDict:
    table = step.settings.to_recipe()
    made = {"arch": resolve.absolute, "data": absolute, "val_data": absolute}
    specs = {key: absolutely(table[key]) for key, absolutely in made.items() if key in table}
    paths: JsonDict = {key: str(Path(table[key]).resolve()) for key in ("model", "data_root", *_REFERENCES) if table.get(key)}
    if "history" in table:
        paths["history"] = [str(Path(name).resolve()) for name in table["history"]]
    steps = {key: name for key, name in (("from", step.start), ("like", step.like), ("teacher", step.teacher)) if name}
    return {key: value for key, value in (step.labels | table | specs | paths | steps).items() if (key, value) != ("model", "")}


def read(path: Path, seeds: Sequence[int] | None = None) -> Recipe:
    """The recipe in a file, with other `seeds` than its own where some are given. Raises `SettingsError`."""
    if not path.is_file():
        raise SettingsError(f"there is no recipe {path}", "check the path")
    try:
        content = _expand(tomllib.loads(path.read_text()), path)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        mixed = "Cannot overwrite a value" in str(error) or "Cannot mutate" in str(error)
        way_out = "write [[train]] and [[prune]] where there are several of a kind" if mixed else "mend that line"
        raise SettingsError(f"{path} is no TOML file: {error}", way_out) from error
    for table in content:
        if table not in _TABLES:
            raise SettingsError(f"{path} has an unknown table [{table}]", suggest(table, _TABLES))
    trains, prunes = (_tables(content, kind, path) for kind in ("train", "prune"))
    if not isinstance(content.get("card", {}), dict):
        raise SettingsError(f"{path}: {content['card']!r} stands where a table is wanted", "write [card]")
    trained = list(zip(_folders("train", len(trains)), trains, strict=True))
    pruned = list(zip(_folders("prune", len(prunes)), prunes, strict=True))
    later = {name for folder, table in pruned for name in (folder, table.get("name")) if isinstance(name, str)}
    first = 0 if trains and str(trains[0].get("like")) in later else 1
    tables = [*trained[:first], *pruned, *trained[first:]]
    if not tables:
        raise SettingsError(f"{path} has nothing to do", "it needs a table [train] or [[prune]]")
    steps: list[Step] = []
    for folder, table in tables:
        steps.append(_step(folder, table, steps, path))
    wanted = content.get("card")
    if wanted is not None:
        for key in wanted:
            if key not in _CARD:
                raise SettingsError(f"{path}: [card] has an unknown key {key!r}", suggest(key, _CARD[:-1]))
        _check_card(Path(wanted.get("recipe", path)), str(wanted.get("file", "")))
    own = content.get("seeds", []) if seeds is None else list(seeds)
    recipe = Recipe(path, tuple(steps), wanted, _seeds(own, path))
    _check_whole(recipe)
    return recipe


def _folders(kind: str, count: int) -> list[str]:
    """What the folders of so many steps are called."""
    return [f"{kind}-{number}" if kind == "prune" or number > 1 else kind for number in range(1, count + 1)]


def _is_called(label: str, name: str) -> bool:
    """Whether that is its name, or a pattern of it."""
    return label == name or fnmatchcase(label, name)


def _ordered(steps: Sequence[Step]) -> tuple[Step, ...]:
    """The steps as written, but each that is `like` another directly after that one."""
    ordered: list[Step] = []
    for step in steps:
        beside = [index for index, other in enumerate(ordered) if step.like and step.like in (other.folder, other.like)]
        ordered.insert(beside[-1] + 1 if beside else len(ordered), step)
    return tuple(ordered)


def _check_whole(recipe: Recipe) -> None:
    """Raise `SettingsError` where a step starts from one that its seed does not have."""
    folders = {step.folder for step in recipe.steps}
    if not folders:
        raise SettingsError(f"{recipe.path}: no step is for the seeds {list(recipe.seeds)}", "give other --seeds")
    for step in recipe.steps:
        for other in (step.start, step.like, step.teacher):
            if other and other not in folders:
                raise SettingsError(
                    f"{recipe.path}: {step.label!r} needs {other}, whose own seeds leave it out", "give both the same seeds"
                )


def _tables(content: JsonDict, kind: str, path: Path) -> list[JsonDict]:
    every, tables = content.get("every", {}), content.get(kind, [])
    if not isinstance(every, dict) or not all(name in _LABELS and isinstance(table, dict) for name, table in every.items()):
        raise SettingsError(f"{path}: every = {every!r} stands where tables are wanted", "write [every.train] or [every.prune]")
    tables = tables if isinstance(tables, list) else [tables]
    for table in tables:
        if not isinstance(table, dict):
            raise SettingsError(f"{path}: {table!r} stands where a table is wanted", f"write [[{kind}]]")
    return [every.get(kind, {}) | table for table in tables]


def _seeds(seeds: Any, path: Path) -> tuple[int, ...]:
    numbers = isinstance(seeds, list) and all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if not numbers or len(set(seeds)) < len(seeds) or any(seed < 0 for seed in seeds):
        raise SettingsError(f"{path}: seeds = {seeds!r} is no list of different numbers from 0", "write seeds = [0, 1, 2]")
    return tuple(seeds)


def _step(folder: str, table: JsonDict, before: Sequence[Step], path: Path) -> Step:
    """The step of one table. `before` are the steps that it may name."""
    table, kind = dict(table), folder.partition("-")[0]
    labels = {key: table.pop(key) for key in _LABELS[kind] if key in table}
    for key, value in labels.items():
        wanted = _LABELS[kind][key]
        if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
            raise SettingsError(f"{path}: {key} = {value!r} in [{kind}] is of another type", "see the recipes in models/")
    if "seeds" in labels:
        _seeds(labels["seeds"], path)
    taken = {name: step.folder for step in before for name in (step.folder, step.label)}
    if labels.get("name", folder) in taken:
        raise SettingsError(f"{path}: two steps are called {labels['name']!r}", "give each a name of its own")
    named = {key: taken[table.pop(key)] for key in _REFERENCES if isinstance(table.get(key), str) and table[key] in taken}
    for key in ("model", *_REFERENCES):
        if isinstance(table.get(key), str) and table[key]:
            table[key] = str(_existing(key, table[key], taken, path))
    return (_training if kind == "train" else _pruning)(folder, table, labels, named, before, path)


def _existing(key: str, name: str, taken: Mapping[str, str], path: Path) -> Path:
    """The file that a recipe names; `SettingsError` where it is neither a file nor a step."""
    file = (path.parent / name).resolve()
    if key != "model" and not file.exists():
        raise SettingsError(f"{path}: {key} = {name!r} is no file and no step before it", suggest(name, list(taken)))
    return file


def _pruning(folder: str, table: JsonDict, labels: JsonDict, named: JsonDict, before: Sequence[Step], path: Path) -> Step:
    start = labels.pop("from", "")
    folders = {name: step.folder for step in before for name in (step.folder, step.label)}
    if start and start not in folders:
        raise SettingsError(f"{path}: from = {start!r} names no step before it", suggest(start, list(folders)))
    if start and table.get("model"):
        raise SettingsError(f"{path}: {labels.get('name', folder)!r} has a model and a from", "a step starts from one network")
    start = folders[start] if start else before[-1].folder if before and not table.get("model") else ""
    if not start and not table.get("model"):
        raise SettingsError(f"{path}: the first [[prune]] has nothing to start from", "name its model, or add [train]")
    if "like" in named:
        raise SettingsError(f"{path}: like is for [train]", "leave it out")
    teacher = named.get("teacher", "")
    settings = PruneSettings.from_recipe(table | ({"teacher": teacher} if teacher else {}))
    methods.resolve(settings)
    return Step(folder, replace(settings, teacher=None) if teacher else settings, labels, start=start, teacher=teacher)


def _training(folder: str, table: JsonDict, labels: JsonDict, named: JsonDict, before: Sequence[Step], path: Path) -> Step:
    if "teacher" in named:
        raise SettingsError(f"{path}: teacher is for [prune]", "leave it out")
    settings = TrainSettings.from_recipe(table)
    match = labels.get("match")
    if match is not None and match not in _MATCHES:
        raise SettingsError(f"{path}: match = {match!r} is not known", suggest(str(match), _MATCHES))
    if match is not None and "like" not in named:
        raise SettingsError(f"{path}: match = {match!r} needs a step to be matched", 'name one: like = "..."')
    if labels.get("at_most", 1) < 1 or ("at_most" in labels and match is None):
        raise SettingsError(f"{path}: at_most = {labels['at_most']!r} bounds a match, from 1", "give a match, or leave it out")
    return Step(folder, settings, labels, like=named.get("like", ""))


def _check_card(recipe: Path, name: str) -> None:
    """Raise `SettingsError` unless the card is a Markdown file beside the recipe that does not exist or is an older card."""
    if Path(name).name != name or not name.endswith(".md"):
        raise SettingsError(f"{recipe}: [card] has the file {name!r}", 'name a Markdown file beside the recipe: file = "name.md"')
    existing = recipe.parent / name
    if existing.exists() and card.SIGNATURE not in existing.read_text(errors="replace"):
        raise SettingsError(f"{existing} exists and is no result card", "name another file in [card]")


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
