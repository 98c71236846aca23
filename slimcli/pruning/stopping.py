"""When retraining has done enough: rules that look at what is known before it and after each of its epochs, and one that gives
out epochs for what a removal broke. None sees a test image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PLATEAU = 0.02
"""A training loss that fell by less than this share in an epoch no longer falls."""

NEARER = 0.1
"""A flow whose distance fell by less than this share in an epoch comes no nearer; fixed on LeNet-5 and Fashion-MNIST, where 0.02
takes a third more epochs for the same accuracy.
"""

PER_EPOCH = 0.15
"""The share of an information flow that removals may break for each epoch of retraining (`allotment`)."""

_ENDLESS = 10**9
"""More epochs than any retraining has."""


@dataclass(frozen=True)
class Look:
    """What is known after an epoch of retraining, or before the first.

    The mean training loss (None before the first epoch); where the rule asks for it, the score on the held-out split, or the
    distance of the network's flow from the dense network's, and the layers (or pairs of consecutive ones) that are furthest away.
    """

    loss: float | None
    score: float | None = None
    distance: float | None = None
    furthest: tuple[tuple[str, float], ...] = ()


class Rule(Protocol):
    """A stopping rule."""

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether to stop after these looks: the first is before any epoch, the others after one each."""


@dataclass(frozen=True)
class AllEpochs:
    """As many epochs as were asked for."""

    def enough(self, looks: Sequence[Look]) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class Allotted:
    """As many epochs as `flow` gives out (`allotment`); not met where the retraining has not so many."""

    epochs: int

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether they are done."""
        return len(looks) > self.epochs


@dataclass(frozen=True)
class AccuracyBack:
    """The score on the held-out split is back at `target`; `higher` says whether more of it is better."""

    target: float
    higher: bool = True

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there."""
        score = looks[-1].score
        return score is not None and (score >= self.target if self.higher else score <= self.target)


@dataclass(frozen=True)
class LossPlateau:
    """The training loss fell by less than `share` of itself in the last epoch."""

    share: float = PLATEAU

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether it no longer falls; after one epoch nothing is known."""
        return _no_longer_falls([look.loss for look in looks], self.share)


@dataclass(frozen=True)
class FlowWithin:
    """The flow is within `epsilon` of the dense network's after an epoch of retraining: InCoP's Algorithm 1."""

    epsilon: float

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there; the first is before any epoch, and the algorithm begins with one."""
        distance = looks[-1].distance
        return len(looks) > 1 and distance is not None and distance <= self.epsilon


@dataclass(frozen=True)
class FlowNoNearer:
    """The flow is as near the dense network's as training brings it: the last epoch took less than `share` off the distance."""

    share: float = NEARER

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the distance no longer falls; the first is from before any epoch."""
        return _no_longer_falls([look.distance for look in looks], self.share)


def _no_longer_falls(values: Sequence[float | None], share: float) -> bool:
    """Whether the last value is less than `share` below the one before it; where either is not known, nothing is."""
    if len(values) < 2 or values[-2] is None or values[-1] is None:
        return False
    return values[-1] >= (1 - share) * values[-2]


def allotment(owed: float, per_epoch: float = PER_EPOCH) -> tuple[int, float]:
    """How many epochs a retraining should have for what removals broke of the flow, and what is carried over to the next.

    `owed` is the sum over the removals, less what epochs were given for, of `||after - before||^2 / ||before||^2`. So a removal
    that breaks little costs no epoch by itself, and a large one costs several. Beyond the retraining's limit none are given, then
    or later: a network that needs them for one removal has its limit again for the next.
    """
    if not per_epoch or not owed < _ENDLESS * per_epoch:
        return _ENDLESS, 0.0
    epochs = int(owed / per_epoch)
    return epochs, owed - epochs * per_epoch
