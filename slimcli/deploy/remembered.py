"""Measurements of this machine that are kept between runs, in the user's cache folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout

from slimcli.disk import write_atomically
from slimcli.environment import environment
from slimcli.errors import StorageError

_PATIENCE = 60
"""Seconds to wait for another process that measures."""


def this_machine() -> str:
    """What the times of layers depend on."""
    where = environment()
    return f"{where['processor']}, onnxruntime {where['versions']['onnxruntime']}"


class Remembered:
    """A JSON file of the cache folder with an object for each machine. Where it cannot be had, nothing is remembered."""

    def __init__(self, name: str) -> None:
        self.path = Path(platformdirs.user_cache_dir("slimcli")) / name

    def here(self) -> dict[str, Any]:
        """What is known of this machine."""
        return self._read().get(this_machine(), {})

    def add(self, found: Mapping[str, Any]) -> None:
        """Remember this too; what is known already stays."""
        self.update(lambda known: {**found, **known})

    def update(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        """What `change` makes of what is known, which is remembered; of several processes one after the other does so."""
        with ExitStack() as held:
            lock = FileLock(self.path.with_suffix(".lock"), timeout=_PATIENCE)
            with suppress(OSError, Timeout):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock)
            machines, machine = self._read(), this_machine()
            before = machines.get(machine, {})
            after = change(dict(before))
            if lock.is_locked and after != before:
                with suppress(StorageError):
                    write_atomically(self.path, json.dumps(machines | {machine: after}, indent=1).encode())
            return after

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            machines = json.loads(self.path.read_text())
        except (OSError, ValueError):
            return {}
        return {key: each for key, each in machines.items() if isinstance(each, dict)} if isinstance(machines, dict) else {}
