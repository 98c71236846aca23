"""What a data set is to the rest: three loaders and what a network must know about the images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from slimcli.data.memory import Batch
from slimcli.records import JsonDict


class Loader(Protocol):
    """What training and evaluation read."""

    @property
    def samples(self) -> int:
        """How many images an epoch has."""

    def __len__(self) -> int: ...

    def epoch(self, index: int) -> Iterator[Batch]:
        """The batches of one epoch: normalised images (B, C, H, W) and labels (B,)."""


@dataclass(frozen=True)
class Data:
    """A data set, split and ready: every choice is made on `held_out`, `test` is only reported."""

    name: str
    shape: tuple[int, int, int]
    classes: int
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    train: Loader
    held_out: Loader
    test: Loader
    spec: JsonDict
    note: str = ""
