"""The settings of data and training, and of `slim train`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slimcli.errors import SettingsError
from slimcli.settings.base import Settings, at_least, one_of, within

SCHEDULES = ("onecycle", "cosine", "constant")
NORMS = ("l1", "l2")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "32", "bf16")


@dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """Which images, how they are normalised, and which part of the training images every choice is made on."""

    data: str | None = None
    data_root: str | None = None
    classes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    holdout: float | None = None
    val_data: str | None = None
    train_samples: int | None = None
    augment: str = "auto"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.holdout is not None:
            within("--holdout", self.holdout, 0.0, 0.5, open_low=True)
        if (self.mean is None) != (self.std is None):
            raise SettingsError("--mean and --std only make sense together", "give both, or neither")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"--mean {self.mean} has a value that is not finite", "give fractions of 1")
        if self.std is not None and not all(0 < s < math.inf for s in self.std):
            raise SettingsError(f"--std {self.std} has a value that is not above 0", "give one positive number per channel")
        if self.classes is not None:
            at_least("--classes", self.classes, 1)
        if self.train_samples is not None:
            at_least("--train-samples", self.train_samples, 1)
        if self.workers is not None:
            at_least("--workers", self.workers, 0)


@dataclass(frozen=True, kw_only=True)
class FitSettings(Settings):
    """How the network is trained, in every phase: SGD with Nesterov momentum."""

    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    clip_norm: float = 1.0
    schedule: str = "onecycle"
    seed: int = 0
    device: str = "auto"
    devices: int = 1
    precision: str = "auto"
    compile: bool = False

    def __post_init__(self) -> None:
        at_least("--batch-size", self.batch_size, 1)
        within("--lr", self.lr, 0.0, math.inf, open_low=True)
        within("--momentum", self.momentum, 0.0, 1.0)
        within("--weight-decay", self.weight_decay, 0.0, math.inf)
        within("--clip-norm", self.clip_norm, 0.0, math.inf)
        within("--label-smoothing", self.label_smoothing, 0.0, 1.0)
        one_of("--schedule", self.schedule, SCHEDULES)
        one_of("--device", self.device, DEVICES)
        at_least("--devices", self.devices, 1)
        one_of("--precision", self.precision, PRECISIONS)
        if not 0 <= self.seed < 2**63:
            raise SettingsError(f"--seed {self.seed} is out of range", "give a number from 0 and below 2**63")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(DataSettings, FitSettings):
    """`slim train`."""

    arch: str
    epochs: int = 20
    label_smoothing: float = 0.05
    norm: str = "l1"
    like: str | None = None

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        FitSettings.__post_init__(self)
        at_least("--epochs", self.epochs, 1)
        one_of("--norm", self.norm, NORMS)
