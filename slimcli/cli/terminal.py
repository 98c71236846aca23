"""Progress on stderr: bars on a terminal, one line a phase in a file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from slimcli.progress import Phase, Progress

stderr = Console(stderr=True, soft_wrap=True, highlight=False)

_TELL_EVERY = 60  # seconds, in a file: a long phase would seem to hang


class Terminal(Progress):
    """Bars with loss, accuracy and time left on a terminal; one line a phase where stderr is a file."""

    def say(self, message: str) -> None:
        stderr.print(message, markup=False)

    def warn(self, message: str) -> None:
        stderr.print(f"note: {message}", style="yellow", markup=False)

    @contextmanager
    def phase(self, name: str, epochs: int, batches: int, done: int = 0) -> Iterator[Phase]:
        if not stderr.is_terminal:
            line = _Line(name, epochs - done, batches)
            yield line
            if line.seconds >= 10:  # shorter ones would drown what matters
                self.say(line.summary())
            return
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[accuracy]}  left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=stderr, transient=True) as bars:
            yield _Bar(bars, name, epochs * batches, done * batches)


class _Bar:
    def __init__(self, bars: Bars, name: str, steps: int, done: int) -> None:
        self._bars = bars
        self._task = bars.add_task(name, total=steps, completed=done, loss="-", accuracy="")

    def step(self, loss: float | None, accuracy: float | None) -> None:
        if loss is None:
            self._bars.advance(self._task)
        else:
            known = "" if accuracy is None else f"  top-1 {accuracy:5.1f} %"
            self._bars.update(self._task, advance=1, loss=f"{loss:.3f}", accuracy=known)


class _Line:
    def __init__(self, name: str, epochs: int, batches: int) -> None:
        self._name, self._epochs, self._started = name, epochs, time.perf_counter()
        self._batches, self._steps, self._told = batches, 0, self._started
        self._last = "loss unknown"

    def step(self, loss: float | None, accuracy: float | None) -> None:
        self._steps += 1
        if loss is None:
            return
        self._last = f"loss {loss:.3f}" + ("" if accuracy is None else f", training top-1 {accuracy:.1f} %")
        now = time.perf_counter()
        if now - self._told > _TELL_EVERY:
            self._told = now
            share = self._steps / (self._epochs * self._batches)
            left = (now - self._started) * (1 - share) / share
            so_far = f"{self._name}: {share:.0%}, {self._last}, {left:.0f} s left"
            stderr.print(so_far, markup=False)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def summary(self) -> str:
        return f"{self._name}: {self._epochs} epoch(s), {self._last}, {self.seconds:.1f} s"
