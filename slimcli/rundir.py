"""Every path of a run folder, its lock, its journal and its state."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import re
import shutil
import time
import tomllib
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, Self

import tomli_w

from slimcli import disk
from slimcli.disk import write_atomically
from slimcli.errors import RunDirError
from slimcli.records import JsonDict


def free_path(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    return next(
        p for p in itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))) if not p.exists()
    )


def default_path(arch: str, what: str) -> Path:
    """`runs/<arch>-<what>`, numbered when taken."""
    arch = re.sub(r"(?<=\w)\(.*\)$", "", arch)  # without arguments
    name = arch.rpartition(":")[2] if ".py:" in arch or arch.startswith(("torchvision:", "timm:")) else arch
    return free_path(Path("runs") / f"{name.replace('/', '_').replace(':', '_')}-{what}")


class RunDir:
    """A run folder. Constructing it touches nothing; `create` makes it, and refuses to harm what is there."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.recipe = self.path / "recipe.toml"
        self.journal = self.path / "journal.jsonl"
        self.state = self.path / "state"
        self.model = self.path / "model.pt"
        self.onnx = self.path / "model.onnx"
        self.dense_onnx = self.path / "dense.onnx"
        self.int8 = self.path / "model.int8.onnx"
        self.dense_int8 = self.path / "dense.int8.onnx"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.card = self.path / "card.md"
        self.last_good = self.state / "last.pt"
        self.previous = self.state / "previous.pt"
        self.dense = self.state / "dense.pt"
        self.teacher = self.state / "teacher.pt"
        self._lock: IO[bytes] | None = None
        self._last_is_damaged = False

    def check_apart(self, inputs: Iterable[str | None]) -> None:
        """Raise `RunDirError` where the folder holds what the run is to start from: overwriting would destroy it."""
        for name in inputs:
            if name and Path(name).resolve().is_relative_to(self.path.resolve()):
                raise RunDirError(
                    f"{name} lies in {self.path}, the run folder that would be written", "name another folder with -o"
                )

    def check_free(self, overwrite: bool = False) -> None:
        """Raise `RunDirError` unless a new run may be written here: nothing there, or a run that may be overwritten."""
        try:
            exists = self.path.exists()
        except OSError as error:
            raise self._impossible(error) from error
        if not exists:
            return
        if not self.path.is_dir():
            raise RunDirError(f"{self.path} is a file, not a folder for a run", "name another folder with -o")
        if not self._holds_anything():
            return
        if not (self.recipe.exists() and self.journal.exists()):
            raise RunDirError(f"{self.path} holds files that are no run", "name another folder with -o; it is left as it is")
        if not overwrite:
            raise RunDirError(
                f"{self.path} already holds a run",
                f"go on with it (--resume {self.path}), name another folder with -o, or pass --overwrite",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            _held.discard(self._lock)
            self._lock.close()
            self._lock = None

    def create(self, recipe: JsonDict, overwrite: bool = False) -> Self:
        """Make the folder, take its lock, drop an overwritten run's files and write `recipe.toml`.

        The lock is held until the `with` block around the run ends. A folder without a recipe holds no run: it is
        written last, so that a folder that could not be finished is free again (and an old recipe stays until then).
        """
        self.check_free(overwrite)
        try:
            with disk.faults_named(self.path):
                self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._impossible(error) from error
        self._take_lock()
        exports = (self.onnx, self.dense_onnx, self.int8, self.dense_int8)
        for old in (self.model, *exports, self.metrics, self.report, self.card):
            old.unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
        disk.remove_leftovers(self.path)
        with disk.faults_named(self.state):
            self.state.mkdir()
            self.journal.open("wb").close()
        self.write_recipe(recipe)
        return self

    def write_recipe(self, recipe: JsonDict) -> None:
        """Replace `recipe.toml`."""
        write_atomically(self.recipe, tomli_w.dumps(recipe).encode())

    def reopen(self) -> Self:
        """Take the lock of a run that goes on; `RunDirError` where there is no run, or another process has it."""
        self._existing(self.recipe)
        self._existing(self.journal)
        self._take_lock()
        disk.remove_leftovers(self.path)
        self.state.mkdir(exist_ok=True)
        disk.remove_leftovers(self.state)
        return self

    def _holds_anything(self) -> bool:
        """Whether there is more than what `create` leaves behind where it cannot even write the recipe."""
        if self.recipe.exists():
            return True
        scaffold = {self.path / ".lock", self.state, self.journal, *self.path.glob(".recipe.toml.*.tmp")}
        if set(self.path.iterdir()) - scaffold or (self.state.exists() and any(self.state.iterdir())):
            return True
        return self.journal.exists() and self.journal.stat().st_size > 0

    def _impossible(self, error: OSError) -> RunDirError:
        return RunDirError(f"{self.path} cannot be made: {error.strerror}", "name another folder with -o")

    def _take_lock(self) -> None:
        lock = (self.path / ".lock").open("ab+", buffering=0)
        free = _locked(lock)
        if not free:
            time.sleep(0.05)  # `slim watch` looks at the lock for a moment
            free = _locked(lock)
        if not free:
            lock.seek(0)
            owner = lock.read().decode().strip() or "unknown"
            lock.close()
            raise RunDirError(f"{self.path} is in use by process {owner}", "wait for it, or name another folder with -o")
        self._lock = lock
        _held.add(lock)
        lock.truncate(0)
        with disk.faults_named(self.path / ".lock"):
            disk.disk.write(lock, str(os.getpid()).encode())

    def append(self, event: str, **fields: Any) -> None:
        """One line at the end of the journal."""
        line = (json.dumps({"event": event, **fields}) + "\n").encode()
        with disk.faults_named(self.journal, lambda: len(line)), self.journal.open("ab+", buffering=0) as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
                line = b"\n" + line  # a line that was cut off stays alone
            disk.disk.write(file, line)

    def journal_size(self) -> int:
        """How many bytes the journal has: a saved state belongs to the journal up to here."""
        return self.journal.stat().st_size

    def cut_journal(self, size: int) -> None:
        """Forget what was noted after a state was saved: it will happen again."""
        with disk.faults_named(self.journal), self.journal.open("ab") as file:
            disk.disk.cut(file, min(size, self.journal_size()))

    def finish(self, shortfall: str) -> None:
        """The journal's last line. There is nothing to go on with any more: the saved states, which may be large, are dropped."""
        self.append("finished", time=time.time(), shortfall=shortfall)
        self._sync_journal()
        self.drop_states()

    def drop_states(self) -> None:
        """Remove the saved states: under another name first, so that some of them without the others are never gone on with."""
        gone = self.path / ".state"
        if self.state.exists() and not gone.exists():
            self.state.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def save_state(self, content: disk.Content) -> None:
        """Make this the newest state and keep the one before; the journal reaches the disk first."""
        self._sync_journal()
        write_atomically(self.last_good, content, lambda temporary: self._step_back())
        self._last_is_damaged = False

    def _sync_journal(self) -> None:
        with disk.faults_named(self.journal), self.journal.open("ab", buffering=0) as journal:
            disk.disk.sync(journal.fileno())

    def _step_back(self) -> None:
        if self.last_good.exists() and not self._last_is_damaged:  # a damaged one never takes the place of a good one
            with disk.faults_named(self.previous):
                disk.disk.rename(self.last_good, self.previous)

    def newest_state(self) -> tuple[Path | None, str]:
        """The file of the newest undamaged state, and a remark where that is not the last one; None where none was saved yet.

        Raises `RunDirError` where there are states and all are damaged.
        """
        states = [path for path in (self.last_good, self.previous) if path.exists()]
        for path in states:
            if disk.is_intact(path):
                self._last_is_damaged = path == self.previous and self.last_good in states
                remark = f"{self.last_good} is damaged; going on from the state before it"
                return path, remark if self._last_is_damaged else ""
        if states:
            raise RunDirError(
                f"{' and '.join(map(str, states))} {'are' if len(states) > 1 else 'is'} damaged: nothing to go on from",
                f"start again from the recipe: slim run {self.recipe} -o ANOTHER_FOLDER",
            )
        return None, ""

    def read_journal(self) -> list[JsonDict]:
        """The journal's lines; lines that were cut off are left out."""
        events = []
        for line in self._existing(self.journal).read_text(errors="replace").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    def write_metrics(self, metrics: JsonDict) -> None:
        """Replace `metrics.json`."""
        write_atomically(self.metrics, (json.dumps(metrics, indent=1) + "\n").encode())

    def read_metrics(self) -> JsonDict:
        """What `metrics.json` holds; `RunDirError` where there is none."""
        try:
            return dict(json.loads(self._existing(self.metrics).read_text()))
        except (ValueError, TypeError) as error:
            raise RunDirError(f"{self.metrics} is damaged ({error})", "repeat the run: slim run recipe.toml") from error

    def read_recipe(self) -> JsonDict:
        """What `recipe.toml` holds; `RunDirError` where there is none."""
        try:
            return tomllib.loads(self._existing(self.recipe).read_text())
        except ValueError as error:
            raise RunDirError(f"{self.recipe} is damaged ({error})", "mend it, or prune again") from error

    def _existing(self, path: Path) -> Path:
        if not self.path.is_dir():
            raise RunDirError(f"there is no run folder {self.path}", "name a folder that `slim train` or `slim prune` wrote")
        if not path.exists():
            raise RunDirError(f"{self.path} has no {path.name}", "it was lost, or the run did not get that far: start it again")
        return path


_held: weakref.WeakSet[IO[bytes]] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked process (a loading worker): a lock is shared with it, and would be held until it ends."""
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_let_go)


def _locked(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
