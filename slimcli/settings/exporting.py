"""The settings of `slim export`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slimcli.errors import SettingsError
from slimcli.settings.base import Settings, at_least, one_of, within

FORMATS = ("onnx", "int8", "fp16", "pt2")
CALIBRATIONS = ("percentile", "entropy", "minmax")


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """`slim export`: format and opset of the file, how near it must come, what goes into it beside the network."""

    format: str = "onnx"
    tolerance: float | None = None
    opset: int | None = None
    pixels: bool = False
    probabilities: bool = False

    def __post_init__(self) -> None:
        one_of("--format", self.format, FORMATS)
        if self.tolerance is not None:
            within("--tolerance", self.tolerance, 0.0, math.inf)
        if self.opset is not None and self.format == "pt2":
            raise SettingsError("--opset is ONNX's", "leave it out with --pt2")
        if self.opset is not None:
            at_least("--opset", self.opset, 1)


@dataclass(frozen=True, kw_only=True)
class Int8Settings(Settings):
    """`slim export --int8`: what the ranges are taken from, what stays in float, and how much may be lost on the test split."""

    calibration: str = "percentile"
    calibration_images: int = 512
    keep_float: tuple[str, ...] | None = None
    max_drop: float = 1.0

    def __post_init__(self) -> None:
        one_of("--calibration", self.calibration, CALIBRATIONS)
        at_least("--calibration-images", self.calibration_images, 1)
        within("--max-drop", self.max_drop, 0.0, 10_000.0)
