"""Where a run stands: what its journal says, whether its process lives, and how to go on if it does not."""

from __future__ import annotations

import fcntl
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slimcli.measures import SCORE_KEYS
from slimcli.records import JsonDict
from slimcli.report.journal import Tail, fields, last, of_kind
from slimcli.rundir import RunDir


@dataclass(frozen=True)
class Standing:
    """A run at one moment. Phase, loss and training top-1 are the newest epoch's; `epoch` says how many are done in the phase.

    Of a recipe everything but the state is that of the newest `step`.
    `pid` is the process that works on it: 0 where its number is not known, None where there is none.
    """

    run: Path
    command: Literal["train", "prune", "run"]
    step: str
    state: Literal["running", "finished", "stopped"]
    pid: int | None
    start: JsonDict
    phase: str
    epoch: int
    epochs: int | None
    loss: float | None
    top1: float | None
    losses: tuple[float, ...]
    iterations: tuple[JsonDict, ...]
    seconds: float
    remark: str
    reason: str
    shortfall: str

    @property
    def way_on(self) -> str:
        """The command line that takes the run up again, where it has stopped before its end."""
        return way_on(self.run, self.command) if self.state == "stopped" else ""

    def to_json(self) -> JsonDict:
        """The object that `slim watch --json` prints."""
        shown = ("state", "phase", "epoch", "epochs", "loss", "top1", "seconds", "pid", "remark", "reason", "shortfall", "way_on")
        dense = self.start.get("dense", {})
        return {
            "run": str(self.run),
            "step": self.step,
            **{key: self.start.get(key) for key in ("arch", "data", "method")},
            **{key: getattr(self, key) for key in shown},
            "dense": {key: dense.get(key) for key in ("top1", "macs", "params")}
            | {key: dense[key] for key in SCORE_KEYS if key in dense},
            "iterations": list(self.iterations),
        }


class Watch:
    """Looks at a run again and again: of a recipe's folder, or one with runs in it, at the newest of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tail: Tail | None = None

    def look(self) -> Standing:
        """The run as it is now; `RunDirError` where there is none."""
        whole = RunDir(self._folder if (self._folder / "recipe.toml").exists() else _newest(self._folder))
        recipe = whole.read_recipe()
        steps = _steps(recipe)
        run = RunDir(_newest(whole.path)) if steps else whole
        if self._tail is None or self._tail.path != run.journal:
            self._tail = Tail(run.journal)
        # The process first: whatever it wrote before it went away is then in the journal.
        pid = next((pid for path in (whole.path, run.path) if (pid := owner(path)) is not None), None)
        events = self._tail.read()
        start, epoch, end, finished = (last(events, kind) or {} for kind in ("start", "epoch", "end", "finished"))
        if end and not finished:
            epoch = {"phase": "deploy"}
        complete = len(of_kind(whole.read_journal(), "step")) == steps if steps else bool(finished)
        return Standing(
            run=whole.path,
            command="run" if steps else "train" if "train" in recipe else "prune",
            step=run.path.name if run is not whole else "",
            state="finished" if complete else "stopped" if pid is None else "running",
            pid=pid,
            start=start,
            phase=epoch.get("phase", ""),
            epoch=epoch.get("index", -1) + 1,
            epochs=epoch.get("epochs"),
            loss=epoch.get("loss"),
            top1=epoch.get("top1"),
            losses=tuple(event["loss"] for event in of_kind(events, "epoch")),
            iterations=tuple(fields(step) for step in of_kind(events, "iteration")),
            seconds=worked_seconds(events, run.journal.stat().st_mtime if pid is None or finished else time.time()),
            remark=_remark(events),
            reason=end.get("reason", ""),
            shortfall=finished.get("shortfall", ""),
        )


def _newest(folder: Path) -> Path:
    """The newest run below the folder; the folder itself where there is none."""
    return max(folder.glob("*/journal.jsonl"), key=lambda path: path.stat().st_mtime, default=folder / "journal.jsonl").parent


def _steps(recipe: JsonDict) -> int:
    """How many steps with folders of their own a recipe has; 0 for the recipe of one run."""
    return len(recipe["prune"]) + ("train" in recipe) if isinstance(recipe.get("prune"), list) else 0


def owner(folder: Path) -> int | None:
    """The process that works on a run folder, 0 where it does not say its number; None where there is none.

    The process holds a lock as long as it lives, however it ends; its number alone may by now be another process's.
    """
    try:
        with (folder / ".lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                number = lock.read(20).strip()
                return int(number) if number.isdigit() else 0
    except OSError:
        pass
    return None


def way_on(folder: Path, command: str) -> str:
    """The command line that takes a stopped run up again."""
    return f"slim {command} --resume {shlex.quote(str(folder))}"


def worked_seconds(events: Sequence[JsonDict], until: float) -> float:
    """How long the run has worked: since it began or was taken up again, and in the epochs before that."""
    started = last(events, "start", "resumed") or {}
    return earlier_seconds(events) + (max(0.0, until - started["time"]) if "time" in started else 0.0)


def earlier_seconds(events: Sequence[JsonDict]) -> float:
    """How long a run had trained when it was last taken up; 0 for one that was never interrupted."""
    done = before = 0.0
    for event in events:
        if event.get("event") == "epoch":
            done += event.get("seconds", 0.0)
        elif event.get("event") in ("start", "resumed"):
            before = done
    return before


def _remark(events: Sequence[JsonDict]) -> str:
    """The newest thing that happened to the run, if it did not just go on."""
    event = last(events, "diverged", "resumed", "interrupted") or {}
    if event.get("event") == "diverged":
        return f"{event['message']}; it went on from the last good state with a learning rate of {event['lr']:.2g}"
    return {"resumed": "it was taken up again after an interruption", "interrupted": "it was interrupted"}.get(
        event.get("event", ""), ""
    )
