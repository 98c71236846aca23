"""Going on with a run: its recipe, what may be changed, its last state; and what an ending run tells about that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

from slimcli import processes
from slimcli.errors import DataError, MemoryShortError, PeerError, RunDirError, SettingsError, StorageError, Terminated
from slimcli.progress import Progress
from slimcli.records import JsonDict
from slimcli.rundir import RunDir
from slimcli.settings import MAY_CHANGE, PruneSettings, TrainSettings

S = TypeVar("S", TrainSettings, PruneSettings)


def settings_of(run: RunDir, kind: type[S], changes: Mapping[str, Any]) -> S:
    """The settings in the run's recipe, with those changes that leave the result's meaning alone.

    Raises `RunDirError` where the folder holds a run of another kind, `SettingsError` for other changes.
    """
    table = kind.table()
    recipe = run.read_recipe()
    if table not in recipe or not isinstance(recipe[table], dict):
        alone = [name for name, content in recipe.items() if isinstance(content, dict)] if len(recipe) == 1 else []
        command = alone[0] if alone else "run"
        raise RunDirError(f"{run.path} holds no run of `slim {table}`", f"go on with slim {command} --resume {run.path}")
    for name in changes:
        if name not in MAY_CHANGE:
            flags = ", ".join(f"--{each.replace('_', '-')}" for each in MAY_CHANGE)
            raise SettingsError(
                f"--{name.rstrip('_').replace('_', '-')} cannot change when a run goes on: its recipe says what is done",
                f"only {flags} can; or start another run",
            )
    content = recipe[table] | dict(changes)
    if table == "prune" and "widths" not in content and ("macs" in content or "params" in content):
        content = {"round_to": 1} | content  # a run of an older version did not round
    return kind.from_recipe(content)


def close_finished(run: RunDir) -> str | None:
    """Drop the states of a run that is finished, where that was interrupted; what fell short in it. None where there is something
    to go on with. Raises `RunDirError` where the run is finished, and its network is lost.
    """
    last = next((event for event in reversed(run.read_journal()) if event["event"] != "interrupted"), {"event": ""})
    if last["event"] != "finished":
        return None
    missing = [path.name for path in (run.model, run.metrics) if not path.exists()]
    if missing and run.last_good.exists():
        return None  # a run of an older version, which kept its states
    if missing:
        raise RunDirError(
            f"the run in {run.path} is finished, and its {missing[0]} is missing",
            f"repeat it: slim run {run.recipe} -o ANOTHER_FOLDER",
        )
    if processes.is_main():
        run.drop_states()
    return str(last["shortfall"])


def cut_journal(run: RunDir, size: int, progress: Progress) -> None:
    """Cut the journal back to where it was when the state was saved; say so where it has lost lines since."""
    lost = size - run.journal_size()
    if lost > 0:
        progress.warn(f"{run.journal} has lost {lost:,} bytes: reports on this run will lack what stood there")
    run.cut_journal(size)


def read_state(run: RunDir, progress: Progress) -> JsonDict | None:
    """The content of the run's newest undamaged state; None where none was saved yet."""
    path, remark = run.newest_state()
    if remark:
        progress.warn(remark)
    if path is None:
        return None
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # intact, and yet no state: somebody put another file there
        raise RunDirError(f"{path} is no saved state ({type(error).__name__})", "put the run's own file back") from error


def check_data(content: Mapping[str, Any], fingerprint: str, run: RunDir, name: str) -> None:
    """Raise `DataError` where the images are not those that the run began with."""
    if content["fingerprint"] != fingerprint:
        raise DataError(
            f"{name} has changed since the run in {run.path} began",
            "put the old data back",
        )


@contextmanager
def resumable(run: RunDir, command: str, progress: Progress) -> Iterator[None]:
    """Whatever ends the run early: say how to go on with it."""
    whole = RunDir(run.path.parent)  # of a recipe, where this run is one of its steps
    step = (
        whole.recipe.exists() and whole.journal.exists() and any(event.get("event") == "begun" for event in whole.read_journal())
    )
    way = f"slim run --resume {whole.path}" if step else f"slim {command} --resume {run.path}"
    processes.way_on = way
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        with contextlib.suppress(StorageError, OSError):
            run.append("interrupted", time=time.time())
        progress.say(f"to go on: {way}")
        raise
    except (StorageError, PeerError, MemoryShortError, DataError) as error:
        if isinstance(error, MemoryShortError):
            error.hint = f"go on with slim {command} --resume {run.path} {error.flag}"  # `slim run` has no such flag
        elif isinstance(error, PeerError):
            error.hint = f"go on with {way}"
        else:
            error.hint += f", then go on: {way}" if run.recipe.exists() else ", then start again"
        raise


def folder_of(path: Path) -> RunDir:
    """The run folder to go on with; `RunDirError` where there is none."""
    run = RunDir(path)
    run.read_recipe()
    return run
