"""The named combinations behind `--method`. Names only: listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimcli.errors import SettingsError, suggest
from slimcli.settings import PruneSettings


@dataclass(frozen=True)
class Method:
    """Which filters go (`criterion`) and what pulls the chosen pairs together first (`penalty`)."""

    criterion: str
    penalty: str
    summary: str


METHODS = {
    "hbfp": Method("history", "tie", "pairs whose norms ran alike over the training history, tied, the weaker one removed"),
    "hbfp-paper": Method("history", "exp", "the same with the paper's exponential penalty, its slope bounded"),
    "l1": Method("l1", "none", "the filters with the least l1-norm (a control)"),
    "random": Method("random", "none", "filters drawn at random (a control)"),
}
CRITERIA_NAMES = ("history", "l1", "random")


def resolve(settings: PruneSettings) -> PruneSettings:
    """The settings with the method's parts filled in where they were not overridden; `SettingsError` for unknown names."""
    if settings.method not in METHODS:
        raise SettingsError(f"there is no method {settings.method!r}", suggest(settings.method, METHODS))
    method = METHODS[settings.method]
    criterion = settings.criterion or method.criterion
    if criterion not in CRITERIA_NAMES:
        raise SettingsError(f"there is no criterion {criterion!r}", suggest(criterion, CRITERIA_NAMES))
    penalty = settings.penalty or (method.penalty if criterion == "history" else "none")
    if penalty != "none" and criterion != "history":
        raise SettingsError(
            f"--penalty {penalty} pulls pairs together, and the criterion {criterion} chooses none",
            "use --criterion history",
        )
    return replace(settings, criterion=criterion, penalty=penalty)
