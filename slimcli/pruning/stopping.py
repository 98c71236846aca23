"""When retraining has done enough: rules that look at what is known before it and after each of its epochs, and one that gives
out epochs for what a removal broke. None sees a test image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PLATEAU = 0.02
"""A training loss that fell by less than this share in an epoch no longer falls."""

NEARLY_NONE = 0.9
"""The most that a drift may allow an information flow to be away, relatively or by cosine: one that is gone is 1 away."""

PER_EPOCH = 0.15
"""The share of an information flow that removals may break for each epoch of retraining (`allotment`)."""


@dataclass(frozen=True)
class Look:
    """What is known after an epoch of retraining, or before the first.

    The mean training loss (None before the first epoch); where the rule asks for it, the top-1 on the held-out split in percent,
    or the distance of the network's flow from the dense network's, and the layers (or pairs of consecutive ones) that are
    furthest away.
    """

    loss: float | None
    top1: float | None = None
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
    """As many epochs as `flow` gave out (`allotment`)."""

    epochs: int

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether they are done."""
        return len(looks) > self.epochs


@dataclass(frozen=True)
class AccuracyBack:
    """The top-1 on the held-out split is back at `target`, in percent."""

    target: float

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there."""
        top1 = looks[-1].top1
        return top1 is not None and top1 >= self.target


@dataclass(frozen=True)
class LossPlateau:
    """The training loss fell by less than `share` of itself in the last epoch."""

    share: float = PLATEAU

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether it no longer falls; after one epoch nothing is known."""
        losses = [look.loss for look in looks[-2:] if look.loss is not None]
        return len(losses) > 1 and losses[1] > (1 - self.share) * losses[0]


@dataclass(frozen=True)
class FlowWithin:
    """The flow is within `epsilon` of the dense network's: InCoP's Algorithm 1."""

    epsilon: float

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there."""
        distance = looks[-1].distance
        return distance is not None and distance <= self.epsilon


def drift_epsilon(drift: float, remaining: float, most: float = math.inf) -> float:
    """How far a flow may stay from the dense network's: what an epoch of training without any removal moves it (`drift`), and
    the more the fewer weights remain (`remaining`, a share), but no more than `most`: a smaller network cannot carry the same
    flow. The power was fixed on LeNet-5 and Fashion-MNIST, as what one or two epochs of retraining reach.
    """
    return float(min(most, drift * remaining ** (-2 / 3)))


def allotment(owed: float, most: int, per_epoch: float = PER_EPOCH) -> tuple[int, float]:
    """How many epochs a retraining gets for what removals broke of the flow, and what is carried over to the next.

    `owed` is the sum over the removals, less what epochs were given for, of `||after - before||^2 / ||before||^2`. So a removal
    that breaks little costs no epoch by itself, and a large one costs several, at most `most`; then nothing is carried over.
    """
    epochs = int(min(most, owed / per_epoch)) if per_epoch else most
    return epochs, owed - epochs * per_epoch if epochs < most else 0.0
