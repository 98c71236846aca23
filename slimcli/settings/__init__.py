"""The settings of a run: what the flags and a recipe's keys become. Checked when made; no torch here.

One key, one flag: `weight_decay` is `--weight-decay` on the command line and `weight_decay` in `recipe.toml`; a trailing
underscore only keeps clear of Python's keywords (`lambda_` is `--lambda` and `lambda`).
"""

from __future__ import annotations

from slimcli.settings.exporting import CALIBRATIONS, FORMATS, ExportSettings, Int8Settings
from slimcli.settings.pruning import (
    AUTO,
    DISTANCES,
    FINALS,
    FLOW_DISTANCES,
    FLOW_FORMS,
    FLOW_SAMPLES,
    FLOW_STOPS,
    GRADIENT_SAMPLES,
    GRANULARITIES,
    PENALTIES,
    SCOPES,
    STOPS,
    PruneSettings,
    check_pq,
    check_sap,
    milliseconds,
)
from slimcli.settings.training import DEVICES, NORMS, PRECISIONS, SCHEDULES, DataSettings, FitSettings, TrainSettings

MAY_CHANGE = ("device", "devices", "precision", "compile", "workers", "batch_size", "data_root")
"""What a run that goes on may be told anew: how and where it computes, not what."""

__all__ = [
    "AUTO",
    "CALIBRATIONS",
    "DEVICES",
    "DISTANCES",
    "FINALS",
    "FLOW_DISTANCES",
    "FLOW_FORMS",
    "FLOW_SAMPLES",
    "FLOW_STOPS",
    "FORMATS",
    "GRADIENT_SAMPLES",
    "GRANULARITIES",
    "MAY_CHANGE",
    "NORMS",
    "PENALTIES",
    "PRECISIONS",
    "SCHEDULES",
    "SCOPES",
    "STOPS",
    "DataSettings",
    "ExportSettings",
    "FitSettings",
    "Int8Settings",
    "PruneSettings",
    "TrainSettings",
    "check_pq",
    "check_sap",
    "milliseconds",
]
