"""The named combinations behind `--method`. Names only: listing them imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from slimcli.errors import SettingsError, suggest
from slimcli.settings import PruneSettings


@dataclass(frozen=True)
class Method:
    """Which filters go (`criterion`), how the chosen pairs are tied (`penalty`) and merged, how the last retraining starts."""

    criterion: str
    penalty: str
    merge: bool
    final: str
    summary: str


METHODS = {
    "hbfp": Method(
        "history",
        "weights",
        True,
        "auto",
        "pairs whose norms ran alike over the training history, tied in their weights and merged",
    ),
    "hbfp-paper": Method(
        "history",
        "exp",
        False,
        "finetune",
        "the paper's text: norms tied by its exponential penalty (slope bounded), the weaker one removed",
    ),
    "l1": Method("l1", "none", False, "finetune", "the filters with the least l1-norm (a control)"),
    "random": Method("random", "none", False, "finetune", "filters drawn at random (a control)"),
}
CRITERIA_NAMES = ("history", "random-pairs", "l1", "random")
_PAIRING = ("history", "random-pairs")


def resolve(settings: PruneSettings) -> PruneSettings:
    """The settings with the method's parts filled in where they were not overridden; `SettingsError` for unknown names."""
    if settings.method not in METHODS:
        raise SettingsError(f"there is no method {settings.method!r}", suggest(settings.method, METHODS))
    method = METHODS[settings.method]
    criterion = settings.criterion or method.criterion
    if criterion not in CRITERIA_NAMES:
        raise SettingsError(f"there is no criterion {criterion!r}", suggest(criterion, CRITERIA_NAMES))
    pairs = criterion in _PAIRING
    merge = settings.merge if settings.merge is not None else pairs and method.merge and settings.penalty in (None, "weights")
    penalty = settings.penalty or (("weights" if merge else method.penalty) if pairs else "none")
    if penalty == "weights" and settings.penalty is None and not merge:
        penalty = "tie"  # --no-merge without a word on the penalty: the paper's tie of norms
    for flag, wanted in ((f"--penalty {penalty}", penalty != "none"), ("--merge", merge)):
        if wanted and not pairs:
            raise SettingsError(
                f"{flag} is for pairs of filters, and the criterion {criterion} chooses none", "use --criterion history"
            )
    return replace(settings, criterion=criterion, penalty=penalty, merge=merge, final=settings.final or method.final)
