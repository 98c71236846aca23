"""The settings of `slim prune`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from slimcli.errors import SettingsError
from slimcli.settings.base import at_least, one_of, within
from slimcli.settings.training import NORMS, DataSettings, FitSettings

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
AUTO = "auto"
"""Widths in multiples that this machine runs fast; blocks left out where that saves most time."""
FINALS = ("finetune", "rewind", "fresh", "auto")


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
    latency: str | float | None = None
    widths: tuple[int, ...] | None = None
    round_to: int | str | tuple[int, ...] | None = None
    leave_out: tuple[str, ...] | None = None
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
        if self.latency is not None:
            milliseconds(self.latency, 1.0)
        for flag, count, least in (
            ("--iterations", self.iterations, 0),
            ("--window", self.window, 1),
            ("--draws", self.draws, 1),
        ):
            if count is not None:
                at_least(flag, count, least)
        for width in self.widths or ():
            at_least("--widths", width, 1)
        if self.round_to is not None:
            _check_multiples(self.round_to)
        if self.leave_out is not None:
            object.__setattr__(self, "leave_out", _names(self.leave_out))
        within("--max-drop", self.max_drop, 0.0, 10_000.0)  # of another score than top-1, percent: an error may grow tenfold
        within("--lambda", self.lambda_, 0.0, math.inf)
        one_of("--norm", self.norm, NORMS)
        one_of("--distance", self.distance, DISTANCES)
        if self.stop is not None:
            one_of("--stop", self.stop, STOPS)
        one_of("--granularity", self.granularity, GRANULARITIES)
        if len(self.pq) != 2:
            raise SettingsError(f"--pq takes two numbers, not {len(self.pq)}", "for example 0.5,1 or 1,2")
        check_pq(*self.pq)
        check_sap(self.gamma, self.beta, self.eta)
        one_of("--scope", self.scope, SCOPES)
        if self.epsilon is not None:
            within("--epsilon", self.epsilon, 0.0, math.inf)
        within("--margin", self.margin, 0.0, 100.0)
        one_of("--flow-form", self.flow_form, FLOW_FORMS)
        one_of("--flow-distance", self.flow_distance, FLOW_DISTANCES)
        if self.flow_samples is not None:
            at_least("--flow-samples", self.flow_samples, 2)
        if self.final is not None:
            one_of("--final", self.final, FINALS)
        if self.final_lr is not None:
            within("--final-lr", self.final_lr, 0.0, math.inf, open_low=True)
        within("--distill-weight", self.distill_weight, 0.0, 1.0, open_low=True)
        within("--distill-temperature", self.distill_temperature, 0.0, math.inf, open_low=True)
        if self.teacher is not None and self.distill is False:
            raise SettingsError("--teacher goes with --distill", "leave --no-distill out, or --teacher")
        if self.penalty is not None:
            one_of("--penalty", self.penalty, PENALTIES)
        for flag, epochs in (
            ("--observe-epochs", self.observe_epochs),
            ("--tie-epochs", self.tie_epochs or 0),
            ("--epochs", self.epochs or 0),
            ("--final-epochs", self.final_epochs),
        ):
            at_least(flag, epochs, 0)

    @property
    def multiples(self) -> tuple[int, ...]:
        """The numbers of `--round-to`; none where they are measured, or widths are not rounded."""
        if self.round_to is None or isinstance(self.round_to, str):
            return ()
        return (self.round_to,) if isinstance(self.round_to, int) else self.round_to

    @property
    def sized(self) -> bool:
        """Whether there is a budget in what the network costs."""
        return any((self.macs, self.params, self.widths, self.latency))


def _check_multiples(round_to: int | str | tuple[int, ...]) -> None:
    if isinstance(round_to, str) and round_to != AUTO:
        raise SettingsError(f"--round-to {round_to!r} is no multiple", "give a number, one per group (4,8), or auto")
    if round_to == ():
        raise SettingsError("--round-to names no multiple", "give a number, one per group (4,8), or auto")
    for multiple in () if isinstance(round_to, str) else (round_to,) if isinstance(round_to, int) else round_to:
        at_least("--round-to", multiple, 1)


def _names(blocks: str | Sequence[str]) -> tuple[str, ...] | None:
    """`--leave-out` as a tuple, a single name too; None for none at all."""
    names = (blocks,) if isinstance(blocks, str) else tuple(blocks)
    if AUTO in names and len(names) > 1:
        raise SettingsError(
            "--leave-out auto chooses the blocks itself, and others are named beside it", "give auto alone, or names"
        )
    return names or None


def milliseconds(latency: str | float, dense: float) -> float:
    """The budget that `--latency` names: a time (`2ms`, `800us`, `0.1s`), or a share of what the dense network takes.

    Raises `SettingsError` for anything else.
    """
    match = _LATENCY.fullmatch(str(latency))
    number, unit = (float(match[1]), match[2]) if match else (0.0, "")
    if unit in _TIMES and number > 0:
        return number * _TIMES[unit]
    if unit in _SHARES and 0 < number * _SHARES[unit] <= 1:
        return number * _SHARES[unit] * dense
    raise SettingsError(
        f"--latency {latency} is neither a time nor a share of the dense network's",
        "write a time with its unit (2ms, 800us), or a fraction of at most 1 (0.5, 50%)",
    )


_LATENCY = re.compile(r"(\d+\.?\d*|\.\d+)\s*(us|ms|s|%|)")
_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SHARES = {"": 1.0, "%": 0.01}


def check_pq(p: float, q: float) -> None:
    """Raise `SettingsError` unless p and q are what the PQ-index is defined for."""
    if not (0 < p <= 1 <= q < math.inf and p < q):
        raise SettingsError(
            f"--pq {p:g},{q:g} is outside 0 < p <= 1 <= q with p < q", "use 1,2, or 0.5,1 to remove less at a time"
        )


def check_sap(gamma: float, beta: float, eta: float) -> None:
    """Raise `SettingsError` for parameters of SAP's step that are outside their ranges."""
    within("--gamma", gamma, 0.0, math.inf, open_low=True)
    within("--beta", beta, 0.0, 1.0, open_low=True)
    within("--eta", eta, 0.0, math.inf)
