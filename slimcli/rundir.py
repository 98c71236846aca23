"""Every path of a run folder, and how files are written into one: whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

import tomli_w

from slimcli.errors import RunDirError
from slimcli.records import JsonDict


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it: `path` is old or new, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def free_path(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, ... that does not exist."""
    return next(
        p for p in itertools.chain([path], (path.with_name(f"{path.name}-{n}") for n in itertools.count(2))) if not p.exists()
    )


def default_path(arch: str, what: str) -> Path:
    """`runs/<arch>-<what>`, numbered when taken."""
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
        self.metrics = self.path / "metrics.json"
        self.report = self.path / "report.html"
        self.last_good = self.state / "last.pt"
        self._lock: IO[str] | None = None

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
        if not any(self.path.iterdir()):
            return
        if not (self.recipe.exists() and self.journal.exists()):
            raise RunDirError(f"{self.path} holds files that are no run", "name another folder with -o; it is left as it is")
        if not overwrite:
            raise RunDirError(f"{self.path} already holds a run", "name another folder with -o, or pass --overwrite")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def create(self, recipe: JsonDict, overwrite: bool = False) -> Self:
        """Make the folder, take its lock, drop an overwritten run's files and write `recipe.toml`.

        The lock is held until the `with` block around the run ends.
        """
        self.check_free(overwrite)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._impossible(error) from error
        self._take_lock()
        for old in (self.journal, self.model, self.onnx, self.dense_onnx, self.metrics, self.report):
            old.unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
        self.state.mkdir()
        write_atomically(self.recipe, lambda path: path.write_text(tomli_w.dumps(recipe)))
        self.journal.touch()
        return self

    def _impossible(self, error: OSError) -> RunDirError:
        return RunDirError(f"{self.path} cannot be made: {error.strerror}", "name another folder with -o")

    def _take_lock(self) -> None:
        self._lock = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            self._lock = None
            raise RunDirError(
                f"{self.path} is in use by process {owner}", "wait for it, or name another folder with -o"
            ) from None
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()

    def append(self, event: str, **fields: Any) -> None:
        """One line at the end of the journal."""
        with self.journal.open("ab+") as file:
            if file.tell() and file.seek(-1, os.SEEK_END) and file.read() != b"\n":
                file.write(b"\n")  # a line that was cut off stays alone
            file.write((json.dumps({"event": event, **fields}) + "\n").encode())

    def read_journal(self) -> list[JsonDict]:
        """The journal's lines; lines that were cut off are left out."""
        events = []
        for line in self._existing(self.journal).read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                events.append(json.loads(line))
        return events

    def write_metrics(self, metrics: JsonDict) -> None:
        """Replace `metrics.json`."""
        write_atomically(self.metrics, lambda path: path.write_text(json.dumps(metrics, indent=1) + "\n"))

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
            raise RunDirError(f"{self.path} has no {path.name}", "the run did not get that far, or this is no run folder")
        return path
