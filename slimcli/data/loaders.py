"""What a data set is to the rest: three loaders, and what a network must know about the images."""

from __future__ import annotations

from dataclasses import dataclass

from slimcli.measures import Loader, Task
from slimcli.records import JsonDict


@dataclass(frozen=True)
class Data:
    """A data set, split and ready: every choice is made on `held_out`, `test` is only reported."""

    name: str
    shape: tuple[int, ...]
    classes: int
    """How many the labels tell apart; 0 where there are none (`task`)."""
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    train: Loader
    held_out: Loader
    test: Loader
    spec: JsonDict
    notes: tuple[str, ...] = ()
    fingerprint: str = ""
    """Changes with any image or label; empty where nothing can be known of them."""

    @property
    def task(self) -> Task:
        """What its networks are trained towards and judged by."""
        return self.train.task
