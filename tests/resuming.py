"""Tools for tests that break a run off: a disk that fails, a process that dies, and what must be the same afterwards."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch

from slimcli.disk import Disk

KILLER = """
import os, signal, sys
from slimcli import disk
from slimcli.cli.main import main
from tests.resuming import DyingDisk

disk.disk = DyingDisk(sys.argv[1], int(sys.argv[2]))
main(sys.argv[3:])
"""
RANK_KILLER = """
import os, signal, sys
from slimcli import processes
from slimcli.cli.main import main
from slimcli.training import engine

rank, epoch, number = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
seed_everything, begun = engine.seed_everything, 0

def deadly(seed, done):
    global begun
    begun += 1
    if begun == epoch and processes.rank() == int(rank):
        os.kill(os.getpid(), number)
    seed_everything(seed, done)

engine.seed_everything = deadly
processes.command = [sys.executable, *sys.orig_argv[1:]]
main(sys.argv[4:])
"""
_ASIDE = {"seconds", "environment", "latency_ms", "speedup", "time"}


class CountingDisk(Disk):
    """Counts the operations; `before` is called with the number of each before it happens."""

    def __init__(self) -> None:
        self.count = 0

    def before(self, number: int, file: IO[bytes] | None = None, data: bytes = b"") -> None:
        pass

    def write(self, file: IO[bytes], data: bytes) -> None:
        self.count += 1
        self.before(self.count, file, data)
        super().write(file, data)

    def sync(self, handle: int) -> None:
        self.count += 1
        self.before(self.count)
        super().sync(handle)

    def cut(self, file: IO[bytes], size: int) -> None:
        self.count += 1
        self.before(self.count)
        super().cut(file, size)

    def rename(self, source: Path, target: Path) -> None:
        self.count += 1
        self.before(self.count)
        super().rename(source, target)


class FailingDisk(CountingDisk):
    """Operation number `at` fails, and with `for_ever` every one from then on. A write that fails has written its half."""

    def __init__(self, at: int, fault: int = errno.ENOSPC, for_ever: bool = False) -> None:
        super().__init__()
        self.at, self.fault, self.for_ever = at, fault, for_ever

    def before(self, number: int, file: IO[bytes] | None = None, data: bytes = b"") -> None:
        if number == self.at or (self.for_ever and number > self.at):
            if file is not None:
                file.write(data[: len(data) // 2])
            raise OSError(self.fault, os.strerror(self.fault))


class DyingDisk(CountingDisk):
    """The process of this rank is killed before an operation (a write has then written its half).

    `when` is the operation's number; or `state 5`, the fifth time that a state is written; or `surgery 2`, the operation
    after the second surgery was noted, before its state is saved.
    """

    def __init__(self, when: str, rank: int = 0) -> None:
        super().__init__()
        kind, _, number = when.rpartition(" ")
        self.kind, self.at, self.rank, self.seen = kind, int(number), rank, 0

    def before(self, number: int, file: IO[bytes] | None = None, data: bytes = b"") -> None:
        if self._is_due(number, file, data) and int(os.environ.get("RANK", 0)) == self.rank:
            if file is not None:
                file.write(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_due(self, number: int, file: IO[bytes] | None, data: bytes) -> bool:
        if not self.kind:
            return number == self.at
        if self.kind == "state":
            self.seen += file is not None and ".last.pt." in str(file.name)
            return self.seen == self.at
        due = self.seen == self.at
        self.seen += b'"event": "surgery"' in data
        return due


def slim(*arguments: object) -> list[str]:
    """The command line of a real `slim` process."""
    return [sys.executable, "-m", "slimcli", *map(str, arguments)]


def call(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run it to its end; ten minutes are a hang."""
    return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=600, **options)


def end_of(folder: Path) -> dict[str, Any]:
    """What two runs must have in common to the last bit: weights, history, removals, metrics (seconds aside), epochs."""
    saved = torch.load(folder / "model.pt", weights_only=True)
    journal = [json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines()]
    return {
        "weights": {name: value.numpy().tobytes() for name, value in saved["state_dict"].items()},
        "history": {name: value.numpy().tobytes() for name, value in saved["history"]["layers"].items()},
        "removed": saved["removed"],
        "metrics": _without_times(json.loads((folder / "metrics.json").read_text())),
        "events": [_without_times(event) for event in journal if event["event"] in ("epoch", "surgery", "iteration", "end")],
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key not in _ASIDE}
    return [_without_times(part) for part in value] if isinstance(value, list) else value
