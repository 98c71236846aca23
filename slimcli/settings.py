"""The settings of a run: what the flags and a recipe's keys become. Checked when made; no torch here.

One key, one flag: `weight_decay` is `--weight-decay` on the command line and `weight_decay` in `recipe.toml`; a trailing
underscore only keeps clear of Python's keywords (`lambda_` is `--lambda` and `lambda`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from slimcli.errors import SettingsError, suggest

SCHEDULES = ("onecycle", "cosine", "constant")
NORMS = ("l1", "l2")
DISTANCES = ("l1", "l2", "cosine")
PENALTIES = ("tie", "exp", "weights", "correlation", "scales", "none")
STOPS = ("epochs", "accuracy", "plateau", "if", "gf", "flow")
FLOW_STOPS = ("if", "gf")
FLOW_SAMPLES, GRADIENT_SAMPLES = 2048, 8192
"""On how many images an information flow, and a gradient flow, is measured: as few as decide what all images do
(`docs/incop.md`).
"""
GRANULARITIES = ("filter", "weight")
SCOPES = ("layer", "global")
FLOW_FORMS = ("correlation", "raw")
FLOW_DISTANCES = ("relative", "absolute", "cosine")
FINALS = ("finetune", "rewind", "fresh", "auto")
CALIBRATIONS = ("percentile", "entropy", "minmax")
FORMATS = ("onnx", "int8", "fp16", "pt2")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "32", "bf16")
MAY_CHANGE = ("device", "devices", "precision", "compile", "workers", "batch_size", "data_root")
"""What a run that goes on may be told anew: how and where it computes, not what."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    @classmethod
    def from_recipe(cls, table: Mapping[str, Any]) -> Self:
        """Settings from a recipe's table; lists become tuples; an unknown key is refused with the nearest known one."""
        known = {field.name.rstrip("_"): field.name for field in fields(cls)}
        for key in table:
            if key not in known:
                raise SettingsError(f"the recipe's [{cls.table()}] has an unknown key {key!r}", suggest(key, known))
        missing = [key for key, name in known.items() if key not in table and _is_required(cls, name)]
        if missing:
            raise SettingsError(f"the recipe's [{cls.table()}] lacks {missing[0]!r}", "add it")
        values = {known[key]: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
        hints = get_type_hints(cls)
        for name, value in values.items():
            if not _is_a(value, hints[name]):
                raise SettingsError(
                    f"the recipe's [{cls.table()}] has {name.rstrip('_')} = {value!r}, which is of another type",
                    f"it must be {_in_words(hints[name])}",
                )
        return cls(**values)

    def to_recipe(self) -> dict[str, Any]:
        """Every setting that has a value (TOML knows no null)."""
        return {key.rstrip("_"): value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def table(cls) -> str:
        """The recipe table's name."""
        return cls.__name__.removesuffix("Settings").lower()


def _is_a(value: Any, hint: Any) -> bool:
    if get_origin(hint) is UnionType:
        return any(_is_a(value, option) for option in get_args(hint))
    if get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(_is_a(item, get_args(hint)[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is UnionType:
        return " or ".join(_in_words(option) for option in get_args(hint) if option is not NoneType)
    if get_origin(hint) is tuple:
        return f"a list of {_in_words(get_args(hint)[0])}"
    return {int: "whole numbers", float: "numbers", str: "text", bool: "true or false"}[hint]


def _is_required(cls: type[_Settings], name: str) -> bool:
    return name in cls.__annotations__ and not hasattr(cls, name)


@dataclass(frozen=True, kw_only=True)
class DataSettings(_Settings):
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
            _within("--holdout", self.holdout, 0.0, 0.5, open_low=True)
        if (self.mean is None) != (self.std is None):
            raise SettingsError("--mean and --std only make sense together", "give both, or neither")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise SettingsError(f"--mean {self.mean} has a value that is not finite", "give fractions of 1")
        if self.std is not None and not all(0 < s < math.inf for s in self.std):
            raise SettingsError(f"--std {self.std} has a value that is not above 0", "give one positive number per channel")
        if self.classes is not None:
            _at_least("--classes", self.classes, 1)
        if self.train_samples is not None:
            _at_least("--train-samples", self.train_samples, 1)
        if self.workers is not None:
            _at_least("--workers", self.workers, 0)


@dataclass(frozen=True, kw_only=True)
class FitSettings(_Settings):
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
        _at_least("--batch-size", self.batch_size, 1)
        _within("--lr", self.lr, 0.0, math.inf, open_low=True)
        _within("--momentum", self.momentum, 0.0, 1.0)
        _within("--weight-decay", self.weight_decay, 0.0, math.inf)
        _within("--clip-norm", self.clip_norm, 0.0, math.inf)
        _within("--label-smoothing", self.label_smoothing, 0.0, 1.0)
        _one_of("--schedule", self.schedule, SCHEDULES)
        _one_of("--device", self.device, DEVICES)
        _at_least("--devices", self.devices, 1)
        _one_of("--precision", self.precision, PRECISIONS)
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
        _at_least("--epochs", self.epochs, 1)
        _one_of("--norm", self.norm, NORMS)


@dataclass(frozen=True, kw_only=True)
class PruneSettings(DataSettings, FitSettings):
    """`slim prune`. The method's own parts (criterion, penalty) are None until `methods.resolve` fills them in."""

    model: str = ""
    lr: float = 0.02
    method: str = "hbfp"
    arch: str | None = None
    history: tuple[str, ...] | None = None
    trust_pickle: bool = False
    macs: float | None = None
    params: float | None = None
    widths: tuple[int, ...] | None = None
    round_to: int | None = None
    iterations: int | None = None
    max_drop: float = 1.0
    criterion: str | None = None
    penalty: str | None = None
    merge: bool | None = None
    amount: str | None = None
    pq: tuple[float, ...] = (0.5, 1.0)
    gamma: float = 1.0
    beta: float = 0.9
    eta: float = 0.0
    scope: str = "layer"
    granularity: str = "filter"
    rewind: bool | None = None
    stop: str | None = None
    epsilon: float | None = None
    margin: float = 0.5
    flow_form: str = "correlation"
    flow_distance: str = "relative"
    flow_samples: int | None = None
    lambda_: float = 1.0
    norm: str = "l1"
    distance: str = "l1"
    window: int | None = None
    linear: bool = False
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    observe_epochs: int = 3
    tie_epochs: int | None = None
    epochs: int | None = None
    final_epochs: int = 20
    final: str | None = None
    final_lr: float | None = None
    draws: int | None = None
    distill: bool | None = None
    distill_weight: float = 0.5
    distill_temperature: float = 4.0
    teacher: str | None = None
    deploy: bool = True

    def __post_init__(self) -> None:
        DataSettings.__post_init__(self)
        FitSettings.__post_init__(self)
        for flag, fraction in (("--macs", self.macs), ("--params", self.params)):
            if fraction is not None and not 0 < fraction <= 1:
                raise SettingsError(f"{flag} {fraction:g} is outside (0, 1]", "give the fraction to keep: 0.25 keeps a quarter")
        for flag, count, least in (
            ("--iterations", self.iterations, 0),
            ("--window", self.window, 1),
            ("--draws", self.draws, 1),
            ("--round-to", self.round_to, 1),
        ):
            if count is not None:
                _at_least(flag, count, least)
        for width in self.widths or ():
            _at_least("--widths", width, 1)
        _within("--max-drop", self.max_drop, 0.0, 10_000.0)  # of another score than top-1, percent: an error may grow tenfold
        _within("--lambda", self.lambda_, 0.0, math.inf)
        _one_of("--norm", self.norm, NORMS)
        _one_of("--distance", self.distance, DISTANCES)
        if self.stop is not None:
            _one_of("--stop", self.stop, STOPS)
        _one_of("--granularity", self.granularity, GRANULARITIES)
        if len(self.pq) != 2:
            raise SettingsError(f"--pq takes two numbers, not {len(self.pq)}", "for example 0.5,1 or 1,2")
        check_pq(*self.pq)
        check_sap(self.gamma, self.beta, self.eta)
        _one_of("--scope", self.scope, SCOPES)
        if self.epsilon is not None:
            _within("--epsilon", self.epsilon, 0.0, math.inf)
        _within("--margin", self.margin, 0.0, 100.0)
        _one_of("--flow-form", self.flow_form, FLOW_FORMS)
        _one_of("--flow-distance", self.flow_distance, FLOW_DISTANCES)
        if self.flow_samples is not None:
            _at_least("--flow-samples", self.flow_samples, 2)
        if self.final is not None:
            _one_of("--final", self.final, FINALS)
        if self.final_lr is not None:
            _within("--final-lr", self.final_lr, 0.0, math.inf, open_low=True)
        _within("--distill-weight", self.distill_weight, 0.0, 1.0, open_low=True)
        _within("--distill-temperature", self.distill_temperature, 0.0, math.inf, open_low=True)
        if self.teacher is not None and self.distill is False:
            raise SettingsError("--teacher goes with --distill", "leave --no-distill out, or --teacher")
        if self.penalty is not None:
            _one_of("--penalty", self.penalty, PENALTIES)
        for flag, epochs in (
            ("--observe-epochs", self.observe_epochs),
            ("--tie-epochs", self.tie_epochs or 0),
            ("--epochs", self.epochs or 0),
            ("--final-epochs", self.final_epochs),
        ):
            _at_least(flag, epochs, 0)


@dataclass(frozen=True, kw_only=True)
class ExportSettings(_Settings):
    """`slim export`: format and opset of the file, how near it must come, what goes into it beside the network."""

    format: str = "onnx"
    tolerance: float | None = None
    opset: int | None = None
    pixels: bool = False
    probabilities: bool = False

    def __post_init__(self) -> None:
        _one_of("--format", self.format, FORMATS)
        if self.tolerance is not None:
            _within("--tolerance", self.tolerance, 0.0, math.inf)
        if self.opset is not None and self.format == "pt2":
            raise SettingsError("--opset is ONNX's", "leave it out with --pt2")
        if self.opset is not None:
            _at_least("--opset", self.opset, 1)


@dataclass(frozen=True, kw_only=True)
class Int8Settings(_Settings):
    """`slim export --int8`: what the ranges are taken from, what stays in float, and how much may be lost on the test split."""

    calibration: str = "percentile"
    calibration_images: int = 512
    keep_float: tuple[str, ...] | None = None
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        _one_of("--calibration", self.calibration, CALIBRATIONS)
        _at_least("--calibration-images", self.calibration_images, 1)
        _within("--max-drop", self.max_drop, 0.0, 10_000.0)


def check_pq(p: float, q: float) -> None:
    """Raise `SettingsError` unless p and q are what the PQ-index is defined for."""
    if not (0 < p <= 1 <= q < math.inf and p < q):
        raise SettingsError(
            f"--pq {p:g},{q:g} is outside 0 < p <= 1 <= q with p < q", "use 1,2, or 0.5,1 to remove less at a time"
        )


def check_sap(gamma: float, beta: float, eta: float) -> None:
    """Raise `SettingsError` for parameters of SAP's step that are outside their ranges."""
    _within("--gamma", gamma, 0.0, math.inf, open_low=True)
    _within("--beta", beta, 0.0, 1.0, open_low=True)
    _within("--eta", eta, 0.0, math.inf)


def _within(flag: str, value: float, low: float, high: float, open_low: bool = False) -> None:
    if not (low < value if open_low else low <= value) or not value <= high or math.isinf(value):
        bounds = f"{'above' if open_low else 'at least'} {low:g} and " + ("finite" if math.isinf(high) else f"at most {high:g}")
        raise SettingsError(f"{flag} {value:g} is out of range", f"it must be {bounds}")


def _at_least(flag: str, value: int, low: int) -> None:
    if value < low:
        raise SettingsError(f"{flag} {value} is out of range", f"it must be at least {low}")


def _one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise SettingsError(f"{flag} {value!r} is not known", suggest(value, known))
