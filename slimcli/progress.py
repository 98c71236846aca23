"""How the jobs tell the outside what they are doing. The command line draws bars; from Python nothing is shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Phase(Protocol):
    """One stretch of training."""

    def step(self, loss: float | None, accuracy: float | None) -> None:
        """One batch is done; running mean loss of this epoch where it was read, and accuracy (percent) where there is one."""


class Progress:
    """Silent. `slimcli.cli.console` draws it."""

    def say(self, message: str) -> None:
        """One line about what happens next, or happened."""

    def warn(self, message: str) -> None:
        """Something that the user should know before trusting the result."""

    @contextmanager
    def phase(self, name: str, epochs: int, batches: int, done: int = 0) -> Iterator[Phase]:
        """A stretch of training of `epochs` x `batches` steps, of which `done` epochs lie behind."""
        yield _SilentPhase()


class _SilentPhase:
    def step(self, loss: float | None, accuracy: float | None) -> None:
        pass
